//! What a rule about a program lets through, and what it does not: names, links, directories that others may write.

use crate::{support::eventually, world::World};

/// The policy is this, and `touch` under any name makes a file of dom0's root.
fn with_policy(world: &World, policy: &str) {
    world
        .dom0("mkdir -p /root/tools/sub; ln -sf /usr/bin/touch /root/tools/sub/link; rm -f /root/hacked")
        .expect(0, "");
    world.policy("work", policy);
}

/// None of these ways runs the program.
#[track_caller]
fn every_way_is_denied(world: &World, ways: &[&str]) {
    for way in ways {
        let done = world.remote("work", &["--argv", way, "/root/hacked"]);
        assert_eq!((done.code, done.text().as_str()), (126, ""), "{way}: {done:#?}");
        done.says("denied");
        world.dom0("ls /root/hacked 2>/dev/null").expect(2, "");
    }
}

#[test]
fn a_rule_for_a_directory_is_not_left_by_a_path() {
    let world = world!("work");
    let _daemon = world.ready();
    with_policy(&world, "allow /root/tools/* *\n");
    world.dom0("printf '#!/bin/bash\\necho \"$0 $1\"\\n' >/root/tools/own; chmod 755 /root/tools/own; cp /root/tools/own /root/tools/sub").expect(0, "");
    every_way_is_denied(
        &world,
        &[
            "/root/tools/../../usr/bin/touch",
            "/root/tools/sub/../../../usr/bin/touch",
            "/root/tools//../..//usr/bin/touch",
            "/root/tools/sub/link",
            "/root/tools/sub/own",
            "/proc/self/root/usr/bin/touch",
            // a directory that no rule names is not looked at, wherever it leads
            "/proc/self/root/root/tools/own",
            "/usr/share/../../root/tools/own",
        ],
    );
    for way in ["/root/tools/own", "//root//tools/./own", "/root/tools/sub/../own"] {
        world.remote("work", &["--argv", way, "x"]).expect(0, "/root/tools/own x\n");
    }
    world.policy("work", "allow /root/tools/** *\n");
    world.remote("work", &["--argv", "/root/tools/sub/own", "y"]).expect(0, "/root/tools/sub/own y\n");
}

#[test]
fn a_deny_rule_is_not_passed_by_another_name_of_its_program() {
    let world = world!("work");
    let _daemon = world.ready();
    for deny in ["deny /usr/bin/touch *", "deny touch *", "deny /bin/touch *", "deny /usr/* *"] {
        with_policy(&world, &format!("{deny}\nallow * *\n"));
        every_way_is_denied(
            &world,
            &[
                "touch",
                "/bin/touch",
                "//usr/bin/touch",
                "/usr/bin/../bin/touch",
                "/usr/share/../bin/touch",
                "/proc/self/root/usr/bin/touch",
                "/root/tools/sub/link",
            ],
        );
    }
    // each name on the way: first -> second -> link -> the file; and the file where the rule names a link
    for deny in ["first", "second", "link"] {
        with_policy(&world, &format!("deny /root/tools/sub/{deny} *\nallow * *\n"));
        world.dom0("cd /root/tools/sub; ln -sfn second first; ln -sfn /root/tools/sub/link second").expect(0, "");
        let ways = ["first", "second", "link"].map(|name| format!("/root/tools/sub/{name}"));
        every_way_is_denied(&world, &[&ways[0], &ways[1], &ways[2], "touch", "/usr/bin/touch"]);
    }
    with_policy(&world, "deny touch *\nallow * *\n");
    world.remote("work", &["--argv", "echo", "others run"]).expect(0, "others run\n");
}

