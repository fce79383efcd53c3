//! `qvm-remote-dom0.service` under the system manager: ready, watched, stopped, killed. The qube is the test user, whom
//! a stand-in for `qvm-run` reaches through a unit of his own, as dom0 reaches a qube through another machine.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    service::message_id,
    support::{Process, eventually},
    tree::{As, Tree, attempt, shell},
};

const UNIT: &str = "qvm-remote-dom0.service";

/// With `qvm-run` and `qvm-check`, and less patience than the unit has.
pub(crate) fn with_a_qube(tree: Tree) -> Tree {
    tree.prepare(
        r#"
mkdir -p /etc/qubes /etc/systemd/system/qvm-remote-dom0.service.d
printf '#!/bin/sh\n' >/usr/local/bin/qvm-check
cat >/usr/local/bin/qvm-run <<'X'
#!/bin/bash
while [[ $1 == -* ]]; do shift; done
exec setpriv --reuid=tester --regid=tester --clear-groups env -i HOME=/home/tester PATH=/usr/bin:/bin XDG_RUNTIME_DIR=/run/user/$(id -u tester) systemd-run --user --quiet --collect --pipe --wait bash -c "cd; $2"
X
chmod 755 /usr/local/bin/qvm-*
[ -e /home/tester/.qvm-remote ] || runuser -u tester -- env HOME=/home/tester qvm-remote key gen >/root/work.key 2>/dev/null
echo QVM_REMOTE_VMS=work >/etc/qubes/remote.conf
printf '[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=100ms\nWatchdogSec=2\n' >/etc/systemd/system/qvm-remote-dom0.service.d/test.conf
"#,
    )
}

fn property(name: &str) -> String {
    shell(&format!("systemctl show -p {name} --value {UNIT}"))
}

/// `qvm-remote` in the qube.
fn remote(words: &str) -> Process {
    let mut command = std::process::Command::new("runuser");
    command
        .args(["-u", "tester", "--", "env", "HOME=/home/tester", "bash", "-c"])
        .arg(format!("cd; exec qvm-remote {words}"));
    Process::start(command)
}

#[track_caller]
pub(crate) fn answer(words: &str) -> String {
    let mut process = remote(words);
    let status = process.wait();
    let (out, err) = (process.stdout.to_the_end().join("\n"), process.stderr.to_the_end().join("\n"));
    assert!(status.success(), "{words}: {status}\n{out}\n{err}\n{}", shell(&format!("journalctl -q -o cat -u {UNIT}")));
    out
}

/// How many processes have this argument.
fn sleepers(argument: &str) -> usize {
    let all = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| *line == format!("sleep\0{argument}\0").into_bytes()).count()
}

