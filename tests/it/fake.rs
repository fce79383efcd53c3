//! The fake `qrexec-client-vm` does what it promises; so the tests that use it mean something.

use std::{
    io::{self, Read, Write},
    os::unix::process::ExitStatusExt,
    process::{ChildStderr, ChildStdin, ChildStdout, Command, Stdio},
    thread,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::Signal,
    unistd::pipe2,
};

use crate::support::{
    FakeQrexec, Pace, Process, SERVICE_SEED, Server, Sum, eventually, example, fake_qrexec::What, receive, run, send,
};

/// A call with three pipes, our ends in our hands.
struct Call {
    process: Process,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
}

impl Call {
    fn of(command: Command) -> Self {
        let mut process = Process::piped(command);
        let (stdin, stdout, stderr) = (process.stdin(), process.stdout_pipe(), process.stderr_pipe());
        Self { process, stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr) }
    }

    fn to(fake: &FakeQrexec, service: &str) -> Self {
        Self::of(fake.call("work", service))
    }

    fn stdin(&mut self) -> &mut ChildStdin {
        self.stdin.as_mut().expect("not closed yet")
    }

    fn stdout(&mut self) -> &mut ChildStdout {
        self.stdout.as_mut().expect("not closed yet")
    }

    #[track_caller]
    fn expect(&mut self, expected: &[u8]) {
        let mut bytes = vec![0; expected.len()];
        self.stdout().read_exact(&mut bytes).expect("so many bytes");
        assert_eq!(bytes.escape_ascii().to_string(), expected.escape_ascii().to_string());
    }

    /// What still comes on stdout, to its end.
    fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.stdout().read_to_end(&mut bytes).expect("a pipe can be read");
        bytes
    }

    /// What comes on stderr, to its end.
    fn stderr(&mut self) -> String {
        let mut text = Vec::new();
        self.stderr.as_mut().expect("not closed yet").read_to_end(&mut text).expect("a pipe can be read");
        String::from_utf8_lossy(&text).into_owned()
    }

    #[track_caller]
    fn code(&mut self) -> i32 {
        self.process.wait().code().expect("an exit, no signal")
    }
}

#[test]
fn echo_returns_every_byte_and_the_end() {
    let fake = FakeQrexec::new();
    let mut call = Call::to(&fake, "test.Echo");
    let stdin = call.stdin.take().expect("open");
    let sender = thread::spawn(move || send(stdin, 7, 30_000_000, Pace::HALTING));
    receive(call.stdout(), 7, 30_000_000, Pace::BULK).expect("the same comes back");
    sender.join().expect("no panic").expect("all is taken");
    assert_eq!(call.rest(), b"");
    assert_eq!(call.code(), 0);
    let moved = What::End { code: 0, up_bytes: 30_000_000, down_bytes: 30_000_000 };
    assert_eq!(fake.count(|w| *w == moved), 1);
}

#[test]
fn descriptors_turn_nonblocking_exactly_when_the_call_is_connected() {
    let fake = FakeQrexec::new();
    let (their_end, our_end) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
    let shared = their_end.try_clone().expect("a free descriptor");
    let mut command = fake.call("work", "test.Gate+answer");
    command.stdin(their_end);
    let mut process = Process::start(command);
    fake.wait_for_started(1);
    assert_eq!((process.nonblocking(0), process.nonblocking(1), process.nonblocking(2)), (false, false, false));

    fake.open("answer");
    eventually("fd 0 is non-blocking", || process.nonblocking(0));
    // not a byte has moved, and it is the file description that changed, which we share
    let flags = fcntl(&shared, FcntlArg::F_GETFL).expect("flags");
    assert!(OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK));
    eventually("fd 1 is non-blocking", || process.nonblocking(1));
    assert!(!process.nonblocking(2), "stderr stays as it was");
    drop(our_end);
    assert!(process.wait().success());
    let flags = fcntl(&shared, FcntlArg::F_GETFL).expect("flags");
    assert!(!OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK), "it leaves as it came");
}

#[test]
fn a_call_in_set_up_ignores_closed_pipes() {
    let fake = FakeQrexec::new();
    let mut call = Call::to(&fake, "test.Gate+answer");
    fake.wait_for_started(1);
    (call.stdin, call.stdout) = (None, None);
    // It could end at any time from here on; that it does not can only be seen at the next event, its answer.
    assert!(call.process.running());
    fake.open("answer");
    fake.wait_for_connected(1);
    assert_eq!(call.code(), 0);
}

