//! What somebody in a qube sees: every line of the usage section, and what was added to it.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::eventually;

#[test]
fn every_line_of_the_description_works_as_it_is_printed() {
    let world = world!("work", "dev");
    // Quick start
    let key = world.remote("work", &["key", "gen"]);
    let hex = key.text();
    assert_eq!((key.code, hex.trim().len()), (0, 64), "{key:#?}");
    key.says("Key saved to /home/user/.qvm-remote/auth.key")
        .says("Register in dom0:")
        .says("qvm-remote-dom0 authorize work");
    world.remote("work", &["key", "show"]).expect(0, &hex);
    world
        .dom0("echo \"QVM_REMOTE_VMS=work\" > /etc/qubes/remote.conf; chmod 0600 /etc/qubes/remote.conf")
        .expect(0, "");
    let done = world.dom0(
        "KEY=$(qvm-run --pass-io --no-gui work 'cat ~/.qvm-remote/auth.key'); qvm-remote-dom0 authorize work $KEY",
    );
    assert!(done.text().starts_with("Authorized VM 'work'. Key stored in /etc/qubes/remote.d/work.key\n"), "{done:#?}");
    assert!(done.text().contains("allow shell *") && done.text().contains("WARNING"), "{done:#?}");
    let _daemon = {
        let daemon = world.dom0_start("qvm-remote-dom0");
        eventually("an answer", || world.remote("work", &["ping"]).text() == "qvm-remote-dom0 is responding.\n");
        daemon
    };
    world.remote("work", &["hostname"]).expect(0, "dom0\n");
    // Usage
    world.remote("work", &["qvm-ls"]).expect(0, "NAME STATE\ndev Running\nwork Running\n");
    world.remote("work", &["qvm-prefs work memory 4096"]).expect(0, "");
    world.remote("work", &["-t", "60", "sleep 0.1; echo shut down"]).expect(0, "shut down\n");
    world.shell("work", "echo 'echo xl info' | qvm-remote").expect(0, "xl info\n");
    world.shell("work", "printf 'echo one\\necho two\\n' > deploy.sh; qvm-remote < deploy.sh").expect(0, "one\ntwo\n");
    world.remote("work", &["key", "import", hex.trim()]).expect(0, "Key imported to /home/user/.qvm-remote/auth.key\n");
    assert!(world.remote("work", &["log"]).text().contains("] SUBMIT id="));
    assert_eq!(world.remote("work", &["log", "3"]).text().lines().count(), 3);
    let history = world.remote("work", &["history"]).text();
    assert!(history.starts_with("ID ") && history.contains("qvm-prefs work memory 4096"), "{history}");
    // Dom0 daemon
    let keys = world.dom0("qvm-remote-dom0 keys").text();
    assert!(keys.contains("work") && !keys.contains(&hex[..20]), "{keys}");
    world.dom0("qvm-remote-dom0 revoke work").expect(0, "Revoked VM 'work'.\n");
    world.dom0("qvm-remote-dom0 revoke work").expect(1, "").says("VM 'work' has no key");
    world.dom0("qvm-remote-dom0 keys").expect(0, "No VMs authorized.\n");
    world.remote("work", &["true"]).expect(126, "").says("not authorized");
}

#[test]
fn output_is_exact_whatever_its_bytes_and_however_much() {
    let world = world!("work");
    let daemon = world.ready();
    let bytes = "for i in $(seq 0 255); do printf \"\\\\x$(printf %02x $i)\"; done";
    let wanted: Vec<u8> = (0..=255).collect();
    assert_eq!(world.remote("work", &[bytes]).out, wanted);
    let to_err = world.remote("work", &["printf 'e\\377' >&2; printf 'o\\0'"]);
    assert_eq!((to_err.out.as_slice(), to_err.err.as_str()), (&b"o\0"[..], "e\u{fffd}"));
    let before = daemon.memory();
    let stream = "openssl enc -aes-128-ctr -K 00 -iv 00 -nosalt -in /dev/zero 2>/dev/null | head -c 104857600";
    let sum = world.dom0(&format!("{stream} | sha256sum")).text();
    world.shell("work", &format!("qvm-remote '{stream}' | sha256sum")).expect(0, &sum);
    let grown = daemon.memory().saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB more for 100 MiB of output");
}

