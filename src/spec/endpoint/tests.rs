use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use proptest::prelude::*;

use super::*;

#[test]
fn a_target_is_a_host_and_a_port_with_plus_or_colon_between() {
    for (text, shown, written) in [
        ("192.168.31.201+22", "192.168.31.201:22", "192.168.31.201+22"),
        ("192.168.31.201:22", "192.168.31.201:22", "192.168.31.201+22"),
        ("[fd00::1]+22", "[fd00::1]:22", "[fd00::1]+22"),
        ("[fd00::1]:22", "[fd00::1]:22", "[fd00::1]+22"),
        ("fd00::1+22", "[fd00::1]:22", "[fd00::1]+22"),
        ("localhost:1", "localhost:1", "localhost+1"),
        ("db.example.org.:65535", "db.example.org.:65535", "db.example.org.+65535"),
        ("my_host-2+80", "my_host-2:80", "my_host-2+80"),
    ] {
        let target: HostPort = text.parse().unwrap();
        assert_eq!(target.to_string(), shown);
        assert_eq!(plus(&target), written);
        assert_eq!(shown.parse(), Ok(target.clone()));
        assert_eq!(written.parse(), Ok(target));
    }
}

#[test]
fn targets_that_cannot_be_dialled_are_refused_each_in_its_own_words() {
    for (text, what) in [
        ("", "has no port"),
        ("10.0.0.5", "has no port"),
        ("10.0.0.5:", "has no port"),
        ("[fd00::1]", "has no port"),
        ("fd00::1", "without brackets"),
        ("fd00::1:22", "without brackets"),
        ("[fd00::1:22", "never closed"),
        ("[10.0.0.1]:22", "not an IPv6 address"),
        ("10.0.0.5:0", "port 0"),
        ("10.0.0.5:65536", "is not a port"),
        ("10.0.0.5:ssh", "is not a port"),
        ("10.0.0.5:+22", "neither an address nor a name"),
        (":22", "no host before the port"),
        ("10.0.0.256:22", "neither an address nor a host's name"),
        ("a b:22", "is a qrexec call"),
        ("a..b:22", "neither an address nor a host's name"),
        ("a:b:22", "neither an address nor a name"),
        ("[fd00::1%eth0]:22", "no link-local address"),
        ("[fe80::1%]:22", "name of a network interface"),
        ("[fe80::1%a/b]:22", "name of a network interface"),
        ("[fe80::x%eth0]:22", "not an IPv6 address"),
        ("/run/a.sock", "is a UNIX socket"),
    ] {
        let flaw = text.parse::<HostPort>().unwrap_err();
        assert!(flaw.what.contains(what), "{text}: {flaw}");
        assert!(text.get(flaw.at.clone()).is_some(), "{text}: {:?}", flaw.at);
    }
}

#[test]
fn a_listening_address_is_an_ip_address_and_says_which() {
    for (text, addr) in [
        ("0.0.0.0:2222", "0.0.0.0:2222"),
        ("0.0.0.0+2222", "0.0.0.0:2222"),
        ("[::]+2222", "[::]:2222"),
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("[fe80::1%2]:22", "[fe80::1%2]:22"),
    ] {
        let read: ListenAddr = text.parse().unwrap();
        assert_eq!((read.addr(), read.zone()), (addr.parse().unwrap(), None));
        assert_eq!(plus(&read).parse(), Ok(read));
    }
    for (text, fix) in [
        ("2222", Some("127.0.0.1:2222")),
        (":2222", Some("[::]:2222")),
        ("*:2222", Some("[::]:2222")),
        ("localhost:2222", Some("127.0.0.1:2222")),
        ("example.org:2222", None),
        ("[fe80::1]:22", None),
        ("[fd00::1%eth0]:22", None),
        ("/run/a.sock", None),
        ("", None),
    ] {
        assert_eq!(text.parse::<ListenAddr>().unwrap_err().fix.as_deref(), fix, "{text}");
    }
}

