//! The life of a request in dom0: what was revoked ends, what is forbidden does not start, whatever it waits for, and
//! however its qube behaves.

use std::{fs, time::Duration};

use crate::{
    support::eventually,
    world::{Running, World},
};

/// Puts the agent of an attacker who has the qube's key in the place of ours.
fn possess(world: &World, vm: &str, mode: &str) {
    let evil = world.home(vm).join("allowed.py");
    fs::write(&evil, include_str!("peers/allowed.py")).expect("written");
    fs::set_permissions(&evil, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
    fs::write(world.home(vm).join("evil"), mode).expect("written");
    world
        .dom0(&format!(
            "nsenter -t $(cat $WORLD/vms/{vm}/pid) -m -- mount --bind /home/user/allowed.py /mnt/bin/qvm-remote"
        ))
        .expect(0, "");
}

/// What the hostile agent was answered.
fn answers(world: &World, vm: &str) -> String {
    fs::read_to_string(world.home(vm).join("answers")).unwrap_or_default()
}

/// How many requests wait in this state.
fn waiting(world: &World, state: &str) -> usize {
    let status = world.dom0("qvm-remote-dom0 status --json").text();
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let all = status["waiting"].as_array().expect("a list").iter();
    all.filter(|request| request["state"] == state).count()
}

fn ticket(world: &World) -> Option<String> {
    let list = world.dom0("qvm-remote-dom0 approve").text();
    list.split_whitespace()
        .next()
        .filter(|word| word.len() >= 12 && word.bytes().all(|b| b.is_ascii_hexdigit()))
        .map(str::to_owned)
}

/// Starts a command of the qube that stays, once it runs.
fn busy(world: &World, vm: &str, seconds: u32) -> Running {
    let mut running = world.remote_start(vm, &[&format!("echo up; sleep {seconds}")]);
    running.wait_for("up\n");
    running
}

/// Nothing that a request could have begun is there, also later.
#[track_caller]
fn nothing_ran(world: &World, path: &str) {
    world.remote("dev", &["echo a later command"]).expect(0, "a later command\n");
    world.dom0(&format!("ls {path} 2>/dev/null")).expect(2, "");
}

#[test]
fn a_command_that_waits_for_a_place_is_ended_by_the_revocation() {
    let world = world!("work", "dev");
    let _daemon = world.ready();
    world.policy("work", "max-running = 1\nallow shell *\n");
    let running = busy(&world, "work", 4771);
    let late: Vec<_> = (0..3).map(|_| world.remote_start("work", &["touch /root/late"])).collect();
    eventually("three wait", || waiting(&world, "place") == 3);
    let done = world.dom0("qvm-remote-dom0 revoke --kill work");
    assert!(done.code == 0 && done.text().contains("Ended 4 command"), "{done:#?}");
    assert_eq!(running.end().code, 130);
    for late in late {
        late.end().expect(126, "").says("it was ended in dom0 before it began");
    }
    nothing_ran(&world, "/root/late");
}

#[test]
fn a_command_that_waits_runs_by_the_policy_and_the_key_of_the_moment_when_it_starts() {
    let world = world!("work", "dev");
    let _daemon = world.ready();
    world.policy("work", "max-running = 1\nallow shell *\n");
    let (mut running, late) = (busy(&world, "work", 4772), world.remote_start("work", &["touch /root/late"]));
    eventually("it waits", || waiting(&world, "place") == 1);
    world.policy("work", "max-running = 1\ndeny shell *\n");
    let end = |running: &mut Running| running.signal(nix::sys::signal::Signal::SIGTERM);
    end(&mut running);
    late.end().expect(126, "").says("line 2 of its policy says deny");
    // by another user, as the policy says now
    world.policy("work", "max-running = 1\nallow shell *\n");
    let (mut running, late) = (busy(&world, "work", 4772), world.remote_start("work", &["id -un"]));
    eventually("it waits", || waiting(&world, "place") == 1);
    world.policy("work", "max-running = 1\nallow shell * [user=nobody]\n");
    end(&mut running);
    late.end().expect(0, "nobody\n");
    // the key goes, without --kill: what runs may end, what waits does not start
    world.policy("work", "max-running = 1\nallow shell *\n");
    let (mut running, late) = (busy(&world, "work", 4772), world.remote_start("work", &["touch /root/late"]));
    eventually("it waits", || waiting(&world, "place") == 1);
    world.dom0("qvm-remote-dom0 revoke work").expect(0, "Revoked VM 'work'.\n");
    assert!(!running.ended());
    end(&mut running);
    late.end().expect(126, "").says("not authorized");
    nothing_ran(&world, "/root/late");
}

#[test]
fn an_approval_counts_for_the_decision_that_was_shown_and_for_no_other() {
    let world = world!("work", "dev");
    let _daemon = world.ready();
    let asked = |policy: &str| {
        world.policy("work", "ask shell *\n");
        let asked = world.remote_start("work", &["id -un; touch /tmp/ran-$(id -un)"]);
        eventually("it waits", || waiting(&world, "approval") == 1 && ticket(&world).is_some());
        world.policy("work", policy);
        let done = world.dom0(&format!("qvm-remote-dom0 approve {} --yes", ticket(&world).expect("there")));
        (asked, done)
    };
    // denied meanwhile
    let (denied, _) = asked("deny shell *\n");
    denied.end().expect(126, "").says("says deny");
    // the key went meanwhile
    let (revoked, _) = asked("ask shell *\n");
    revoked.end().expect(0, "root\n");
    world.dom0("rm /tmp/ran-root").expect(0, "");
    // another user meanwhile: it is asked again, and the second approval is for that
    let (mut changed, _) = asked("ask shell * [user=nobody]\n");
    eventually("it is asked again", || waiting(&world, "approval") == 1 && ticket(&world).is_some());
    assert!(!changed.ended());
    world.dom0("ls /tmp/ran-root /tmp/ran-nobody 2>/dev/null").expect(2, "");
    let again = world.dom0(&format!("qvm-remote-dom0 approve {} --yes", ticket(&world).expect("there")));
    assert_eq!(again.code, 0, "{again:#?}");
    changed.end().expect(0, "nobody\n");
    world.dom0("ls /tmp/ran-*").expect(0, "/tmp/ran-nobody\n");
    world.dom0("rm /tmp/ran-nobody").expect(0, "");
    // ended while it waits: there is nothing to approve any more
    world.policy("work", "ask shell *\n");
    let ended = world.remote_start("work", &["touch /root/late"]);
    eventually("it waits", || waiting(&world, "approval") == 1);
    world.dom0("qvm-remote-dom0 revoke --kill work");
    ended.end().expect(126, "").says("it was ended in dom0 before it began");
    assert_eq!(ticket(&world), None);
    nothing_ran(&world, "/root/late");
}

#[test]
fn a_text_that_comes_after_the_revocation_does_not_run() {
    let world = world!("work", "dev");
    world.authorize();
    possess(&world, "work", "late touch /root/late");
    let _daemon = world.daemon();
    eventually("a request without its text", || waiting(&world, "receiving") == 1);
    world.dom0("qvm-remote-dom0 revoke work").expect(0, "Revoked VM 'work'.\n");
    fs::write(world.home("work").join("go"), "").expect("written");
    eventually("an answer", || answers(&world, "work").contains("not authorized"));
    nothing_ran(&world, "/root/late");
}

#[test]
fn files_on_their_way_stop_at_the_revocation() {
    let world = world!("work", "dev");
    let _daemon = world.ready();
    world.dom0("mkdir /var/log/x /root/in; head -c 60000000 /dev/zero >/var/log/x/big").expect(0, "");
    world.policy("work", "allow get /var/log/x\nallow put /root/in\nallow shell *\n");
    let mut put = world.remote_start("work", &["put", "-", "/root/in/file"]);
    put.write(b"the first half");
    // its reader is slow: the file is on its way until somebody ends it
    let get = world.vm_start(
        "work",
        &["bash", "-c", "cd; qvm-remote get /var/log/x/big - > >(sleep 4773); echo $? >got; sync; exec sleep 1"],
    );
    let running = || {
        let status = world.dom0("qvm-remote-dom0 status --json").text();
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        status["commands"].as_array().map_or(0, Vec::len)
    };
    eventually("both are on their way", || running() == 2);
    let done = world.dom0("qvm-remote-dom0 revoke --kill work");
    assert!(done.text().contains("Ended 2 command"), "{done:#?}");
    eventually("none is on its way", || running() == 0);
    assert_eq!(put.end().code, 130);
    nothing_ran(&world, "/root/in/file");
    drop(get);
}

#[test]
fn timing_a_qube_that_reads_nothing_keeps_no_command_beyond_its_time_and_no_daemon_from_its_end() {
    let world = world!("work", "dev");
    world.authorize();
    world.policy("work", "max-running = 20\nallow shell * [timeout=2]\n");
    // enough output to fill every buffer between the two, and a command that is started when nothing is read any more
    possess(&world, "work", "deaf 20 head -c 250000 /dev/zero; exec sleep 4774");
    let daemon = world.daemon();
    eventually("it has asked", || world.home("work").join("asked").exists());
    eventually("they run", || world.processes("sleep 4774") > 0 || world.log().contains("TIMEOUT vm=work"));
    let began = std::time::Instant::now();
    eventually("its commands ended", || {
        world.processes("sleep 4774") == 0 && world.log().matches("TIMEOUT vm=work").count() == 20
    });
    assert!(began.elapsed() < Duration::from_secs(14), "{:?}", began.elapsed());
    world.remote("dev", &["echo alive"]).expect(0, "alive\n");
    // a stop while answers wait for somebody who does not read
    let began = std::time::Instant::now();
    assert_eq!(daemon.stop().code, 0);
    assert!(began.elapsed() < Duration::from_secs(14), "{:?}", began.elapsed());
}

#[test]
fn a_revocation_ends_the_commands_of_a_qube_that_reads_nothing() {
    let world = world!("work", "dev");
    world.authorize();
    world.policy("work", "max-running = 20\nallow shell *\n");
    possess(&world, "work", "deaf 20 head -c 250000 /dev/zero; exec sleep 4775");
    let _daemon = world.daemon();
    eventually("it has asked", || world.home("work").join("asked").exists());
    eventually("all run", || world.log().matches("CMD vm=work").count() == 20);
    world.dom0("qvm-remote-dom0 revoke --kill work");
    eventually("all have ended", || world.log().matches("CANCEL vm=work").count() == 20);
    assert_eq!(world.processes("sleep 4775"), 0);
    world.remote("dev", &["echo alive"]).expect(0, "alive\n");
}

#[test]
fn two_hostile_qubes_at_once_keep_nobody_from_dom0() {
    let world = world!("deaf", "flood", "dev");
    world.authorize();
    world.policy("deaf", "allow shell * [timeout=3]\n");
    world.policy("flood", "allow shell *\n");
    possess(&world, "deaf", "deaf 60 head -c 250000 /dev/zero; exec sleep 4776");
    possess(&world, "flood", "flood true");
    let daemon = world.daemon();
    eventually("both do harm", || {
        world.home("deaf").join("asked").exists() && answers(&world, "flood").lines().count() > 50
    });
    for _ in 0..10 {
        world.remote("dev", &["echo alive"]).expect(0, "alive\n");
    }
    let done = world.dom0("qvm-remote-dom0 revoke --kill flood; qvm-remote-dom0 revoke --kill deaf");
    assert_eq!(done.code, 0, "{done:#?}");
    eventually("nothing of them runs", || {
        world.processes("sleep 4776") == 0 && world.log().contains("AUTH-DENY vm=flood")
    });
    let runs = || world.log().matches("CMD vm=flood").count() + world.log().matches("CMD vm=deaf").count();
    let before = runs();
    world.remote("dev", &["sleep 0.2; echo alive"]).expect(0, "alive\n");
    assert_eq!(runs(), before, "nothing of theirs has started since");
    let stop = daemon.stop();
    assert_eq!(stop.code, 0, "{stop:#?}");
}