#[test]
fn a_call_that_is_never_answered_dies_of_sigterm_and_says_so() {
    let fake = FakeQrexec::new();
    let mut call = Call::to(&fake, "test.Never");
    fake.wait_for_started(1);
    (call.stdin, call.stdout) = (None, None);
    call.process.signal(Signal::SIGTERM);
    let status = call.process.wait();
    assert_eq!(status.signal(), Some(Signal::SIGTERM as i32));
    assert_eq!((fake.connected(), fake.ended()), (0, 1));
}

#[test]
fn a_stubborn_call_ignores_sigterm() {
    let fake = FakeQrexec::new();
    let mut call = Call::to(&fake, "test.NeverKill");
    fake.wait_for_started(1);
    call.process.signal(Signal::SIGTERM);
    let proc = format!("/proc/{}", call.process.pid());
    let status = std::fs::read_to_string(format!("{proc}/status")).expect("it runs");
    let pending = status.lines().find(|l| l.starts_with("ShdPnd:")).expect("proc(5)");
    assert_eq!(pending, "ShdPnd:\t0000000000004000", "SIGTERM is pending");
    let threads = std::fs::read_dir(format!("{proc}/task")).expect("it runs").count();
    assert_eq!(threads, 1, "and nobody is there to take it up");
    assert!(call.process.running());
    call.process.signal(Signal::SIGKILL);
    call.process.wait();
    assert_eq!(fake.ended(), 0, "nobody hears of a SIGKILL");
}

#[test]
fn exit_codes_are_those_of_qrexec() {
    for (service, code, connected, stderr) in [
        ("test.Refuse", 126, 0, "Request refused"),
        ("test.Refuse+10", 126, 0, "Request refused"),
        ("test.LocalFailure", 1, 0, "No such file"),
        ("test.Missing", 127, 1, ""),
        ("unheard.Of+arg", 127, 1, ""),
        ("test.Broken", 125, 1, ""),
        ("qubes.ConnectTCP", 125, 1, ""),
        ("qubes.ConnectTCP+99999", 125, 1, ""),
        ("test.Lost+0", 255, 1, "closed early"),
        ("test.Exit+0", 0, 1, ""),
        ("test.Exit+124", 124, 1, ""),
        ("test.Signal+9", 137, 1, ""),
    ] {
        let fake = FakeQrexec::new();
        let mut call = Call::to(&fake, service);
        assert_eq!(call.code(), code, "{service}");
        assert_eq!(fake.connected(), connected, "{service}");
        assert_eq!(call.rest(), b"", "{service}");
        let said = call.stderr();
        assert!(said.contains(stderr) && said.is_empty() == stderr.is_empty(), "{service}: {said:?}");
    }
}

#[test]
fn the_program_itself_may_die() {
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGABRT] {
        let fake = FakeQrexec::new();
        let mut call = Call::to(&fake, &format!("test.Die+{}", signal as i32));
        let status = call.process.wait();
        assert_eq!(status.signal(), Some(signal as i32));
        assert_eq!(fake.connected(), 1);
    }
}