#[test]
fn exit_codes_and_signals_are_those_of_a_shell() {
    let world = world!("work");
    let _daemon = world.ready();
    for code in [0, 1, 42, 124, 126, 127, 255] {
        world.remote("work", &[&format!("exit {code}")]).expect(code, "");
    }
    world.remote("work", &["kill -9 $$"]).expect(137, "");
    world.remote("work", &["kill -TERM $$"]).expect(143, "");
    world.remote("work", &["nosuch"]).expect(127, "").says("nosuch");
    world.shell("work", "qvm-remote yes | head -n 1; echo ${PIPESTATUS[0]}").expect(0, "y\n141\n");
}

#[test]
fn options_and_faults_are_the_originals() {
    let world = world!("work");
    for (words, text) in [
        (&["-t"][..], "-t requires a value"),
        (&["-t", "x", "true"], "-t requires an integer, got: x"),
        (&["-t", "0", "true"], "-t must be a positive integer"),
        (&["-t5", "true"], "unknown option: -t5"),
        (&["--timeout=5", "true"], "unknown option: --timeout=5"),
        (&["key"], "key requires: gen | show | import"),
        (&["key", "x"], "unknown key command: x"),
        (&["key", "import", "x"], "invalid key (expected 64 hex characters)"),
        (&["key", "show"], "no key configured. Run: qvm-remote key gen"),
        (&["queue", "x"], "unknown queue command: x"),
        (&["true"], "no key configured. Run: qvm-remote key gen"),
    ] {
        world.remote("work", words).expect(1, "").says(&format!("qvm-remote: {text}\n"));
    }
    world.shell("work", "qvm-remote </dev/null").expect(1, "").says("qvm-remote: empty command\n");
    world.shell("work", "head -c 1048577 /dev/zero | tr '\\0' x | qvm-remote").expect(1, "").says("command too large");
    world.remote("work", &["log"]).expect(0, "No audit log entries yet.\n");
    world.remote("work", &["history"]).expect(0, "No command history yet.\n");
    world.remote("work", &["queue", "clean"]).expect(0, "Removed 0 files from the queue.\n");
    assert!(world.remote("work", &["--help"]).text().starts_with("qvm-remote: run commands in dom0"));
    assert!(world.remote("work", &["--version"]).text().starts_with("qvm-remote "));
    // the older name's directory is taken over
    let done = world.shell("work", "rm -rf .qvm-remote; mkdir .qubes-remote; echo x >.qubes-remote/mark; qvm-remote log >/dev/null; cat .qvm-remote/mark");
    done.expect(0, "x\n");
}

#[test]
fn input_is_passed_on_only_when_asked_for() {
    let world = world!("work");
    let _daemon = world.ready();
    world.shell("work", "echo hello | qvm-remote -i cat").expect(0, "hello\n");
    world
        .shell("work", "printf 'a\\nb\\n' | while read l; do qvm-remote \"echo got $l; cat\"; done")
        .expect(0, "got a\ngot b\n");
    let sum = world.dom0("head -c 20000000 /dev/zero | sha256sum").text();
    world.shell("work", "head -c 20000000 /dev/zero | qvm-remote -i sha256sum").expect(0, &sum);
    world.shell("work", "yes | qvm-remote -i 'head -n 1'").expect(0, "y\n");
}

#[test]
fn output_is_shown_as_it_comes() {
    let world = world!("work");
    let _daemon = world.ready();
    let mut running = world.remote_start("work", &["-i", "echo first; read x; echo $x"]);
    running.wait_for("first\n");
    running.write(b"second\n");
    running.wait_for("second\n");
    running.end().expect(0, "first\nsecond\n");
}