#[test]
fn a_link_is_allowed_under_its_own_name_and_called_by_it() {
    let world = world!("work");
    let _daemon = world.ready();
    with_policy(&world, "allow /root/tools/* *\nallow greet *\n");
    world.dom0("ln -s /usr/bin/bash /root/tools/greet; ln -s /usr/bin/bash /usr/local/sbin/greet").expect(0, "");
    // the program sees the name as it was asked, as systemctl does that is called reboot
    for name in ["/root/tools/greet", "/root/tools/sub/../greet", "greet"] {
        world.remote("work", &["--argv", name, "-c", "echo $0"]).expect(0, &format!("{name}\n"));
    }
    world.remote("work", &["--argv", "bash", "-c", "echo $0"]).expect(126, "").says("denied");
}

#[test]
fn a_program_that_others_may_change_is_refused_with_the_reason() {
    let world = world!("work");
    let _daemon = world.ready();
    world.dom0(
        "mkdir -p /root/open /root/closed; for d in open closed; do cp /usr/bin/echo /root/$d/say; done; chmod 777 /root/open; \
         cp /usr/bin/echo /root/closed/group; chmod 775 /root/closed/group; \
         cp /usr/bin/echo /root/closed/owned; chown 1000 /root/closed/owned; \
         ln -s /root/open/say /root/closed/link; ln -s /root/open /root/closed/directory",
    )
    .expect(0, "");
    for policy in ["allow /root/** *\n", "allow * *\n"] {
        world.policy("work", policy);
        world.remote("work", &["--argv", "/root/closed/say", "hi"]).expect(0, "hi\n");
        for (name, why) in [
            ("open/say", "/root/open"),
            ("closed/group", "/root/closed/group"),
            ("closed/owned", "/root/closed/owned"),
            ("closed/link", "/root/open"),
            ("closed/directory/say", "/root/open"),
        ] {
            let done = world.remote("work", &["--argv", &format!("/root/{name}"), "hi"]);
            done.expect(126, "").says(&format!("{why} does not belong to root, or others may write it"));
        }
    }
    // who may not run it does not learn that
    world.policy("work", "allow qvm-ls *\n");
    let done = world.remote("work", &["--argv", "/root/open/say", "hi"]);
    done.expect(126, "").says("no rule of its policy allows it");
}

#[test]
fn a_qube_learns_of_no_program_that_it_may_not_run() {
    let world = world!("work");
    let _daemon = world.ready();
    world.policy("work", "allow qvm-* *\nallow /usr/bin/qvm* *\n");
    world.remote("work", &["--argv", "qvm-nosuch"]).expect(127, "").says("qvm-nosuch: no such program in dom0");
    world.remote("work", &["--argv", "/usr/bin/qvm-nosuch"]).expect(127, "").says("no such program in dom0");
    let [there, not_there] = ["true", "nosuch"].map(|name| world.remote("work", &["--argv", name]));
    assert_eq!((there.code, &there.err.replace("true", "")), (126, &not_there.err.replace("nosuch", "")));
    let [there, not_there] = ["/usr/bin/true", "/usr/bin/nosuch/x"].map(|name| world.remote("work", &["--argv", name]));
    assert_eq!((there.code, there.err), (126, not_there.err));
}

#[test]
fn a_child_of_a_script_can_neither_read_nor_change_the_rest_of_it() {
    let world = world!("work");
    let _daemon = world.ready();
    let attack = r#"import os
def attempt(name, fd):
    try:
        fd = fd()
        text = os.pread(fd, 4096, 0)
        os.pwrite(fd, b"touch /root/hacked #", text.index(b"echo hon" + b"est"))
        print(name, "changed")
    except OSError as e:
        print(name, e.strerror)
attempt("inherited", lambda: 4)
attempt("opened again", lambda: os.open("/proc/self/fd/4", os.O_RDWR))
attempt("of the shell", lambda: os.open("/proc/%d/fd/255" % os.getppid(), os.O_RDWR))
"#;
    world.dom0(&format!("cat >/usr/local/sbin/attack.py <<'X'\n{attack}X")).expect(0, "");
    for who in ["setpriv --reuid=65534 --regid=65534 --clear-groups", "env"] {
        let done = world.remote(
            "work",
            &[&format!("{who} python3 /usr/local/sbin/attack.py\necho honest # as it was sent, and no other")],
        );
        assert!(!done.text().contains("changed") && done.text().ends_with("honest\n"), "{who}: {done:#?}");
        assert_eq!((done.code, done.text().lines().count()), (0, 4), "{who}: {done:#?}");
    }
    world.dom0("ls /root/hacked 2>/dev/null").expect(2, "");
    world.remote("work", &["readlink /proc/self/fd/* | grep -c memfd"]).expect(1, "0\n");
    // 3 is the directory
    for words in [&["ls /proc/self/fd"][..], &["--argv", "ls", "/proc/self/fd"]] {
        world.remote("work", words).expect(0, "0\n1\n2\n3\n");
    }
}

