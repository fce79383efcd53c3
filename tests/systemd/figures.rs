//! Figures for packaging/doc/performance.md, by `tests/bench/handover`; in an ordinary run of the tests nothing is measured.

use std::{fmt::Write as _, time::Duration};

use crate::{
    crowd::{Crowd, Kind, Place, Rate},
    service::{enable_now, events, main_pid, property, restart, settled, socket, text},
    support::eventually,
    tree::{As, shell},
};

/// How many restarts to measure; set by the script.
const WANTED: &str = "HANDOVER_BENCH";
/// Where the figures wait for the outside.
const FIGURES: &str = "home/tester/figures";

#[test]
fn of_restarts_under_load() {
    let wanted = std::env::var(WANTED).ok();
    if wanted.is_none() && std::env::var_os(crate::tree::INSIDE).is_none() {
        return;
    }
    let Some(tree) = tree!() else { return };
    // the environment does not go inside
    let tree = tree.prepare(&format!("echo {} >/etc/restarts", wanted.unwrap_or_default()));
    let mut table = String::from(
        "| sessions | systemd | SIGTERM to READY | parked to resumed | longest stall of a busy stream |\n|---:|---:|---:|---:|---:|\n",
    );
    for n in [100, 1000, 8000] {
        tree.boot(&n.to_string(), As::Tester, || measure(n));
        table += &tree.kept(FIGURES);
    }
    println!("{table}");
}

/// The median and the longest, in milliseconds.
fn middle_and_worst(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    format!("{:.0} ms ({:.0})", ms(times[times.len() / 2]), ms(times[times.len() - 1]))
}

fn measure(n: usize) {
    let restarts: usize = shell("cat /etc/restarts").parse().expect("a number of restarts");
    socket("tcp", "127.0.0.1:2001", "target=127.0.0.1+7001,max_connections=10000");
    enable_now(&["tcp"]);
    let mut crowd = Crowd::new();
    crowd.serve(&Place::Tcp(7001));
    let busy = 4;
    crowd.join(busy, &Place::Tcp(2001), Kind::Echo, Rate::BUSY);
    crowd.join(n - busy, &Place::Tcp(2001), Kind::Echo, Rate::RARE);
    crowd.wait_until_served_but(0);
    eventually("all are counted", || {
        let status = property("StatusText");
        status.ends_with(&format!(", {n} sessions"))
    });
    let moment = |name: &str| Duration::from_micros(property(name).parse().expect("a time"));
    let (mut whole, mut between, mut stalls) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..restarts {
        let (old, before) = (main_pid(), events("handover-parked").len());
        crowd.wait_for_bytes(2_000_000);
        crowd.longest_stall();
        restart();
        settled();
        let ready = moment("ActiveEnterTimestampMonotonic");
        whole.push(ready - moment("ActiveExitTimestampMonotonic"));
        crowd.wait_for_bytes(2_000_000);
        stalls.push(crowd.longest_stall());
        eventually("the old process has said it", || events("handover-parked").len() > before);
        let parked = events("handover-parked").pop().expect("just seen");
        assert_eq!(text(&parked, "_PID"), old.to_string());
        let parked = Duration::from_micros(text(&parked, "__MONOTONIC_TIMESTAMP").parse().expect("a time"));
        between.push(ready.saturating_sub(parked));
        assert_eq!(crowd.gone(), 0);
    }
    let release = shell("systemctl --version | head -n1 | cut -d' ' -f2");
    let mut line = format!("| {n} | {release} ");
    for times in [whole, between, stalls] {
        let _ = write!(line, "| {} ", middle_and_worst(times));
    }
    std::fs::write(format!("/{FIGURES}"), line + "|\n").expect("one's own home");
    crowd.dismiss_unharmed();
}