#[test]
fn the_service_of_dom0_is_ready_watched_and_takes_its_keys_from_credentials() {
    let Some(tree) = tree!() else { return };
    let tree = with_a_qube(tree);
    tree.boot("serve", As::Root, || {
        // a key that only systemd has read, by the drop-in of the example, and a policy
        const EXAMPLE: &str = "/usr/share/doc/qvm-remote-dom0/examples/qvm-remote-dom0.service.d/keys-as-credentials.conf";
        shell(&format!(
            "mkdir -m 700 /etc/qubes/remote.d; echo 'allow shell *' >/etc/qubes/remote.d/work.policy; \
             sed 's,^LoadCredentialEncrypted=.*,LoadCredential=work.key:/root/work.key,' {EXAMPLE} \
             >/etc/systemd/system/{UNIT}.d/key.conf; systemctl daemon-reload; systemctl start {UNIT}"
        ));
        assert_eq!((property("ActiveState"), property("StatusText")), ("active".into(), "serving work".into()));
        assert_eq!(answer("hostname"), shell("hostname"));
        // a separate group for each command, in the unit for commands
        let group = answer("cat /proc/self/cgroup");
        assert!(group.contains("qvm-remote-dom0-commands.service/qube-work/command-"), "{group}");
        eventually("the group went with its command", || commands().is_empty());
        // each command is two events in the journal
        for (kind, part) in [("command-start", "work runs cmd=hostname"), ("command-end", "a command of work ended: exit=0")] {
            let matches = format!("MESSAGE_ID={} -u {UNIT}", message_id(kind));
            eventually(part, || shell(&format!("journalctl -q -o cat {matches}")).contains(part));
            assert!(shell(&format!("journalctl -q -o json {matches}")).contains("\"QUBE\":\"work\""), "{kind}");
        }
        // nothing of the service's is the command's
        let environment = answer("env");
        for name in ["CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG", "INVOCATION_ID"] {
            assert!(!environment.contains(name), "{environment}");
        }
        // a service in the qube has its key from there, too
        shell(
            "mv /home/tester/.qvm-remote/auth.key /root/kept; \
             printf '[Service]\nType=oneshot\nUser=tester\nEnvironment=HOME=/home/tester\n\
             LoadCredential=qvm-remote.key:/root/work.key\nExecStart=/usr/bin/qvm-remote echo by credential\n' \
             >/run/systemd/system/client.service; systemctl daemon-reload; systemctl start client.service",
        );
        let output = || shell("journalctl -q -o cat -t qvm-remote");
        eventually("its output", || output().lines().any(|line| line == "by credential"));
        let mut without = remote("true");
        assert_eq!(without.wait().code(), Some(1));
        shell("mv /root/kept /home/tester/.qvm-remote/auth.key");
        // the list of qubes is read again
        shell(&format!("echo 'QVM_REMOTE_VMS=\"work dev\"' >/etc/qubes/remote.conf; systemctl reload {UNIT}"));
        eventually("two qubes", || property("StatusText") == "serving work dev");
        shell(&format!("echo QVM_REMOTE_VMS=work >/etc/qubes/remote.conf; systemctl reload {UNIT}"));
        eventually("one qube", || property("StatusText") == "serving work");
        // a revocation counts at once although the key is a credential, and so does a new key
        assert_eq!(shell("qvm-remote-dom0 keys | wc -l"), "2");
        assert_eq!(shell("qvm-remote-dom0 revoke work"), "Revoked VM 'work'.");
        let mut refused = remote("true");
        assert_eq!(refused.wait().code(), Some(126));
        shell(&format!("systemctl restart {UNIT} || true")); // no key at all: it does not start
        assert_ne!(property("ActiveState"), "active");
        shell(&format!("qvm-remote-dom0 authorize work $(cat /root/work.key); systemctl reset-failed {UNIT}; systemctl start {UNIT}"));
        assert_eq!(answer("echo again"), "again");
        // it says that it lives, for longer than the watchdog waits; stopped, it is killed and started again
        let before = property("MainPID");
        let began = Instant::now();
        let mut lost = remote("'echo up; sleep 4751'");
        lost.stdout.wait_for("up");
        while began.elapsed() < Duration::from_secs(5) {
            assert_eq!(property("MainPID"), before);
            std::thread::sleep(Duration::from_millis(200)); // measured: a time without a fault
        }
        shell(&format!("kill -STOP {before}"));
        eventually("another process", || !["0", before.as_str()].contains(&property("MainPID").as_str()));
        assert_eq!(property("Result"), "success");
        assert!(!lost.wait().success());
        eventually("no sleep left", || sleepers("4751") == 0);
        assert_eq!(answer("echo after the watchdog"), "after the watchdog");
    });
}

/// The groups of commands.
fn commands() -> String {
    shell("ls -d $(find /sys/fs/cgroup -name qvm-remote-dom0-commands.service)/qube-*/command-* 2>/dev/null || true")
}

/// What status says runs in the background.
fn background() -> usize {
    let status: serde_json::Value = serde_json::from_str(&shell("qvm-remote-dom0 status --json")).expect("JSON");
    status["background"].as_array().map_or(0, Vec::len)
}