#[test]
fn ctrl_c_reaches_the_command_and_twice_ends_it() {
    let world = world!("work");
    let _daemon = world.ready();
    let mut polite =
        world.remote_start("work", &["trap 'echo caught; exit 3' INT; echo up; while :; do sleep 0.05; done"]);
    polite.wait_for("up\n");
    polite.signal(Signal::SIGINT);
    polite.end().expect(3, "up\ncaught\n");
    let mut deaf = world.remote_start("work", &["trap 'echo heard' INT; echo up; while :; do sleep 0.05; done # deaf"]);
    deaf.wait_for("up\n");
    deaf.signal(Signal::SIGINT);
    deaf.wait_for("heard\n");
    deaf.signal(Signal::SIGINT);
    assert_eq!(deaf.end().code, 130);
    eventually("its end in dom0", || world.log().contains("CANCEL vm=work"));
}

#[test]
fn a_client_that_is_killed_takes_its_command_with_it() {
    let world = world!("work");
    let _daemon = world.ready();
    let mut running = world.remote_start("work", &["echo up; sleep 4711 & sleep 4711"]);
    running.wait_for("up\n");
    assert!(world.processes("sleep 4711") > 0);
    running.signal(Signal::SIGKILL);
    running.end();
    eventually("no sleep left", || world.processes("sleep 4711") == 0);
}

#[test]
fn timing_a_time_out_ends_the_whole_tree_also_what_left_the_session() {
    let world = world!("work");
    let _daemon = world.ready();
    let text = "setsid -f sleep 4712; (setsid sleep 4712 &) ; nohup sleep 4712 >/dev/null 2>&1 & echo up; sleep 4712";
    let began = Instant::now();
    let done = world.remote("work", &["-t", "1", text]);
    assert_eq!((done.code, done.text().as_str()), (124, "up\n"), "{done:#?}");
    done.says("qvm-remote: timed out after 1s (id=");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    eventually("no sleep left", || world.processes("sleep 4712") == 0);
}

#[test]
fn what_a_command_leaves_in_the_background_lives_on() {
    let world = world!("work");
    let _daemon = world.ready();
    world.remote("work", &["sleep 4713 >/dev/null 2>&1 & echo started"]).expect(0, "started\n");
    assert!(world.processes("sleep 4713") > 0);
}

#[test]
fn words_pass_unread_with_argv() {
    let world = world!("work");
    let _daemon = world.ready();
    world.remote("work", &["--argv", "printf", "[%s]", "a b", "; id", "$(id)", ""]).expect(0, "[a b][; id][$(id)][]");
    let escape = world.remote("work", &["--argv", "printf", "%s", "\u{1b}]52;c;x\u{7}"]);
    escape.expect(1, "").says("qvm-remote: the command has a word with control characters\n");
    world.remote("work", &["--argv", "nosuch"]).expect(127, "").says("nosuch: no such program in dom0");
    world.remote("work", &["--argv", "./x"]).expect(127, "").says("no such program");
}

#[test]
fn a_terminal_is_a_terminal() {
    let world = world!("work");
    let _daemon = world.ready();
    // its standard input is never at an end: script(1) would pass that on as Ctrl-D
    let done = world.shell(
        "work",
        "mkfifo still; script -qec 'qvm-remote --tty \"test -t 0 && test -t 1 && echo yes; tty\"' /dev/null <>still",
    );
    assert!(done.text().contains("yes\r\n/dev/pts/"), "{done:#?}");
}

