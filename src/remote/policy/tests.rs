use proptest::prelude::*;

use super::*;
use crate::proto::remote::{Mode, flags};
use std::time::Duration;

fn policy(text: &str) -> Policy {
    Policy::parse(text).unwrap_or_else(|faults| panic!("{faults:?}"))
}

fn argv(policy: &Policy, words: &[&str]) -> Verdict {
    let program = AskedProgram::plain(words[0].as_bytes());
    let words: Vec<Vec<u8>> = words[1..].iter().map(|w| w.as_bytes().to_vec()).collect();
    policy.decide(Action::Argv(&program, &words)).verdict
}

/// A program as it is found where `/sbin/reboot` is a link to `/usr/bin/systemctl`, and `/sbin` to `/usr/sbin`.
fn reboot() -> AskedProgram {
    let name = |path: &str| ProgramName { path: path.into(), in_path: true };
    AskedProgram {
        executed: vec![name("/usr/sbin/reboot")],
        others: vec![name("/sbin/reboot"), name("/usr/bin/systemctl")],
    }
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
    assert!(faults[0].what.contains("starts another command") && !faults[0].fix.is_empty(), "{faults:?}");
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
        "allow dd if=* [user=user cwd=/tmp timeout=60s max-output=5M stdin=no tty=no env=LANG,LC_ALL,QVM_X]\n\
         v1 = yes\nmax-running = 3\nforce = /usr/bin/menu --now",
    );
    let decision = p.decide(Action::Argv(&AskedProgram::plain(b"/usr/bin/dd"), &[b"if=/dev/null".to_vec()])).options;
    assert_eq!(decision.user.as_deref(), Some("user"));
    assert_eq!(decision.cwd.as_deref(), Some("/tmp"));
    assert_eq!(decision.timeout, Some(Duration::from_secs(60)));
    assert_eq!((decision.max_output, decision.stdin, decision.tty), (Some(5 << 20), false, false));
    assert_eq!(decision.env, ["LANG", "LC_ALL", "QVM_X"]);
    assert_eq!((p.v1, p.max_running, p.force.as_deref()), (true, Some(3), Some("/usr/bin/menu --now")));
}

#[test]
fn every_fault_is_told_with_its_line() {
    let text = "allow\nalow x\nv1 = maybe\nallow ./x\nallow x [foo=1]\nallow x [env=LD_PRELOAD]\nallow 'x\n\
                allow get relative\nallow shell\nmax-running = 0\nallow x [max-output=12X]";
    let faults = Policy::parse(text).expect_err("all of it is wrong");
    assert_eq!(faults.iter().map(|f| f.line).collect::<Vec<_>>(), (1..=11).collect::<Vec<_>>(), "{faults:#?}");
}

#[test]
fn a_star_stops_at_a_slash_where_a_rule_allows_and_nowhere_else() {
    let p = policy("allow /opt/tools/* *\nallow /opt/deep/** *\nallow /opt/x?y");
    assert_eq!(argv(&p, &["/opt/tools/a", "x"]), Verdict::Allow);
    assert_eq!(argv(&p, &["/opt/tools/sub/a"]), Verdict::Deny);
    assert_eq!(argv(&p, &["/opt/deep/sub/a"]), Verdict::Allow);
    assert_eq!(argv(&p, &["/opt/x/y"]), Verdict::Deny);
    let p = policy("deny /opt/tools/* *\nask /opt/deep* *\nallow * *");
    assert_eq!(argv(&p, &["/opt/tools/sub/a"]), Verdict::Deny);
    assert_eq!(argv(&p, &["/opt/deep/sub/a"]), Verdict::Ask);
    assert_eq!(argv(&p, &["/opt/other/sub/a"]), Verdict::Allow, "a star alone is any program");
}

