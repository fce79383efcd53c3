//! What a person in dom0 sees before a command runs, and what an approval is for.

use sha2::{Digest as _, Sha256};

use crate::{
    support::eventually,
    world::{Running, World},
};

/// The first digits of what waits, once something does.
#[track_caller]
fn waiting(world: &World) -> String {
    let list = || world.dom0("qvm-remote-dom0 approve").text();
    let is_id = |word: &&str| word.len() == 12 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let first = || list().split_whitespace().find(is_id).map(str::to_owned);
    eventually("something waits", || first().is_some());
    first().expect("there")
}

/// The whole id of what waits, which is the end of what is shown.
#[track_caller]
pub(crate) fn whole_id(world: &World) -> String {
    let seen = shown(world);
    seen.split_once("approval").expect("its id").1.split_whitespace().collect()
}

/// All that is shown of what waits, without a decision.
#[track_caller]
fn shown(world: &World) -> String {
    let done = world.dom0(&format!("qvm-remote-dom0 approve {} </dev/null", waiting(world)));
    assert_eq!(done.code, 1, "{done:#?}");
    done.says("no terminal to ask on");
    assert!(done.text().lines().all(|line| line.len() <= 80), "{}", done.text());
    done.text()
}

#[track_caller]
fn refuse(world: &World, request: Running) {
    world.dom0(&format!("qvm-remote-dom0 approve {} --deny", waiting(world))).expect(0, "Refused.\n");
    request.end().expect(126, "").says("denied: not approved");
}

#[test]
fn whoever_approves_sees_all_of_what_runs() {
    let world = world!("work");
    let _daemon = world.ready();
    world.policy("work", "ask shell * [env=QVM_MODE cwd=client timeout=50]\nask * * [user=nobody]\n");
    // blanks that push the rest out of sight, lines, signs that a terminal obeys or an eye confuses
    let text = format!("qvm-ls{}; touch /root/x\necho two \n\u{202e}\u{430}\\\t", " ".repeat(300));
    let request = world.remote_start("work", &[&text]);
    let seen = shown(&world);
    for line in [
        "qube          work\n",
        "user          root\n",
        "directory     '/home/user'\n",
        "input         none\n",
        "terminal      no\n",
        "time          at most 50000 ms\n",
        "  1 | qvm-ls\n",
        "; touch /root/x\n",
        "  2 | echo two\\x20\n",
        "  3 | \\u{202e}\\u{430}\\\\\\x09\n",
    ] {
        assert!(seen.contains(line), "{line:?} in\n{seen}");
    }
    let list = world.dom0("qvm-remote-dom0 approve").text() + &world.dom0("qvm-remote-dom0 status").text();
    assert!(!list.contains("qvm-ls") || !list.contains("asks for qvm-ls"), "no summary stands for the text: {list}");
    refuse(&world, request);
    let request = world.remote_start("work", &["--argv", "printf", "%s %s", "a b", "it's\n; id", ""]);
    let seen = shown(&world);
    for line in [
        "program       '/usr/bin/printf'\n",
        "user          nobody\n",
        "word 0        'printf'\n",
        "word 1        '%s %s'\n",
        "word 2        'a b'\n",
        "word 3        'it\\'s\\n; id'\n",
        "word 4        ''\n",
    ] {
        assert!(seen.contains(line), "{line:?} in\n{seen}");
    }
    refuse(&world, request);
    let request = world.vm_start("work", &["bash", "-c", "cd; QVM_MODE=x=y exec qvm-remote true"]);
    assert!(shown(&world).contains("variable      QVM_MODE='x=y'\n"), "{}", shown(&world));
    refuse(&world, request);
    // the log has the same words, whole
    let log = world.log();
    assert!(log.contains("user=root cwd='/home/user' stdin=no tty=no env= cmd=qvm-ls  "), "{log}");
    assert!(log.contains("user=root cwd='/home/user' stdin=no tty=no env=QVM_MODE cmd=true"), "{log}");
    assert!(log.contains("; touch /root/x\\necho two \\n\\u{202e}\\u{430}\\\\"), "{log}");
    assert!(log.contains("argv='printf' '%s %s' 'a b' 'it\\'s\\n; id' ''"), "{log}");
}