#[test]
fn a_link_local_address_has_its_interface_by_name() {
    for text in ["[fe80::a9fe:a9fe%tap0]:22", "[fe80::1%eth0.7]:22"] {
        let (listen, target): (ListenAddr, HostPort) = (text.parse().unwrap(), text.parse().unwrap());
        assert_eq!((listen.to_string(), target.to_string()), (text.to_owned(), text.to_owned()));
        assert_eq!((plus(&listen).parse(), plus(&target).parse()), (Ok(listen), Ok(target)));
    }
    let listen: ListenAddr = "[fe80::1%tap0]:22".parse().unwrap();
    assert_eq!((listen.zone().unwrap().as_str(), listen.addr().port()), ("tap0", 22));
    assert_eq!(listen.in_unit(), "[fe80::1]:22%%tap0");
    assert_eq!("[fe80::1%3]:22".parse::<ListenAddr>().unwrap().in_unit(), "[fe80::1]:22%%3");
}

#[test]
fn a_unix_address_is_a_path_or_an_abstract_name_of_at_most_107_bytes() {
    let (fits, long) = ("/".to_owned() + &"a".repeat(106), "/".to_owned() + &"a".repeat(107));
    assert_eq!(UnixAddr::read(b"/run/a.sock"), Ok(UnixAddr::Path("/run/a.sock".into())));
    assert_eq!(UnixAddr::read(b"@a b"), Ok(UnixAddr::Abstract(b"a b".to_vec())));
    assert!(UnixAddr::read(fits.as_bytes()).is_ok());
    for bad in ["", "@", "/run/", "~/a.sock", long.as_str(), &format!("@{long}")] {
        assert!(UnixAddr::read(bad.as_bytes()).is_err(), "{bad}");
    }
    let relative = UnixAddr::read(b"a.sock").unwrap();
    assert_eq!(relative.under(Some(Path::new("/run/x"))), Ok(UnixAddr::Path("/run/x/a.sock".into())));
    assert!(relative.under(None).is_err());
    assert!(relative.under(Some(Path::new(&fits))).is_err());
}

#[test]
fn a_namespace_is_a_file_name_or_an_absolute_path() {
    assert_eq!(Netns::name("qdhcp-27a7..."), Ok(Netns::Name("qdhcp-27a7...".to_owned())));
    for bad in ["", ".", "..", "a/b", "/run/netns/a", &"n".repeat(256)] {
        assert!(Netns::name(bad).is_err(), "{bad}");
    }
    assert!(Netns::path(b"/proc/1/ns/net").is_ok());
    assert!(Netns::path(b"proc/1/ns/net").is_err());
}

proptest! {
    #[test]
    fn endpoints_survive_a_record_whatever_their_bytes(bytes in proptest::collection::vec(1u8.., 1..100), kind in 0..3) {
        let path = PathBuf::from(OsString::from_vec([b"/", bytes.as_slice(), b"x"].concat()));
        let upstream = match kind {
            0 => Upstream::Unix(UnixAddr::Path(path)),
            1 => Upstream::Unix(UnixAddr::Abstract(bytes)),
            _ => Upstream::Tcp { addr: "a:1".parse().unwrap(), netns: Some(Netns::Path(path)) },
        };
        #[derive(Serialize, Deserialize)]
        struct Record { upstream: Upstream }
        let text = toml::to_string(&Record { upstream: upstream.clone() }).unwrap();
        prop_assert_eq!(toml::from_str::<Record>(&text).unwrap().upstream, upstream);
    }

    #[test]
    fn no_text_makes_an_endpoint_panic(text in ".*") {
        let _ = (text.parse::<HostPort>(), text.parse::<ListenAddr>(), text.parse::<UnixAddr>(), text.parse::<Netns>());
        if let Ok(target) = text.parse::<HostPort>() {
            prop_assert_eq!(plus(&target).parse(), Ok(target));
        }
    }
}
