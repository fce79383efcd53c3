//! What a handover says and carries, damaged on its way: it costs the session that it is about.

use std::io::{Read, Write};

use crate::support::{Activated, Activation, FakeQrexec, Handed, Pace, Server, Wire, exchange};

/// The id of a record, as its end event in the log begins.
fn id(line: &str) -> &str {
    let at = line.find("\"id\":\"").expect("each record has one") + 6;
    &line[at..at + 8]
}

/// Four sessions over TCP, one of them a call: peers, and the far ends of those that are not.
struct Four {
    fake: FakeQrexec,
    service: Activated,
    peers: Vec<Wire>,
    fars: Vec<Wire>,
}

impl Four {
    fn new() -> Self {
        let (fake, server) = (FakeQrexec::new(), Server::tcp());
        let service = Activation::calling(&fake).tcp(&server.name()).tcp("work test.Echo").start().ready();
        let (mut peers, fars): (Vec<_>, Vec<_>) = (0..3).map(|_| (service.connect(0), server.accept())).unzip();
        let mut call = service.connect(1);
        call.write_all(b"x").expect("connected");
        call.expect(b"x");
        peers.push(call);
        service.wait_for_starts(4);
        Self { fake, service, peers, fars }
    }

    /// Restarts the service with a handover that `damage` has changed.
    fn restart(&mut self, damage: impl FnOnce(&mut Handed)) {
        self.service.park();
        let mut handed = Handed::take(&self.service.notifications);
        assert_eq!(handed.lines().len(), 4);
        damage(&mut handed);
        handed.put_back();
        start_again(&mut self.service);
    }

    /// How many of the peers still have their session; the others' connections broke, and not with a plain end.
    fn alive(&mut self) -> usize {
        self.fars.iter_mut().for_each(|far| {
            let _ = far.write_all(b"y");
        });
        let call = self.peers.last_mut().expect("four");
        if let Err(e) = call.write_all(b"y") {
            // told once, here and not to the read
            assert!([std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe].contains(&e.kind()), "{e}");
            self.peers.pop();
        }
        let mut alive = 0;
        for peer in &mut self.peers {
            let mut byte = [0];
            match peer.read(&mut byte) {
                Ok(1) => alive += 1,
                Ok(_) => panic!("a plain end of a session that was lost"),
                Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}"),
            }
        }
        alive
    }
}

/// Starts a service that was parked, until it is ready.
fn start_again(service: &mut Activated) {
    let ready = service.notifications.count("READY", "1");
    service.start_again();
    service
        .notifications
        .wait("READY", |m| (m.iter().filter(|m| m.get("READY") == Some("1")).count() > ready).then_some(()));
}

/// The lines about the end of the session `id` in the whole log.
fn ends_of(service: &Activated, id: &str) -> Vec<String> {
    let about = format!("session {id}");
    service
        .log()
        .into_iter()
        .filter(|l| l.contains(&about) && (l.contains(" up, ") || l.contains("taken up")))
        .collect()
}

#[test]
fn a_record_of_another_version_ends_that_session_alone() {
    for lost in [0, 3] {
        let mut four = Four::new();
        let mut gone = String::new();
        four.restart(|handed| {
            let mut lines = handed.lines();
            let at = lines.iter().position(|l| l.contains("Pipes") == (lost == 3)).expect("one of them");
            gone = id(&lines[at]).to_owned();
            lines[at] = lines[at].replacen("{\"v\":1,", "{\"v\":99,", 1);
            assert!(lines[at].contains("99"), "{}", lines[at]);
            handed.set_lines(&lines);
        });
        let line = four.service.process.stderr.wait_for("could not be taken up: ");
        assert!(line.contains(&gone) && line.contains("version 99"), "{line}");
        assert_eq!(four.alive(), 3);
        assert_eq!(ends_of(&four.service, &gone).len(), 1);
        if lost == 3 {
            four.fake.wait_for_ended(1);
        }
        drop((four.peers, four.fars));
        four.service.ends(3);
        four.service.stop();
    }
}

#[test]
fn a_damaged_record_ends_that_session_alone() {
    let mut four = Four::new();
    four.restart(|handed| {
        let mut lines = handed.lines();
        let half = lines[1].len() / 2;
        lines[1].truncate(half);
        lines[2] = lines[2].replacen("\"stage\":{\"", "\"stage\":{\"Un", 1);
        handed.set_lines(&lines);
    });
    four.service.process.stderr.wait_for_nth("could not be taken up: its record is damaged", 2);
    assert_eq!(four.alive(), 2);
    drop((four.peers, four.fars));
    four.service.ends(2);
    four.fake.wait_for_ended(1);
    four.service.stop();
}