#[test]
fn files_go_both_ways_where_the_policy_says_so() {
    let world = world!("work");
    let _daemon = world.ready();
    world.dom0("mkdir -p /var/log/x/sub /root/in; head -c 3000000 /dev/urandom >/var/log/x/sub/file; ln -s /etc/shadow /var/log/x/link").expect(0, "");
    world.remote("work", &["get", "/var/log/x/sub/file"]).expect(126, "").says("denied");
    world.policy("work", "allow get /var/log/x [max-size=4M]\nallow put /root/in [max-size=1M]\nallow shell *\n");
    let sum = world.dom0("sha256sum </var/log/x/sub/file").text();
    world.remote("work", &["get", "/var/log/x/sub/file"]).expect(0, "");
    world.shell("work", "sha256sum <file").expect(0, &sum);
    world.shell("work", "qvm-remote get /var/log/x/sub/file - | sha256sum").expect(0, &sum);
    for bad in ["/var/log/x/link", "/var/log/x/../qubes/qvm-remote.log", "/etc/shadow", "/var/log/x"] {
        let done = world.remote("work", &["get", bad, "-"]);
        assert!(done.code != 0 && done.out.is_empty(), "{bad}: {done:#?}");
    }
    world.shell("work", "echo hello >f; qvm-remote put f /root/in/f").expect(0, "");
    world.dom0("cat /root/in/f; stat -c %a /root/in/f").expect(0, "hello\n644\n");
    assert_ne!(world.shell("work", "qvm-remote put f /root/in/f").code, 0, "what is there is not overwritten");
    assert_ne!(world.shell("work", "qvm-remote put f /root/other").code, 0);
    assert_eq!(world.shell("work", "head -c 2000000 /dev/zero | qvm-remote put - /root/in/big").code, 125);
    world.dom0("ls /root/in").expect(0, "f\n");
    // A file that is too long when it is opened: nothing was begun.
    world.policy("work", "allow get /var/log/x [max-size=1M]\n");
    let big = world.remote("work", &["get", "/var/log/x/sub/file", "-"]);
    big.expect(1, "")
        .says("/var/log/x/sub/file cannot be read in dom0: it has 3000000 bytes, at most 1048576 are allowed");
}

