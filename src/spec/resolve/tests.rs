use super::*;
use crate::spec::fdname::parse;

fn config() -> Config {
    let text = "[[forward]]\nlabel = \"ssh\"\ntarget = \"10.0.0.5:22\"\n\
                [[forward]]\nlabel = \"web.socket\"\nqrexec = \"work qubes.ConnectTCP+80\"\n\
                [[forward]]\nlabel = \"own\"\nlisten = \"127.0.0.1:1\"\ntarget = \"a:1\"\n";
    Config::gather(Some(("forward.toml", text)), [""; 0]).unwrap().0
}

#[test]
fn a_label_is_found_by_itself_or_by_the_name_of_its_unit() {
    for name in ["ssh", "qrexec-connect-ssh.socket", "pfwd-ssh.socket", "ssh.socket"] {
        let forward = parse(name).unwrap().resolve(SocketKind::Tcp, &config()).unwrap();
        assert_eq!(forward.to_string(), "ssh: inherited socket -> tcp 10.0.0.5:22", "{name}");
    }
    let forward = parse("web.socket").unwrap().resolve(SocketKind::Unix, &config()).unwrap();
    assert_eq!(forward.to_string(), "web.socket: inherited socket -> qrexec work qubes.ConnectTCP+80");
}

#[test]
fn a_call_is_a_forward_with_its_options() {
    let name = parse("work qubes.ConnectTCP+22 max_connections=16 label=x").unwrap();
    let forward = name.resolve(SocketKind::Tcp, &Config::default()).unwrap();
    assert_eq!(forward.to_string(), "x: inherited socket -> qrexec work qubes.ConnectTCP+22");
    assert_eq!(forward.options.max_connections, 16);
    let faults = parse("work svc uds=/a,mode=0600 target=b+1").unwrap().resolve(SocketKind::Tcp, &Config::default());
    assert_eq!(faults.unwrap_err().0.len(), 2);
}

#[test]
fn a_name_that_is_still_a_units_says_what_to_write() {
    let fault = |name: &str| parse(name).unwrap().resolve(SocketKind::Tcp, &config()).unwrap_err().to_string();
    let said = fault("qrexec-connect-gitweb.socket");
    for part in ["has no FileDescriptorName=, or one that systemd rejected", "+1234", "label = \"gitweb\""] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let known = unnamed("qrexec-connect-gitweb.socket", Some("work qubes.ConnectTCP:1234")).to_string();
    assert!(known.contains("write: FileDescriptorName=work qubes.ConnectTCP+1234"), "{known}");
    let hopeless = unnamed("a.socket", Some("%zz")).to_string();
    assert!(hopeless.contains("check"), "{hopeless}");
}

#[test]
fn a_word_that_is_no_label_is_answered_with_what_it_was_perhaps_meant_to_be() {
    for (name, hint) in [
        ("10.0.0.5+22", "write: target=10.0.0.5+22"),
        ("[fd00\\x3a\\x3a1]+22", "write: target=[fd00\\x3a\\x3a1]+22"),
        ("/run/a.sock", "write: uds=/run/a.sock"),
        ("@default", "write: @default qubes.ConnectTCP+1234"),
        ("qubes.ConnectTCP+22", "write: @default qubes.ConnectTCP+22"),
        ("gitweb", "a [[forward]] with label = \"gitweb\" is missing"),
        ("gitweb", "for the qube gitweb write: gitweb qubes.ConnectTCP+PORT"),
        ("\"work qubes.ConnectTCP+22\"", "without the quotes: work qubes.ConnectTCP+22"),
        ("work\\x3a22", "write: work qubes.ConnectTCP+22 for a qube, or target=work+22 for a host"),
        ("work+22", "write: work qubes.ConnectTCP+22 for a qube, or target=work+22 for a host"),
        (
            "1234\\x3awork\\x3a22",
            "write: ListenStream=127.0.0.1:1234, and as the name: work qubes.ConnectTCP+22 for a qube, or target=work+22",
        ),
        ("2223\\x3a10.0.0.5\\x3a22", "write: ListenStream=127.0.0.1:2223, and as the name: target=10.0.0.5+22"),
        ("localhost\\x3a2223\\x3a10.0.0.5\\x3a22", "write: ListenStream=127.0.0.1:2223, and as the name: target="),
    ] {
        let said = parse(name).unwrap().resolve(SocketKind::Tcp, &config()).unwrap_err().to_string();
        assert!(said.contains("no [[forward]] has the label") && said.contains(hint), "{name}: {said}");
    }
}

#[test]
fn a_forward_with_a_listening_side_of_its_own_is_not_for_an_inherited_socket() {
    let faults = parse("own").unwrap().resolve(SocketKind::Tcp, &config()).unwrap_err();
    assert!(faults.to_string().starts_with("forward.toml:9:1: listen beside an inherited socket"), "{faults}");
}