#[test]
fn a_descriptor_that_does_not_come_ends_that_session_alone() {
    let mut four = Four::new();
    let mut gone = String::new();
    four.restart(|handed| {
        gone = id(handed.lines().last().expect("four")).to_owned();
        handed.batches.last_mut().expect("one").1.pop();
    });
    let line = four.service.process.stderr.wait_for("could not be taken up: ");
    assert!(line.contains(&gone) && line.contains("did not come"), "{line}");
    assert_eq!(four.alive(), 3);
    assert_eq!(ends_of(&four.service, &gone).len(), 1);
    drop((four.peers, four.fars));
    four.service.ends(3);
    four.fake.wait_for_ended(1);
    four.service.stop();
}

#[test]
fn records_that_nobody_can_read_cost_their_sessions_and_not_the_service() {
    for damage in [
        |handed: &mut Handed| handed.records[4] = 77, // a format of the future
        |handed: &mut Handed| handed.records.truncate(30),
        |handed: &mut Handed| handed.records[0] = b'X',
    ] {
        let mut four = Four::new();
        four.restart(damage);
        four.service.process.stderr.wait_for("could not be taken up: ");
        assert_eq!(four.alive(), 0);
        four.fake.wait_for_ended(1);
        exchange(&mut four.service.connect(1), 1, 1000, Pace::BULK);
        assert_eq!(four.service.notifications.stored(), Vec::<String>::new());
        four.service.stop();
    }
}

#[test]
fn a_handover_that_says_what_nobody_sends_is_survived() {
    for (said, with) in [(&b"\xff\xff\xff\xff"[..], 2), (b"more than four bytes", 2), (b"", 1)] {
        let mut four = Four::new();
        four.restart(|handed| {
            let null = || std::fs::File::open("/dev/null").expect("it is there").into();
            let stray = (said.to_vec(), (0..with).map(|_| null()).collect());
            handed.batches.insert(0, stray);
        });
        four.service.process.stderr.wait_for("ready: 2 listeners, ");
        four.alive();
        exchange(&mut four.service.connect(1), 1, 1000, Pace::BULK);
        drop((four.peers, four.fars));
        four.service.stop();
    }
}

/// A record with another number in this field.
fn with(line: &str, field: &str, number: u64) -> String {
    let (before, rest) = line.split_once(&format!("\"{field}\":")).expect("it has the field");
    format!("{before}\"{field}\":{number}{}", rest.trim_start_matches(|c: char| c.is_ascii_digit()))
}

#[test]
fn a_connection_behind_five_calls_that_are_undecided_for_a_minute_is_reset_after_ten_seconds_with_the_reason() {
    let fake = FakeQrexec::new();
    let mut service = Activation::calling(&fake).tcp("work test.Gate+open").start().ready();
    let mut peers: Vec<Wire> = (0..7).map(|_| service.connect(0)).collect();
    fake.wait_for_started(5);
    service.park();
    let mut handed = Handed::take(&service.notifications);
    // As if time had passed: five calls are 80 s old, and of the others one came 55 s after them and one 71 s.
    let mut ages = [25_000, 9_000].into_iter();
    let mut late = String::new();
    let aged = |line: String| {
        if line.contains("\"taken_ms\"") {
            return with(&with(&line, "age_ms", 80_000), "taken_ms", 80_000);
        }
        let line = with(&line, "age_ms", ages.next().expect("two wait"));
        late.clone_from(&line);
        line
    };
    let lines: Vec<String> = handed.lines().into_iter().map(aged).collect();
    assert_eq!((lines.len(), ages.next()), (7, None));
    handed.set_lines(&lines);
    handed.put_back();
    start_again(&mut service);
    let late = peers.iter().position(|peer| late.contains(&peer.local())).expect("one of them");
    let mut late = peers.remove(late);
    let address = late.local();
    late.expect_reset();
    let end = service.end();
    assert_eq!((end.brief(), end.peer), ("timeout up 0 down 0".to_owned(), address));
    let why = "not begun: 5 undecided calls of test.Gate+open to work for more than a minute; ";
    assert!(end.note.contains(why), "{}", end.note);
    let ended = service.process.stderr.wait_for(": timeout after ");
    let ms = ended.split(": timeout after ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    assert!(ms.is_some_and(|ms| ms >= 10_000), "{ended}");
    assert_eq!(fake.started(), 5);
    // The earlier ones lose nothing.
    fake.open("open");
    peers.into_iter().for_each(|mut peer| exchange(&mut peer, 1, 1000, Pace::BULK));
    service.ends(7);
    service.stop();
}
