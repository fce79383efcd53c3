//! Where the log goes, and that nothing that comes from outside can add a line.

use std::{
    fs,
    os::{fd::AsFd, unix::fs::MetadataExt},
    process::Command,
};

use crate::support::{Activation, Pace, Server, exchange};

#[test]
fn a_journal_stream_of_another_is_not_ours() {
    // JOURNAL_STREAM stays set when stderr is redirected: here it is somebody else's.
    let name = Server::tcp().echo();
    let null = fs::metadata("/dev/null").expect("it is there");
    for foreign in [format!("{}:{}", null.dev(), null.ino()), "1:2".into(), "nonsense".into(), String::new()] {
        let service = Activation::qrexec_connect().tcp(&name).env("JOURNAL_STREAM", &foreign).start().ready();
        service.process.stderr.wait_for("ready: 1 listener, 0 sessions");
        exchange(&mut service.connect(0), 1, 1000, Pace::BULK);
        assert_eq!(service.end().end, "eof");
        service.stop();
    }
}

#[test]
fn a_stderr_that_nobody_reads_stops_no_session() {
    let name = Server::tcp().echo();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    nix::fcntl::fcntl(writer.as_fd(), nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).expect("pipes can be small");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("fd");
    std::os::unix::fs::symlink(
        format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&writer)),
        &path,
    )
    .expect("a new path");
    let service = Activation::of("/bin/sh")
        .args(["-c", "exec 2>\"$1\"; exec \"$0\"", env!("CARGO_BIN_EXE_qrexec-connect")])
        .arg(&path)
        .tcp(&name)
        .start()
        .ready();
    // some 200 bytes for each session's two lines, with room for 4096
    for round in 0..60 {
        exchange(&mut service.connect(0), round, 100, Pace::BULK);
    }
    drop(writer);
    let said = std::thread::spawn(move || std::io::read_to_string(reader).expect("UTF-8"));
    service.stop();
    let said = said.join().expect("no panic");
    assert_eq!(said.matches(": eof after ").count(), 60);
}

#[test]
fn a_closed_stderr_ends_nothing() {
    let name = Server::tcp().echo();
    let service = Activation::of("/bin/sh")
        .args(["-c", "exec \"$0\" 2>&-", env!("CARGO_BIN_EXE_qrexec-connect")])
        .tcp(&name)
        .start()
        .ready();
    exchange(&mut service.connect(0), 1, 1000, Pace::BULK);
    service.stop();
}

#[test]
fn hostile_names_and_paths_write_no_lines_of_their_own() {
    let evil = "work\u{1b}[2J\nready; forged\r";
    // systemd passes printable ASCII only; whoever else starts the service may not
    let service = Activation::qrexec_connect().tcp(evil).tcp(&format!("uds=/tmp/{evil}")).start().ready();
    let said: Vec<String> =
        [0, 1].map(|i| service.process.stderr.wait_for(&format!("127.0.0.1:{} ", service.port(i)))).to_vec();
    for line in &said {
        assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)), "{line:?}");
    }
    let process = service.stop();
    assert!(!process.stderr.so_far().iter().any(|l| l.starts_with("ready; forged")));
}

#[test]
fn version_and_help_are_for_people() {
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qrexec-connect"));
        command.args(args);
        support::run(command)
    };
    let help = run(&["--help"]);
    assert!(help.status.success());
    let text = String::from_utf8_lossy(&help.stdout).into_owned();
    for needed in ["FileDescriptorName=", "systemctl --user", "demo", "serve"] {
        assert!(text.contains(needed), "{needed}");
    }
    assert!(run(&["--version"]).status.success());
    assert_eq!(run(&["--no-such-option"]).status.code(), Some(2));
    assert_eq!(run(&["no-such-command"]).status.code(), Some(2));
    assert_eq!(run(&["serve", "--calls-per-qube", "0"]).status.code(), Some(2));
    assert_eq!(run(&["serve", "--exit-idle-time", "0"]).status.code(), Some(2));
}
