//! Clocks that are wrong, that differ and that jump; a machine that slept.

use std::fs;

use crate::{support::eventually, world::World};

/// What a program has to have in its environment for its own clock: the date, not the time that passes.
fn clock(world: &World) -> String {
    let library =
        world.dom0("ls /usr/lib*/faketime/libfaketime.so.1 /usr/lib/*/faketime/libfaketime.so.1 2>/dev/null").text();
    assert!(library.contains("libfaketime"), "{library}");
    format!("FAKETIME_DONT_FAKE_MONOTONIC=1 LD_PRELOAD={}", library.trim())
}

/// From now on, everything that is started in a qube has a clock that goes wrong by so much.
fn skew(world: &World, by: &str) {
    let variables = format!("FAKETIME={by} {}", clock(world));
    let put = format!("s#^vm=.*#&; VM_ENV=\"{variables}\"#");
    world.dom0(&format!("sed -i '{put}' /usr/local/sbin/in-vm")).expect(0, "");
}

/// Puts a request of the queue that was kept back into it, and tells how it was answered.
const SUBMIT: &str = "q=.qvm-remote/queue; id=$(ls kept | grep -v '\\.'); r=$q/results/$id; \
                      for f in $id.auth2 $id; do cp kept/$f $q/put; mv $q/put $q/pending/$f; done; \
                      for n in $(seq 400); do [ -s $r.exit ] && break; sleep 0.05; done; cat $r.exit $r.err; rm -f $r.*";

/// Leaves a request in the queue, and a copy of it in `kept`.
fn keep_a_request(world: &World, text: &str) -> crate::world::Running {
    let waiting = world.remote_start("work", &["--queue", "-t", "60", text]);
    let pending = world.home("work").join(".qvm-remote/queue/pending");
    eventually("a request", || pending.read_dir().is_ok_and(|d| d.count() == 2));
    world.shell("work", "mkdir -p kept; rm -f kept/*; cp .qvm-remote/queue/pending/* kept").expect(0, "");
    waiting
}

#[test]
fn a_qube_whose_clock_is_a_day_off_is_served_live_and_told_why_not_from_the_queue() {
    for by in ["+1d", "-1d"] {
        let world = world!("work");
        skew(&world, by);
        let shown = world.shell("work", "date +%s").text().trim().parse::<i64>().expect("a number");
        let real = world.dom0("date +%s").text().trim().parse::<i64>().expect("a number");
        assert!((86_000..87_000).contains(&(shown - real).abs()), "{by}: {shown} and {real}");
        let _daemon = world.ready();
        world.remote("work", &["ping"]).expect(0, "qvm-remote-dom0 is responding.\n");
        world.shell("work", "echo in | qvm-remote -i -t 20 'cat; exit 3'").expect(3, "in\n");
        assert_eq!(world.remote("work", &["-t", "1", "sleep 60"]).code, 124, "time passes as anywhere");
        assert!(world.remote("work", &["history"]).text().contains("cat; exit 3"));
        // a request that waits in a file is dated: dom0 says by how much
        let late = world.remote("work", &["--queue", "-t", "20", "touch /root/ran"]);
        late.expect(126, "").says("the clocks differ: by 86").says("300 are allowed");
        // the original's carry no date (the agent's clock is still wrong; Python's sleep cannot do with faketime)
        fs::write(world.home("work").join("v1.py"), include_str!("peers/v1-client.py")).expect("written");
        world.dom0("qvm-remote-dom0 v1 work on");
        world.shell("work", "env -u LD_PRELOAD python3 v1.py echo v1").expect(0, "v1\n");
        world.dom0("ls /root/ran 2>/dev/null").expect(2, "");
    }
}

#[test]
fn a_clock_of_dom0_that_jumps_a_day_ends_nothing_and_brings_nothing_back() {
    let world = world!("work");
    world.authorize();
    // what it calls has the clock of everybody
    world.dom0("sed -i '2i unset LD_PRELOAD' /usr/local/sbin/qvm-run").expect(0, "");
    let daemon = || {
        let place = "FAKETIME_TIMESTAMP_FILE=/root/clock FAKETIME_NO_CACHE=1";
        let daemon = world.dom0_start(&format!("env {place} {} qvm-remote-dom0", clock(&world)));
        eventually("the channel", || world.remote("work", &["--connect-timeout", "1", "ping"]).code == 0);
        daemon
    };
    let set = |by: &str| {
        world.dom0(&format!("echo {by} >/root/clock.new; mv /root/clock.new /root/clock")).expect(0, "").code
    };
    set("+0");
    let kept = keep_a_request(&world, "echo x >>/root/ran; echo once");
    let first = daemon();
    kept.end().expect(0, "once\n");
    // the date jumps and the time that passes does not: so it is, too, after a day of sleep
    for by in ["+1d", "-1d"] {
        let mut running = world.remote_start("work", &["-i", "-t", "100", "echo up; read x; echo $x"]);
        running.wait_for("up\n");
        set(by);
        world.remote("work", &["echo meanwhile"]).expect(0, "meanwhile\n");
        assert!(world.shell("work", SUBMIT).text().contains("the clocks differ"), "{by}");
        set("+0");
        running.write(b"still\n");
        running.end().expect(0, "up\nstill\n");
        assert!(world.shell("work", SUBMIT).text().starts_with("126qvm-remote-dom0: it was begun before"), "{by}");
    }
    // a daemon that starts while the clock is ahead forgets what is too old by then, and knows that it does
    set("+1d");
    world.dom0("kill -TERM $(qvm-remote-dom0 status --json | grep -oE '\"pid\":[0-9]+' | cut -d: -f2)").expect(0, "");
    first.end();
    let _second = daemon();
    set("+0");
    let told = world.shell("work", SUBMIT).text();
    assert!(told.contains("older than what dom0 remembers: its clock was set back"), "{told}");
    world.dom0("cat /root/ran").expect(0, "x\n");
    world.remote("work", &["echo live"]).expect(0, "live\n");
}