#[test]
fn the_command_line_is_read_as_getopt_reads_it() {
    let fake = FakeQrexec::new();
    let with = |args: &[&str]| {
        let mut command = Command::new(fake.program());
        command.args(args).stdin(Stdio::null());
        let output = run(command);
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    let args = |text: &str| (Some(0), format!("{text}\n"));
    assert_eq!(with(&["work", "test.Args"]), args("work test.Args"));
    assert_eq!(with(&["--", "@default", "test.Args+1 2"]), args("@default test.Args+1 2"));
    let all = ["-t", "-T", "--buffer-size=0x1000", "--buffer-size", "65536", "--no-filter-escape-chars-stdout"];
    let rest = ["--filter-escape-chars-stderr", "--agent-socket=/", "--agent-socket", "/", "--", "a", "test.Args"];
    assert_eq!(with(&[&all[..], &rest[..]].concat()), args("a test.Args"));
    assert_eq!(with(&["--agent-socket=/nowhere", "a", "test.Args"]).0, Some(1));
    for wrong in [&["--use-stdin-socket", "a", "test.Args"][..], &["a"], &[], &["a", "b", "c"]] {
        assert_eq!(with(wrong).0, Some(2), "{wrong:?}");
    }
    assert_eq!(with(&["--buffer-size=x", "a", "test.Args"]).0, Some(1));
    assert_eq!(with(&["--help"]).0, Some(0));
}

#[test]
fn each_direction_ends_on_its_own() {
    // up first: the service answers after our end of stream
    let fake = FakeQrexec::new();
    let mut call = Call::to(&fake, "test.HalfCloseUp");
    send(call.stdin(), 3, 1_000_003, Pace::CRUMBS).expect("all is taken");
    call.stdin = None;
    assert_eq!(String::from_utf8_lossy(&call.rest()), format!("{}\n", Sum::of_pattern(3, 1_000_003)));
    assert_eq!(call.code(), 0);

    // down first: its end comes while it still takes what we send
    let mut call = Call::to(&fake, "test.HalfCloseDown");
    assert_eq!(call.rest(), b"");
    assert!(call.process.running());
    // (the number may be that of another file by now)
    eventually("fd 1 is no pipe any more", || {
        call.process.descriptors().get(&1).is_none_or(|to| !to.starts_with("pipe:"))
    });
    send(call.stdin(), 4, 3_000_000, Pace::BULK).expect("all is taken");
    call.stdin = None;
    assert_eq!(Sum::of(&fake.received()), Sum::of_pattern(4, 3_000_000));
    assert_eq!(call.code(), 0);
}

#[test]
fn a_service_may_end_while_its_peer_still_sends() {
    let fake = FakeQrexec::new();
    let mut call = Call::to(&fake, "test.EndsFirst+2000000");
    let stdin = call.stdin.take().expect("open");
    let sender = thread::spawn(move || send(stdin, 5, 200_000_000, Pace::BULK));
    receive(call.stdout(), SERVICE_SEED, 2_000_000, Pace::CRUMBS).expect("all of the reply");
    assert_eq!(call.rest(), b"");
    assert_eq!(call.code(), 0);
    let sent = sender.join().expect("no panic");
    assert_eq!(sent.expect_err("nobody reads it").kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_service_speaks_first_or_second() {
    let fake = FakeQrexec::new();
    let mut call = Call::to(&fake, "test.SpeaksFirst");
    call.expect(b"ready\n");
    call.stdin().write_all(b"and echo").expect("taken");
    call.expect(b"and echo");
    call.stdin = None;
    assert_eq!(call.code(), 0);

    let mut call = Call::to(&fake, "test.SpeaksSecond");
    fake.wait_for_connected(2);
    assert!(call.process.nonblocking(0), "connected, and not a byte moved");
    call.stdin().write_all(b"hello\nrest").expect("taken");
    call.stdin = None;
    assert_eq!(call.rest(), b"heard: hello\nrest");
    assert_eq!(call.code(), 0);
}

#[test]
fn an_unread_stderr_stops_the_whole_call() {
    let fake = FakeQrexec::new();
    let mut call = Call::to(&fake, "test.StderrFlood+300000");
    fake.wait_for_connected(1);
    call.stdin().write_all(b"hello").expect("the pipe takes it");
    // the call stands still in a write to fd 2
    let stat = format!("/proc/{}/wchan", call.process.pid());
    eventually("blocked in a write to a pipe", || {
        std::fs::read_to_string(&stat).is_ok_and(|at| at.contains("pipe_write"))
            || std::fs::read_to_string(format!("/proc/{}/syscall", call.process.pid()))
                .is_ok_and(|at| at.starts_with("1 0x2 "))
    });
    let stderr = call.stderr.take().expect("open");
    let reader = thread::spawn(move || io::copy(&mut { stderr }, &mut io::sink()));
    call.expect(b"hello");
    call.stdin = None;
    assert_eq!(call.code(), 0);
    assert_eq!(reader.join().expect("no panic").expect("a pipe can be read"), 300_000);
}

#[test]
fn escapes_are_filtered_when_asked() {
    let fake = FakeQrexec::new();
    for (option, expected) in [
        ("-T", "_[31mred_[0m and __ end\n"),
        ("--no-filter-escape-chars-stderr", "\x1b[31mred\x1b[0m and \u{fffd}\0 end\n"),
    ] {
        let mut command = Command::new(fake.program());
        command.args([option, "work", "test.StderrEscapes"]);
        let mut call = Call::of(command);
        call.stdin = None;
        assert_eq!(call.stderr(), expected);
    }
}

#[test]
fn a_peer_that_stopped_reading_is_not_noticed() {
    let fake = FakeQrexec::new();
    let mut call = Call::to(&fake, "test.Echo");
    call.stdin().write_all(b"x").expect("taken");
    call.expect(b"x");
    call.stdout = None;
    send(call.stdin(), 6, 5_000_000, Pace::BULK).expect("it is all taken, and thrown away");
    call.stdin = None;
    assert_eq!(call.code(), 0);
}

#[test]
fn a_source_can_be_verified_and_a_sink_takes_all() {
    let fake = FakeQrexec::new();
    let mut call = Call::to(&fake, "test.Source+10000001");
    receive(call.stdout(), SERVICE_SEED, 10_000_001, Pace::HALTING).expect("the pattern");
    assert_eq!(call.rest(), b"");
    assert!(call.process.running(), "its own end is not the call's");
    call.stdin = None;
    assert_eq!(call.code(), 0);

    let mut call = Call::to(&fake, "test.Sink");
    send(call.stdin(), 8, 10_000_000, Pace::BULK).expect("all is taken");
    call.stdin = None;
    assert_eq!((call.rest().len(), call.code()), (0, 0));
}

#[test]
fn tcp_services_keep_half_closes_and_connect_tcp_ends_with_the_server() {
    let fake = FakeQrexec::new();
    let server = Server::tcp();
    let port = server.port();
    let accept = || server.accept();

    // the peer half-closes first: the server's reply still comes
    let mut call = Call::to(&fake, &format!("qubes.ConnectTCP+{port}"));
    let mut wire = accept();
    call.stdin().write_all(b"question").expect("taken");
    call.stdin = None;
    assert_eq!(wire.read_to_end(), b"question");
    wire.write_all(b"answer").expect("taken");
    drop(wire);
    assert_eq!(call.rest(), b"answer");
    assert_eq!(call.code(), 0);

    // the server half-closes first: with test.Tcp the peer's bytes still arrive
    let mut call = Call::to(&fake, &format!("test.Tcp+{port}"));
    let mut wire = accept();
    wire.write_all(b"bye").expect("taken");
    wire.half_close();
    assert_eq!(call.rest(), b"bye");
    assert!(call.process.running());
    call.stdin().write_all(b"late").expect("taken");
    call.stdin = None;
    assert_eq!(wire.read_to_end(), b"late");
    assert_eq!(call.code(), 0);

    // … with qubes.ConnectTCP the call is over
    let mut call = Call::to(&fake, &format!("qubes.ConnectTCP+{port}"));
    let wire = accept();
    wire.half_close();
    assert_eq!(call.code(), 0);
    assert_eq!(call.rest(), b"");

    // a reset arrives as an end
    let mut call = Call::to(&fake, &format!("test.Tcp+{port}"));
    accept().reset();
    assert_eq!(call.rest(), b"");
    call.stdin = None;
    assert_eq!(call.code(), 0);

    // nobody there
    drop(server);
    assert_eq!(Call::to(&fake, &format!("qubes.ConnectTCP+{port}")).code(), 125);
}

#[test]
fn a_stalled_service_takes_no_more_than_the_pipes_hold() {
    let fake = FakeQrexec::new();
    let mut call = Call::to(&fake, "test.Stall");
    fake.wait_for_connected(1);
    let stdin = call.stdin.take().expect("open");
    fcntl(&stdin, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("our own end");
    let mut taken = 0;
    let mut stdin = stdin;
    // full, and full again after whatever was on its way has moved on
    eventually("nothing is taken any more", || match stdin.write(&[0; 4096]) {
        Ok(n) => {
            taken += n;
            false
        }
        Err(e) => e.kind() == io::ErrorKind::WouldBlock && taken > 128 * 1024,
    });
    assert!(taken < 1_000_000, "{taken}");
    assert!(call.process.running());
}

#[test]
fn the_journal_counts_calls_that_were_there_at_once() {
    let fake = FakeQrexec::new();
    let calls: Vec<Call> = (0..5).map(|_| Call::to(&fake, "test.Gate+all")).collect();
    fake.wait_for_started(5);
    assert_eq!((fake.connected(), fake.ended()), (0, 0));
    fake.open("all");
    fake.wait_for_connected(5);
    for mut call in calls {
        call.stdin = None;
        call.code();
    }
    let mut last = Call::to(&fake, "test.Exit+3");
    last.code();
    fake.wait_for_ended(6);
    assert_eq!(fake.most_at_once(), 5);
    let start = What::Start { target: "work".to_owned(), service: "test.Exit+3".to_owned() };
    assert_eq!(fake.count(|w| *w == start), 1);
}

#[test]
fn the_journal_is_found_behind_a_symlink_and_by_the_environment() {
    let fake = FakeQrexec::new();
    let elsewhere = tempfile::tempdir().expect("a directory");
    std::os::unix::fs::symlink(fake.program(), elsewhere.path().join("link")).expect("new");
    let mut command = Command::new(elsewhere.path().join("link"));
    command.args(["a", "test.Exit+0"]);
    // the link leads through the fake's directory to the program itself, which has no journal beside it
    assert!(run(command).status.success());
    assert_eq!(fake.started(), 0);

    let mut command = Command::new(example("fake-qrexec-client-vm"));
    command.args(["a", "test.Exit+0"]).env("FAKE_QREXEC_DIR", fake.dir());
    assert!(run(command).status.success());
    assert_eq!(fake.started(), 1);

    let mut command = Command::new(example("fake-qrexec-client-vm"));
    command.args(["a", "test.Exit+0"]).env("FAKE_QREXEC_LOG", elsewhere.path().join("log"));
    assert!(run(command).status.success());
    assert!(elsewhere.path().join("log").exists());
}