#[test]
fn what_a_command_leaves_in_the_background_goes_on_is_listed_and_can_be_ended() {
    const COMMANDS: &str = "qvm-remote-dom0-commands.service";
    let Some(tree) = tree!() else { return };
    let tree = with_a_qube(tree);
    tree.boot("background", As::Root, || {
        shell(&format!("qvm-remote-dom0 authorize work $(cat /root/work.key); systemctl start {UNIT}"));
        let leave = |seconds: u32, words: &str| {
            // a separate session, no output, no environment: nothing but its group tells whose it is
            answer(&format!("{words} 'setsid env -i sleep {seconds} >/dev/null 2>&1 </dev/null & echo left'"))
        };
        shell("printf 'max-running = 1\nallow shell *\n' >/etc/qubes/remote.d/work.policy");
        assert_eq!(leave(4761, ""), "left");
        assert_eq!(leave(4762, ""), "left");
        eventually("both are listed", || background() == 2 && sleepers("4761") == 1 && sleepers("4762") == 1);
        assert_eq!(answer("echo no place is taken"), "no place is taken");
        // over a stop and a start, and over a crash
        shell(&format!("systemctl restart {UNIT}"));
        eventually("both are listed again", || background() == 2);
        shell(&format!("systemctl kill --kill-who=main -s KILL {UNIT}"));
        eventually("another process", || property("NRestarts") == "1" && property("ActiveState") == "active");
        eventually("both are listed again", || background() == 2 && sleepers("4761") == 1 && sleepers("4762") == 1);
        // its command's time is its own
        shell("printf 'max-running = 1\nallow shell * [timeout=3]\n' >/etc/qubes/remote.d/work.policy");
        assert_eq!(leave(4763, ""), "left");
        eventually("its time is over", || sleepers("4763") == 0 && background() == 2);
        // the revocation ends it
        let done = shell("qvm-remote-dom0 revoke --kill work");
        assert!(done.contains("Ended 2 command"), "{done}");
        eventually("nothing is left", || background() == 0 && sleepers("4761") + sleepers("4762") == 0);
        eventually("no group is left", || commands().is_empty());
        // and so it does while no daemon runs, also when the key is gone already
        shell("qvm-remote-dom0 authorize work $(cat /root/work.key)");
        shell("echo 'allow shell *' >/etc/qubes/remote.d/work.policy");
        assert_eq!(leave(4765, ""), "left");
        shell(&format!("systemctl stop {UNIT}; qvm-remote-dom0 revoke work"));
        assert_eq!(sleepers("4765"), 1);
        assert_eq!(
            shell("qvm-remote-dom0 revoke --kill work"),
            "VM 'work' has no key.\nNo daemon is running. Ended what 1 command had left in the background."
        );
        assert_eq!(sleepers("4765"), 0);
        shell(&format!("qvm-remote-dom0 authorize work $(cat /root/work.key); systemctl start {UNIT}"));
        // the unit stays with what is in it, without the service, until the time of that is over
        shell("qvm-remote-dom0 authorize work $(cat /root/work.key)");
        shell("echo 'allow shell * [timeout=20]' >/etc/qubes/remote.d/work.policy");
        assert_eq!(leave(4764, ""), "left");
        shell(&format!("systemctl stop {UNIT}"));
        assert_eq!((sleepers("4764"), shell(&format!("systemctl is-active {COMMANDS}"))), (1, "active".into()));
        eventually("its time is over, and so is the unit", || {
            sleepers("4764") == 0 && attempt(&format!("systemctl is-active {COMMANDS}")).1 == "inactive"
        });
        assert_eq!(shell(&format!("systemctl show -p Result --value {COMMANDS}")), "success");
    });
}

