use proptest::prelude::*;

use super::*;

fn policy(text: &str) -> Policy {
    Policy::parse(text).unwrap_or_else(|faults| panic!("{faults:?}"))
}

fn argv(policy: &Policy, words: &[&str]) -> Verdict {
    let words: Vec<Vec<u8>> = words.iter().map(|w| w.as_bytes().to_vec()).collect();
    policy.decide(Action::Argv(&words)).verdict
}

fn shell(policy: &Policy, text: &str) -> Verdict {
    policy.decide(Action::Shell(text.as_bytes())).verdict
}

#[test]
fn without_a_rule_the_answer_is_no() {
    let nothing = policy(NOTHING);
    assert_eq!(shell(&nothing, "true"), Verdict::Deny);
    assert_eq!(argv(&nothing, &["/usr/bin/true"]), Verdict::Deny);
    assert_eq!(nothing.decide(Action::Get(b"/etc/shadow")).verdict, Verdict::Deny);
    assert_eq!(nothing.decide(Action::Put(b"/etc/shadow")).line, None);
}

#[test]
fn everything_means_any_command_but_no_files() {
    let everything = policy(EVERYTHING);
    assert_eq!(shell(&everything, "a; b\nc"), Verdict::Allow);
    assert_eq!(argv(&everything, &["/opt/x/y", "z"]), Verdict::Allow);
    assert_eq!(everything.decide(Action::Get(b"/etc/shadow")).verdict, Verdict::Deny);
    assert_eq!(everything.decide(Action::Put(b"/etc/shadow")).verdict, Verdict::Deny);
}

#[test]
fn the_first_rule_that_matches_decides() {
    let p = policy("deny qvm-run *\nask qvm-shutdown --wait *\nallow qvm-* *\ndeny shell *");
    assert_eq!(argv(&p, &["/usr/bin/qvm-run", "work", "x"]), Verdict::Deny);
    assert_eq!(argv(&p, &["/usr/bin/qvm-shutdown", "--wait", "work"]), Verdict::Ask);
    assert_eq!(argv(&p, &["/usr/bin/qvm-shutdown", "work"]), Verdict::Allow);
    assert_eq!(argv(&p, &["/usr/bin/qvm-ls"]), Verdict::Allow);
    assert_eq!(argv(&p, &["/usr/bin/xl", "info"]), Verdict::Deny);
    assert_eq!(shell(&p, "qvm-ls"), Verdict::Deny);
}

#[test]
fn a_comment_may_stand_behind_a_rule_and_changes_nothing_of_it() {
    let bare =
        "deny qvm-run *\nallow /bin/echo '#1' a#b \"c # d\" [timeout=5 stdin=no]\nallow shell 'echo # x'\nallow get /x";
    let explained: String = bare.lines().map(|line| format!("{line}\t# it's \"so\" [user=nobody]\n")).collect();
    assert_eq!(policy(&explained).rules, policy(bare).rules);
    let p = policy(&explained);
    assert_eq!(argv(&p, &["/bin/echo", "#1", "a#b", "c # d"]), Verdict::Allow);
    assert_eq!(argv(&p, &["/usr/bin/qvm-run", "x"]), Verdict::Deny);
    assert_eq!(shell(&p, "echo # x"), Verdict::Allow);
    assert!(Policy::parse("allow # everything").is_err());
}

#[test]
fn an_argv_rule_is_not_left_by_a_semicolon_nor_by_a_path() {
    let p = policy("allow qvm-ls *\nallow /usr/bin/uptime");
    assert_eq!(shell(&p, "qvm-ls; reboot"), Verdict::Deny);
    assert_eq!(argv(&p, &["/usr/bin/qvm-ls", "; reboot"]), Verdict::Allow, "one harmless word");
    assert_eq!(argv(&p, &["/tmp/qvm-ls"]), Verdict::Deny);
    assert_eq!(argv(&p, &["/usr/bin/sub/qvm-ls"]), Verdict::Deny);
    assert_eq!(argv(&p, &["qvm-ls"]), Verdict::Deny, "the daemon resolves before it asks");
    assert_eq!(argv(&p, &["/usr/bin/uptime"]), Verdict::Allow);
    assert_eq!(argv(&p, &["/usr/bin/uptime", "-s"]), Verdict::Deny, "no star, no further words");
}

