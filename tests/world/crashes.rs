//! Whatever dies: nothing runs twice, everybody gets an answer, nothing is left behind.

use std::time::Duration;

use crate::{support::eventually, world::World};

/// How often a command that appends a line to this file has run.
const COUNT: &str = "cat /root/ran 2>/dev/null | wc -l";

#[test]
fn a_command_ends_with_the_daemon_and_its_client_is_told() {
    let world = world!("work");
    let daemon = world.ready();
    let mut running = world.remote_start("work", &["echo x >>/root/ran; echo up; setsid -f sleep 4731; sleep 4731"]);
    running.wait_for("up\n");
    daemon.kill();
    running.end_within(Duration::from_secs(20)).says("the connection to dom0 was lost while the command ran");
    eventually("no sleep left", || world.processes("sleep 4731") == 0);
    let _daemon = world.daemon();
    world.remote("work", &["echo back"]).expect(0, "back\n");
    world.dom0(COUNT).expect(0, "1\n");
}

#[test]
fn a_durable_request_runs_once_and_is_answered_wherever_the_daemon_dies() {
    let world = world!("work");
    world.authorize();
    // before it is begun
    let early = world.remote_start("work", &["--queue", "-t", "60", "echo x >>/root/ran; echo early"]);
    let pending = world.home("work").join(".qvm-remote/queue/pending");
    eventually("a request", || pending.read_dir().is_ok_and(|d| d.count() == 2));
    world.daemon().kill();
    let done = early.end();
    assert!(done.code == 0 || done.code == 130 || done.code == 126, "{done:#?}");
    // while it runs
    let daemon = world.daemon();
    let running = world.remote_start("work", &["--queue", "-t", "60", "echo x >>/root/ran2; sleep 4732"]);
    eventually("it runs", || world.dom0("cat /root/ran2 2>/dev/null").text() == "x\n");
    daemon.kill();
    eventually("no sleep left", || world.processes("sleep 4732") == 0);
    let daemon = world.daemon();
    running.end().expect(130, "").says("daemon restarted while this command was running");
    world.dom0("cat /root/ran2").expect(0, "x\n");
    assert!(world.dom0(COUNT).text().trim().parse::<u32>().expect("a number") <= 1);
    drop(daemon);
}

#[test]
fn a_daemon_that_is_stopped_lets_commands_end_first() {
    let world = world!("work");
    let daemon = world.ready();
    let mut running = world.remote_start("work", &["-i", "echo up; read x; echo $x"]);
    running.wait_for("up\n");
    let stopping = std::thread::scope(|scope| {
        let stop = scope.spawn(|| daemon.stop());
        eventually("it drains", || world.dom0("qvm-remote-dom0 status --json").text().contains("\"draining\":true"));
        world.remote("work", &["true"]).expect(255, "").says("being stopped");
        running.write(b"end\n");
        running.wait_for("end\n");
        stop.join().expect("stopped")
    });
    stopping.expect(0, "");
    running.end().expect(0, "up\nend\n");
}

#[test]
fn a_qube_that_is_halted_takes_its_commands_with_it_and_comes_back() {
    let world = world!("work", "dev");
    let daemon = world.ready();
    let mut running = world.remote_start("work", &["echo up; sleep 4733"]);
    running.wait_for("up\n");
    world.stop("work");
    running.end();
    eventually("no sleep left", || world.processes("sleep 4733") == 0);
    world.remote("dev", &["echo other"]).expect(0, "other\n");
    let calls = world.calls();
    std::thread::sleep(Duration::from_secs(2)); // measured: a halted qube costs no calls
    assert!(world.calls() <= calls + 1, "a halted qube is left alone");
    world.boot("work");
    daemon.wait_for_channel("work", "live");
    world.remote("work", &["echo back"]).expect(0, "back\n");
    assert!(!world.path().join("AUTOSTARTED").exists(), "no qube is ever started");
    assert!(!world.log().contains("CUT"), "nobody broke the protocol: {}", world.log());
}

#[test]
fn a_channel_that_is_cut_is_told_and_opened_again() {
    let world = world!("work");
    let daemon = world.ready();
    let mut running = world.remote_start("work", &["echo up; sleep 4734"]);
    running.wait_for("up\n");
    world.shell("work", "pkill -KILL -f 'qvm-remote --argv serve'").expect(0, "");
    running.end_within(Duration::from_secs(20)).says("lost");
    eventually("no sleep left", || world.processes("sleep 4734") == 0);
    daemon.wait_for_channel("work", "live");
    world.remote("work", &["echo back"]).expect(0, "back\n");
}

