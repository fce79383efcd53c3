//! What an owner sees about a policy before it is in use: `qvm-remote-dom0 check` and `test`.

#[test]
fn check_names_the_place_the_fault_and_what_to_write() {
    let world = world!("work", "dev");
    world
        .dom0("qvm-remote-dom0 check")
        .expect(78, "/etc/qubes/remote.conf:\n  error: no qube is listed\n  write: QVM_REMOTE_VMS=\"QUBE...\"\n");
    world.authorize();
    let all = "/etc/qubes/remote.conf: fine\n/etc/qubes/remote.d/dev.key: fine\n/etc/qubes/remote.d/dev.policy: fine\n\
               /etc/qubes/remote.d/work.key: fine\n/etc/qubes/remote.d/work.policy: fine\n";
    world.dom0("qvm-remote-dom0 check").expect(0, all);
    let check = |policy: &str, words: &str| {
        world.dom0(&format!("cat >/root/x.policy <<'X'\n{policy}X\nqvm-remote-dom0 check {words}"))
    };
    for (policy, code, told) in [
        ("allow qvm-ls *\n", 0, "/root/x.policy: fine\n"),
        (
            "alow qvm-ls\n",
            78,
            "/root/x.policy:1:\n  error: neither a rule nor a setting\n  write: allow, deny or ask in front of a rule; KEY = VALUE for a setting\n",
        ),
        (
            "\nallow x [env=PATH]\n",
            78,
            "/root/x.policy:2:\n  error: env=PATH: a variable that a qube sets may make a program run the qube's code\n  write: LANG, LC_*, TZ, NO_COLOR, COLUMNS and QVM_* (not QVM_REMOTE_*) are taken, no others\n",
        ),
        (
            "allow shell a*\n",
            78,
            "/root/x.policy:1:\n  error: a pattern within a shell text is no limit: \";\" starts another command\n  write: a rule about a program, for qvm-remote --argv; or quotes for the character itself\n",
        ),
        (
            "max-running = 65\n",
            78,
            "/root/x.policy:1:\n  error: max-running = 65 cannot be\n  write: a number from 1 to 64\n",
        ),
        // rules that allow less than they did: no fault
        (
            "allow /root/* *\n",
            0,
            "/root/x.policy: fine\n/root/x.policy:1:\n  remark: \"*\" and \"?\" of a program match no \"/\", so programs in directories below are not allowed\n  write: to allow them: /root/**\n",
        ),
        (
            "ask qvm-ls\n",
            0,
            "/root/x.policy: fine\n/root/x.policy:1:\n  remark: a command that is approved takes no later input: qvm-remote -i and --tty are refused\n  write: write [stdin=yes] to allow it, or [stdin=no]\n",
        ),
    ] {
        check(policy, "/root/x.policy").expect(code, told);
    }
    // a terminal gets lines of its width
    let told =
        world.dom0("script -qec 'stty cols 80; qvm-remote-dom0 check /root/x.policy' /dev/null </dev/null").text();
    assert!(told.contains("qvm-remote -i and\r\n"), "{told:?}");
    assert!(told.lines().all(|line| line.trim_end().len() <= 80), "{told:?}");
    // programs that are not there, or that others may change; files that others may write; what is not served
    world.dom0("mkdir /root/open; chmod 777 /root/open; cp /bin/true /root/open").expect(0, "");
    let told = check("allow /root/open/true\nallow nosuch *\n", "/root/x.policy").text();
    assert!(
        told.contains("x.policy:1:\n  remark: /root/open/true is refused: /root/open does not belong to root, or"),
        "{told}"
    );
    assert!(told.contains("x.policy:2:\n  remark: nosuch: there is no such program\n"), "{told}");
    world.dom0("chmod 666 /etc/qubes/remote.d/work.policy; rm /etc/qubes/remote.d/dev.policy; echo x >/etc/qubes/remote.d/dev.key; echo QVM_REMOTE_VMS=dev >/etc/qubes/remote.conf");
    let done = world.dom0("qvm-remote-dom0 check");
    assert_eq!(done.code, 78, "{done:#?}");
    for told in [
        "remote.d/work.policy:\n  error: /etc/qubes/remote.d/work.policy: others may write it (owner 0, mode 0666)",
        "remote.d/dev.policy is missing, so nothing is allowed",
        "remote.d/dev.key:\n  error: dev has no usable key",
        "remark: work has a key and is not listed, so it is not served",
    ] {
        assert!(done.text().contains(told), "{told}: {}", done.text());
    }
}

