//! The life of a request in dom0: what was revoked ends, what is forbidden does not start, whatever it waits for, and
//! however its qube behaves.

use std::{fs, time::Duration};

use crate::{
    approve::whole_id,
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

/// Waits until so many commands of the qube run, and only then lets them write: who reads nothing is not asked for more
/// commands once its channel is full.
fn let_all_write(world: &World, running: usize) {
    eventually("all run", || world.log().matches("CMD vm=work").count() == running);
    world.dom0("touch /root/go").expect(0, "");
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

fn approval(world: &World) -> Option<String> {
    let list = world.dom0("qvm-remote-dom0 approve").text();
    let is_id = |word: &&str| word.len() >= 12 && word.bytes().all(|b| b.is_ascii_hexdigit());
    list.split_whitespace().find(is_id).map(str::to_owned)
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
        eventually("no other waits", || approval(&world).is_none());
        world.policy("work", "ask shell *\n");
        let asked = world.remote_start("work", &["id -un; touch /tmp/ran-$(id -un)"]);
        eventually("it waits", || waiting(&world, "approval") == 1 && approval(&world).is_some());
        let id = whole_id(&world);
        world.policy("work", policy);
        let done = world.dom0(&format!("qvm-remote-dom0 approve {id} --yes"));
        (asked, done)
    };
    // denied meanwhile
    let (denied, _) = asked("deny shell *\n");
    denied.end().expect(126, "").says("says deny");
    // as it was
    let (same, _) = asked("ask shell *\n");
    same.end().expect(0, "root\n");
    world.dom0("rm /tmp/ran-root").expect(0, "");
    // another user meanwhile: it is asked again, and the second approval is for that
    let (mut changed, first) = asked("ask shell * [user=nobody]\n");
    assert_eq!(first.code, 0, "{first:#?}");
    let shown =
        || world.dom0(&format!("qvm-remote-dom0 approve {} </dev/null", approval(&world).unwrap_or_default())).text();
    eventually("it is asked again, as what it is now", || {
        waiting(&world, "approval") == 1 && shown().contains("nobody")
    });
    assert!(!changed.ended());
    world.dom0("ls /tmp/ran-root /tmp/ran-nobody 2>/dev/null").expect(2, "");
    let again = world.dom0(&format!("qvm-remote-dom0 approve {} --yes", whole_id(&world)));
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
    assert_eq!(approval(&world), None);
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
    // enough output to fill every buffer between the two
    possess(
        &world,
        "work",
        "deaf 20 until [ -e /root/go ]; do sleep 0.01; done; head -c 250000 /dev/zero; exec sleep 4774",
    );
    let daemon = world.daemon();
    let_all_write(&world, 20);
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
    possess(
        &world,
        "work",
        "deaf 20 until [ -e /root/go ]; do sleep 0.01; done; head -c 250000 /dev/zero; exec sleep 4775",
    );
    let _daemon = world.daemon();
    let_all_write(&world, 20);
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

#[test]
fn a_flood_of_cancels_and_signals_keeps_nobody_from_dom0_and_no_daemon_from_its_end() {
    let world = world!("cancels", "signals", "dev");
    world.authorize();
    world.policy("cancels", "audit-quota = 256K\nallow shell *\n");
    possess(&world, "cancels", "cancels echo x >>/root/ran; sleep 4777");
    possess(&world, "signals", "signals trap : WINCH; echo up >/root/up; exec sleep 4778");
    let daemon = world.daemon();
    eventually("both do harm", || {
        world.home("signals").join("asked").exists() && answers(&world, "cancels").lines().count() > 100
    });
    eventually("a command gets signals", || world.dom0("cat /root/up 2>/dev/null").text() == "up\n");
    for _ in 0..5 {
        world.remote("dev", &["echo alive"]).expect(0, "alive\n");
    }
    // what ran stands in the log, and has ended
    let log = world.log();
    let ran: usize = world.dom0("cat /root/ran 2>/dev/null | wc -l").text().trim().parse().expect("a number");
    assert!(ran <= world.log().matches("CMD vm=cancels").count(), "{log}");
    assert!(world.log().len() < 512 << 10, "{} bytes", world.log().len());
    // a stop in the middle of it: what runs is ended by a second signal, as a second `systemctl stop` is by time
    let pid = daemon.pid();
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| daemon.stop());
        eventually("it drains", || {
            let status = world.dom0("qvm-remote-dom0 status --json").text();
            status.is_empty() || status.contains("\"draining\":true")
        });
        world.dom0(&format!("kill -TERM {pid}; true"));
        assert_eq!(stop.join().expect("stopped").code, 0);
    });
    assert_eq!((world.processes("sleep 4777"), world.processes("sleep 4778")), (0, 0));
    verified(&world, "");
}

