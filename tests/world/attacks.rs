//! What broke the original, and what an agent could try: each with its own test.

use std::{fs, time::Duration};

use crate::{
    support::{PATIENCE, eventually},
    world::World,
};

/// Puts an agent of the attacker's in the place of ours, in that qube.
fn possess(world: &World, vm: &str, mode: &str) {
    let evil = world.home(vm).join("evil.py");
    fs::write(&evil, include_str!("peers/evil.py")).expect("written");
    fs::set_permissions(&evil, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
    fs::write(world.home(vm).join("evil"), mode).expect("written");
    world
        .dom0(&format!(
            "nsenter -t $(cat $WORLD/vms/{vm}/pid) -m -- mount --bind /home/user/evil.py /mnt/bin/qvm-remote"
        ))
        .expect(0, "");
}

fn pending(world: &World) -> std::path::PathBuf {
    world.home("work").join(".qvm-remote/queue/pending")
}

#[test]
fn an_agent_that_breaks_the_protocol_loses_its_channel_and_nothing_else() {
    const MODES: &[&str] =
        &["length", "type", "server", "id", "control", "twice", "streams", "credit", "garbage", "babble"];
    let world =
        world!("dev", "length", "type", "server", "id", "control", "twice", "streams", "credit", "garbage", "babble");
    world.authorize();
    let files = "find /etc /root /var/lib /run -newer /etc/qubes/remote.d/babble.key -type f | grep -vE 'remote.d|ledger|lock|mtab|qvm-remote/keys/'";
    MODES.iter().for_each(|mode| possess(&world, mode, mode));
    let daemon = world.dom0_start("qvm-remote-dom0");
    eventually("dev", || world.remote("dev", &["ping"]).code == 0);
    for mode in MODES.iter().filter(|mode| **mode != "babble") {
        eventually(mode, || world.home(mode).join("hello").exists());
        world.remote("dev", &["echo alive"]).expect(0, "alive\n");
    }
    let state = |vm: &str, state: &str| {
        let status = world.dom0("qvm-remote-dom0 status --json").text();
        status.contains(&format!("\"{vm}\":{{\"channel\":\"{state}\""))
    };
    eventually("the babbler is seen through", || state("babble", "no agent"));
    for mode in MODES.iter().filter(|mode| **mode != "babble") {
        let why = match *mode {
            "streams" => "it opened more streams than there are",
            "credit" => "it sent what it had no right to send",
            _ => "it sent what is no frame of a qube's",
        };
        eventually(mode, || world.log().contains(&format!("CUT vm={mode} {why}")));
        // it connects again and again, and is believed until it speaks
        eventually(mode, || !state(mode, "live"));
    }
    assert_eq!(world.dom0(files).text(), "", "no file was made in dom0");
    let log = world.log();
    assert!(
        !log.contains("] CMD ") || log.lines().filter(|l| l.contains("] CMD ")).all(|l| l.contains("vm=dev")),
        "{log}"
    );
    assert!(!log.contains('\x1b'), "{log}");
    drop(daemon);
}

#[test]
fn timing_a_flood_from_one_qube_delays_no_other_and_takes_no_memory() {
    let world = world!("work", "dev");
    world.authorize();
    possess(&world, "work", "flood");
    let daemon = world.dom0_start("qvm-remote-dom0");
    eventually("dev", || world.remote("dev", &["ping"]).code == 0);
    eventually("the flood", || world.log().contains("AUTH-FAIL vm=work id=flood-"));
    let began = std::time::Instant::now();
    for _ in 0..20 {
        world.remote("dev", &["echo alive"]).expect(0, "alive\n");
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let memory = world.dom0("grep VmRSS /proc/$(pgrep -o qvm-remote-dom0)/status").text();
    let memory: usize = memory.split_whitespace().nth(1).expect("a number").parse().expect("a number");
    assert!(memory < 64 << 10, "{memory} KiB");
    let lines = world.log().lines().filter(|l| l.contains("AUTH-FAIL")).count();
    assert!(lines < 100, "{lines} lines that anybody could cause");
    drop(daemon);
}

#[test]
fn what_reads_a_qubes_bytes_has_no_key_no_privilege_and_no_files() {
    let world = world!("work");
    let _daemon = world.ready();
    let of = |file: &str| world.dom0(&format!("cat /proc/$(pgrep -f '^/proc/self/exe parse')/{file}")).text();
    let status = of("status");
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000"] {
        assert!(status.contains(line), "{line} in {status}");
    }
    let uid = status.lines().find(|l| l.starts_with("Uid:")).expect("there").split('\t').nth(1).expect("there");
    assert!(uid.parse::<u32>().expect("a number") >= 0x7000_0000, "{status}");
    assert!(!status.contains("Groups:\t0"), "{status}");
    assert_eq!(of("environ"), "");
    let open = world
        .dom0(
            "ls -l /proc/$(pgrep -f '^/proc/self/exe parse')/fd | grep -oE '(pipe|socket|/).*$' | sed 's/:.*//' | sort",
        )
        .text();
    assert_eq!(open, "/dev/null\npipe\npipe\n", "two pipes");
}

#[test]
fn a_text_swapped_under_a_valid_code_is_refused_and_so_is_a_spent_one() {
    let world = world!("work");
    world.authorize();
    let spool = "cd .qvm-remote/queue/pending; id=$(ls | grep -v '\\.'); ";
    let waiting = world.remote_start("work", &["--queue", "-t", "60", "echo x >>/root/ran; echo good"]);
    eventually("a request", || pending(&world).read_dir().is_ok_and(|d| d.count() == 2));
    world
        .shell(
            "work",
            &format!("{spool} mkdir ~/kept; cp $id $id.auth2 ~/kept; printf '%-29s\\n' 'touch /root/hacked' > $id"),
        )
        .expect(0, "");
    let _daemon = world.daemon();
    waiting.end().expect(126, "").says("its text is not the one signed");
    // the honest one, put back by hand: it was refused, not begun, so it may run; and then never again
    let submit = "cp -r kept put; mv put/*.auth2 .qvm-remote/queue/pending/; mv put/* .qvm-remote/queue/pending/; rmdir put; \
                  id=$(ls kept | grep -v '\\.'); \
                  for n in $(seq 400); do [ -s .qvm-remote/queue/results/$id.exit ] && break; sleep 0.05; done; \
                  cat .qvm-remote/queue/results/$id.exit; rm .qvm-remote/queue/results/*";
    world.shell("work", submit).expect(0, "0");
    for _ in 0..5 {
        world.shell("work", submit).expect(0, "126");
    }
    world.dom0("cat /root/ran; ls /root/hacked 2>/dev/null").expect(2, "x\n");
    assert!(world.log().contains("REPLAY vm=work"), "{}", world.log());
}

#[test]
fn a_spent_token_of_the_original_runs_nothing_again_whatever_its_text() {
    let world = world!("work");
    fs::write(world.home("work").join("v1.py"), include_str!("peers/v1-client.py")).expect("written");
    let daemon = world.ready();
    world.dom0("qvm-remote-dom0 v1 work on");
    world.shell("work", "V1_ID=one python3 v1.py 'echo x >>/root/ran; echo once'").expect(0, "once\n");
    world
        .shell("work", "rm -f .qvm-remote/queue/results/*; V1_ID=one python3 v1.py 'touch /root/hacked'")
        .expect(126, "")
        .says("is not run twice");
    daemon.kill();
    let _daemon = world.daemon();
    world
        .shell("work", "rm -f .qvm-remote/queue/results/*; V1_ID=one python3 v1.py 'touch /root/hacked'")
        .expect(126, "")
        .says("is not run twice");
    world.dom0("cat /root/ran; ls /root/hacked 2>/dev/null").expect(2, "x\n");
}

#[test]
fn a_result_that_dom0_did_not_sign_is_none() {
    let world = world!("work");
    world.authorize();
    let forger = world.vm_start(
        "work",
        &[
            "bash",
            "-c",
            "cd ~; while :; do for f in .qvm-remote/queue/pending/*; do case ${f##*/} in *.*|*'*') continue;; esac; \
          r=.qvm-remote/queue/results/${f##*/}; : >$r.exit; sleep 0.2; echo forged >$r.out; : >$r.err; \
          printf 'id=x\\nmac=%064d 0 0\\n' 0 >$r.meta; printf 0 >$r.exit; done; sleep 0.05; done",
        ],
    );
    let done = world.remote("work", &["--queue", "-t", "20", "echo real"]);
    done.expect(255, "").says("the result is not authentic");
    drop(forger);
}

#[test]
fn ids_and_commands_forge_no_entry_and_reach_no_terminal() {
    let world = world!("work");
    let _daemon = world.ready();
    world
        .remote("work", &["true \r\u{1b}]52;c;x\u{7} ; # x\n[2025-01-01T00:00:00] CMD vm=dom0 forged"])
        .expect(1, "")
        .says("control characters");
    world
        .remote("work", &["true # \u{9b}31m \u{202e} \u{7f}\n# [2025-01-01T00:00:00] CMD vm=dom0 id=forged"])
        .expect(0, "");
    for text in [world.log(), world.remote("work", &["log"]).text(), world.remote("work", &["history"]).text()] {
        let bad = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
        assert!(!text.contains(bad), "{text:?}");
        assert!(text.lines().all(|line| !line.starts_with("[2025")), "{text}");
    }
    // a queue with names that are no ids stops nobody
    world.shell("work", "cd .qvm-remote/queue/pending; for n in $'\\x1b]0;x' $'b\\xff' 'a b' '..x' '-rf'; do echo id >\"./$n\"; echo 00 >\"./$n.auth\"; done").expect(0, "");
    world.remote("work", &["--queue", "echo through"]).expect(0, "through\n");
    assert!(!world.log().contains("rf"), "{}", world.log());
}

#[test]
fn nothing_in_a_queue_is_read_but_files_of_bounded_size() {
    let world = world!("work");
    let daemon = world.ready();
    let before = daemon.memory();
    world.shell("work", "cd .qvm-remote/queue/pending; ln -s /dev/zero zero; echo 0 >zero.auth; for n in 1 2 3 4 5 6 7 8; do mkfifo f$n; echo 0 >f$n.auth; done; head -c 90000000 /dev/zero >big; echo 0 >big.auth").expect(0, "");
    world.remote("work", &["--queue", "echo through"]).expect(0, "through\n");
    eventually("an answer", || world.home("work").join(".qvm-remote/queue/results/big.exit").exists());
    world
        .shell("work", "cat .qvm-remote/queue/results/big.err")
        .expect(0, "qvm-remote-dom0: oversized (1048577 bytes) (id=big)\n");
    assert!(daemon.memory() < before + (4 << 10));
}

#[test]
fn the_daemons_own_input_reaches_no_qube() {
    let world = world!("work");
    world.authorize();
    possess(&world, "work", "stay");
    let mut daemon = world.dom0_start("qvm-remote-dom0");
    daemon.write(b"a secret on standard input\n");
    eventually("a greeting", || world.home("work").join("hello").exists());
    daemon.write(b"a secret on standard input\n");
    let hello = fs::read(world.home("work").join("hello")).expect("there");
    assert!(!String::from_utf8_lossy(&hello).contains("secret"));
    assert_eq!(
        world
            .dom0("for p in $(pgrep -f 'qvm-remote --argv serve'); do readlink /proc/$p/fd/0; done | grep -v pipe")
            .text(),
        ""
    );
}

#[test]
fn files_and_directories_are_closed_to_others_on_both_sides() {
    let world = world!("work");
    let _daemon = world.ready();
    world.remote("work", &["true"]).expect(0, "");
    world.shell("work", "find .qvm-remote -perm /077 -not -type l").expect(0, "");
    world
        .dom0("find /etc/qubes/remote.d /var/log/qubes/qvm-remote.log /var/lib/qvm-remote /run/qvm-remote -perm /077")
        .expect(0, "");
    // another user of the qube reaches neither key nor agent
    let other = world.dom0("nsenter -t $(cat $WORLD/vms/work/pid) -m -p -u -i -n -- setpriv --reuid=1001 --regid=1001 --clear-groups env HOME=/home/user /mnt/bin/qvm-remote --connect-timeout 1 id");
    assert!(other.code != 0 && other.out.is_empty(), "{other:#?}");
}

#[test]
fn parallel_commands_leave_every_line_and_every_file() {
    let world = world!("work");
    fs::write(world.home("work").join("v1.py"), include_str!("peers/v1-client.py")).expect("written");
    let _daemon = world.ready();
    world.dom0("qvm-remote-dom0 v1 work on");
    let count = world
        .vm_start("work", &["bash", "-c", "cd; for n in $(seq 20); do V1_ID=p-$n python3 v1.py echo $n & done; wait"])
        .end_within(PATIENCE);
    assert_eq!(count.text().lines().count(), 20, "{count:#?}");
    let log = world.shell("work", "grep -c 'id=p-' .qvm-remote/audit.log; ls .qvm-remote/queue/results/*.meta | wc -l");
    log.expect(0, "20\n20\n");
    assert_eq!(world.log().lines().filter(|l| l.contains("DONE vm=work id=p-")).count(), 20);
}

#[test]
fn a_listing_that_is_a_lie_makes_no_file_and_stops_nobody() {
    let world = world!("work", "dev");
    world.authorize();
    world.dom0("qvm-remote-dom0 v1 work on; qvm-remote-dom0 v1 dev on");
    // whatever dom0 asks of the shell in that qube, the answer is an attacker's
    let answers = [
        "../../../etc/cron.d/x 3 00\\nid\\n",
        "a 4294967295 00\\n",
        "a -1 00\\nxx",
        "x\\033]52;c;x\\007 3 00\\nid\\n",
        "a\\nb 3 00\\nid\\n",
        "a 3 \\303\\251\\nid\\n",
    ];
    for (n, answer) in answers.iter().enumerate() {
        fs::write(world.home("work").join(format!("answer-{n}")), answer.replace("\\\\", "\\")).expect("written");
    }
    let shell = "#!/bin/sh\nn=$(cat /home/user/n 2>/dev/null || echo 0)\necho $(((n + 1) % 7)) >/home/user/n\n\
                 [ $n = 6 ] && exec cat /dev/zero\nprintf \"$(cat /home/user/answer-$n)\"\n";
    let evil = world.home("work").join("sh");
    fs::write(&evil, shell).expect("written");
    fs::set_permissions(&evil, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
    world
        .dom0("nsenter -t $(cat $WORLD/vms/work/pid) -m -- mount --bind /home/user/sh /usr/bin/bash; touch /root/since; sleep 0.01")
        .expect(0, "");
    let found = "find /etc /root /var/lib /var/log /run /usr/bin -newer /root/since -type f | grep -vE 'remote.d|ledger|/lock$|qvm-remote.log|mtab'";
    let look = |options: &str| {
        let once = world.dom0(&format!("qvm-remote-dom0 --vm work --once {options}"));
        assert!(!once.err.contains(['\x1b', '\x07']), "{once:#?}");
    };
    for _ in 0..7 {
        look("--dry-run");
    }
    for _ in 0..7 {
        look("");
    }
    assert_eq!(world.dom0(found).text(), "", "no file was made in dom0");
    let log = world.log();
    assert!(!log.contains("] CMD ") && !log.contains("cron"), "{log}");
    let _daemon = world.dom0_start("qvm-remote-dom0");
    eventually("dev", || world.remote("dev", &["ping"]).code == 0);
}

#[test]
fn a_request_that_was_given_up_runs_no_more() {
    let world = world!("work");
    world.authorize();
    let done = world.remote("work", &["--queue", "-t", "1", "touch /root/late"]);
    done.expect(124, "").says("timed out after 1s");
    let given_up = world.remote_start("work", &["--queue", "-t", "60", "touch /root/late"]);
    eventually("a request", || pending(&world).read_dir().is_ok_and(|d| d.count() == 2));
    given_up.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(given_up.end().code, 130);
    assert_eq!(pending(&world).read_dir().expect("there").count(), 0);
    let _daemon = world.daemon();
    world.remote("work", &["--queue", "echo next"]).expect(0, "next\n");
    world.dom0("ls /root/late 2>/dev/null").expect(2, "");
}

#[test]
fn no_key_no_code_and_no_value_of_the_environment_is_in_any_log() {
    let world = world!("work");
    let key = world.remote("work", &["key", "gen"]).text();
    world.dom0(&format!(
        "echo QVM_REMOTE_VMS=work >/etc/qubes/remote.conf; qvm-remote-dom0 authorize work {}",
        key.trim()
    ));
    world.policy("work", "v1 = yes\nallow shell * [env=TZ,QVM_EDITOR]\n");
    fs::write(world.home("work").join("v1.py"), include_str!("peers/v1-client.py")).expect("written");
    let daemon = world.dom0_start("qvm-remote-dom0 --verbose");
    eventually("an answer", || world.remote("work", &["ping"]).code == 0);
    let secret = "value-that-is-nobodys-business";
    world
        .shell("work", &format!("QVM_EDITOR={secret} qvm-remote -v '[[ $QVM_EDITOR == {}* ]]'", &secret[..9]))
        .expect(0, "");
    world.shell("work", &format!("QVM_EDITOR={secret} qvm-remote --queue true")).expect(0, "");
    world.shell("work", "V1_ID=one python3 v1.py true").expect(0, "");
    world.shell("work", "V1_TOKEN=0123456789abcdef0123456789abcdef python3 v1.py true").expect(126, "");
    let token = world.shell("work", "python3 -c 'import hmac; print(hmac.new(open(\".qvm-remote/auth.key\").read().strip().encode(), b\"one\", \"sha256\").hexdigest())'").text();
    let status = world.dom0("qvm-remote-dom0 status --json; qvm-remote-dom0 keys").text();
    world.dom0("kill -TERM $(qvm-remote-dom0 status --json | grep -oE '\"pid\":[0-9]+' | cut -d: -f2)").expect(0, "");
    let said = daemon.end();
    let kept = world.shell("work", "cat .qvm-remote/audit.log; find .qvm-remote/history -type f -exec cat {} +").text();
    assert!(kept.contains("[[ $QVM_EDITOR == "), "{kept}");
    for text in [&world.log(), &said.err, &said.text(), &kept, &status] {
        for secret in [key.trim(), secret, token.trim(), "0123456789abcdef0123456789abcdef"] {
            assert!(!text.contains(&secret[..24]), "{secret} in {text}");
        }
    }
}