#[test]
fn test_says_which_rule_decides_and_why_and_runs_nothing() {
    let world = world!("work");
    world.authorize();
    world.dom0("mkdir -p /root/tools; ln -s /usr/bin/touch /root/tools/make; true").expect(0, "");
    world.policy(
        "work",
        "deny touch *\nallow shell 'xl info'\nask qvm-shutdown --wait * [timeout=60]\nallow /root/tools/* * [user=nobody]\n\
         allow get /var/log/xen [max-size=1K]\nallow qvm-* *\nallow true [tty=no]\n",
    );
    let test = |words: &str| world.dom0(&format!("qvm-remote-dom0 test work {words}"));
    for (words, code, told) in [
        (
            "-- qvm-ls --all",
            0,
            &[
                "line 6: allow qvm-* *\n  matches\nallowed\n  executes      '/usr/local/sbin/qvm-ls'\n",
                "  user          root\n",
            ][..],
        ),
        (
            "-- qvm-shutdown --wait x",
            0,
            &[
                "line 3: ask qvm-shutdown --wait * [timeout=60]\n  matches\nasked: a person in dom0 decides\n",
                "at most 60 s",
            ],
        ),
        ("-i -- qvm-shutdown --wait x", 1, &["refused: its rule allows no standard input"]),
        ("--tty -- qvm-shutdown --wait x", 1, &["refused: its rule allows no standard input"]),
        ("--tty -- true", 1, &["refused: its rule allows no terminal"]),
        ("-- true", 0, &["line 7: allow true [tty=no]\n  matches\nallowed\n", "  terminal      refused\n"]),
        ("-- /root/tools/make x", 1, &["line 1: deny touch *\n  matches\nrefused: line 1 of its policy says deny\n"]),
        (
            "-- xl info",
            1,
            &[
                "line 6: allow qvm-* *\n  does not match: it names another program\nline 7: ",
                "  does not match: it names another program\nrefused: no rule of its policy allows it\n",
            ],
        ),
        ("-- qvm-nosuch", 1, &["refused: no such program in dom0"]),
        ("--user nobody -- qvm-ls", 1, &["refused: its rule does not name that user"]),
        (
            "--shell 'xl info'",
            0,
            &["line 1: deny touch *\n  does not match: it is about another kind of request\n", "allowed\n"],
        ),
        ("--shell 'xl info; id'", 1, &["line 2: allow shell 'xl info'\n  does not match: it names another text\n"]),
        ("--get /var/log/xen/x", 0, &["  beneath       /var/log/xen\n  size          at most 1024 bytes\n"]),
        ("--get /var/log/xen/../x", 1, &["the file is not beneath its directory"]),
        ("--put /var/log/xen/x", 1, &["refused: no rule"]),
        ("", 2, &[]),
    ] {
        let done = test(words);
        assert_eq!(done.code, code, "{words}: {done:#?}");
        assert!(told.iter().all(|told| done.text().contains(told)), "{words}: {}", done.text());
    }
    // a terminal gets lines of its width
    let words = "stty cols 80; qvm-remote-dom0 test work -i -- qvm-shutdown --wait x";
    let told = world.dom0(&format!("script -qec '{words}' /dev/null </dev/null")).text();
    assert!(told.contains("refused: its rule allows no standard input"), "{told:?}");
    assert!(told.lines().all(|line| line.trim_end().len() <= 80), "{told:?}");
    // another policy, before it is put in place
    let done = test("--policy /etc/qubes/remote.d/nosuch.policy -- true");
    done.expect(78, "").says("nosuch.policy is missing");
    world.dom0("printf 'allow true\\n' >/root/new.policy; qvm-remote-dom0 test work --policy /root/new.policy -- true").expect(
        0,
        "line 1: allow true\n  matches\nallowed\n  executes      '/usr/bin/true'\n  user          root\n  directory     the user's home, or / \
         where it cannot be entered\n  umask         022\n  input         may be asked for\n  terminal      may be asked for\n  variables     none\n  time          as the client asks\n  \
         output        no limit\n",
    );
    world.dom0("ls /root/x 2>/dev/null").expect(2, "");
}
