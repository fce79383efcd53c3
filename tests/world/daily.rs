//! Daily work: files, times, directories and restarts behave as people know them from ssh.

use crate::{support::eventually, world::World};

/// Nothing is left in a directory of dom0.
#[track_caller]
fn empty(world: &World, dir: &str) {
    world.dom0(&format!("ls -A {dir}")).expect(0, "");
}

#[test]
fn what_cannot_be_read_is_an_error_on_both_sides_and_leaves_no_file() {
    let world = world!("work");
    let _daemon = world.ready();
    world.policy("work", "allow get /var/log/x\nallow put /root/in\nallow shell *\n");
    world.dom0("mkdir -p /root/in /var/log/x/dir").expect(0, "");
    // put: a directory, a file that nobody may read, and one whose reading fails after it was opened
    world.remote("work", &["put", "/home", "/root/in/f"]).expect(1, "").says("/home: it is a directory");
    world.shell("work", "qvm-remote put - /root/in/f </home").expect(1, "").says("standard input cannot be read: Is a");
    world.shell("work", "install -m 0 /dev/null no; qvm-remote put no /root/in/f").expect(1, "").says("no: Permission");
    let done = world.remote("work", &["put", "/proc/self/mem", "/root/in/f"]);
    done.expect(1, "").says("the file cannot be read: Input/output error");
    empty(&world, "/root/in");
    // a command that reads what cannot be read gets no end of input that looks like one
    let done = world.shell("work", "qvm-remote -i 'cat; echo end >/root/in/end' </home");
    done.expect(1, "").says("standard input cannot be read: Is a directory");
    empty(&world, "/root/in");
    // get: what dom0 cannot read, and what cannot be written here
    let done = world.shell("work", "qvm-remote get /var/log/x/dir here; ls here*");
    assert!(done.code != 0 && done.text().is_empty(), "{done:#?}");
    done.says("/var/log/x/dir cannot be read in dom0: it is no regular file");
    world.remote("work", &["get", "/var/log/x/none", "-"]).expect(1, "").says("cannot be read in dom0: No such file");
    world.dom0("head -c 300000 /dev/zero >/var/log/x/file").expect(0, "");
    let done = world.shell("work", "qvm-remote get /var/log/x/file - >/dev/full");
    done.expect(1, "").says("the output cannot be written: No space left on device");
    // what is there stays, in words that say so
    world.shell("work", "echo one >one; qvm-remote put one /root/in/one").expect(0, "");
    let done = world.shell("work", "echo two >one; qvm-remote put one /root/in/one");
    done.expect(1, "").says("/root/in/one is in dom0 already, and put replaces no file");
    world.dom0("cat /root/in/one").expect(0, "one\n");
}

#[test]
fn a_command_is_ended_by_a_limit_that_its_message_names() {
    let world = world!("work");
    let _daemon = world.ready();
    let own = world.remote("work", &["-t", "1", "sleep 4714"]);
    own.expect(124, "").says("timed out after 1s (id=").says("): the limit of this side (qvm-remote -t SECONDS");
    world.policy("work", "allow shell * [timeout=1]\nallow put /root [timeout=1]\nallow * * [timeout=1]\n");
    for words in [&["sleep 4714"][..], &["-t", "50", "sleep 4714"], &["--queue", "--argv", "sleep", "4714"]] {
        let policys = world.remote("work", words);
        policys.expect(124, "").says("timed out after 1s (id=").says("): the limit of dom0's policy (timeout=");
    }
    let mut put = world.remote_start("work", &["put", "-", "/root/f"]);
    eventually("its time is over", || put.ended());
    put.end().expect(124, "").says("the limit of dom0's policy");
    assert!(world.log().contains("limit=client"), "{}", world.log());
    world.dom0("ls -A /root/f").says("No such file");
}