#[test]
fn a_script_runs_as_it_was_sent_from_one_byte_to_a_mebibyte() {
    let world = world!("work");
    let _daemon = world.ready();
    let script = |text: &str| {
        std::fs::write(world.home("work").join("script"), text).expect("written");
        world.shell("work", "qvm-remote <script")
    };
    script(":").expect(0, "");
    script("\n").expect(0, "");
    script("#!/usr/bin/python3\necho $LINENO").expect(0, "2\n");
    script("echo $LINENO $0; exit 4").expect(4, "1 /dev/fd/4\n");
    script("\nnosuch\n").expect(127, "").says("/dev/fd/4: line 2: nosuch: command not found");
    script("cat <<X\na\nX\nexec 4>/dev/null; echo b").expect(0, "a\nb\n");
    let filled = format!("echo begin\n{}\necho end", "#".repeat(1_048_576 - 20));
    assert_eq!(filled.len(), (1 << 20), "the largest");
    script(&filled).expect(0, "begin\nend\n");
}

#[test]
fn a_directory_and_a_terminal_are_those_of_whom_the_command_runs_as() {
    let world = world!("work");
    let _daemon = world.ready();
    world
        .dom0("mkdir -p /home/user/closed /home/user/open; chmod 755 /home/user; chmod 700 /home/user/closed")
        .expect(0, "");
    world.policy("work", "allow shell * [user=nobody cwd=client]\n");
    world
        .shell("work", "mkdir -p open closed; cd open; qvm-remote 'pwd; id -un'")
        .expect(0, "/home/user/open\nnobody\n");
    world.shell("work", "cd closed; qvm-remote 'pwd; ls'").expect(126, "").says("/home/user/closed: Permission denied");
    world.shell("work", "mkdir -p nosuch; cd nosuch; qvm-remote pwd").expect(126, "").says("/home/user/nosuch");
    // standard input is never at an end: script(1) would pass that on as Ctrl-D
    let terminal = "mkdir -p open; cd open; mkfifo still; script -qec 'qvm-remote --tty \"test -O /dev/stdin && stat -Lc %U /dev/stdin\"' /dev/null <>still";
    let done = world.shell("work", terminal);
    assert!(done.text().contains("nobody\r\n"), "{done:#?}");
}