#[test]
fn input_that_a_dying_channel_cuts_never_looks_whole_to_its_command() {
    let world = world!("work");
    let _daemon = world.ready();
    let text = "echo up; tee /root/part >/dev/null && echo whole >/root/whole";
    let mut running = world.remote_start("work", &["-i", text]);
    running.wait_for("up\n");
    running.write(b"a part\n");
    eventually("it has a part", || world.dom0("cat /root/part").text() == "a part\n");
    world.shell("work", "pkill -KILL -f 'qvm-remote --argv serve'").expect(0, "");
    running.end_within(Duration::from_secs(20)).says("lost");
    eventually("it has been ended", || world.processes("tee /root/part") == 0);
    world.dom0("cat /root/whole").says("No such file");
}

#[test]
fn a_supervisor_that_is_killed_leaves_no_command_and_no_silence() {
    let world = world!("work");
    let _daemon = world.ready();
    let mut running = world.remote_start("work", &["echo up; sleep 4735"]);
    running.wait_for("up\n");
    world.dom0("kill -KILL $(ps -o ppid= -p $(pgrep -f '^/bin/bash /dev/fd/4'))").expect(0, "");
    assert_eq!(running.end().code, 137);
}

#[test]
fn a_supervisor_that_is_killed_or_stopped_while_it_waits_costs_no_command_and_one_ends_with_the_daemon() {
    let world = world!("work");
    let daemon = world.ready();
    let waiting = || world.processes("/proc/self/exe supervise");
    world.remote("work", &["true"]).expect(0, "");
    eventually("one waits for the next command", || waiting() == 1);
    for n in 0..3usize {
        let signal = ["KILL", "STOP", "KILL"][n];
        world.dom0(&format!("pkill -{signal} -f '^/proc/self/exe supervise'")).expect(0, "");
        world.remote("work", &[&format!("echo {n}; env | grep -c ^QVM_REMOTE_ID=")]).expect(0, &format!("{n}\n1\n"));
        eventually("one waits again", || waiting() == 1);
    }
    daemon.kill();
    eventually("none waits", || waiting() == 0);
}

#[test]
fn a_machine_that_slept_loses_nothing() {
    let world = world!("work");
    let _daemon = world.ready();
    let mut running = world.remote_start("work", &["echo up; sleep 1; head -c 3000000 /dev/zero; echo end"]);
    running.wait_for("up\n");
    // the daemon, what it has started, and the agent; that the date jumps meanwhile is a matter of `clocks`
    let all = |signal: &str| {
        format!("pkill -{signal} -x 'qvm-remote-dom0|exe'; pkill -{signal} -f '[q]vm-remote --argv serve'")
    };
    world.dom0(&format!("{}; sleep 3; {}", all("STOP"), all("CONT"))).expect(0, "");
    let done = running.end();
    assert_eq!((done.code, done.out.len()), (0, 3_000_000 + 7), "{}", done.err);
    world.remote("work", &["echo after"]).expect(0, "after\n");
}

/// The daemon's system calls that others can see, in their order, each as `strace` counts it: by name.
fn steps(world: &World) -> Vec<(String, usize)> {
    let mut counts = std::collections::HashMap::<String, usize>::new();
    let trace = world.dom0("cat /root/trace").text();
    let names = trace.lines().filter_map(|line| line.split_once('(')).map(|(name, _)| name.trim().to_owned());
    names
        .filter(|name| STEPS.split(',').any(|step| step == name))
        .map(|name| {
            let count = counts.entry(name.clone()).or_default();
            *count += 1;
            (name, *count)
        })
        .collect()
}

const STEPS: &str =
    "write,writev,sendto,sendmsg,fdatasync,rename,renameat,renameat2,clone,clone3,vfork,unlink,mkdir,rmdir,connect";