#[test]
fn a_command_has_no_limit_at_a_terminal_and_one_elsewhere() {
    let world = world!("work");
    let _daemon = world.ready();
    world.policy("work", "ask shell *\n");
    // the sheet has the limit; a terminal that is standard error alone will do
    let limit = |text: &str| {
        let asked = world.vm_start("work", &["bash", "-c", &format!("cd; {text}")]);
        let id = crate::approve::whole_id(&world);
        let seen = world.dom0(&format!("qvm-remote-dom0 approve {} </dev/null", &id[..12])).text();
        world.dom0(&format!("qvm-remote-dom0 approve {id} --deny")).expect(0, "Refused.\n");
        asked.end();
        seen.lines().find(|line| line.starts_with("time")).expect("its time").to_owned()
    };
    assert_eq!(limit("qvm-remote true"), "time          at most 300000 ms");
    let attached = "mkfifo still$$; script -qec 'qvm-remote true </dev/null | cat' /dev/null <>still$$";
    assert_eq!(limit(attached), "time          no limit");
    assert_eq!(limit("qvm-remote-ssh -n dom0 true"), "time          no limit");
    assert_eq!(limit("qvm-remote -t 7 true"), "time          at most 7000 ms");
}

#[test]
fn commands_run_at_home_with_the_umask_of_ssh_and_no_signal_blocked() {
    let world = world!("work");
    let _daemon = world.ready();
    world.remote("work", &["umask; pwd; touch f; stat -c %a f"]).expect(0, "0022\n/root\n644\n");
    world.remote("work", &["--argv", "pwd"]).expect(0, "/root\n");
    // a shell that waits for a child hears of its end
    world.remote("work", &["-t", "20", "--argv", "dash", "-c", "sleep 0.01 & wait; echo waited"]).expect(0, "waited\n");
    for words in [&["grep SigBlk /proc/self/status"][..], &["--argv", "grep", "SigBlk", "/proc/self/status"]] {
        assert!(world.remote("work", words).text().ends_with(":\t0000000000000000\n"), "{words:?}");
    }
    // by the policy: other bits, another directory, the directory as it was in earlier versions
    world.policy("work", "allow shell * [umask=077 cwd=/tmp]\nallow put /root/in\nallow * * [cwd=/]\n");
    world.remote("work", &["umask; pwd"]).expect(0, "0077\n/tmp\n");
    assert!(world.log().contains("cwd='/tmp' umask=077 stdin="), "{}", world.log());
    world.remote("work", &["--argv", "pwd"]).expect(0, "/\n");
    world.dom0("mkdir /root/in").expect(0, "");
    world.shell("work", "echo x | qvm-remote put - /root/in/x").expect(0, "");
    world.dom0("stat -c %a /root/in/x").expect(0, "644\n");
    world.policy("work", "allow put /root/in [umask=077]\nallow * * [user=nobody]\n");
    world.shell("work", "echo x | qvm-remote put - /root/in/y").expect(0, "");
    world.dom0("stat -c %a /root/in/y").expect(0, "600\n");
    // a user whose home does not exist, or is closed to him, is at /
    world.remote("work", &["--argv", "pwd"]).expect(0, "/\n");
    world.policy("work", "allow * * [user=nobody cwd=/root/closed]\n");
    world.dom0("mkdir -m 700 /root/closed").expect(0, "");
    world.remote("work", &["--argv", "pwd"]).expect(126, "").says("in /root/closed: Permission denied");
    for bad in ["umask=8", "umask=1000", "umask=", "umask=+22", "umask=00022"] {
        let done = world.dom0(&format!("echo 'allow * * [{bad}]' >/tmp/p; qvm-remote-dom0 check /tmp/p"));
        assert_eq!(done.code, 78, "{bad}: {done:#?}");
    }
}

#[test]
fn the_code_of_a_put_covers_what_dom0_got() {
    let world = world!("work");
    let _daemon = world.ready();
    world.policy("work", "allow put /root/in\n");
    world.dom0("mkdir /root/in").expect(0, "");
    world.shell("work", "head -c 3000000 /dev/urandom >f; qvm-remote put f /root/in/f").expect(0, "");
    let sum = world.dom0("sha256sum </root/in/f").text();
    world.shell("work", "sha256sum <f").expect(0, &sum);
}
