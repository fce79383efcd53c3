//! Limits: what exceeds them waits in the kernel's queue, and a want of descriptors neither ends nor spins the service.

use std::{io::Write, thread, time::Duration};

use crate::support::{Activated, Activation, FakeQrexec, Pace, Server, Wire, ends, eventually, exchange};

#[test]
fn what_exceeds_max_connections_waits_and_is_served_later() {
    let server = Server::tcp();
    let name = format!("{},max_connections=3", server.name());
    let service = Activation::qrexec_connect().tcp(&name).unix(&name).start().ready();
    for listener in 0..2 {
        let (mut peers, mut fars): (Vec<Wire>, Vec<Wire>) =
            (0..3).map(|_| (service.connect(listener), server.accept())).unzip();
        let mut late: Vec<Wire> = (0..4).map(|_| service.connect(listener)).collect();
        late.iter_mut().for_each(|peer| peer.write_all(b"patient").expect("the kernel takes it"));
        let line = service.process.stderr.wait_for_nth("max_connections=3 is reached", listener + 1);
        assert!(line.contains("in the backlog"), "{line}");
        assert!(server.try_accept().is_none(), "three are enough");
        // one goes, one comes
        while let (Some(mut peer), Some(far)) = (peers.pop(), fars.pop()) {
            drop(far);
            peer.expect_end();
            drop(peer);
            if late.is_empty() {
                continue;
            }
            let mut next = server.accept();
            next.expect(b"patient");
            peers.insert(0, late.remove(0));
            fars.insert(0, next);
        }
        service.ends(7 * (listener + 1));
    }
    service.stop();
}

#[test]
fn an_idle_listener_at_its_limit_says_nothing() {
    let server = Server::tcp();
    let service = Activation::qrexec_connect().tcp(&format!("{},max_connections=1", server.name())).start().ready();
    let rest = service.process.rest();
    for round in 1..=5 {
        let mut peer = service.connect(0);
        drop(server.accept());
        peer.expect_end();
        drop(peer);
        service.ends(round);
        service.process.wait_for_rest(&rest);
    }
    let process = service.stop();
    assert_eq!(process.stderr.count("backlog"), 0, "{:#?}", process.stderr.so_far());
}

/// Clock ticks (1/100 s) of processor time that the service has used.
fn ticks(service: &Activated) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", service.process.pid())).expect("it runs");
    let after_name = stat.rsplit(") ").next().expect("proc(5)");
    let field = |n: usize| after_name.split(' ').nth(n - 3).and_then(|f| f.parse::<u64>().ok()).expect("proc(5)");
    field(14) + field(15)
}

#[test]
fn timing_without_descriptors_the_service_waits_without_spinning_and_then_goes_on() {
    let name = Server::tcp().echo();
    let service = Activation::qrexec_connect().tcp(&name).unix(&name).nofile(56).start().ready();
    let rest = service.process.rest();
    // two descriptors a session: more connections than there is room for
    let mut peers: Vec<Wire> = (0..60).map(|i| service.connect(i % 2)).collect();
    let line = service.process.stderr.wait_for("cannot accept on ");
    assert!(line.contains("Too many open files"), "{line}");
    let before = ticks(&service);
    thread::sleep(Duration::from_secs(1)); // the time measured, not waited for
    let used = ticks(&service) - before;
    assert!(used < 30, "{used} ticks in a second of waiting");
    assert!(service.process.stderr.count("cannot accept on ") <= 2, "at most once a minute for each listener");
    assert_eq!(service.process.stderr.count("did not take a message"), 0, "the manager still hears of it");

    // some sessions may have been told that there is no descriptor to dial with; the rest work, now or later
    let mut served = 0usize;
    for peer in &mut peers {
        let mut byte = [0];
        let asked = peer.write_all(b"x").and_then(|()| std::io::Read::read(peer, &mut byte));
        served += usize::from(asked.is_ok_and(|n| n == 1));
        peer.half_close_if_there();
    }
    assert!(served >= 10, "{served}");
    drop(peers);
    service.process.wait_for_rest(&rest);
    for (seed, listener) in [(1, 0), (2, 1)] {
        exchange(&mut service.connect(listener), seed, 10_000, Pace::BULK);
    }
    for end in ends(&service.process.stderr.so_far()) {
        assert!(end.end == "eof" || end.note.contains("Too many open files"), "{end:?}");
    }
    service.stop();
}

