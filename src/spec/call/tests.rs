use super::*;

#[test]
fn targets_that_a_call_can_have_are_taken_as_they_are() {
    let longest = "q".repeat(31);
    for text in [
        "work",
        "dom0",
        "sys-net.2_x",
        "@default",
        "@dispvm",
        "@dispvm:default-dvm",
        "@adminvm",
        "uuid:01234567-89ab-cdef-0123-456789abcdef",
        "@dispvm:uuid:01234567-89ab-cdef-0123-456789abcdef",
        longest.as_str(),
    ] {
        assert_eq!(text.parse::<Target>().unwrap().as_str(), text);
    }
}

#[test]
fn targets_that_qrexec_would_mend_are_refused_each_in_its_own_words() {
    let long = "q".repeat(32);
    let longer = "q".repeat(64);
    for (text, what, fix) in [
        ("", "the target of the call is empty", Some("@default")),
        ("$default", "spelling of Qubes 3", Some("@default")),
        ("@Default", "is not a target that a call can have", Some("@default")),
        ("@defualt", "is not a target that a call can have", Some("@default")),
        ("@anyvm", "is not a target that a call can have", None),
        ("@tag:work", "is not a target that a call can have", None),
        ("@dispvm:", "lacks the name", Some("@dispvm")),
        ("@dispvm:@default", "cannot hold \"@\"", None),
        ("wo rk", "cannot hold \" \"", None),
        ("wörk", "cannot hold \"ö\"", None),
        ("work:x", "cannot hold \":\"", None),
        ("10.0.0.5", "begin with a letter", None),
        ("-t", "begin with a letter", None),
        ("uuid:123", "not a UUID", None),
        (long.as_str(), "at most 31 bytes, this one 32", None),
        (longer.as_str(), "the target has 64 bytes", None),
    ] {
        let flaw = text.parse::<Target>().unwrap_err();
        assert!(flaw.what.contains(what), "{text}: {flaw}");
        assert_eq!(flaw.fix.as_deref(), fix, "{text}");
        assert!(flaw.at.end <= text.len() && text.get(flaw.at.clone()).is_some(), "{text}");
    }
}

#[test]
fn a_colon_before_the_argument_of_a_service_is_a_plus() {
    for (text, read) in [
        ("qubes.ConnectTCP+1234", "qubes.ConnectTCP+1234"),
        ("qubes.ConnectTCP:1234", "qubes.ConnectTCP+1234"),
        ("svc", "svc"),
        ("svc+", "svc"),
        ("svc:", "svc"),
        ("svc+a+b", "svc+a+b"),
        ("svc+a+", "svc+a+"),
        ("svc++", "svc++"),
        ("svc+-x", "svc+-x"),
    ] {
        let service: Service = text.parse().unwrap();
        assert_eq!(service.as_str(), read, "{text}");
        assert_eq!(service.as_str().parse(), Ok(service));
    }
    assert_eq!("s".repeat(255).parse::<Service>().unwrap().len(), 255);
}

#[test]
fn services_that_qrexec_would_mend_are_refused_each_in_its_own_words() {
    let long = format!("svc+{}", "a".repeat(252));
    for (text, what, fix) in [
        ("", "the service of the call is empty", None),
        ("+22", "lacks the service", Some("qubes.ConnectTCP+22")),
        (":22", "lacks the service", Some("qubes.ConnectTCP+22")),
        ("+", "lacks the service", None),
        ("+x", "lacks the service", None),
        ("-t", "reads as an option", None),
        ("svc+1:2", "cannot hold \":\"", None),
        ("svc/x", "cannot hold \"/\"", None),
        ("sv c", "cannot hold \" \"", None),
        ("svc+é", "cannot hold \"é\"", None),
        (long.as_str(), "at most 255 bytes together, these 256", None),
    ] {
        let flaw = text.parse::<Service>().unwrap_err();
        assert!(flaw.what.contains(what), "{text}: {flaw}");
        assert_eq!(flaw.fix.as_deref(), fix, "{text}");
    }
}

#[test]
fn a_flaw_of_a_call_gives_the_whole_call_as_it_should_be() {
    let flaw = Call::new("work", "+22").unwrap_err();
    assert_eq!((flaw.at, flaw.fix.as_deref()), (5..6, Some("work qubes.ConnectTCP+22")));
}

#[test]
fn the_policy_line_allows_exactly_the_call() {
    for (target, service, source, line) in [
        ("work", "qubes.ConnectTCP+22", Some("client"), "qubes.ConnectTCP  +22  client  work  allow"),
        ("@default", "qubes.ConnectTCP+1234", None, "qubes.ConnectTCP  +1234  SOURCE  @default  allow target=TARGET"),
        ("@dispvm", "my.Svc", Some("a"), "my.Svc  +  a  @dispvm  allow"),
        ("@dispvm:dvm", "my.Svc+a+b", Some("a"), "my.Svc  +a+b  a  @dispvm:dvm  allow"),
        ("dom0", "my.Svc", Some("a"), "my.Svc  +  a  @adminvm  allow"),
        ("@adminvm", "my.Svc", Some("a"), "my.Svc  +  a  @adminvm  allow"),
    ] {
        assert_eq!(policy_line(&Call::new(target, service).unwrap(), source), line);
    }
}

#[test]
fn a_call_survives_serialisation_and_a_bad_one_is_not_taken() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Record {
        call: Call,
    }
    let record = Record { call: Call::new("@dispvm:x", "svc+1").unwrap() };
    let text = toml::to_string(&record).unwrap();
    assert_eq!(toml::from_str::<Record>(&text).unwrap(), record);
    assert!(toml::from_str::<Record>(&text.replace("svc+1", "s/1")).is_err());
}