#[test]
fn an_approval_is_for_the_very_text_that_was_shown() {
    let world = world!("work");
    let _daemon = world.ready();
    world.policy("work", "ask shell *\n");
    let request = world.remote_start("work", &["echo once"]);
    let seen = shown(&world);
    // the id is the digest of all of it; the last two lines are the id itself
    let (sheet, id) = seen.split_once("approval").expect("its id");
    let id: String = id.split_whitespace().collect();
    let digest: String = Sha256::digest(sheet.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(id, digest, "{seen}");
    assert!(world.log().contains(&format!("approval={id}")), "{}", world.log());
    let approve = |id: &str| world.dom0(&format!("qvm-remote-dom0 approve {id} --yes"));
    approve(&id[..11]).expect(1, "").says("write at least 12 digits of the id");
    approve("000000000000").expect(1, "").says("nothing waits under '000000000000'");
    let another = if id.ends_with('0') { '1' } else { '0' };
    approve(&format!("{}{another}", &id[..63])).expect(1, "").says("nothing waits under");
    approve(&format!("{id}0")).expect(1, "").says("nothing waits under");
    // an id that another text can have been made for is not enough where nobody is asked
    approve(&id[..12]).expect(1, "").says("--yes needs all 64 digits of the id");
    let done = approve(&id);
    assert!(done.text().starts_with(sheet) && done.text().ends_with("Allowed.\n"), "{done:#?}");
    request
        .end()
        .expect(0, "once\n")
        .says(&format!("waiting for approval in dom0: qvm-remote-dom0 approve {}", &id[..12]));
    // the same command again is another request, with an id of another
    let again = world.remote_start("work", &["echo once"]);
    let second = shown(&world);
    assert!(!second.contains(&id[..32]), "{second}");
    approve(&id).expect(1, "").says("nothing waits under");
    refuse(&world, again);
}

#[test]
fn input_that_comes_after_the_approval_is_taken_only_where_the_rule_says_so() {
    let world = world!("work");
    let _daemon = world.ready();
    world.policy("work", "ask bash\nask cat [stdin=yes]\n");
    world
        .shell("work", "echo 'touch /root/hacked' | qvm-remote -i --argv bash")
        .expect(126, "")
        .says("its rule allows no standard input, which would come after the approval");
    let terminal = "mkfifo still; script -qec 'qvm-remote --tty --argv bash' /dev/null <>still";
    let done = world.shell("work", terminal);
    assert!(done.text().contains("its rule allows no standard input"), "{done:#?}");
    let mut request = world.remote_start("work", &["-i", "--argv", "cat"]);
    let seen = shown(&world);
    assert!(seen.starts_with("LATER INPUT DECIDES WHAT RUNS"), "{seen}");
    assert!(world.dom0(&format!("qvm-remote-dom0 approve {} --yes", whole_id(&world))).text().ends_with("Allowed.\n"));
    request.write(b"later\n");
    request.end().expect(0, "later\n");
}

#[test]
fn whoever_approves_a_file_reads_first_that_its_content_is_not_in_what_is_shown() {
    let world = world!("work");
    let _daemon = world.ready();
    world.policy("work", "ask put /root\n");
    let request = world.vm_start("work", &["bash", "-c", "cd; echo x >f; exec qvm-remote put f /root/f"]);
    let seen = shown(&world);
    assert!(seen.starts_with("THE CONTENT OF THE FILE COMES AFTER THE APPROVAL"), "{seen}");
    refuse(&world, request);
}

#[test]
fn a_long_text_goes_through_a_pager_and_only_a_yes_is_one() {
    let world = world!("work");
    let _daemon = world.ready();
    world.policy("work", "ask shell *\n");
    let script: String = (0..200).map(|n| format!("echo line {n}\n")).collect();
    std::fs::write(world.home("work").join("script"), script).expect("written");
    let mut request = world.vm_start("work", &["bash", "-c", "cd; exec qvm-remote <script"]);
    // script(1) passes the end of its input on as Ctrl-D, so its input does not end
    let at_terminal = |typed: &str| {
        let id = waiting(&world);
        let text = format!(
            "mkdir -p /root/t; cd /root/t; rm -f typed; mkfifo typed; exec 8<>typed; echo '{typed}' >&8; \
             PAGER='cat >/root/paged' script -qec 'stty rows 24 cols 80; qvm-remote-dom0 approve {id}' /dev/null <&8"
        );
        world.dom0(&text)
    };
    for no in ["", "n", "no", "yy"] {
        let done = at_terminal(no);
        assert!(done.text().contains("Allow it? [y/N]") && done.text().contains("it still waits"), "{no}: {done:#?}");
        assert!(!done.text().contains("echo line"), "{done:#?}");
    }
    assert!(!request.ended());
    let paged = world.dom0("cat /root/paged").text();
    assert!(paged.contains("  200 | echo line 199\n") && paged.contains("approval  "), "{paged}");
    assert!(at_terminal("y").text().contains("Allowed."));
    assert!(request.end().text().ends_with("line 199\n"));
}

#[test]
fn a_person_at_the_desktop_hears_of_it_without_a_word_of_the_qube() {
    let world = world!("work");
    world.dom0(
        "grep -q '^[^:]*:x:1000:' /etc/passwd || echo 'person:x:1000:1000::/:/bin/sh' >>/etc/passwd; mkdir -p /run/user/1000; \
         python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/run/user/1000/bus\")'; chown -R 1000 /run/user/1000; \
         printf '#!/bin/bash\\n{ id -u; echo \"$DBUS_SESSION_BUS_ADDRESS\"; printf \"[%%s]\\\\n\" \"$@\"; env; } >/dev/shm/notified\\n' \
         >/usr/local/sbin/notify-send; chmod 755 /usr/local/sbin/notify-send",
    )
    .expect(0, "");
    let _daemon = world.ready();
    world.policy("work", "ask shell *\n");
    let request = world.remote_start("work", &["echo '<b>markup</b>'"]);
    let id = waiting(&world);
    let notified = || world.dom0("cat /dev/shm/notified 2>/dev/null").text();
    eventually("a notification", || notified().contains("PATH="));
    let text = notified();
    assert!(text.starts_with("1000\nunix:path=/run/user/1000/bus\n"), "{text}");
    assert!(text.contains("[work asks for approval]"), "{text}");
    assert!(text.contains(&format!("[To see it and decide, as root: qvm-remote-dom0 approve {id}]")), "{text}");
    assert!(!text.contains("markup") && !text.contains("CREDENTIALS") && !text.contains("WORLD="), "{text}");
    let status = world.dom0("qvm-remote-dom0 status").text();
    assert!(status.contains(&format!("\n{id}  work asks for a text for bash of 21 bytes\n")), "{status}");
    // requests within ten seconds are announced at the end of that time, in one notification
    let more: Vec<_> = (0..2).map(|n| world.remote_start("work", &[&format!("echo {n}")])).collect();
    eventually("a notification about all", || notified().contains("[3 requests wait. To see and decide"));
    drop(more);
    world.dom0(
        "for id in $(qvm-remote-dom0 approve | grep -oE '^[0-9a-f]{12}'); do qvm-remote-dom0 approve $id --deny; done",
    );
    request.end().expect(126, "").says("denied: not approved");
}

#[test]
fn the_owner_sees_what_runs_and_ends_one_of_it() {
    let world = world!("work", "dev");
    let _daemon = world.ready();
    let mut one = world.remote_start("work", &["echo up; sleep 4751 # one"]);
    let mut other = world.remote_start("work", &["-i", "echo up; read x; echo $x"]);
    one.wait_for("up\n");
    other.wait_for("up\n");
    let status = world.dom0("qvm-remote-dom0 status").text();
    let line = status.lines().find(|line| line.ends_with("  cmd=echo up; sleep 4751 # one")).expect("its text");
    let id = line.split(' ').next().expect("an id");
    world.dom0("qvm-remote-dom0 kill nosuch").expect(1, "").says("nothing runs or waits under 'nosuch'");
    world.dom0(&format!("qvm-remote-dom0 kill --qube dev {id}")).expect(1, "");
    world.dom0(&format!("qvm-remote-dom0 kill {id}")).expect(0, "Ended 1 command.\n");
    assert_eq!(one.end().code, 130);
    eventually("no sleep left", || world.processes("sleep 4751") == 0);
    other.write(b"untouched\n");
    other.end().expect(0, "up\nuntouched\n");
    // what waits is ended too, and never begins
    world.policy("work", "ask shell *\n");
    let late = world.remote_start("work", &["touch /root/late"]);
    waiting(&world);
    let status = world.dom0("qvm-remote-dom0 status --json").text();
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let id = status["waiting"][0]["id"].as_str().expect("one waits");
    world.dom0(&format!("qvm-remote-dom0 kill {id}")).expect(0, "Ended 1 command.\n");
    late.end().expect(126, "").says("it was ended in dom0 before it began");
    world.dom0("ls /root/late 2>/dev/null").expect(2, "");
}