#[test]
fn files_that_others_may_write_decide_nothing() {
    let world = world!("work");
    let daemon = world.ready();
    world.remote("work", &["echo fine"]).expect(0, "fine\n");
    // the qube learns nothing of dom0's policy; the owner reads why in dom0's log
    let refused = |file: &str| {
        let said = if file == "work.policy" { "the policy of this qube has an error" } else { "others may write it" };
        world.remote("work", &["echo hacked"]).expect(126, "").says(said);
        eventually("the owner reads why", || {
            world.dom0("qvm-remote-dom0 log work | tail -n 1").text().contains("others may write it")
        });
    };
    for (file, bad, good) in [("work.policy", "666", "600"), ("work.key", "620", "600"), ("work.policy", "602", "640")]
    {
        world.dom0(&format!("chmod {bad} /etc/qubes/remote.d/{file}")).expect(0, "");
        refused(file);
        world.dom0(&format!("chmod {good} /etc/qubes/remote.d/{file}")).expect(0, "");
    }
    world.dom0("chown 1000 /etc/qubes/remote.d/work.policy").expect(0, "");
    refused("work.policy");
    world.dom0("chown 0 /etc/qubes/remote.d/work.policy").expect(0, "");
    world.remote("work", &["echo fine"]).expect(0, "fine\n");
    // nor does anything in a directory that others may write, or below one
    for directory in ["/etc/qubes/remote.d", "/etc/qubes"] {
        world.dom0(&format!("stat -c %a {directory} >/root/mode; chmod 777 {directory}")).expect(0, "");
        refused("work.key");
        let check = world.dom0("qvm-remote-dom0 check");
        assert_eq!(check.code, 78, "{check:#?}");
        let text = check.text().split_whitespace().collect::<Vec<_>>().join(" ");
        let wanted =
            format!("no key and no policy in it is used: {directory} does not belong to root, or others may write");
        assert!(text.contains(&wanted), "{text}");
        world.dom0(&format!("chmod $(cat /root/mode) {directory}")).expect(0, "");
    }
    world.remote("work", &["echo fine"]).expect(0, "fine\n");
    daemon.stop();
    world.dom0("chmod 666 /etc/qubes/remote.conf").expect(0, "");
    world.dom0("qvm-remote-dom0").expect(1, "").says("/etc/qubes/remote.conf: others may write it");
}

#[test]
fn the_look_for_an_agent_is_no_command_of_an_older_client() {
    let world = world!("work");
    world.authorize();
    // a qube that has the Python client under the name of ours
    std::fs::write(world.home("work").join("v1.py"), include_str!("peers/v1-client.py")).expect("written");
    world
        .dom0(
            "chmod 755 $WORLD/vms/work/home/user/v1.py; qvm-remote-dom0 v1 work on; nsenter -t $(cat $WORLD/vms/work/pid) -m -- \
             mount --bind /home/user/v1.py /mnt/bin/qvm-remote",
        )
        .text();
    let _daemon = world.dom0_start("qvm-remote-dom0");
    let state = |state: &str| {
        let status = world.dom0("qvm-remote-dom0 status --json").text();
        status.contains(&format!("\"work\":{{\"channel\":\"{state}\""))
    };
    eventually("its queue is served", || state("v1 queue"));
    let queued = world.shell("work", "ls .qvm-remote/queue/pending 2>/dev/null").text();
    assert_eq!(queued, "", "the look itself was queued");
    world.shell("work", "python3 v1.py 'echo served'").expect(0, "served\n");
    let log = world.log();
    assert!(!log.contains("serve\\n") && !log.contains("cmd=serve\n") && !log.contains("cmd=serve "), "{log}");
    assert_eq!(log.lines().filter(|line| line.contains("] CMD ")).count(), 1, "{log}");
}

#[test]
fn commands_of_one_qube_take_no_descriptors_of_another() {
    let world = world!("work", "dev");
    world.authorize();
    world.policy("work", "allow shell *\nmax-running = 64\n");
    // the soft limit is raised to the hard one, which is shared; commands have the soft one
    let daemon = world.dom0_start("prlimit --nofile=180:300 qvm-remote-dom0");
    for vm in ["work", "dev"] {
        eventually(vm, || world.remote(vm, &["ping"]).code == 0);
    }
    world.remote("dev", &["ulimit -Sn"]).expect(0, "180\n");
    let many = world.vm_start("work", &["bash", "-c", "for n in $(seq 60); do qvm-remote 'sleep 4761' & done; wait"]);
    let running = || world.processes("sleep 4761");
    eventually("its share runs", || running() >= 5);
    for _ in 0..5 {
        world.remote("dev", &["echo alive"]).expect(0, "alive\n");
    }
    let count = running();
    assert!((5..30).contains(&count), "{count} commands at a time");
    drop((many, daemon));
}