#[test]
fn timing_where_no_daemon_is_the_client_says_so_within_its_time() {
    let world = world!("work");
    world.authorize();
    let began = Instant::now();
    world.remote("work", &["--connect-timeout", "1", "true"]).expect(255, "").says("no answer from dom0");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    let ping = world.remote("work", &["--connect-timeout", "1", "ping"]);
    ping.expect(1, "").says("qvm-remote-dom0 is NOT responding.").says("troubleshooting:");
    let status = world.remote("work", &["status", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.out).expect("JSON");
    assert_eq!((&status["responding"], &status["vm"]), (&false.into(), &"work".into()));
}

#[test]
fn a_queued_command_waits_for_the_daemon() {
    let world = world!("work");
    world.authorize();
    let queued = world.remote_start("work", &["--queue", "echo queued; echo e >&2; exit 5"]);
    eventually("a request", || {
        world.home("work").join(".qvm-remote/queue/pending").read_dir().is_ok_and(|d| d.count() == 2)
    });
    let _daemon = world.daemon();
    queued.end().expect(5, "queued\n").says("e\n");
    let argv = world.remote("work", &["--queue", "--argv", "echo", "a  b"]);
    argv.expect(0, "a  b\n");
    for dir in ["pending", "running", "results"] {
        let left = world.home("work").join(".qvm-remote/queue").join(dir).read_dir().expect("there").count();
        assert_eq!(left, 0, "{dir}");
    }
}

/// A shell text at a separate terminal, of which nothing but its output comes here. Its input never ends: script(1)
/// would pass that on as Ctrl-D.
fn at_a_terminal(world: &crate::world::World, text: &str) -> crate::world::Running {
    std::fs::write(world.home("work").join("typed.sh"), text).expect("written");
    let shell = "cd; rm -f still; mkfifo still; exec script -qec 'bash ./typed.sh' /dev/null <>still";
    world.vm_start("work", &["bash", "-c", shell])
}

#[test]
fn somebody_at_a_terminal_is_told_of_input_that_goes_nowhere() {
    let world = world!("work");
    let _daemon = world.ready();
    const HINT: &str = "standard input is not passed on; for that: qvm-remote -i COMMAND";
    world.shell("work", "echo data >f").expect(0, "");
    let text = |words: &str| at_a_terminal(&world, words).end().text();
    assert!(text("qvm-remote 'echo done' <f").contains(HINT));
    for quiet in
        ["qvm-remote -q 'echo done' <f", "qvm-remote -i 'cat; echo done' <f", "qvm-remote 'echo done' </dev/null"]
    {
        let said = text(quiet);
        assert!(!said.contains(HINT) && said.contains("done"), "{quiet}: {said}");
    }
    // in a script, in a pipe, in a log: never
    assert_eq!(world.shell("work", "qvm-remote 'echo done' <f").err, "");
}

#[test]
fn a_long_wait_shows_that_it_waits() {
    let world = world!("work");
    let _daemon = world.ready();
    // half a minute passes in less than a second for the client, and for nobody else
    let fast = "faketime -f '+0 x50' qvm-remote --connect-timeout 500";
    let waits = world.shell("work", &format!("{fast} -t 400 'sleep 1.5; echo out'"));
    waits.expect(0, "out\n").says("[qvm-remote] waiting... 30s/400s\n").says("[qvm-remote] waiting... 60s/400s\n");
    let quiet = world.shell("work", &format!("{fast} -q -t 400 'sleep 1.5; echo out'"));
    quiet.expect(0, "out\n");
    assert_eq!(quiet.err, "");
}

#[test]
fn a_terminal_has_the_size_of_the_clients_and_follows_it() {
    let world = world!("work");
    let _daemon = world.ready();
    let mut running = at_a_terminal(
        &world,
        "tty >name; stty rows 33 cols 101; exec qvm-remote --tty 'until [ \"$(stty size)\" != \"0 0\" ]; do sleep 0.05; done; \
         trap \"stty size; exit 7\" WINCH; stty size; while :; do sleep 0.05; done'; echo $?",
    );
    running.wait_for("33 101\r\n");
    world.shell("work", "stty -F $(cat name) rows 44 cols 55").expect(0, "");
    running.wait_for("44 55\r\n");
    assert_eq!(running.end().code, 7);
}

#[test]
fn what_only_prints_ends_with_its_reader() {
    let world = world!("work");
    let _daemon = world.ready();
    world.shell("work", "for n in $(seq 30); do qvm-remote \"echo $n\" >/dev/null; done").expect(0, "");
    for words in ["log 1000", "history 1000", "--help"] {
        let done = world.shell("work", &format!("qvm-remote {words} | head -c 1; exit ${{PIPESTATUS[0]}}"));
        assert!([0, 141].contains(&done.code) && done.err.is_empty(), "{words}: {done:#?}");
    }
    let done = world.dom0("qvm-remote-dom0 keys | true; qvm-remote-dom0 authorize work $(printf %064d 1) | true");
    assert_eq!((done.code, done.err.as_str()), (0, ""));
}

#[test]
fn timing_a_command_that_stops_its_supervisor_ends_at_its_time() {
    let world = world!("work");
    let _daemon = world.ready();
    world.policy("work", "allow shell * [timeout=1]\n");
    world.remote("work", &["kill -STOP $PPID; exec sleep 4795"]).expect(124, "");
    eventually("nothing of it is left", || world.processes("sleep 4795") == 0);
    world.remote("work", &["echo on"]).expect(0, "on\n");
}

#[test]
fn timing_a_slow_disk_keeps_no_other_qube_waiting() {
    let world = world!("work", "dev");
    world.authorize();
    world.policy("work", "allow get /var/log/x\n");
    world.dom0("mkdir /var/log/x; echo slow >/var/log/x/file").expect(0, "");
    let slow = "strace -f -qq -o /dev/null -P /var/log/x/file -e trace=read -e inject=read:delay_enter=6000000";
    let _daemon = world.dom0_start(&format!("{slow} qvm-remote-dom0"));
    eventually("it serves", || world.remote("dev", &["echo on"]).code == 0);
    let mut get = world.remote_start("work", &["get", "/var/log/x/file", "-"]);
    eventually("it is on its way", || world.log().contains("CMD vm=work"));
    let began = Instant::now();
    world.remote("dev", &["echo on"]).expect(0, "on\n");
    assert!(began.elapsed() < Duration::from_secs(5) && !get.ended(), "{:?}", began.elapsed());
    get.end().expect(0, "slow\n");
}
