//! Many at once, for long, and nothing at all.

use std::time::Duration;

use crate::support::{PATIENCE, eventually, sample};

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
fn many_commands_of_every_kind_leave_nothing_behind() {
    let world = world!("work");
    let daemon = world.ready();
    world.policy("work", "allow shell *\nallow echo *\nallow get /var/log/x\n");
    world.dom0("mkdir /var/log/x; echo x >/var/log/x/f").expect(0, "");
    // of every kind: text, words, input, files, endings, refusals, time-outs, the queue
    let some = |n: usize| {
        let kinds = "case $(($1 % 16)) in 1) qvm-remote --argv echo $1;; 2) echo in | qvm-remote -i cat;; \
                     3) qvm-remote get /var/log/x/f -;; 4) qvm-remote 'exit 3';; 5) qvm-remote --argv /bin/true;; \
                     6) qvm-remote 'kill -9 $$';; 7) qvm-remote 'head -c 100000 /dev/zero';; 8) qvm-remote get /etc/x -;; \
                     9) qvm-remote --queue \"echo $1\";; 10) timeout -s INT 0.02 qvm-remote 'sleep 1';; *) qvm-remote \"echo $1\";; \
                     esac >/dev/null 2>&1; true";
        let text = format!("cd; seq {n} | xargs -P 8 -I@ bash -c '{}' one @", kinds.replace('\'', "'\\''"));
        world.vm_start("work", &["bash", "-c", &text]).end_within(PATIENCE * 3).expect(0, "");
    };
    // what there is of files, in dom0 and in the qube; of logs and of the history only how many directories and logs
    let files = || {
        let dom0 = "find /run/qvm-remote /var/lib/qvm-remote /etc/qubes /var/log/qubes /tmp/qvm-remote* /dev/shm 2>/dev/null | sort";
        let qube = "cd; find . /run /dev/shm -path '*/history/*' -prune -o -not -name '.pid-*' -print | sort";
        (world.dom0(dom0).text(), world.shell("work", qube).text())
    };
    world.shell("work", "touch f").expect(0, "");
    some(300);
    let (before, mut count) = ((daemon.memory(), daemon.descriptors(), files()), 300);
    let all = sample("commands", 900, 3000);
    while count < all {
        some(300);
        count += 300;
    }
    // one waits for the next command
    eventually("all have ended", || world.processes("/proc/self/exe supervise") == 1);
    let after = (daemon.memory(), daemon.descriptors(), files());
    assert!(after.0 < before.0 + 1024, "memory in KiB: {} then {}", before.0, after.0);
    assert!(after.1 <= before.1, "descriptors: {} then {}", before.1, after.1);
    assert_eq!(before.2, after.2);
    assert_eq!(world.processes("/proc/self/exe parse"), 1);
    assert_eq!(world.dom0("ps -eo stat | grep -c Z").text(), "0\n");
    let done = world.log().lines().filter(|line| line.contains("] DONE ")).count();
    assert!(done > count * 2 / 3, "{done} of {count}");
}

#[test]
fn timing_an_idle_daemon_makes_no_calls_and_uses_no_time() {
    let world = world!("work", "dev");
    let _daemon = world.ready();
    world.stop("dev");
    let ticks = "cat /proc/$(pgrep -o qvm-remote-dom0)/stat | awk '{print $14 + $15}'";
    std::thread::sleep(Duration::from_secs(2)); // the start, and the qube's end, are over
    let (calls, before) = (world.calls(), world.dom0(ticks).text());
    std::thread::sleep(Duration::from_secs(20)); // measured: a silence long enough for a ping
    assert_eq!(world.calls(), calls, "calls in twenty seconds");
    let spent = world.dom0(ticks).text().trim().parse::<u32>().expect("a number")
        - before.trim().parse::<u32>().expect("a number");
    assert!(spent <= 1, "{spent} ticks");
}
