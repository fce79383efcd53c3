use super::*;

fn fault(origin: Origin, text: &str, span: Range<usize>) -> SpecFault {
    SpecFault::at(&Place::new(&Source::new(origin, text), span), "unknown key \"upsteam\"")
        .hint("did you mean \"upstream\"?")
}

#[test]
fn a_fault_cites_its_source_and_place_in_one_line() {
    let text = "[[forward]]\n  é upsteam = 1\r\n";
    let file = fault(Origin::File("forward.toml".to_owned()), text, 17..24);
    assert_eq!(file.to_string(), "forward.toml:2:5: unknown key \"upsteam\" (did you mean \"upstream\"?)");
    assert_eq!(&file.excerpt()[file.span()], "upsteam");
    let argument = fault(Origin::Forward(Some(2)), "upsteam=1", 0..7);
    assert_eq!(argument.to_string(), "--forward #2: unknown key \"upsteam\" (did you mean \"upstream\"?)");
    let name = fault(Origin::Name(None), "a=1,upsteam=1", 4..11);
    assert!(name.to_string().starts_with("name \"a=1,upsteam=1\", column 5: unknown key"), "{name}");
}

#[test]
fn whoever_knows_the_socket_or_the_unit_of_a_name_says_so_afterwards() {
    let faults = Faults(vec![fault(Origin::Name(None), "a=1,upsteam=1", 4..11)]);
    let at_run_time = faults.clone().cited(&Cite::Listener("127.0.0.1:1234")).to_string();
    assert!(at_run_time.starts_with("127.0.0.1:1234: name \"a=1,upsteam=1\", column 5: "), "{at_run_time}");
    let line = "FileDescriptorName= a=1,upsteam=1 ";
    let cite = Cite::UnitLine { file: "/etc/x.socket", line: 3, text: line, value: 20 };
    let in_check = faults.clone().cited(&cite);
    assert!(in_check.to_string().starts_with("/etc/x.socket:3:25: unknown key"), "{in_check}");
    assert_eq!(&line[in_check.0[0].span()], "upsteam");
    // A value that was continued over lines, or expanded, is cited by line alone.
    let cite = Cite::UnitLine { file: "/etc/x.socket", line: 3, text: "FileDescriptorName=a=1,\\", value: 19 };
    assert!(faults.clone().cited(&cite).to_string().starts_with("/etc/x.socket:3: unknown key"));
    // A file knows its place already.
    let file = Faults(vec![fault(Origin::File("f".to_owned()), "upsteam", 0..7)]);
    assert_eq!(file.clone().cited(&cite), file);
}

#[test]
fn the_rendered_form_underlines_the_place() {
    let faults = Faults(vec![fault(Origin::File("forward.toml".to_owned()), "x\nupsteam = 1", 2..9)]);
    let plain = faults.render(false);
    for part in ["forward.toml:2:1", "2 | upsteam = 1", "  | ^^^^^^^", "help: did you mean"] {
        assert!(plain.contains(part), "{part}\n{plain}");
    }
    assert!(faults.render(true).contains('\u{1b}'));
}

#[test]
fn text_from_outside_cannot_steer_a_terminal_or_break_a_line() {
    let text = "a\u{1b}[31m\u{85}b";
    let place = Place::new(&Source::new(Origin::Name(Some("x\ny".to_owned())), text), 0..1);
    let faults = Faults(vec![SpecFault::at(&place, format!("bad {text}\n")).hint(text)]);
    assert!(!faults.to_string().contains(char::is_control), "{faults}");
    assert!(!faults.render(false).replace('\n', "").contains(char::is_control));
}

#[test]
fn a_place_outside_of_its_text_is_brought_back_into_it() {
    for (text, span) in [("", 0..9), ("é", 1..2), ("a\nb", 1..99), ("ab", 7..9)] {
        let fault = fault(Origin::Name(None), text, span);
        assert!(fault.excerpt().get(fault.span()).is_some());
        let _ = Faults(vec![fault]).render(false);
    }
}

#[test]
fn a_hint_is_written_as_the_text_that_it_is_about() {
    use crate::spec::{Config, SocketKind, fdname};
    let toml = |text: &str| {
        let text = format!("[[forward]]\n{text}\n");
        Config::gather(Some(("x.toml", text.as_str())), [""; 0]).unwrap_err().to_string()
    };
    let argument = |text: &str| Config::gather(None, [text]).unwrap_err().to_string();
    let name = |text: &str| fdname::resolve(text, SocketKind::Tcp, &Config::default()).unwrap_err().to_string();
    for (said, hint) in [
        (toml("listen = \"2223\"\ntarget = \"10.0.0.5:22\""), "write: listen = \"127.0.0.1:2223\""),
        (argument("listen=2223,target=10.0.0.5:22"), "write: listen=127.0.0.1:2223,target=10.0.0.5:22"),
        (
            toml("listen = \"127.0.0.1:1\""),
            "one of uds = \"PATH\", target = \"HOST:PORT\" and qrexec = \"QUBE SERVICE\"",
        ),
        (argument("listen=127.0.0.1:1"), "one of uds=PATH, target=HOST:PORT and qrexec=QUBE SERVICE"),
        (name("max_connections=3"), "one of uds=PATH, target=HOST+PORT and qrexec=QUBE SERVICE"),
        (name("target=[\\x3a\\x3a1\\x3a2223]"), "write: target=[\\x3a\\x3a1]+2223"),
        (toml("listen = \"127.0.0.1:1\"\ntarget = \"[::1:2223]\""), "write: target = \"[::1]:2223\""),
        (argument("listen=127.0.0.1:1,target=[10.0.0.5:22]"), "write: listen=127.0.0.1:1,target=10.0.0.5:22"),
        (toml("listen = \"127.0.0.1:1\"\ntarget = \"10.0.0.5\""), "such as 10.0.0.5:22"),
        (name("target=10.0.0.5"), "such as 10.0.0.5+22"),
        (name("target=fd00\\x3a\\x3a1"), "([fd00\\x3a\\x3a1]+PORT)"),
    ] {
        assert!(said.contains(hint), "{hint} is missing in: {said}");
    }
}
