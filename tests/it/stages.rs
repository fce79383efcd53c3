//! Restarts, with sessions in every stage that there is.

use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    handover::{one_story_each, restart},
    support::{
        Activated, Activation, FakeQrexec, Pace, Pattern, SERVICE_SEED, Server, Sum, Wire, eventually, exchange,
        fake_qrexec::What, receive, sample, send,
    },
};

/// Sends the pattern of `seed` until `done`, while it verifies that the same comes back; then half-closes and expects
/// the end. How much there was.
fn stream(wire: Wire, seed: u64, done: &AtomicBool) -> u64 {
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let (mut pattern, mut buffer) = (Pattern::new(seed), vec![0; 30_000]);
            let mut size = 1;
            while !done.load(Ordering::Relaxed) {
                size = size * 7 % 29_989;
                pattern.fill(&mut buffer[..size]);
                (&wire).write_all(&buffer[..size]).unwrap_or_else(|e| panic!("sending at {}: {e}", pattern.at()));
                thread::sleep(Duration::from_micros(300)); // a pace, so that buffers are full at times and empty at others
            }
            wire.half_close();
            pattern.at()
        });
        let (mut pattern, mut buffer) = (Pattern::new(seed), vec![0; 65536]);
        loop {
            match (&wire).read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => pattern.check(&buffer[..n]).unwrap_or_else(|e| panic!("{e}")),
                Err(e) => panic!("reading at {}: {e}", pattern.at()),
            }
        }
        let sent = sender.join().expect("no panic");
        assert_eq!(pattern.at(), sent, "all of it came back");
        sent
    })
}

/// One session or more in each stage.
struct Stages {
    fake: FakeQrexec,
    later: PathBuf,
    service: Activated,
    done: Arc<AtomicBool>,
    /// Streaming, over every pair of ends.
    streams: Vec<JoinHandle<u64>>,
    /// An echo that nobody reads, so bytes are held on every way, by us too.
    stalled: Vec<(Wire, JoinHandle<io::Result<()>>)>,
    half_up: (Wire, Wire),
    half_down: (Wire, Wire),
    call_half_down: Wire,
    call_half_up: Wire,
    idle: Wire,
    /// In set-up, and queued behind those: four may ask at once, and a fifth when they are undecided.
    asking: Vec<Wire>,
    /// Its upstream is not there yet.
    early: Wire,
}

impl Stages {
    fn begin(dir: &Path) -> Self {
        let fake = FakeQrexec::new();
        let later = dir.join("later.sock");
        let tcp = Server::tcp().echo();
        let unix = Server::unix(&dir.join("server.sock")).echo();
        let ours = Server::tcp();
        let service = Activation::calling(&fake)
            .tcp(&unix)
            .unix(&tcp)
            .tcp("work test.Echo")
            .unix("work test.Echo")
            .tcp(&ours.name())
            .tcp("work test.HalfCloseDown")
            .unix("work test.Source+3000000")
            .tcp("ask test.Gate+open")
            .tcp(&format!("uds={},connect_timeout=300", later.display()))
            .start()
            .ready();
        let done = Arc::new(AtomicBool::new(false));
        let streams = (0..12u64).map(|i| {
            let (wire, done) = (service.connect((i % 4) as usize), done.clone());
            thread::spawn(move || stream(wire, i, &done))
        });
        let streams = streams.collect();
        let stalled = (0..4).map(|i| {
            let wire = service.connect(i);
            let sender = wire.try_clone().expect("a descriptor");
            (wire, thread::spawn(move || send(&sender, 77, 12_000_000, Pace::BULK).map(|()| sender.half_close())))
        });
        let stalled = stalled.collect();
        let mut half_up = (service.connect(4), ours.accept());
        half_up.0.write_all(b"the question").expect("connected");
        half_up.0.half_close();
        half_up.1.expect(b"the question");
        half_up.1.expect_end();
        let mut half_down = (service.connect(4), ours.accept());
        half_down.1.write_all(b"the answer").expect("connected");
        half_down.1.half_close();
        half_down.0.expect(b"the answer");
        half_down.0.expect_end();
        let mut call_half_down = service.connect(5);
        call_half_down.expect_end();
        let call_half_up = service.connect(6);
        call_half_up.half_close();
        let idle = service.connect(2);
        let asking = (0..7).map(|_| service.connect(7)).collect();
        let mut early = service.connect(8);
        early.write_all(b"early bird").expect("connected");
        service.process.stderr.wait_for("does not exist yet");
        eventually("four ask", || fake.count(|w| matches!(w, What::Start { target, .. } if target == "ask")) >= 4);
        Self {
            fake,
            later,
            service,
            done,
            streams,
            stalled,
            half_up,
            half_down,
            call_half_down,
            call_half_up,
            idle,
            asking,
            early,
        }
    }

