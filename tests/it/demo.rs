//! The demo is the real service, and leaves nothing behind.

use std::{fs, net::TcpListener, path::Path, process::Command, time::Duration};

use nix::sys::signal::Signal;

use crate::support::{Process, Wire, eventually};

fn demo(dir: &Path, check: bool) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qrexec-connect"));
    command.arg("demo").env("TMPDIR", dir);
    if check {
        command.arg("--check");
    }
    command
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).expect("it is there").count()
}

#[test]
fn the_check_makes_one_request_through_each_listener() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut process = Process::start(demo(dir.path(), true));
    assert!(process.wait().success());
    let said = process.stdout.to_the_end();
    assert_eq!(said.iter().filter(|l| l.starts_with("ok ")).count(), 3, "{said:#?}");
    assert_eq!(said.last().map(String::as_str), Some("all 3 listeners work"));
    process.assert_nobody_left();
    assert_eq!(entries(dir.path()), 0);
}

#[test]
fn shown_to_somebody_it_works_until_it_is_ended_and_leaves_nothing_behind() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let dir = tempfile::tempdir().expect("a directory");
        let mut process = Process::start(demo(dir.path(), false));
        process.stdout.wait_for("Ctrl-C ends the demo");
        let lines = process.stdout.so_far();
        let curls: Vec<&str> = lines.iter().map(|l| l.trim()).filter(|l| l.starts_with("curl ")).collect();
        assert_eq!(curls.len(), 3, "{lines:#?}");
        for curl in &curls {
            let words: Vec<&str> = curl.split_whitespace().collect();
            let mut wire = match words[1] {
                "--unix-socket" => Wire::unix(Path::new(words[2])),
                url => {
                    let address = url.trim_start_matches("http://").trim_end_matches('/');
                    Wire::tcp(address.parse().expect("an address"))
                }
            };
            std::io::Write::write_all(&mut wire, b"GET / HTTP/1.0\r\n\r\n").expect("connected");
            assert!(wire.read_to_end().ends_with(b"came through qrexec-connect.\n"));
        }
        process.stderr.wait_for_nth(": eof after ", 3);
        process.signal(signal);
        let status = process.wait();
        assert!(status.success(), "{signal}: {status}");
        process.assert_nobody_left();
        eventually("its directory is gone", || entries(dir.path()) == 0);
    }
}

#[test]
fn the_demo_does_not_care_what_it_was_started_with() {
    // descriptors open beyond stderr, and the variables of another service
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = Command::new("/bin/sh");
    let script =
        "exec 3</dev/null 4</dev/null 5</dev/null 7</dev/null; LISTEN_PID=$$ LISTEN_FDS=2 exec \"$0\" demo --check";
    command.args(["-c", script, env!("CARGO_BIN_EXE_qrexec-connect")]).env("TMPDIR", dir.path());
    command.env("NOTIFY_SOCKET", "/nonexistent").env("WATCHDOG_USEC", "1000");
    let mut process = Process::start(command);
    let status = process.wait();
    assert!(status.success(), "{status}: {:#?}", process.stderr.so_far());
    process.assert_nobody_left();
    assert_eq!(entries(dir.path()), 0);
}

#[test]
fn the_stand_in_ends_with_its_service_whatever_the_caller_may_still_send() {
    let server = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let service = format!("qubes.ConnectTCP+{}", server.local_addr().expect("bound").port());
    let mut command = Command::new(env!("CARGO_BIN_EXE_qrexec-connect"));
    command.args(["stand-in", "@default", &service]);
    let mut process = Process::piped(command);
    let caller = process.stdin(); // open until the end
    let (mut far, _) = server.accept().expect("it connects");
    std::io::Write::write_all(&mut far, b"bye\n").expect("connected");
    drop(far);
    assert!(process.wait_within(Duration::from_secs(5)).success());
    let mut said = String::new();
    std::io::Read::read_to_string(&mut process.stdout_pipe(), &mut said).expect("a pipe");
    assert_eq!(said, "bye\n");
    drop(caller);
}