/// dom0's log, as `qvm-remote-dom0 log --verify` sees it.
#[track_caller]
fn verified(world: &World, words: &str) -> String {
    let done = world.dom0(&format!("qvm-remote-dom0 log --verify {words}"));
    assert_eq!(done.code, 0, "{done:#?}\n{}", world.log());
    done.text()
}

#[test]
fn a_qube_that_may_run_one_harmless_command_cannot_flood_the_log_away() {
    let world = world!("flood", "dev");
    world.authorize();
    world.policy("flood", "audit-quota = 64K\nallow shell true\n");
    world.remote("dev", &["--connect-timeout", "1", "true"]);
    possess(&world, "flood", "flood true");
    let _daemon = world.daemon();
    world.remote("dev", &["echo before the flood"]).expect(0, "before the flood\n");
    eventually("its commands wait", || waiting(&world, "quota") > 0);
    let runs = || world.log().matches("CMD vm=flood").count();
    let before = runs();
    assert!((20..200).contains(&before), "{before} runs are 64 KiB");
    let all = world.log();
    assert!(all.contains("before the flood") && all.matches("vm=flood").count() < 1000, "{}", all.len());
    assert!(all.len() < 200 << 10, "{} bytes", all.len());
    // nobody else waits; the owner may give more, and it counts for those who wait
    world.remote("dev", &["echo another qube"]).expect(0, "another qube\n");
    world.policy("flood", "audit-quota = 256K\nallow shell true\n");
    eventually("they run again", || runs() > before + 50);
    // refusals are counted, not listed
    world.policy("flood", "audit-quota = 64K\ndeny shell *\n");
    eventually("refusals", || answers(&world, "flood").matches(" 5\n").count() > 2000);
    let denied = world.log().matches("DENY vm=flood").count();
    assert!(denied < 120, "{denied} entries of refusals");
    verified(&world, "");
}

#[test]
fn every_entry_is_in_one_chain_and_the_qube_keeps_its_head() {
    let world = world!("work", "dev");
    let daemon = world.ready();
    for n in 0..3 {
        world.remote("work", &[&format!("echo {n}")]).expect(0, &format!("{n}\n"));
        world.remote("dev", &["true"]).expect(0, "");
    }
    world.remote("work", &["--queue", "echo queued"]).expect(0, "queued\n");
    world.policy("dev", "deny shell *\n");
    world.dom0("qvm-remote-dom0 authorize dev $(cat /etc/qubes/remote.d/dev.key); qvm-remote-dom0 revoke dev");
    world.remote("dev", &["true"]).expect(126, "");
    // a change is noted when the files have been quiet for a moment
    eventually("the change is noted", || world.log().contains("ACCESS vm=dev keys=none policy="));
    assert_eq!(daemon.stop().code, 0);
    let log = world.log();
    let numbers: Vec<u64> =
        log.lines().map(|line| line.rsplit_once(" seq=").expect("a number").1.parse().expect("a number")).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "{log}");
    for part in ["AUTHORIZE vm=work", "REVOKE vm=dev", "ACCESS vm=dev keys=none policy=", "AUTH-DENY vm=dev"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    // a qube's view is a filter
    let view = world.dom0("qvm-remote-dom0 log work").text();
    assert!(view.contains("CMD vm=work") && !view.contains("vm=dev"), "{view}");
    // what the qube has kept is in the log
    let kept = world.remote("work", &["log", "100"]).text();
    assert_eq!(kept.matches(" log=").count(), 4, "{kept}");
    world.dom0("cp $WORLD/vms/work/home/user/.qvm-remote/audit.log /root/kept").expect(0, "");
    assert!(verified(&world, "--against /root/kept").contains("4 heads kept, 4 confirmed"));
    // one entry is changed: its own head and all that follow are wrong
    world.dom0("cp /var/log/qubes/qvm-remote.log /root/log; sed -i 's/cmd=echo 1/cmd=echo 7/; s/echo 1/echo 7/' /var/log/qubes/qvm-remote.log");
    let done = world.dom0("qvm-remote-dom0 log --verify");
    assert!(done.code == 1 && done.text().contains("was changed"), "{done:#?}");
    // somebody who is root makes the whole chain again: it holds, and it is not what the qube has kept
    world.dom0("cp /root/log /var/log/qubes/qvm-remote.log; grep -v 'echo 1' /root/log | sed 's/ head=.*//' >/root/texts; rm /var/log/qubes/qvm-remote.log").expect(0, "");
    let anew = "import hashlib, re
head, n, out = b'\\0' * 32, 0, open('/var/log/qubes/qvm-remote.log', 'w')
for text in open('/root/texts').read().splitlines():
    n += 1
    head = hashlib.sha256(b'qvm-remote log 1' + head + n.to_bytes(8, 'big') + text.encode()).digest()
    out.write(f'{text} head={head.hex()} seq={n}\\n')";
    world.dom0(&format!("python3 -c \"{anew}\"")).expect(0, "");
    assert!(verified(&world, "").contains("the chain holds"));
    let done = world.dom0("qvm-remote-dom0 log --verify --against /root/kept");
    assert!(done.code == 1 && done.text().contains("is not the one whose head the qube has kept"), "{done:#?}");
}

