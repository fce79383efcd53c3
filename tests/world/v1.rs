//! The Python original on the other side: its client with our daemon, our client with its daemon.

use std::time::{Duration, Instant};

use crate::{support::eventually, world::World};

const CLIENT: &str = include_str!("peers/v1-client.py");
const DAEMON: &str = include_str!("peers/v1-dom0.py");

fn install(world: &World) {
    std::fs::write(world.home("work").join("v1.py"), CLIENT).expect("written");
    std::fs::write(world.path().join("v1-dom0.py"), DAEMON).expect("written");
}

#[test]
fn timing_the_pythons_client_is_served_by_an_agent_once_its_owner_says_so() {
    let world = world!("work");
    install(&world);
    let daemon = world.ready();
    let refused = world.shell("work", "python3 v1.py echo hi");
    refused.expect(126, "").says("qvm-remote-dom0 v1 work on");
    assert!(world.dom0("qvm-remote-dom0 v1 work on").text().contains("qvm-remote-dom0 v1 work off"));
    assert!(world.dom0("qvm-remote-dom0 status").text().contains("takes v1 tokens"));
    let calls = world.calls();
    let began = Instant::now();
    world.shell("work", "python3 v1.py 'echo hi; echo e >&2; exit 3'").expect(3, "hi\n").says("e\n");
    assert!(began.elapsed() < Duration::from_millis(2500), "{:?}", began.elapsed());
    assert_eq!(world.calls(), calls, "no call for a command");
    assert!(world.log().contains("auth=v1"), "{}", world.log());
    // the original's limits: 10 MiB, then the mark
    world
        .shell("work", "python3 v1.py 'head -c 12000000 /dev/zero' | tail -c 31")
        .expect(0, "\n[truncated at 10485760 bytes]\n");
    // a text seen before its token is left alone until the token is there
    world.shell("work", "V1_PAUSE=1 python3 v1.py echo late").expect(0, "late\n");
    world.shell("work", "V1_TOKEN=00 python3 v1.py true").expect(126, "").says("its token is wrong");
    world.shell("work", "V1_TOKEN=é python3 v1.py true").expect(126, "").says("its token is wrong");
    world.shell("work", "mv .qvm-remote/auth.key k; python3 v1.py true").expect(126, "").says("no token");
    drop(daemon);
}

#[test]
fn the_pythons_client_is_served_by_calls_where_there_is_no_agent() {
    let world = world!("work");
    install(&world);
    world.authorize();
    world.dom0("qvm-remote-dom0 v1 work on");
    // a qube that has the Python program only: what dom0 calls there is no agent
    world.dom0("sed -i 's/^exec in-vm/[[ $cmd == *\"--argv serve\"* ]] \\&\\& { echo qvm-remote: usage >\\&2; exit 127; }\\nexec in-vm/' /usr/local/sbin/qvm-run");
    let _daemon = world.dom0_start("qvm-remote-dom0");
    world
        .shell("work", "python3 v1.py 'echo hi; printf \"\\377\\0\"; exit 3' | od -An -tx1; exit ${PIPESTATUS[0]}")
        .expect(3, " 68 69 0a ff 00\n");
    let before = world.calls();
    world.shell("work", "python3 v1.py echo again").expect(0, "again\n");
    let calls = world.calls() - before;
    assert!(calls <= 6, "{calls} calls for one command and the looks meanwhile");
    world.shell("work", "V1_TOKEN=00 python3 v1.py true").expect(126, "").says("its token is wrong");
    // nothing in the queue that is no regular file is ever read, and it starves nobody
    world.shell("work", "cd .qvm-remote/queue/pending; ln -s /dev/zero zero; for n in 1 2 3 4 5 6 7 8; do mkfifo f$n f$n.auth; done").expect(0, "");
    world.shell("work", "touch $'.qvm-remote/queue/pending/b\\xff'; python3 v1.py echo still").expect(0, "still\n");
    // one that runs while an agent is looked for again is served once, and answered by what it did
    let looks = || std::fs::read_to_string(world.path().join("calls")).unwrap_or_default().matches("serve").count();
    let before = looks();
    world.dom0("mkfifo /root/fifo").expect(0, "");
    let mut long = world
        .vm_start("work", &["bash", "-c", "cd; python3 v1.py 'echo ran >>/root/ran; read x </root/fifo; echo long'"]);
    eventually("a look for an agent", || looks() > before);
    eventually("a look at the queue after it", || {
        let calls = std::fs::read_to_string(world.path().join("calls")).unwrap_or_default();
        calls.rsplit("serve").next().is_some_and(|after| after.matches("pass_io=1").count() > 1)
    });
    world.dom0("echo >/root/fifo; cat /root/ran").expect(0, "ran\n");
    long.wait_for("long\n");
    assert_eq!(long.end().code, 0);
    // a client that gives up takes its command with it
    let done = world.shell("work", "python3 v1.py -t 3 'sleep 4721'");
    assert_eq!(done.code, 124);
    eventually("no sleep left", || world.processes("sleep 4721") == 0);
    assert!(!world.path().join("AUTOSTARTED").exists());
}

#[test]
fn our_client_works_with_the_pythons_daemon_when_told_so() {
    let world = world!("work");
    install(&world);
    world.authorize();
    let daemon = world.dom0_start(&format!("python3 {}/v1-dom0.py work 60", world.path().display()));
    world.remote("work", &["--v1", "echo hi; echo e >&2; exit 3"]).expect(3, "hi\n").says("e\n");
    // killed by a signal: the original writes a negative number
    world.remote("work", &["--v1", "kill -9 $$"]).expect(137, "");
    world.shell("work", "QVM_REMOTE_V1=1 qvm-remote ping").expect(0, "qvm-remote-dom0 is responding.\n");
    // without being told, an answer that nobody signed is none
    let done = world.remote("work", &["--queue", "-t", "5", "echo hi"]);
    assert!(done.code != 0 && done.out.is_empty(), "{done:#?}");
    drop(daemon);
}
