use proptest::prelude::*;

use super::*;
use crate::spec::error::Cite;

fn faults(text: &str) -> Vec<(usize, String, String)> {
    let faults = parse(text).expect_err(text);
    let hint = |fault: &SpecFault| fault.what_to_do().unwrap_or_default().to_owned();
    faults.0.iter().map(|fault| (fault.column(), fault.what().to_owned(), hint(fault))).collect()
}

#[test]
fn each_form_is_told_by_its_first_words() {
    let call = |text: &str, target: &str, service: &str, options: usize| match parse(text) {
        Ok(Name::Call { call, keys }) => {
            assert_eq!((call.target.as_str(), call.service.as_str()), (target, service), "{text}");
            assert_eq!(keys.items().len(), options, "{text}");
        }
        other => panic!("{text}: {other:?}"),
    };
    call("@default qubes.ConnectTCP+1234", "@default", "qubes.ConnectTCP+1234", 0);
    call("work qubes.ConnectTCP:1234", "work", "qubes.ConnectTCP+1234", 0);
    call("work qubes.ConnectTCP+22 max_connections=16", "work", "qubes.ConnectTCP+22", 1);
    call("work svc idle_timeout=5,keepalive=no on_remove=drain", "work", "svc", 3);
    call("@dispvm\\x3aNAME svc", "@dispvm:NAME", "svc", 0);
    call("@dispvm:NAME svc", "@dispvm:NAME", "svc", 0);
    call("  'work'   \"svc\"  ", "work", "svc", 0);
    for text in
        ["uds=/run/qdhcp/ssh.sock", "namespace=qdhcp-27a7,target=192.168.31.201+22", "uds='/run/a b.sock',label=x"]
    {
        assert!(matches!(parse(text), Ok(Name::List(_))), "{text}");
    }
    for (text, label) in [
        ("ssh", "ssh"),
        ("x.socket", "x.socket"),
        ("'two words'", "two words"),
        ("a\\x20b", "a b"),
        ("unknown", "unknown"),
    ] {
        assert_eq!(parse(text), Ok(Name::Label(Label::new(label).unwrap())), "{text}");
    }
}

#[test]
fn the_canonical_form_is_what_systemd_takes() {
    for (text, canonical) in [
        ("work qubes.ConnectTCP:1234", "work qubes.ConnectTCP+1234"),
        ("@dispvm:NAME svc+", "@dispvm\\x3aNAME svc"),
        ("target=[fd00\\x3a\\x3a1]+22", "target=[fd00\\x3a\\x3a1]+22"),
        ("target=10.0.0.5:22,uds='/run/a b.sock'", "uds=/run/a\\x20b.sock,target=10.0.0.5+22"),
        ("uds=/run/a\\x2cb", "uds=/run/a\\x2cb"),
        ("uds=/run/100%", "uds=/run/100\\x25"),
        ("uds=/run/é", "uds=/run/\\xc3\\xa9"),
        ("target=a+1,idle_timeout_secs=1.50,connect_timeout=5min", "target=a+1,connect_timeout=300,idle_timeout=1.5"),
        ("uds=/a,allow_uid=0,target=b+1,allow_uid=adm", "uds=/a,target=b+1,allow_uid=0,allow_uid=adm"),
        ("qrexec='work svc+1'", "qrexec=work\\x20svc+1"),
        ("work svc keepalive=on", "work svc keepalive=true"),
    ] {
        let name = parse(text).unwrap();
        assert_eq!(name.to_string(), canonical);
        assert_eq!(parse(canonical), Ok(name));
        assert!(crate::spec::unit::rejected(canonical).0.is_empty(), "{canonical}");
    }
}

