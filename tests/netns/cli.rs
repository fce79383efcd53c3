//! What `pfwd` prints instead of serving, and how it refuses.

use std::{fs, process::Command};

use crate::{
    sandbox::{inode_of, netns},
    support::run,
};

fn pfwd(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pfwd"));
    command.args(args);
    let output = run(command);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn check_prints_the_plan_or_all_faults_with_their_places() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("pfwd.toml");
    let config = file.to_str().expect("plain");
    fs::write(&file, "[[forward]]\nlabel = \"ssh\"\nlisten = \"0.0.0.0:2222\"\nuds = \"/run/a.sock\"\ntarget = \"10.0.0.5:22\"\nnamespace = \"qdhcp-27a7\"\n").expect("ours");
    let (code, out, err) = pfwd(&["--check", "--config", config, "--forward", "label=ssh,listen=127.0.0.1:2200"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.starts_with("ssh: tcp 127.0.0.1:2200 -> unix /run/a.sock -> tcp 10.0.0.5:22 in qdhcp-27a7\n"), "{out}");
    assert!(out.contains("no network namespace qdhcp-27a7 now") && out.contains("1 listener can be served"), "{out}");

    fs::write(&file, "[defaults]\nmode = 600\n[[forward]]\nlisten = \"0.0.0.0:2222\"\nupsteam = \"x\"\n")
        .expect("ours");
    let (code, out, err) = pfwd(&["--check", "--config", config, "--forward", "uds=relative,target=a+1"]);
    assert_eq!(code, Some(78));
    let err = out + &err;
    for part in [
        "pfwd.toml:2:8",
        "write: mode = \"0600\"",
        "pfwd.toml:5:1",
        "unknown key \"upsteam\"",
        "^^^^^^^",
        "--forward #1",
        "relative path relative",
    ] {
        assert!(err.contains(part), "{part} is missing in\n{err}");
    }
    // and it is refused the same without --check
    assert_eq!(pfwd(&["--config", config]).0, Some(78));
    let (code, _, err) = pfwd(&["--config", "/nowhere/pfwd.toml"]);
    assert_eq!(code, Some(78));
    assert!(err.contains("/nowhere/pfwd.toml: cannot be read"), "{err}");
}

#[test]
fn a_name_inside_a_namespace_is_refused_before_anything_starts() {
    let (code, err, _) = pfwd(&["--check", "--forward", "listen=127.0.0.1:0,namespace=a,target=db.internal:22"]);
    assert_eq!(code, Some(78), "{err}");
    assert!(err.contains("db.internal") && err.contains("use an IP address"), "{err}");
}

#[test]
fn two_forwards_that_serve_one_socket_are_refused() {
    let (code, err, _) =
        pfwd(&["--check", "--forward", "uds=/run/a,target=10.0.0.1:1", "--forward", "uds=/run/a,target=10.0.0.2:2"]);
    assert_eq!(code, Some(78));
    assert!(err.contains("two forwards serve /run/a"), "{err}");
}

#[test]
fn nothing_to_forward_is_said() {
    let (code, _, err) = pfwd(&["--config", "/dev/null"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("nothing to forward"), "{err}");
}

#[test]
fn namespaces_are_shown_as_readlink_and_lsns_know_them() {
    sandbox!();
    netns("here");
    let forward = "listen=127.0.0.1:1,listen_namespace=here,namespace=gone,target=10.0.0.1:2";
    let (code, out, _) = pfwd(&["--show-netns", "--forward", forward]);
    assert_eq!(code, Some(1), "one is missing");
    assert!(out.contains(&format!("here  /run/netns/here  {}", inode_of("here"))), "{out}");
    assert!(out.contains("gone  there is no network namespace at /run/netns/gone"), "{out}");
    assert!(out.contains("    tcp 127.0.0.1:1 in here -> tcp 10.0.0.1:2 in gone"), "{out}");
    netns("gone");
    assert_eq!(pfwd(&["--show-netns", "--forward", forward]).0, Some(0));
}

#[test]
fn the_units_it_prints_are_served_as_the_forwards_are() {
    let (code, out, err) = pfwd(&[
        "--print-units",
        "--forward",
        "label=ssh,uds=/run/qdhcp/ssh.sock,namespace=a,target=192.168.31.201:22,mode=0660",
        "--forward",
        "listen=0.0.0.0:2222,uds=/run/qdhcp/ssh.sock",
    ]);
    assert!(code == Some(0) && err.contains("/etc/pfwd.toml is not read"), "{err}");
    let expected = "\
# /etc/systemd/system/pfwd-ssh.socket
[Socket]
ListenStream=/run/qdhcp/ssh.sock
SocketMode=0660
DirectoryMode=0755
Backlog=4096
FileDescriptorName=namespace=a,target=192.168.31.201+22

# /etc/systemd/system/pfwd-2.socket
[Socket]
ListenStream=0.0.0.0:2222
Backlog=4096
FileDescriptorName=uds=/run/qdhcp/ssh.sock

";
    assert_eq!(out, expected);
}

#[test]
fn the_shipped_example_means_what_it_says() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/examples/pfwd.toml");
    let (code, out, err) = pfwd(&["--check", "--config", example]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert_eq!(out.lines().filter(|line| line.contains(" -> ")).count(), 5, "{out}");
}
