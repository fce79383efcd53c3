//! The forwarders started by hand: options stand behind their command, `--forward` is all that is read, and a closed
//! terminal ends the program.

use std::{
    fs,
    net::TcpStream,
    process::{Command, Stdio},
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    pty::openpty,
    sys::signal::Signal,
};

use crate::support::{Process, Server, eventually, run};

const PFWD: &str = env!("CARGO_BIN_EXE_pfwd");
const CONNECT: &str = env!("CARGO_BIN_EXE_qrexec-connect");

/// Exit code, stdout and stderr of a program that ends by itself.
fn ends(program: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = run(command);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn an_option_in_front_of_a_command_is_refused_and_told_where_it_goes() {
    for (program, arguments, command) in [
        (CONNECT, &["--config", "/nonexistent", "check"][..], "check"),
        (CONNECT, &["--calls-per-qube", "120", "serve"], "serve"),
        (CONNECT, &["--exit-idle-time", "7", "status"], "status"),
        (CONNECT, &["--control", "/nowhere", "sessions"], "sessions"),
        (CONNECT, &["--qrexec-client", "/bin/true", "add", "a", "1", "x"], "add"),
        (PFWD, &["--config", "/nonexistent", "status"], "status"),
        (PFWD, &["--forward", "listen=127.0.0.1:1,target=127.0.0.1:2", "sessions"], "sessions"),
    ] {
        let (code, out, err) = ends(program, arguments);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}: {err}");
        for part in [arguments[0], command, "options stand behind the command"] {
            assert!(err.contains(part), "{arguments:?}: {part} is missing in\n{err}");
        }
    }
}

/// A program that was started by nohup, and so these tests, ignores SIGHUP: that has to end before the program starts.
const DEFAULT: [&str; 2] = ["env", "--default-signal=HUP"];

/// `pfwd` with one forward on a port of the kernel's choice, and that port.
fn forwarding(before: &[&str], more: &[&str], stdin: Stdio) -> (Process, u16) {
    let target = Server::tcp().echo();
    let port = target.rsplit('+').next().expect("target=HOST+PORT").to_owned();
    let words = before.iter().chain(&[PFWD]).copied().collect::<Vec<_>>();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(stdin);
    command.args(["--forward", &format!("listen=127.0.0.1:0,target=127.0.0.1:{port}")]).args(more);
    let process = Process::start(command);
    let line = process.stderr.wait_for(" leads to ");
    let address = line.split("127.0.0.1:").nth(1).expect("where it listens");
    let port = address.split(|c: char| !c.is_ascii_digit()).next().and_then(|port| port.parse().ok());
    (process, port.expect("a port"))
}

#[test]
fn forwards_given_by_hand_are_all_that_is_read() {
    let (process, port) = forwarding(&[], &[], Stdio::null());
    process.stderr.wait_for("/etc/pfwd.toml is not read");
    TcpStream::connect(("127.0.0.1", port)).expect("it is served");

    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("other.toml");
    fs::write(&file, "[[forward]]\nlabel = \"x\"\ntaget = \"127.0.0.1:1\"\n").expect("ours");
    let file = file.to_str().expect("plain");
    let both = ["--config", file, "--forward", "listen=127.0.0.1:0,target=127.0.0.1:1"];
    let (code, _, err) = ends(PFWD, &both);
    assert_eq!(code, Some(78));
    assert!(err.contains("taget") && !err.contains("is not read"), "{err}");
}

#[test]
fn a_closed_terminal_ends_it_and_nohup_keeps_it() {
    let terminal = || {
        let pair = openpty(None, None).expect("a terminal");
        // The program must not hold the other end of its own terminal.
        fcntl(&pair.master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("a descriptor");
        (pair.master, Stdio::from(pair.slave))
    };
    let (master, slave) = terminal();
    let (mut process, port) = forwarding(&[&DEFAULT[..], &["setsid", "--ctty", "--wait"]].concat(), &[], slave);
    drop(master);
    let status = process.wait();
    assert!(status.success(), "{status}");
    process.assert_nobody_left();
    TcpStream::connect(("127.0.0.1", port)).expect_err("the port is free again");

    let (master, slave) = terminal();
    let (process, port) = forwarding(&["setsid", "--ctty", "--wait", "nohup"], &[], slave);
    drop(master);
    TcpStream::connect(("127.0.0.1", port)).expect("it goes on");
    drop(process);
}

#[test]
fn without_a_terminal_sighup_reads_a_file_again_and_ends_what_has_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("other.toml");
    fs::write(&file, "# no forward yet\n").expect("ours");
    let detached = [&DEFAULT[..], &["setsid", "--wait"]].concat();
    let (process, _) = forwarding(&detached, &["--config", file.to_str().expect("plain")], Stdio::null());
    signal_child(&process, Signal::SIGHUP);
    process.stderr.wait_for("configuration reloaded");
    drop(process);

    let (mut process, _) = forwarding(&detached, &[], Stdio::null());
    signal_child(&process, Signal::SIGHUP);
    assert!(process.wait().success());
}

/// To the program that `setsid --wait` waits for.
fn signal_child(process: &Process, signal: Signal) {
    let children = format!("/proc/{0}/task/{0}/children", process.pid());
    let mut child = None;
    eventually("it has a child", || {
        let text = fs::read_to_string(&children).unwrap_or_default();
        child = text.split_whitespace().next().and_then(|pid| pid.parse::<i32>().ok());
        child.is_some()
    });
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.expect("seen")), signal).expect("it lives");
}