#[test]
fn a_stop_of_the_service_of_dom0_ends_every_tree_and_a_crash_answers_what_was_running() {
    let Some(tree) = tree!() else { return };
    let tree = with_a_qube(tree);
    tree.boot("life", As::Root, || {
        shell(&format!("qvm-remote-dom0 authorize work $(cat /root/work.key); systemctl start {UNIT}"));
        assert_eq!(answer("echo up"), "up");
        // a crash: what was running is answered, and never run again
        let durable = remote("--queue -t 60 'echo x >>/root/ran; setsid -f sleep 4752; sleep 4752'");
        let mut live = remote("'echo up; setsid -f sleep 4752; sleep 4752'");
        live.stdout.wait_for("up");
        eventually("both run", || Path::new("/root/ran").exists() && sleepers("4752") == 4);
        shell(&format!("systemctl kill --kill-who=main -s KILL {UNIT}"));
        eventually("nothing of them is left", || sleepers("4752") == 0);
        let mut durable = durable;
        assert_eq!(durable.wait().code(), Some(130));
        assert!(durable.stderr.to_the_end().join("\n").contains("daemon restarted while this command was running"));
        assert_eq!(live.wait().code(), Some(255));
        assert_eq!(answer("cat /root/ran"), "x");
        assert_eq!(property("NRestarts"), "1");
        // a stop: commands may end; a second TERM is for those that do not
        shell("mkfifo /root/fifo");
        let mut polite = remote("'echo up; read x </root/fifo; echo end'");
        let mut deaf = remote("'trap \"\" TERM; echo up; setsid -f sleep 4753; while :; do sleep 4753; done'");
        polite.stdout.wait_for("up");
        deaf.stdout.wait_for("up");
        shell(&format!("systemctl stop --no-block {UNIT}"));
        eventually("it drains", || property("StatusText").starts_with("stopping, 2 commands"));
        shell("echo >/root/fifo");
        assert!(polite.wait().success());
        assert_eq!(polite.stdout.to_the_end().last().map(String::as_str), Some("end"));
        assert!(sleepers("4753") > 0);
        shell(&format!("systemctl kill --kill-who=main -s TERM {UNIT}"));
        assert_eq!(deaf.wait().code(), Some(130));
        let cut = format!("journalctl -q -o cat -u {UNIT}");
        eventually("the journal names what was cut", || shell(&cut).contains("stopping: a command of work is cut ("));
        eventually("it has stopped", || property("ActiveState") == "inactive");
        assert_eq!((sleepers("4753"), property("Result")), (0, "success".into()));
        assert_eq!(shell("ls /run/qvm-remote 2>/dev/null || true"), "");
        // for a while, and then no more
        let timer = || attempt("systemctl is-active qvm-remote-dom0-stop.timer").1;
        let start = |time: &str| shell(&format!("qvm-remote-dom0 start --for {time}"));
        let started =
            |time: &str| format!("Started for {time}; then it is stopped. Another 'start --for' sets another time.");
        assert_eq!(start("1h"), started("1h"));
        assert_eq!(answer("echo for a while"), "for a while");
        // another time takes the place of the first one
        assert_eq!(start("2s"), started("2s"));
        eventually("the while is over", || property("ActiveState") == "inactive");
        // a restart keeps the time; a stop ends it, so that it ends nothing that is started later
        start("1h");
        shell(&format!("systemctl restart {UNIT}"));
        assert_eq!(timer(), "active");
        // what is no time changes nothing
        assert_eq!(attempt("qvm-remote-dom0 start --for 30mim").0, Some(2));
        assert_eq!((timer(), property("ActiveState")), ("active".into(), "active".into()));
        shell(&format!("systemctl stop {UNIT}"));
        eventually("its time is forgotten", || timer() == "inactive");
        // who enables it wants no end
        start("1h");
        shell("echo yes | qvm-remote-dom0 enable");
        assert_eq!((timer(), property("ActiveState")), ("inactive".into(), "active".into()));
        shell("qvm-remote-dom0 disable");
        // what somebody started by hand goes on
        shell(&format!("systemctl start {UNIT}"));
        let (code, _, said) = attempt("qvm-remote-dom0 start --for 1s");
        assert!(code == Some(1) && said.contains("runs already, and 'start --for' did not start it"), "{said}");
        assert_eq!((timer(), property("ActiveState")), ("inactive".into(), "active".into()));
        // an upgrade by a command of a qube: what runs ends first, everybody is served, what is in the background stays
        shell("mkfifo /root/go");
        let before = property("MainPID");
        answer("'setsid sleep 4766 >/dev/null 2>&1 </dev/null &'");
        let mut upgrade = remote("'qvm-remote-dom0 restart --when-idle; echo up; read x </root/go; echo end'");
        upgrade.stdout.wait_for("up");
        assert!(shell("qvm-remote-dom0 status").contains("A restart is pending since "));
        assert_eq!((answer("echo served"), property("MainPID")), ("served".into(), before.clone()));
        shell("echo >/root/go");
        assert!(upgrade.wait().success());
        assert_eq!(upgrade.stdout.to_the_end().last().map(String::as_str), Some("end"));
        eventually("another process", || !["0", before.as_str()].contains(&property("MainPID").as_str()));
        assert_eq!((answer("echo restarted"), sleepers("4766")), ("restarted".into(), 1));
        assert_eq!(property("Result"), "success");
        shell("qvm-remote-dom0 revoke --kill work; qvm-remote-dom0 authorize work $(cat /root/work.key)");
        eventually("nothing is left", || sleepers("4766") == 0);
        shell(&format!("systemctl start {UNIT}"));
    });
    tree.boot("after a reboot", As::Root, || {
        assert_eq!(property("ActiveState"), "inactive", "nobody has enabled it");
        let (code, ..) = attempt("echo no | qvm-remote-dom0 enable");
        assert_eq!((code, property("ActiveState")), (Some(1), "inactive".into()));
        assert_eq!(
            shell("echo yes | qvm-remote-dom0 enable"),
            "Enabled and started. Disable with: qvm-remote-dom0 disable"
        );
        assert_eq!(answer("echo enabled"), "enabled");
    });
    tree.boot("after another", As::Root, || {
        assert_eq!(answer("echo still enabled"), "still enabled");
        assert_eq!(shell("qvm-remote-dom0 disable"), "Disabled and stopped.");
        assert_eq!((property("ActiveState"), property("UnitFileState")), ("inactive".into(), "disabled".into()));
    });
}