    /// Brings each session to its own end; what the log has to say about them.
    fn end(mut self) -> (FakeQrexec, Activated, Vec<String>) {
        self.done.store(true, Ordering::Relaxed);
        let mut expected = Vec::new();
        for stream in self.streams {
            let n = stream.join().expect("it went well");
            assert!(n > 100_000, "{n} bytes");
            expected.push(format!("eof up {n} down {n}"));
        }
        for (mut wire, sender) in self.stalled {
            receive(&mut wire, 77, 12_000_000, Pace::BULK).expect("all of it");
            wire.expect_end();
            sender.join().expect("no panic").expect("it was read in the end");
            expected.push("eof up 12000000 down 12000000".into());
        }
        self.half_up.1.write_all(b"the answer").expect("it goes on");
        drop(self.half_up.1);
        self.half_up.0.expect(b"the answer");
        self.half_up.0.expect_end();
        expected.push("eof up 12 down 10".into());
        let rest = thread::spawn(move || {
            receive(&mut self.half_down.1, 5, 500_000, Pace::BULK).expect("the rest");
            self.half_down.1.expect_end();
        });
        send(&self.half_down.0, 5, 500_000, Pace::BULK).expect("it is read");
        self.half_down.0.half_close();
        rest.join().expect("no panic");
        expected.push("eof up 500000 down 10".into());
        send(&self.call_half_down, 6, 400_000, Pace::BULK).expect("it is read");
        drop(self.call_half_down);
        assert_eq!(Sum::of(&self.fake.received()), Sum::of_pattern(6, 400_000));
        expected.push("eof up 400000 down 0".into());
        receive(&mut self.call_half_up, SERVICE_SEED, 3_000_000, Pace::BULK).expect("all of it");
        self.call_half_up.expect_end();
        expected.push("eof up 0 down 3000000".into());
        exchange(&mut self.idle, 8, 1000, Pace::CRUMBS);
        expected.push("eof up 1000 down 1000".into());
        self.fake.open("open");
        for mut peer in self.asking {
            exchange(&mut peer, 9, 2_000, Pace::CRUMBS);
            expected.push("eof up 2000 down 2000".into());
        }
        let server = Server::unix(&self.later);
        let mut far = server.accept();
        far.expect(b"early bird");
        drop(far);
        self.early.expect_end();
        expected.push("eof up 10 down 0".into());
        (self.fake, self.service, expected)
    }
}

#[test]
fn sessions_in_every_stage_survive_restart_after_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut stages = Stages::begin(dir.path());
    for _ in 0..sample("restarts", 8, 20) {
        restart(&mut stages.service);
    }
    let (fake, service, mut expected) = stages.end();
    let ends = one_story_each(&service, expected.len());
    let mut said: Vec<String> = ends.iter().map(|e| format!("{} up {} down {}", e.end, e.up, e.down)).collect();
    said.sort();
    expected.sort();
    assert_eq!(said, expected);
    let asked = fake.count(|w| matches!(w, What::Start { target, .. } if target == "ask"));
    assert_eq!(asked, 7, "no question was asked twice");
    assert_eq!(service.notifications.stored(), Vec::<String>::new(), "the store is empty");
    service.stop();
}
