use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn one(port: u16, value: &[u8]) -> Result<DeclaredForward, String> {
    let key = format!("{KEY}{port}");
    let (mut wanted, mut faults) = declared([(key.as_bytes(), value)], &[]);
    match (wanted.pop_first(), faults.pop()) {
        (Some((at, forward)), None) if at == port => Ok(forward),
        (None, Some(fault)) => Err(fault.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_declaration_becomes_a_unit() {
    let forward = one(8443, b"0.0.0.0:8443 @default qubes.ConnectTCP+443 allow_from=192.168.1.0/24").expect("good");
    assert_eq!(
        forward.unit_text(),
        "# Declared in dom0 by the feature vm-config.qrexec-connect-8443; qrexec-connect-qubesdb.service wrote this.\n\
         [Unit]\nDescription=Port 8443, declared in dom0\n\
         [Socket]\nListenStream=0.0.0.0:8443\n\
         FileDescriptorName=@default qubes.ConnectTCP+443 allow_from=192.168.1.0/24\n"
    );
    assert_eq!(forward.from().iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.168.1.0/24"]);
    let local = one(5432, b"127.0.0.1:5432 mail qubes.ConnectTCP:5432 proxy_protocol=v2").expect("good").unit_text();
    assert!(local.ends_with("FileDescriptorName=mail qubes.ConnectTCP+5432 proxy_protocol=v2\n"), "{local}");
    let six = one(8443, b"[::]:8443 @default qubes.ConnectTCP+443").expect("good").unit_text();
    assert!(six.contains("ListenStream=[::]:8443\nBindIPv6Only=both\n"), "{six}");
    let own = one(8443, b"10.1.2.3:8443 @default qubes.ConnectTCP+443").expect("good").unit_text();
    assert!(own.contains("ListenStream=10.1.2.3:8443\nFreeBind=yes\n"), "{own}");
}

#[test]
fn a_hostile_value_declares_nothing_and_is_told_in_one_bounded_line() {
    let long = [b"0.0.0.0:8443 @default qubes.ConnectTCP+443 ".as_slice(), &[b'a'; 3000]].concat();
    let name = format!("0.0.0.0:8443 @default {}", "a".repeat(255));
    let values: &[(&[u8], &str)] = &[
        (b"", "column 1"),
        (b"0.0.0.0:8443", "column 1"),
        (b"0.0.0.0:8443 ", "empty"),
        (b"0.0.0.0:8443 label", "qrexec call"),
        (b"0.0.0.0:8443 @default qubes.ConnectTCP+443\nExecStart=/bin/sh", "column 43"),
        (b"0.0.0.0:8443 @default qubes.ConnectTCP+443\\x0aExecStart=/bin/sh", "column"),
        (b"0.0.0.0:8443\t@default qubes.ConnectTCP+443", "column 13"),
        (b"0.0.0.0:8443 @default qubes.ConnectTCP+443\x1b[2J", "column 43"),
        (b"0.0.0.0:8443 @default qubes.ConnectTCP+443\x80", "column 43"),
        (b"0.0.0.0:8443 @default qubes.ConnectTCP+%n", "column 40: %"),
        (b"0.0.0.0:8443 @default qubes.ConnectTCP+\\x25n", "cannot hold"),
        (b"0.0.0.0:8443 @default qubes.ConnectTCP+../../x", "cannot hold"),
        (b"0.0.0.0:8443 \"@default qubes.ConnectTCP+443", "quote"),
        (b"0.0.0.0:8443 @default qubes.ConnectTCP+443 start_unit=sshd.service", "column 31: start_unit="),
        (b"0.0.0.0:8443 @default qubes.ConnectTCP+443 uds=/run/x", "uds="),
        (b"0.0.0.0:8443 @default qubes.ConnectTCP+443 target=10.0.0.1+22", "target="),
        (b"0.0.0.0:8443 @default qubes.ConnectTCP+443 namespace=x", "namespace="),
        (b"0.0.0.0:8443 @default qubes.ConnectTCP+443 label=x", "label="),
        (b"0.0.0.0:8443 @default qubes.ConnectTCP+443 owner=root", "owner="),
        (b"0.0.0.0:8443 @default qubes.ConnectTCP+443 allow_from=10.0.0.0/99", "prefix"),
        (b"0.0.0.0:8443 uds=/run/docker.sock", "qrexec call"),
        (b"0.0.0.0:8443 target=10.0.0.1+22", "qrexec call"),
        (b"0.0.0.0:8443 qrexec=@default\\x20qubes.ConnectTCP+443", "qrexec call"),
        (b"0.0.0.0:8443 namespace=x,target=10.0.0.1+22", "qrexec call"),
        (b"0.0.0.0:8444 @default qubes.ConnectTCP+443", "another one"),
        (b"/run/x.sock:8443 @default qubes.ConnectTCP+443", "column 1"),
        (b"../../x @default qubes.ConnectTCP+443", "column 1"),
        (b"localhost:8443 @default qubes.ConnectTCP+443", "column 1"),
        (b"[fe80::1%eth0]:8443 @default qubes.ConnectTCP+443", "column 1"),
        (b"[fe80::1%2]:8443 @default qubes.ConnectTCP+443", "column 1"),
        (b"[::ffff:10.0.0.1]:8443 @default qubes.ConnectTCP+443", "kind of address"),
        (b"224.0.0.1:8443 @default qubes.ConnectTCP+443", "kind of address"),
        (&long, "3043 bytes"),
        (name.as_bytes(), "264 characters"),
    ];
    for (value, why) in values {
        let said = one(8443, value).expect_err(&String::from_utf8_lossy(value));
        assert!(said.contains(why) && said.contains(" /vm-config/qrexec-connect-8443: "), "{said}");
        assert!(said.len() < 4 * LONGEST_VALUE && !said.chars().any(char::is_control), "{said}");
    }
}

#[test]
fn a_hostile_key_declares_nothing() {
    let value = b"0.0.0.0:8443 @default qubes.ConnectTCP+443".as_slice();
    for key in ["", "0", "08443", "+8443", "65536", "8443.socket", "../8443", "8443\n", "-1", " 8443", "x\u{1b}[2J"] {
        let key = format!("{KEY}{key}");
        let (wanted, faults) = declared([(key.as_bytes(), value)], &[]);
        assert_eq!((wanted.len(), faults.len()), (0, 1), "{key:?}");
        assert!(!faults[0].to_string().chars().any(char::is_control), "{key:?}");
    }
    let key = format!("{KEY}8443");
    let (wanted, faults) = declared([(key.as_bytes(), value), (key.as_bytes(), value)], &[]);
    assert_eq!((wanted.len(), faults.len()), (0, 1), "twice");
}

#[test]
fn a_declaration_changes_no_limit_of_another_listener() {
    for option in ["max_calls=1", "max_setups=1", "max_connections=1", "buffer_size=64K"] {
        let said = one(8443, format!("0.0.0.0:8443 work a.B {option}").as_bytes()).expect_err(option);
        assert!(said.contains("is not allowed in a value"), "{said}");
    }
    let own = "allow_from=10.0.0.1 setup_timeout=5s idle_timeout=1h on_remove=drain proxy_protocol=v1";
    one(8443, format!("0.0.0.0:8443 work a.B {own}").as_bytes()).expect("options of its own connections");
}

#[test]
fn a_low_port_needs_the_word_of_root() {
    let value = b"0.0.0.0:443 @default qubes.ConnectTCP+443".as_slice();
    let said = one(443, value).expect_err("a low port");
    assert!(said.contains("qubesdb_ports = [443]"), "{said}");
    let key = format!("{KEY}443");
    assert_eq!(declared([(key.as_bytes(), value)], &[80, 443]).0.len(), 1);
    assert!(one(1023, b"0.0.0.0:1023 a b").is_err() && one(1024, b"0.0.0.0:1024 a b").is_ok());
}

#[test]
fn the_sixty_fifth_forward_is_refused_and_the_others_are_served() {
    let all: Vec<_> = (2000..2065)
        .map(|port| (format!("{KEY}{port}"), format!("127.0.0.1:{port} @default qubes.ConnectTCP+{port}")))
        .collect();
    let (wanted, faults) = declared(all.iter().map(|(key, value)| (key.as_bytes(), value.as_bytes())), &[]);
    assert_eq!((wanted.len(), wanted.last_key_value().map(|(port, _)| *port)), (MOST, Some(2063)));
    assert_eq!(faults.iter().map(|fault| fault.key.as_str()).collect::<Vec<_>>(), ["/vm-config/qrexec-connect-2064"]);
}

#[test]
fn only_a_unit_that_was_not_edited_is_known_again() {
    for value in ["0.0.0.0:8443 @default a.B+c", "[::]:8443 mail a.B allow_from=fd00\\x3a\\x3a/8", "10.0.0.1:8443 x y"]
    {
        let text = one(8443, value.as_bytes()).expect(value).unit_text();
        assert!(is_unit_of(8443, &text), "{text}");
        for other in
            [format!("{text}Backlog=7\n"), format!("# mine\n{text}"), text.replace("8443", "8444"), String::new()]
        {
            assert!(!is_unit_of(8443, &other), "{other}");
        }
    }
    assert_eq!(
        (port_of(&unit_of(8443)), port_of("qrexec-connect-lan-08.socket"), port_of("x.socket")),
        (Some(8443), None, None)
    );
}

proptest! {
    #[test]
    fn whatever_is_declared_the_unit_has_the_lines_of_ours_and_means_the_same(
        value in prop_oneof![
            // Most of these are good.
            "(0\\.0\\.0\\.0|\\[::\\]|10\\.0\\.0\\.1):8443 \
             (@default|@dispvm:[a-z]{1,3}|[a-z]{1,4}) [A-Za-z][A-Za-z.+:_-]{0,8}\
             ( idle_timeout=[1-9]m| allow_from=10\\.0\\.0\\.[0-9]){0,2}",
            "0\\.0\\.0\\.0:8443 ([a-z@\"\\\\%=]{1,4}|[ -~]{1,8}) [A-Za-z.+:\\\\%]{1,8}( [a-z_]{1,9}=[ -~]{0,9}){0,2}",
            ".{0,60}",
        ],
    ) {
        let Ok(forward) = one(8443, value.as_bytes()) else { return Ok(()) };
        let text = forward.unit_text();
        let keys: BTreeSet<_> = text.lines().filter_map(|line| line.split_once('=')).map(|(key, _)| key).collect();
        let ours = ["Description", "ListenStream", "FreeBind", "BindIPv6Only", "FileDescriptorName"];
        prop_assert!(keys.iter().all(|key| ours.contains(key)), "{}", text);
        prop_assert!(text.lines().count() <= 8 && text.is_ascii());
        let unit = Unit::parse("", &text);
        let name = unit.fd_name().map(|name| name.value.clone()).unwrap_or_default();
        prop_assert!(rejected(&name).0.is_empty() && !name.contains('%') && !name.ends_with('\\'), "{}", name);
        let again = fdname::parse(&name).ok();
        prop_assert_eq!(again.as_ref(), Some(forward.name()));
        prop_assert!(is_unit_of(8443, &text));
    }
}
