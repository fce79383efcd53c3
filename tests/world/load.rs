//! Many at once, for long, and nothing at all.

use std::time::{Duration, Instant};

use crate::world::PATIENCE;

#[test]
fn two_hundred_commands_at_once_over_three_qubes_are_all_answered() {
    let world = world!("work", "dev", "staging");
    let _daemon = world.ready();
    let text = "cd; for n in $(seq 67); do qvm-remote \"echo $n\" & done; wait";
    let all: Vec<_> = ["work", "dev", "staging"].map(|vm| world.vm_start(vm, &["bash", "-c", text])).into();
    for running in all {
        let done = running.end_within(PATIENCE * 2);
        let mut lines: Vec<u32> = done.text().lines().map(|l| l.parse().expect("a number")).collect();
        lines.sort_unstable();
        assert_eq!(lines, (1..=67).collect::<Vec<_>>(), "{}", done.err);
    }
    assert_eq!(world.log().lines().filter(|l| l.contains("] DONE vm=")).count(), 201);
}

#[test]
fn a_slow_reader_stops_its_own_output_and_nothing_else() {
    let world = world!("work");
    let daemon = world.ready();
    let before = daemon.memory();
    let mut slow = world.vm_start(
        "work",
        &["bash", "-c", "cd; qvm-remote 'echo up; exec cat /dev/zero' | (head -c 3; exec sleep 600)"],
    );
    slow.wait_for("up\n");
    for _ in 0..20 {
        world.remote("work", &["head -c 1000000 /dev/zero | wc -c"]).expect(0, "1000000\n");
    }
    let grown = daemon.memory().saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB more");
    drop(slow);
}

#[test]
fn a_thousand_commands_leave_nothing_behind() {
    let world = world!("work");
    let daemon = world.ready();
    let some = |n: usize| {
        let text = format!("cd; seq {n} | xargs -P 8 -I@ qvm-remote 'echo @ >/dev/null'");
        world.vm_start("work", &["bash", "-c", &text]).end_within(PATIENCE * 3).expect(0, "");
    };
    some(100);
    let before = (daemon.memory(), daemon.descriptors());
    some(900);
    let after = (daemon.memory(), daemon.descriptors());
    assert!(after.0 < before.0 + 1024, "memory in KiB: {before:?} then {after:?}");
    assert!(after.1 <= before.1, "descriptors: {before:?} then {after:?}");
    assert_eq!(world.processes("/proc/self/exe supervise"), 0);
    assert_eq!(world.processes("/proc/self/exe parse"), 1);
}

#[test]
fn an_idle_daemon_makes_no_calls_and_uses_no_time() {
    let world = world!("work", "dev");
    let _daemon = world.ready();
    world.stop("dev");
    let ticks = "cat /proc/$(pgrep -o qvm-remote-dom0)/stat | awk '{print $14 + $15}'";
    std::thread::sleep(Duration::from_secs(2)); // the start, and the qube's end, are over
    let (calls, before, began) = (world.calls(), world.dom0(ticks).text(), Instant::now());
    std::thread::sleep(Duration::from_secs(20)); // measured: a silence long enough for a ping
    assert_eq!(world.calls(), calls, "calls in {:?}", began.elapsed());
    let spent = world.dom0(ticks).text().trim().parse::<u32>().expect("a number")
        - before.trim().parse::<u32>().expect("a number");
    assert!(spent <= 1, "{spent} ticks");
}