#[test]
fn a_shell_rule_is_any_text_or_the_very_text() {
    let p = policy("allow shell 'echo *'\nallow shell xl info");
    assert_eq!(shell(&p, "echo *\n"), Verdict::Allow);
    assert_eq!(shell(&p, "xl info\n"), Verdict::Allow);
    assert_eq!(shell(&p, "echo x"), Verdict::Deny);
    assert_eq!(shell(&p, "xl info; id"), Verdict::Deny);
    assert_eq!(shell(&p, "xl info\nid"), Verdict::Deny);
    let faults = Policy::parse("allow shell qvm-ls *").expect_err("a pattern within a text");
    assert!(faults[0].what.contains("leads out"), "{faults:?}");
}

#[test]
fn files_must_lie_beneath_the_directory_named() {
    let p = policy("allow get /var/log/xen [max-size=1K]\nallow put /home/user/in/*");
    let get = |path: &str| p.decide(Action::Get(path.as_bytes())).verdict;
    assert_eq!(get("/var/log/xen/console/x.log"), Verdict::Allow);
    for bad in ["/var/log/xen", "/var/log/xenial/x", "/var/log/xen/../shadow", "/etc/shadow", "var/log/xen/x"] {
        assert_eq!(get(bad), Verdict::Deny, "{bad}");
    }
    let decision = p.decide(Action::Get(b"/var/log/xen/x"));
    assert_eq!((decision.beneath, decision.options.max_size), (Some("/var/log/xen"), 1024));
    assert_eq!(p.decide(Action::Put(b"/home/user/in/x")).verdict, Verdict::Allow);
    assert_eq!(p.decide(Action::Put(b"/var/log/xen/x")).verdict, Verdict::Deny);
}

#[test]
fn options_are_read_and_settings_too() {
    let p = policy(
        "allow dd if=* [user=user cwd=/tmp timeout=60s max-output=5M stdin=no tty=no env=LANG,TERM]\n\
         v1 = yes\nmax-running = 3\nforce = /usr/bin/menu --now",
    );
    let decision = p.decide(Action::Argv(&[b"/usr/bin/dd".to_vec(), b"if=/dev/null".to_vec()])).options;
    assert_eq!(decision.user.as_deref(), Some("user"));
    assert_eq!(decision.cwd.as_deref(), Some("/tmp"));
    assert_eq!(decision.timeout, Some(Duration::from_secs(60)));
    assert_eq!((decision.max_output, decision.stdin, decision.tty), (Some(5 << 20), false, false));
    assert_eq!(decision.env, ["LANG", "TERM"]);
    assert_eq!((p.v1, p.max_running, p.force.as_deref()), (true, Some(3), Some("/usr/bin/menu --now")));
}

#[test]
fn every_fault_is_told_with_its_line() {
    let text = "allow\nalow x\nv1 = maybe\nallow ./x\nallow x [foo=1]\nallow x [env=LD_PRELOAD]\nallow 'x\n\
                allow get relative\nallow shell\nmax-running = 0\nallow x [max-output=12X]";
    let faults = Policy::parse(text).expect_err("all of it is wrong");
    assert_eq!(faults.iter().map(|f| f.line).collect::<Vec<_>>(), (1..=11).collect::<Vec<_>>(), "{faults:#?}");
}

proptest! {
    #[test]
    fn any_text_is_a_policy_or_faults(text: String) {
        let _ = Policy::parse(&text);
    }

    #[test]
    fn any_rule_is_a_policy_or_faults(text in "(allow|deny|ask) [ -~]{0,60}") {
        let _ = Policy::parse(&text);
    }

    #[test]
    fn a_pattern_without_wildcards_is_the_word_itself(word in "[a-z;$`|&]{1,12}", other in "[a-z;$`|&]{1,12}") {
        prop_assert_eq!(glob(word.as_bytes(), other.as_bytes()), word == other);
    }

    #[test]
    fn a_star_is_any_bytes(a in "[a-z*]{0,6}", b in "[a-z]{0,6}", c in "[a-z]{0,6}") {
        let whole = format!("{c}{b}");
        prop_assert!(glob(b"*", a.as_bytes()));
        let (ends, begins) = (format!("*{b}"), format!("{c}*"));
        prop_assert!(glob(ends.as_bytes(), whole.as_bytes()));
        prop_assert!(glob(begins.as_bytes(), whole.as_bytes()));
    }

    #[test]
    fn no_rule_about_a_program_ever_allows_a_text(text in "[ -~]{1,40}") {
        prop_assert_eq!(shell(&policy("allow qvm-ls *\nallow * *"), &text), Verdict::Deny);
    }
}