#[test]
fn a_call_that_finds_no_descriptors_fails_alone() {
    let fake = FakeQrexec::new();
    let service = Activation::calling(&fake).tcp("work test.SpeaksFirst").nofile(56).start().ready();
    let rest = service.process.rest();
    let mut peers: Vec<Wire> = (0..12).map(|_| service.connect(0)).collect();
    eventually("each of them has a call or an end", || {
        let lines = service.process.stderr.so_far();
        support::starts(&lines).len() + ends(&lines).len() >= 4
    });
    let mut served = 0;
    for peer in &mut peers {
        let mut line = [0; 6];
        served += usize::from(std::io::Read::read_exact(peer, &mut line).is_ok());
        peer.half_close_if_there();
    }
    assert!(served >= 2, "{served}");
    drop(peers);
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn timing_a_thousand_sessions_are_no_burden() {
    let dir = tempfile::tempdir().expect("a directory");
    let unix = Server::unix(&dir.path().join("server.sock")).echo();
    let service = Activation::qrexec_connect().unix(&unix).start().ready();
    let rest = service.process.rest();
    let mut peers: Vec<Wire> = (0..1000).map(|_| service.connect(0)).collect();
    for peer in &mut peers {
        peer.write_all(b"x").expect("connected");
    }
    for peer in &mut peers {
        peer.expect(b"x");
    }
    let before = ticks(&service);
    thread::sleep(Duration::from_secs(1)); // the time measured
    assert!(ticks(&service) - before <= 3, "idle sessions cost nothing");
    service.notifications.wait_for("STATUS", |s| s == "1 listener, 1000 sessions");
    drop(peers);
    service.ends(1000);
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn check_knows_the_limit_of_descriptors_that_the_manager_gives_the_service() {
    let service = Activation::qrexec_connect().tcp("work test.Echo").with_control().start().ready();
    let forward = "[[forward]]\nlisten = \"127.0.0.1:18000-18599\"\ntarget = \"127.0.0.1:9\"\n";
    std::fs::write(service.dir().join("config/qrexec-connect.toml"), forward).expect("ours");
    let check = |limit: &str| {
        let unit = service.dir().join("bin/show.qrexec-connect.service");
        std::fs::write(unit, format!("LoadState=loaded\nLimitNOFILE={limit}\n")).expect("ours");
        service.asking().say(&["check"])
    };
    let said = check("512");
    let why =
        "600 listeners would leave no descriptors for sessions: the limit is 512, of which listeners may have 368";
    assert!(said.code == Some(78) && said.stdout.contains(why), "{said:?}");
    for limit in ["1024", "infinity"] {
        let said = check(limit);
        assert!(!said.stdout.contains("descriptors"), "{limit}: {said:?}");
    }
    // A drop-in file that is checked alone is served beside the others.
    check("1024");
    let directory = service.dir().join("config/qrexec-connect.toml.d");
    std::fs::create_dir(&directory).expect("ours");
    let more = directory.join("more.toml");
    std::fs::write(&more, forward.replace("18000-18599", "19000-19299")).expect("ours");
    let said = service.asking().say(&["check", more.to_str().expect("plain")]);
    assert!(said.code == Some(78) && said.stdout.contains("more.toml:1: 300 listeners beside 600 others"), "{said:?}");
    service.stop();
}

#[test]
fn check_knows_the_limit_of_calls_that_the_unit_of_the_service_gives() {
    let service = Activation::qrexec_connect().tcp("work test.Echo").with_control().start().ready();
    std::fs::create_dir(service.dir().join("units")).expect("ours");
    for (unit, name) in [("a", "work test.Echo max_calls=8"), ("b", "work test.Echo")] {
        let text = format!("[Socket]\nListenStream=@check-calls-{unit}\nFileDescriptorName={name}\n");
        std::fs::write(service.dir().join(format!("units/qrexec-connect-{unit}.socket")), text).expect("ours");
    }
    let check = |option: &str| {
        let start =
            format!("{{ path=/usr/bin/qrexec-connect ; argv[]=/usr/bin/qrexec-connect serve{option} ; pid=0 }}");
        let unit = service.dir().join("bin/show.qrexec-connect.service");
        std::fs::write(unit, format!("LoadState=loaded\nExecStart={start}\n")).expect("ours");
        service.asking().say(&["check"]).stdout
    };
    for (option, number) in [(" --calls-per-qube 9", "9 (--calls-per-qube of the service)"), ("", "32, by default")] {
        let said = check(option);
        let differ = said.lines().find(|line| line.contains("max_calls of the qube work")).unwrap_or_default();
        assert!(differ.contains("qrexec-connect-b.socket") && differ.contains(&format!("has {number}")), "{said}");
    }
    let said = check(" --calls-per-qube 8");
    assert!(!said.contains("max_calls of the qube"), "{said}");
    service.stop();
}