#[test]
fn a_link_is_allowed_by_its_own_name_and_denied_by_either() {
    let ask = |text: &str| policy(text).decide(Action::Argv(&reboot(), &[])).verdict;
    assert_eq!(ask("allow reboot"), Verdict::Allow);
    assert_eq!(ask("allow /usr/sbin/reboot"), Verdict::Allow);
    assert_eq!(ask("allow systemctl *"), Verdict::Deny, "another program's rule gives it nothing");
    assert_eq!(ask("allow /usr/bin/* *"), Verdict::Deny);
    for text in ["deny reboot", "deny /sbin/reboot", "deny systemctl *", "deny /usr/bin/systemctl *", "deny /sbin/*"] {
        assert_eq!(ask(&format!("{text}\nallow * *")), Verdict::Deny, "{text}");
        assert_eq!(ask(&format!("{}\nallow * *", text.replace("deny", "ask"))), Verdict::Ask, "{text}");
    }
}

#[test]
fn a_rules_directory_is_looked_up() {
    let mut p = policy("allow /sbin/reboot\nallow /sbin/*\nallow '/sbin/a*'\nallow /s*/x\nallow reboot");
    p.resolve_directories(|_, directory| (directory == b"/sbin").then(|| b"/usr/sbin".to_vec()));
    assert_eq!(p.decide(Action::Argv(&reboot(), &[])).line, Some(1));
    let line = |path: &str| p.decide(Action::Argv(&AskedProgram::plain(path.as_bytes()), &[])).line;
    assert_eq!(line("/usr/sbin/halt"), Some(2));
    assert_eq!(line("/sbin/halt"), Some(2), "and as it is written");
    assert_eq!(line("/usr/x"), None);
}

#[test]
fn an_ask_rule_takes_input_only_where_it_says_so() {
    let p = policy("ask qvm-ls\nask xl * [stdin=yes]\nallow cat\nallow dd [stdin=no]");
    let stdin = |path: &str| p.decide(Action::Argv(&AskedProgram::plain(path.as_bytes()), &[])).options.stdin;
    assert_eq!(["/bin/qvm-ls", "/bin/xl", "/bin/cat", "/bin/dd"].map(stdin), [false, true, true, false]);
    for (asked, fine) in [(0, true), (flags::STDIN, false), (flags::TTY, false)] {
        let manner = Manner { mode: Mode::Argv, flags: asked, user: "" };
        let ruling = p.decide(Action::Argv(&AskedProgram::plain(b"/bin/qvm-ls"), &[]));
        assert_eq!(objection(&ruling, manner).is_none(), fine, "{asked}");
    }
}

#[test]
fn only_variables_that_carry_no_code_are_taken() {
    for name in ["LANG", "LC_ALL", "LC_TIME", "TZ", "NO_COLOR", "COLUMNS", "QVM_X", "QVM_LOG_LEVEL"] {
        assert!(Policy::parse(&format!("allow x [env={name}]")).is_ok(), "{name}");
    }
    for name in [
        "PATH",
        "LD_PRELOAD",
        "PYTHONHOME",
        "PERLLIB",
        "NODE_OPTIONS",
        "GIT_SSH",
        "GIT_DIR",
        "BASH_ENV",
        "TERM",
        "HOME",
        "LC_",
        "QVM_",
        "QVM_REMOTE_ID",
        "QVM_REMOTE_ORIGINAL_COMMAND",
        "LANGUAGE",
        "BASH_FUNC_x%%",
        "LC_A=b",
        "",
    ] {
        let faults = Policy::parse(&format!("allow x [env=LANG,{name}]"));
        assert!(faults.is_err(), "{name}");
    }
}

#[test]
fn rules_that_allow_less_than_before_are_named() {
    let p = policy(
        "allow /opt/* *\nallow /opt/**\nallow qvm-* *\nallow * *\ndeny /opt/* *\nallow /usr/bin/ls *\nallow '/a/*'\n\
         allow /a*/b?c",
    );
    let missing = |name: &[u8]| (name == b"/usr/bin/ls").then(|| "no such program".to_owned());
    let named: Vec<_> = remarks(&p, missing, |_| None).into_iter().map(|remark| (remark.line, remark.fix)).collect();
    let [first, second, third] = &named[..] else { panic!("{named:#?}") };
    assert_eq!((first.0, first.1.contains("/opt/**")), (1, true));
    assert_eq!(second.0, 6);
    assert_eq!((third.0, third.1.contains("/a**/b?c")), (8, true));
    let p = policy(
        "ask x\nask x [stdin=no]\nask x [stdin=yes]\nask shell *\nallow x [stdin=no]\nallow x [stdin=no tty=no]\n\
         ask get /x\ndeny x",
    );
    assert_eq!(remarks(&p, |_| None, |_| None).iter().map(|remark| remark.line).collect::<Vec<_>>(), [1, 4, 5]);
}

