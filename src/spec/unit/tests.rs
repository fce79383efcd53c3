use proptest::prelude::*;

use super::*;
use crate::spec::plan::SocketKind;

const UNIT: &str = "\u{feff}# a comment
[Unit]
Description=a \\
# in between
  b
[Socket]
ListenStream=127.0.0.1:1234
  ListenDatagram = [::1]:53 \r
ListenStream=
ListenStream=/run/a.sock
ListenFIFO=/run/fifo
; another
FileDescriptorName=one
FileDescriptorName =  work qubes.ConnectTCP:1234\t
Service=x.socket
Service=qrexec-connect.service
Backslashes=a\\\\
junk
=x
[Install]
WantedBy=
[broken
Ignored=1
Last=1\\";

#[test]
fn a_unit_is_read_as_systemd_reads_it() {
    let unit = Unit::parse("/etc/x.socket", UNIT);
    assert_eq!(unit.last("Unit", "Description").unwrap().value, "a    b");
    let listens: Vec<_> =
        unit.listens().iter().map(|one| (one.kind, one.setting.value.as_str(), one.socket())).collect();
    let unix = (ListenKind::Stream, "/run/a.sock", Some(SocketKind::Unix));
    assert_eq!(listens, [unix, (ListenKind::Other, "/run/fifo", None)]);
    let name = unit.fd_name().unwrap();
    assert_eq!((name.value.as_str(), name.line), ("work qubes.ConnectTCP:1234", 14));
    assert_eq!(unit.service().unwrap().value, "qrexec-connect.service");
    assert_eq!(unit.last("Socket", "Backslashes").unwrap().value, "a\\\\");
    assert!(unit.has_install());
    assert_eq!(unit.all("Socket", "Ignored").count(), 0);
    let dropped: Vec<_> = unit.dropped().iter().map(|fault| (fault.line(), fault.excerpt())).collect();
    let expected = [(18, "junk"), (19, "=x"), (22, "[broken"), (23, "Ignored=1"), (24, "Last=1\\")];
    assert_eq!(dropped, expected);
}

#[test]
fn a_fault_of_a_name_is_cited_in_its_unit() {
    let unit = Unit::parse("/etc/x.socket", UNIT);
    let name = unit.fd_name().unwrap();
    let faults = rejected(&name.value).cited(&name.cite()).to_string();
    let expected = "/etc/x.socket:14:44: systemd drops this name silently: it holds a colon \
                    (write: FileDescriptorName=work qubes.ConnectTCP+1234)";
    assert_eq!(faults, expected);
    let continued = Unit::parse("x", "[Socket]\nFileDescriptorName=work \\\n  a:b\n");
    let name = continued.fd_name().unwrap();
    assert_eq!(name.value, "work    a:b");
    assert!(rejected(&name.value).cited(&name.cite()).to_string().starts_with("x:2: "));
}

#[test]
fn drop_ins_are_read_over_the_unit() {
    let mut unit = Unit::parse("a", "[Socket]\nListenStream=1\nFileDescriptorName=a\n[Install]\n");
    assert!(!unit.has_install());
    unit.overlay("b", "[Socket]\nListenStream=2\nFileDescriptorName=\n");
    assert_eq!((unit.listens().len(), unit.fd_name()), (2, None));
    unit.overlay("c", "FileDescriptorName=lost\n[Socket]\nListenDatagram=\nFileDescriptorName=c\n[Install]\nAlias=x\n");
    assert!(unit.listens().is_empty() && unit.has_install());
    let name = unit.fd_name().unwrap();
    assert_eq!((&*name.file, name.line, name.value.as_str()), ("c", 4, "c"));
    assert_eq!(unit.dropped().len(), 1);
}

#[test]
fn the_kind_of_a_socket_is_told_by_its_address() {
    for (line, socket) in [
        ("ListenStream=1234", Some(SocketKind::Tcp)),
        ("ListenStream=[::]:1", Some(SocketKind::Tcp)),
        ("ListenStream=@abstract", Some(SocketKind::Unix)),
        ("ListenStream=%t/a.sock", Some(SocketKind::Unix)),
        ("ListenStream=vsock:2:1", None),
        ("ListenDatagram=53", Some(SocketKind::Udp)),
        ("ListenDatagram=/run/a", None),
        ("ListenSequentialPacket=/run/a", None),
    ] {
        let unit = Unit::parse("x", &format!("[Socket]\n{line}\n"));
        assert_eq!(unit.listens()[0].socket(), socket, "{line}");
    }
}

#[test]
fn a_name_is_repaired_so_that_systemd_takes_it_and_means_the_same() {
    for (written, repaired) in [
        ("work qubes.ConnectTCP:1234", "work qubes.ConnectTCP+1234"),
        ("@dispvm:NAME svc", "@dispvm\\x3aNAME svc"),
        ("@dispvm:NAME svc:1 max_connections=2", "@dispvm\\x3aNAME svc+1 max_connections=2"),
        ("uuid:0-1 svc", "uuid\\x3a0-1 svc"),
        ("target=10.0.0.5:22", "target=10.0.0.5+22"),
        ("target=[fd00::1]:22", "target=[fd00\\x3a\\x3a1]+22"),
        ("target=[fd00::1]+22", "target=[fd00\\x3a\\x3a1]+22"),
        ("uds=%t/a:b.sock,target=%i:22,namespace=x", "uds=%t/a\\x3ab.sock,target=%i+22,namespace=x"),
        ("qrexec='@dispvm:x svc:1',owner=a:b", "qrexec='@dispvm\\x3ax svc+1',owner=a\\x3ab"),
        ("udp_target=a:53,source=::1", "udp_target=a+53,source=\\x3a\\x3a1"),
        ("work svc+1:2", "work svc+1\\x3a2"),
        ("target=fd00::1:22", "target=fd00\\x3a\\x3a1\\x3a22"),
        ("a:b", "a\\x3ab"),
        ("work\tsvc:1", "work svc+1"),
        ("uds='/run/a\tb'", "uds='/run/a\\x09b'"),
        ("uds=/run/é", "uds=/run/\\xc3\\xa9"),
        ("uds=/run/%%:", "uds=/run/%%\\x3a"),
    ] {
        assert_eq!(repair(written).as_deref(), Some(repaired), "{written}");
        assert!(rejected(repaired).0.is_empty(), "{repaired}");
        assert!(!rejected(written).0.is_empty(), "{written}");
    }
    let long = format!("work svc:{}", "a".repeat(247));
    let grows = format!("uds=/{}:{}", "a".repeat(200), "b".repeat(49));
    for hopeless in
        ["work svc+1", "ssh", "", "a:\0b", "work 'svc:1", "work svc:%z", "uds=/%3A:", long.as_str(), grows.as_str()]
    {
        assert_eq!(repair(hopeless), None, "{hopeless}");
    }
}

#[test]
fn what_systemd_would_drop_is_told_by_cause() {
    let whats = |raw: &str| rejected(raw).0.iter().map(|fault| fault.what().to_owned()).collect::<Vec<_>>().join("; ");
    for (raw, parts) in [
        ("work svc+1", &[][..]),
        ("@default qubes.ConnectTCP+1234 = , ; / - * ? $HOME 'q' \\x20 %t %%", &[]),
        ("trailing %", &[]),
        ("a:b", &["a colon"]),
        ("a\tb", &["a tab"]),
        ("é", &["\"é\" is not ASCII"]),
        ("%zz %3A", &["%z is no specifier", "%3 is no specifier"]),
        ("é:\t", &["a colon", "a tab", "not ASCII"]),
    ] {
        let said = whats(raw);
        assert_eq!(rejected(raw).0.len(), parts.len(), "{raw}: {said}");
        parts.iter().for_each(|part| assert!(said.contains(part), "{raw}: {said}"));
    }
    assert!(whats(&"a".repeat(255)).is_empty());
    assert!(whats(&"a".repeat(256)).contains("256 characters"));
}

#[test]
fn specifiers_are_expanded_as_systemd_does() {
    let value = |c| (c == 't').then(|| "/run/user/1000".to_owned());
    for (text, expanded) in [
        ("uds=%t/a%%b%i%", "uds=/run/user/1000/a%b%i%"),
        ("100%:%t", "100%:/run/user/1000"),
        ("%%t", "%t"),
        ("é%t", "é/run/user/1000"),
    ] {
        assert_eq!(expand(text, value).as_deref(), Ok(expanded));
    }
    assert_eq!(expand("a%z", value), Err(UnknownSpecifier { specifier: 'z', at: 1 }));
}

proptest! {
    #[test]
    fn a_repaired_name_means_what_was_written(raw in "[a-z@=:+.,' \\[\\]\\\\x]{0,30}|(target|uds|work|@dispvm)[=:][ -~]{0,30}") {
        if let Some(name) = repair(&raw) {
            prop_assert!(rejected(&name).0.is_empty(), "{}", name);
            prop_assert_eq!(repair(&name), None);
            // The colons that are left are data in both; where the grammar takes the written form, both mean the same.
            if let Ok(meant) = crate::spec::fdname::parse(&raw) {
                prop_assert_eq!(crate::spec::fdname::parse(&name).unwrap(), meant);
            }
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "(\\PC|[\\\\\n=\\[\\]#])*|[ -~\n\t]{0,200}") {
        let mut unit = Unit::parse("x", &text);
        unit.overlay("y", &text);
        for setting in unit.all("Socket", "FileDescriptorName") {
            let _ = rejected(&setting.value).cited(&setting.cite()).render(false);
        }
        let _ = (unit.listens(), unit.has_install(), repair(&text), expand(&text, |_| None));
        unit.dropped().iter().for_each(|fault| assert!(fault.excerpt().get(fault.span()).is_some()));
    }
}
