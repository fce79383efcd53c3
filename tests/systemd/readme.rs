//! The commands of the README and of packaging/doc/troubleshooting.md for users of socket units, run as they stand there
//! by a user of a real manager.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    time::Duration,
};

use crate::{
    support::eventually,
    tree::{self, As, attempt, shell, user_unit},
};

const README: &str = include_str!("../../README.md");
const TROUBLESHOOTING: &str = include_str!("../../packaging/doc/troubleshooting.md");
const MONITORING: &str = "Monitoring: listeners and sessions";

/// The blocks of a section in their order, each with its language.
fn blocks(page: &'static str, title: &str) -> Vec<(&'static str, &'static str)> {
    let (_, section) = page.split_once(&format!("\n## {title}\n")).expect("there is such a section");
    let section = section.split("\n## ").next().expect("its end");
    section.split("\n```").skip(1).step_by(2).filter_map(|block| block.split_once('\n')).collect()
}

fn commands(page: &'static str, title: &str) -> Vec<Vec<&'static str>> {
    let blocks = blocks(page, title).into_iter().filter(|(language, _)| *language == "sh");
    blocks.map(|(_, text)| text.lines().filter(|line| !line.is_empty()).collect()).collect()
}

/// A command of a page as it is for this manager.
fn to(who: As, command: &str) -> String {
    match who {
        As::Tester => command.to_owned(),
        As::Root => {
            let command = command.replace("systemctl --user", "systemctl").replace("$XDG_RUNTIME_DIR/", "/run/");
            let command = command.replace("~/.config/systemd/user/", "/etc/systemd/system/");
            match command.strip_prefix("qrexec-connect ").map(|rest| rest.split_once(' ').unwrap_or((rest, ""))) {
                Some((subcommand, rest)) => format!("qrexec-connect {subcommand} --system {rest}"),
                None => command,
            }
        }
    }
}

fn unit(who: As, name: &str, text: &str) {
    match who {
        As::Tester => user_unit(name, text),
        As::Root => fs::write(Path::new("/etc/systemd/system").join(name), text).expect("root's own tree"),
    }
}

fn follow(who: As) {
    let shell = |text: &str| {
        let lines: Vec<String> = text.lines().map(|line| to(who, line)).collect();
        shell(&lines.join("\n"))
    };
    let attempt = |text: &str| attempt(&to(who, text));
    // The first socket
    let (_, text) =
        blocks(README, "The first socket").into_iter().find(|(language, _)| *language == "ini").expect("a unit");
    unit(who, "qrexec-connect-gitweb.socket", text);
    let [by_hand, by_add] = &commands(README, "The first socket")[..] else { panic!("two ways to a socket") };
    shell(&by_hand.join("\n"));
    let state = "systemctl --user is-active qrexec-connect-gitweb.socket; systemctl --user is-enabled qrexec-connect-gitweb.socket";
    assert_eq!(shell(state), "active\nenabled");
    shell(
        "systemctl --user disable --now qrexec-connect-gitweb.socket; rm ~/.config/systemd/user/qrexec-connect-gitweb.socket",
    );
    shell("systemctl --user daemon-reload");
    shell(&by_add.join("\n"));
    assert_eq!(shell(state), "active\nenabled");

    // What you may rely on: the two units that it speaks of
    for (name, port) in [("new", 2001), ("old", 2002)] {
        let text = format!("[Socket]\nListenStream=127.0.0.1:{port}\nFileDescriptorName=work test.Echo\n");
        unit(who, &format!("qrexec-connect-{name}.socket"), &text);
    }
    shell("systemctl --user daemon-reload; systemctl --user enable --now qrexec-connect-old.socket");
    let mut session = TcpStream::connect(("127.0.0.1", 2002)).expect("it listens");
    session.set_read_timeout(Some(Duration::from_secs(20))).expect("it can be set");
    let mut alive = || {
        session.write_all(b"there?").expect("the session lives");
        let mut answer = [0; 6];
        session.read_exact(&mut answer).expect("the session lives");
    };
    alive();
    let [promised] = &commands(README, "What you may rely on")[..] else { panic!("one block") };
    assert_eq!(promised.len(), 3);
    for command in promised {
        shell(command);
        alive();
    }
    assert_eq!(attempt("systemctl --user is-active qrexec-connect-old.socket").1, "inactive");

    // Monitoring, with the id of the session that is there
    let [asked, varlink] = &commands(TROUBLESHOOTING, MONITORING)[..] else { panic!("two blocks") };
    eventually("the service answers", || attempt("qrexec-connect status").0 == Some(0));
    let table = shell("qrexec-connect sessions --json");
    let id = table.split("\"id\":").nth(1).and_then(|rest| rest.split('"').nth(1)).expect("a session").to_owned();
    let mut seen = 0;
    for command in asked {
        let command = command.replace("819f8405", &id[..8]);
        if command.contains("--follow") {
            let (code, ..) = tree::attempt(&format!("timeout 1 {}", to(who, &command)));
            assert_eq!(code, Some(124), "it goes on: {command}");
        } else {
            shell(&command);
        }
        seen += 1;
    }
    assert!(seen >= 5);
    assert!(shell("qrexec-connect status || :").contains("paused"));
    if attempt("command -v varlinkctl").0 == Some(0) {
        let [introspect, watch] = &varlink[..] else { panic!("two commands") };
        assert!(shell(introspect).contains("method"));
        let (code, said, _) = tree::attempt(&format!("timeout 3 {}", to(who, watch)));
        assert!(matches!(code, Some(0 | 124)), "{code:?} {said}");
    }
}

#[test]
fn the_commands_for_the_first_socket_do_what_the_readme_says() {
    let Some(tree) = tree!() else { return };
    tree.boot("follow", As::Tester, || follow(As::Tester));
}

#[test]
fn the_commands_for_the_first_socket_hold_for_roots_units_with_the_option_for_them() {
    let Some(tree) = tree!() else { return };
    tree.boot("follow", As::Root, || follow(As::Root));
}