#[test]
fn a_path_that_never_answers_keeps_nobody_waiting() {
    let world = world!("work", "dev", "patient");
    world.authorize();
    world.policy("work", "allow echo *\nallow shell *\n");
    let one = "max-running = 1\nallow shell *\nallow echo *\n";
    world.policy("patient", one);
    // an automount whose daemon answers nothing: a look at anything below does not end; each one that begins is noted
    let automount = "import ctypes, os
os.setpgid(0, 0)
asked, theirs = os.pipe()
options = b'fd=%d,pgrp=%d,minproto=5,maxproto=5,indirect' % (theirs, os.getpgrp())
os.mkdir('/root/auto')
assert ctypes.CDLL(None).mount(b'test', b'/root/auto', b'autofs', 0, options) == 0
print('mounted', flush=True)
while os.read(asked, 4096):
    open('/dev/shm/asked', 'a').write('x')";
    let mut mounted = world.dom0_start(&format!("python3 -c \"{automount}\""));
    mounted.wait_for("mounted\n");
    let daemon = world.daemon();
    let asked = || world.dom0("cat /dev/shm/asked 2>/dev/null").text().len();
    // no rule can match there, so nothing is mounted for the qube
    for way in ["/root/auto/host/x", "/root/./auto//host/../host/x", "/proc/self/root/root/auto/host/x"] {
        world.remote("work", &["--argv", way]).expect(126, "").says("no rule of its policy allows it");
    }
    assert_eq!(asked(), 0, "nobody looked");
    // a look that does not end refuses nobody who waits for something else
    let mut holds = world.remote_start("patient", &["-i", "echo up; read x"]);
    holds.wait_for("up\n");
    let waits = world.remote_start("patient", &["--argv", "echo", "waited"]);
    let state = |state: &str| {
        let status = world.dom0("qvm-remote-dom0 status --json").text();
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        let waiting = status["waiting"].as_array().cloned().unwrap_or_default();
        waiting.iter().any(|request| request["vm"] == "patient" && request["state"] == state)
    };
    eventually("it waits for a place", || state("place"));
    world.policy("patient", &format!("{one}deny /root/auto/patient/x\n"));
    eventually("somebody looks", || asked() > 0 && state("looking"));
    let asked_before = asked();
    // where a rule matches, the look ends after its time, and others do not notice it
    world.policy("work", "allow echo *\nallow shell *\nallow /root/auto/** *\nallow get /root/auto\n");
    let many: Vec<_> =
        (0..5).map(|n| world.remote_start("work", &["--argv", &format!("/root/auto/host-{n}/x")])).collect();
    let file = world.remote_start("dev", &["echo up; sleep 2; echo end"]);
    eventually("somebody looks", || asked() > asked_before);
    world.remote("work", &["echo a text needs no look"]).expect(0, "a text needs no look\n");
    world.remote("dev", &["--argv", "echo", "another qube"]).expect(0, "another qube\n");
    for running in many {
        running.end().expect(126, "").says("did not answer within 5 s");
    }
    file.end().expect(0, "up\nend\n");
    eventually("it waits for a place as before", || state("place"));
    world.policy("patient", one);
    holds.write(b"\n");
    holds.end().expect(0, "up\n");
    waits.end().expect(0, "waited\n");
    // looks that do not end have used up what the qube has of them
    world.remote("work", &["--argv", "echo", "x"]).expect(126, "").says("did not answer within 5 s");
    let get = world.remote("work", &["get", "/root/auto/host-7/x", "-"]);
    get.expect(1, "").says("its directory did not answer in time");
    world.remote("dev", &["--argv", "echo", "another qube"]).expect(0, "another qube\n");
    assert_eq!(daemon.stop().code, 0, "and no daemon waits for them at its end");
    drop(mounted);
}