#[test]
fn with_a_full_disk_nothing_runs_unwritten_and_the_owner_is_told() {
    let world = world!("work");
    world.authorize();
    world.dom0("cp -a /var/log/qubes /root/kept; mount -t tmpfs -o size=2M,mode=700 log /var/log/qubes; cp /root/kept/* /var/log/qubes/").expect(0, "");
    let log = || world.dom0("cat /var/log/qubes/qvm-remote.log").text(); // in a mount that only dom0 sees
    let daemon = world.daemon();
    world.remote("work", &["echo room"]).expect(0, "room\n");
    let running = busy(&world, "work", 4777);
    world
        .dom0("dd if=/dev/zero of=/var/log/qubes/full bs=4k 2>/dev/null; df /var/log/qubes | grep -q 100%")
        .expect(0, "");
    // the end of what runs goes into what was reserved
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.end();
    eventually("its end is written", || log().contains("CANCEL vm=work"));
    assert_eq!(daemon.stop().code, 0);
    // nothing begins without as much room
    world.dom0("cd /var/log/qubes; cp qvm-remote.log /root/l; rm qvm-remote.log; cp /root/l qvm-remote.log; chmod 600 qvm-remote.log; dd if=/dev/zero of=full2 bs=4k 2>/dev/null; true").expect(0, "");
    let daemon = world.daemon();
    world.remote("work", &["touch /root/late"]).expect(255, "").says("dom0's log cannot be written, so nothing runs");
    world.dom0("ls /root/late 2>/dev/null").expect(2, "");
    assert!(world.dom0("qvm-remote-dom0 status").text().contains("THE LOG CANNOT BE WRITTEN"));
    // what the owner writes of that counts after a restart
    world.dom0("echo 'on_log_failure = \"run\"' >>/etc/qubes/remote.conf").expect(0, "");
    world.dom0(&format!("kill -HUP {}", daemon.pid())).expect(0, "");
    world.remote("work", &["touch /root/late"]).expect(255, "").says("dom0's log cannot be written, so nothing runs");
    world.dom0("ls /root/late 2>/dev/null").expect(2, "");
    // root's own commands go on
    let done = world.dom0("qvm-remote-dom0 revoke work");
    done.expect(0, "Revoked VM 'work'.\n");
    world.dom0("rm /var/log/qubes/full*").expect(0, "");
    assert_eq!(
        world.dom0("qvm-remote-dom0 authorize work $(cat $WORLD/vms/work/home/user/.qvm-remote/auth.key)").code,
        0
    );
    world.remote("work", &["echo room again"]).expect(0, "room again\n");
    assert_eq!(daemon.stop().code, 0);
    let runs = log().lines().filter(|line| line.contains("] CMD ")).count();
    assert!(runs >= 3, "{}", log());
    verified(&world, "");
    // where the owner had said so before the start, commands run without
    world.dom0("rm -r /var/log/qubes/*; mkdir /var/log/qubes/qvm-remote.log").expect(0, "");
    let _daemon = world.daemon();
    world.remote("work", &["echo unwritten"]).expect(0, "unwritten\n");
}

#[test]
fn while_the_disk_of_the_log_hangs_the_owner_is_told_and_what_runs_goes_on() {
    let world = world!("work", "dev");
    world.authorize();
    // the second entry that a command waits for takes 12 s
    let slow = "strace -f -qq -o /dev/null -P /var/log/qubes/qvm-remote.log -e trace=fdatasync -e inject=fdatasync:delay_enter=12000000:when=2";
    let mut daemon = world.dom0_start(&format!("{slow} qvm-remote-dom0"));
    eventually("it serves", || world.remote("dev", &["ping"]).code == 0);
    let mut running = world.remote_start("work", &["-i", "echo up; read x; echo $x"]);
    running.wait_for("up\n");
    let mut late = world.remote_start("dev", &["echo late"]);
    let status = || world.dom0("qvm-remote-dom0 status").text();
    eventually("the owner reads it", || status().contains("the disk of the log has not answered for"));
    assert!(status().contains("waits (recording)") && !late.ended(), "{}", status());
    running.write(b"meanwhile\n");
    running.wait_for("meanwhile\n");
    late.end().expect(0, "late\n");
    assert!(!status().contains("has not answered"), "{}", status());
    world.dom0("pkill -TERM -x qvm-remote-dom0").expect(0, "");
    eventually("it ends", || daemon.ended());
}