#[test]
fn each_rule_says_why_it_does_not_match() {
    let p = policy("allow shell 'x'\nallow reboot now\nallow halt *\nallow get /x\ndeny systemctl *\nallow * *");
    let told = |action| p.explain(action).into_iter().map(|(line, why)| (line, why.is_none())).collect::<Vec<_>>();
    assert_eq!(
        p.explain(Action::Argv(&reboot(), &[])),
        [
            (1, Some(Mismatch::OtherKind)),
            (2, Some(Mismatch::OtherWords)),
            (3, Some(Mismatch::OtherProgram)),
            (4, Some(Mismatch::OtherKind)),
            (5, None),
        ]
    );
    assert_eq!(told(Action::Get(b"/y")).last(), Some(&(6, false)), "none of them");
    assert_eq!(told(Action::Shell(b"x\n")), [(1, true)]);
    assert_eq!(told(Action::Shell(b"x \t\n\n")), [(1, true)]);
    for another in [&b"x\r"[..], b"x\r\n", b"x\x0c"] {
        assert!(!told(Action::Shell(another)).contains(&(1, true)), "bash takes it as a part of the word");
    }
}

proptest! {
    #[test]
    fn no_other_name_of_a_program_widens_a_right(
        text in prop::collection::vec("(allow|deny|ask) (/[ab*?]{1,3}){1,3}( \\*)?", 1..4),
        executed in "(/[ab]{1,2}){1,3}",
        others in prop::collection::vec("(/[ab]{1,2}){1,3}", 0..3),
    ) {
        let p = policy(&text.join("\n"));
        let name = |path: &String| ProgramName { path: path.clone().into_bytes(), in_path: false };
        let plain = AskedProgram { executed: vec![name(&executed)], others: Vec::new() };
        let linked = AskedProgram { others: others.iter().map(name).collect(), ..plain.clone() };
        let [plain, linked] = [plain, linked].map(|program| p.decide(Action::Argv(&program, &[])).verdict);
        if linked == Verdict::Allow {
            prop_assert_eq!(plain, Verdict::Allow);
        }
    }

    #[test]
    fn any_text_is_a_policy_or_faults(text: String) {
        let _ = Policy::parse(&text);
    }

    #[test]
    fn any_rule_is_a_policy_or_faults(text in "(allow|deny|ask) [ -~]{0,60}") {
        let _ = Policy::parse(&text);
    }

    #[test]
    fn no_rule_about_a_program_ever_allows_a_text(text in "[ -~]{1,40}") {
        prop_assert_eq!(shell(&policy("allow qvm-ls *\nallow * *"), &text), Verdict::Deny);
    }
}

#[test]
fn the_manual_has_every_option_and_setting_and_its_examples_are_policies() {
    let manual =
        include_str!("../../../packaging/man/qvm-remote-dom0.policy.5").replace("\\-", "-").replace("\\(aq", "'");
    let examples: Vec<&str> = manual.split(".EX\n").skip(1).filter_map(|rest| rest.split(".EE").next()).collect();
    let (policies, commands): (Vec<&str>, Vec<&str>) = examples.iter().partition(|text| text.contains("allow "));
    assert_eq!((policies.len(), commands.len()), (2, 1));
    let [all, settings] = policies[..].iter().map(|text| policy(text)).collect::<Vec<_>>().try_into().expect("two");
    assert_eq!((all.rules.len(), settings.rules.len()), (9, 1));
    assert_eq!((settings.max_running, settings.audit_quota), (Some(2), Some(1 << 20)));
    for key in ["user", "cwd", "umask", "timeout", "max-output", "max-size", "stdin", "tty", "env"] {
        assert!(manual.contains(&format!("\n.BI {key}= ")) || manual.contains(&format!("\n.BR {key}= ")), "{key}=");
        assert!(policies[0].contains(&format!("{key}=")), "no example has {key}=");
    }
    for key in ["force", "max-running", "audit-quota"] {
        assert!(manual.contains(&format!("\n.BI \"{key} = \"")), "{key}");
    }
}