#[test]
fn each_mistake_has_its_own_words_its_place_and_the_text_to_write() {
    let long_qube = format!("{} svc", "q".repeat(32));
    let long_service = format!("work svc+{}", "a".repeat(252));
    for (text, column, what, hint) in [
        ("", 1, "the name is empty", "FileDescriptorName=@default qubes.ConnectTCP+1234"),
        ("  ", 1, "the name is empty", "write:"),
        ("''", 1, "the label is empty", ""),
        ("work 'qubes.ConnectTCP+1", 6, "the quote ' is never closed", "close it"),
        ("work qubes.ConnectTCP 22", 23, "not \"22\"", "write: work qubes.ConnectTCP+22"),
        ("work svc+1 22", 12, "not \"22\"", "QUBE SERVICE+ARGUMENT KEY=VALUE"),
        ("work +22", 6, "lacks the service", "write: work qubes.ConnectTCP+22"),
        ("'' svc", 1, "the target of the call is empty", "write: @default svc"),
        ("work ''", 6, "the service of the call is empty", ""),
        ("$default svc keepalive=no", 1, "spelling of Qubes 3", "write: @default svc keepalive=no"),
        ("w\\x40rk svc", 2, "cannot hold \"@\": qrexec would turn it into _", ""),
        ("work sv/c", 8, "cannot hold \"/\": qrexec would turn it into _", ""),
        (&long_qube, 32, "at most 31 bytes", ""),
        (&long_service, 261, "at most 255 bytes together", ""),
        ("a\\x00b", 2, "NUL", ""),
        ("a\\xg0", 2, "two hexadecimal digits", "\\x5cx"),
        ("a\\x09b", 2, "a label cannot hold", ""),
        ("\\xff", 1, "the word is not UTF-8", ""),
        ("taget=10.0.0.5+22", 1, "unknown key \"taget\"", "did you mean \"target\"?"),
        ("netns=x", 1, "unknown key \"netns\"", "did you mean \"namespace\"?"),
        ("uds=/a,uds=/b", 8, "given twice", "uds=/a, column 1"),
        ("uds=/a,,label=b", 8, "nothing between two commas", ""),
        ("uds=/a,x", 8, "\"x\" is not key=value", ""),
        ("uds=/a target=10.0.0.5+22", 8, "commas between its items", "write: uds=/a,target=10.0.0.5+22"),
        ("uds=/run/my sock", 13, "follows the list", "\\x20"),
        ("uds=/a,mode=600", 13, "decimal number", "write: uds=/a,mode=0600"),
        ("target=10.0.0.5", 8, "has no port", ""),
        ("listen=localhost+22", 8, "not an address to listen on", "write: listen=127.0.0.1+22"),
        ("listen=*+22", 8, "not an address to listen on", "write: listen=[\\x3a\\x3a]+22"),
        ("work svc qrexec='a b'", 10, "the name is a qrexec call, and", ""),
        ("work svc x=1", 10, "unknown key \"x\"", ""),
    ] {
        let found = faults(text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        let (at, said, advice) = &found[0];
        assert!(said.contains(what), "{text}: {said}");
        assert!(advice.contains(hint), "{text}: {advice}");
        assert_eq!(*at, column, "{text}: {said}");
    }
}

#[test]
fn all_faults_come_at_once() {
    assert_eq!(faults("w@rk s/vc x=1 mode=999 y").len(), 5);
    let config = Config::default();
    let both = resolve("mode=600,listen=127.0.0.1+1,target=a+1", SocketKind::Tcp, &config).unwrap_err();
    assert_eq!(both.0.len(), 2, "{both}");
    // What could not be read is not called missing besides.
    assert_eq!(resolve("taget=a+1", SocketKind::Tcp, &config).unwrap_err().0.len(), 1);
}

proptest! {
    #[test]
    fn what_can_be_read_reads_back_from_its_canonical_form(text in name()) {
        if let Ok(name) = parse(&text) {
            let canonical = name.to_string();
            prop_assert_eq!(parse(&canonical).expect(&canonical), name);
            prop_assert_eq!(parse(&canonical).unwrap().to_string(), canonical.clone());
            let left = crate::spec::unit::rejected(&canonical);
            prop_assert!(left.0.iter().all(|fault| fault.what().contains("are the most")), "{}", left);
        }
    }

    #[test]
    fn no_text_makes_the_grammar_panic_and_every_fault_can_be_shown(text in "\\PC*|[ -~]{0,80}|.{0,40}") {
        if let Err(faults) = parse(&text) {
            prop_assert!(!faults.0.is_empty());
            prop_assert!(!faults.to_string().replace('\n', "").contains(char::is_control));
            let _ = faults.cited(&Cite::Listener("[::1]:1")).render(true);
        }
    }
}

/// Texts near the grammar.
fn name() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        "[a-z@:+.=,'\"\\\\ ]{0,12}",
        "(@default|work|@dispvm:x|@dispvm\\\\x3ax) [a-zA-Z.]{1,12}([+:][0-9]{1,5})?",
        "(uds=/[ -~]{0,10}|target=[a-z]{1,5}[+:][0-9]{1,4}|label=[ -~]{1,8}|allow_uid=[a-z0-9]{1,4}|mode=0[0-7]{3})",
        Just("idle_timeout=1.25".to_owned()),
        Just("keepalive=off".to_owned()),
        Just("source=fd00\\x3a\\x3a1".to_owned()),
        Just("owner=a\\x3ab".to_owned()),
    ];
    (proptest::collection::vec(word, 1..5), prop_oneof![Just(","), Just(" ")]).prop_map(|(words, by)| words.join(by))
}