#[test]
fn wherever_the_daemon_dies_each_command_runs_at_most_once_and_is_answered() {
    let world = world!("work");
    world.authorize();
    let pending = world.home("work").join(".qvm-remote/queue/pending");
    // one of each kind waits for the daemon
    let ask = |n: usize| {
        let text = |kind: &str| format!("echo x >>/root/{kind}-{n}; echo {kind}");
        let durable = world.remote_start("work", &["--queue", "-t", "60", &text("durable")]);
        let live = world.remote_start("work", &["--connect-timeout", "60", &text("live")]);
        eventually("a request", || pending.read_dir().is_ok_and(|d| d.count() >= 2));
        (durable, live)
    };
    let strace =
        |words: &str| world.dom0_start(&format!("strace -qq -o /root/trace -e trace={STEPS} {words} qvm-remote-dom0"));
    let (durable, live) = ask(0);
    let whole = strace("");
    durable.end().expect(0, "durable\n");
    live.end().expect(0, "live\n");
    world.dom0("kill -TERM $(pgrep -x qvm-remote-dom0)");
    whole.end();
    let steps = steps(&world);
    assert!((20..200).contains(&steps.len()), "{steps:?}");
    let (mut died, mut lost) = (0, 0);
    for (n, (call, count)) in steps.iter().enumerate() {
        let n = n + 1;
        let step = format!("step {n} of {}: {call} {count}", steps.len());
        let (mut durable, mut live) = ask(n);
        let mut first = strace(&format!("-e inject={call}:signal=KILL:when={count}"));
        eventually(&step, || first.ended() || durable.ended() && live.ended());
        let killed = first.ended();
        died += usize::from(killed);
        let daemon = if killed { Some(world.dom0_start("qvm-remote-dom0")) } else { None };
        let (durable, live) = (durable.end(), live.end());
        for (kind, done) in [("durable", &durable), ("live", &live)] {
            let ran = world.dom0(&format!("cat /root/{kind}-{n} 2>/dev/null | wc -l")).text().trim().to_owned();
            match done.code {
                0 => assert_eq!((done.text().trim(), ran.as_str()), (kind, "1"), "{step}: {done:#?}"),
                126 | 130 if kind == "durable" => {
                    done.says(if done.code == 126 { "is not run twice" } else { "daemon restarted while" });
                }
                255 if kind == "live" => _ = done.says("the connection to dom0 was lost"),
                _ => panic!("{step}: {done:#?}\n{}", world.log()),
            }
            assert!(ran == "0" || ran == "1", "{step}: {kind} ran {ran} times");
            lost += usize::from(done.code != 0);
        }
        world.dom0("pkill -KILL -x qvm-remote-dom0; true");
        daemon.unwrap_or(first).end();
        eventually("nothing is left", || world.processes("/proc/self/exe") == 0);
    }
    assert!(died > steps.len() / 2 && lost > 2, "of {} daemons {died} died, {lost} commands were lost", steps.len());
}

#[test]
fn a_daemon_that_dies_while_the_log_is_written_runs_nothing_unwritten_and_nothing_twice() {
    let world = world!("work");
    world.authorize();
    for n in 1..=3 {
        // the thread of the log dies, and with it the daemon, where it has an entry to bring to the disk
        let kill = format!("-e trace=fdatasync -e inject=fdatasync:signal=KILL:when={n}");
        let durable =
            world.remote_start("work", &["--queue", "-t", "60", &format!("echo x >>/root/ran-{n}; echo ran")]);
        let mut first = world
            .dom0_start(&format!("strace -f -qq -o /dev/null -P /var/log/qubes/qvm-remote.log {kill} qvm-remote-dom0"));
        // entries that come together go to the disk together, so it takes as many commands as it takes
        eventually("it dies", || {
            first.ended() || {
                world.remote("work", &["--connect-timeout", "2", "true"]);
                first.ended()
            }
        });
        let daemon = world.daemon();
        let done = durable.end();
        let ran = world.dom0(&format!("cat /root/ran-{n} 2>/dev/null | wc -l")).text().trim().to_owned();
        assert!(done.code == 0 && ran == "1" || done.code != 0 && ran != "2", "{n}: {ran} {done:#?}");
        let log = world.dom0("cat /var/log/qubes/qvm-remote.log").text();
        assert!(ran == "0" || log.contains(&format!("cmd=echo x >>/root/ran-{n}")), "{n}: {log}");
        let verified = world.dom0("qvm-remote-dom0 log --verify");
        assert_eq!(verified.code, 0, "{n}: {verified:#?}");
        assert_eq!(daemon.stop().code, 0);
    }
}
