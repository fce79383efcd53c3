//! What holds for the whole room: a forward means the same wherever it is written.

use proptest::prelude::*;

use super::{keys::KeyName, *};

/// A value for each key, as a name would have it before escaping.
fn value(key: KeyName) -> BoxedStrategy<String> {
    let ports = || {
        let range = (1u16..60_000, 1u16..4).prop_map(|(port, more)| format!("{port}-{}", port + more));
        prop_oneof![2 => (1u16..).prop_map(|port| port.to_string()), 1 => range]
    };
    match key {
        KeyName::Label => "[a-zA-Zé:, %.-]{1,8}".boxed(),
        KeyName::Qrexec => "(work|@default|@dispvm:x) [a-z.]{1,9}(\\+[0-9]{1,5})?".boxed(),
        KeyName::Listen | KeyName::UdpListen => {
            let host = prop_oneof![
                Just("127.0.0.1"),
                Just("0.0.0.0"),
                Just("[::1]"),
                Just("[fe80::1%3]"),
                Just("[fe80::1%tap0]")
            ];
            (host, ports()).prop_map(|(host, ports)| format!("{host}:{ports}")).boxed()
        }
        KeyName::Target | KeyName::UdpTarget => {
            let host = prop_oneof![Just("10.0.0.5"), Just("[fd00::1]"), Just("[fe80::1%tap0]"), Just("db.example.org")];
            (host, ports()).prop_map(|(host, ports)| format!("{host}:{ports}")).boxed()
        }
        KeyName::ListenNamespace | KeyName::Namespace => "[a-z0-9.:, -]{1,12}x".boxed(),
        KeyName::SetnsPath => "/[a-z0-9:, '\"\\\\%é]{1,12}".boxed(),
        KeyName::Uds => "(/|@)[a-z0-9:, '\"\\\\%é/]{1,12}x".boxed(),
        KeyName::Mode | KeyName::DirMode => "0[0-7]{3}".boxed(),
        KeyName::Owner | KeyName::DirOwner => "[a-z]{1,5}|[0-9]{1,5}:[a-z]{1,5}|:adm".boxed(),
        KeyName::Backlog | KeyName::MaxConnections | KeyName::MaxSetups | KeyName::MaxCalls => {
            (1u32..1000).prop_map(|n| n.to_string()).boxed()
        }
        KeyName::ConnectTimeout | KeyName::UdpIdleTimeout | KeyName::SetupTimeout => {
            "[1-9][0-9]{0,3}(\\.[0-9]{1,3})?|[1-9](ms|min|h)".boxed()
        }
        KeyName::IdleTimeout | KeyName::DrainTimeout | KeyName::RetryTimeout => "[0-9]{1,4}".boxed(),
        KeyName::StartUnit => "[a-z]{1,9}|[a-z][a-z0-9:._-]{0,9}x(@[a-z]{1,3})?\\.(service|target)".boxed(),
        KeyName::StopWhenIdle => "[1-9][0-9]{0,4}(\\.[0-9]{1,3})?".boxed(),
        KeyName::UdpResponses => (0u32..1000).prop_map(|n| n.to_string()).boxed(),
        KeyName::Keepalive => "true|false|yes|off|60/10/[1-9]".boxed(),
        KeyName::OnRemove => "keep|drain".boxed(),
        KeyName::ProxyProtocol => "v1|v2".boxed(),
        KeyName::AllowFrom => "10\\.0\\.0\\.0/8|192\\.0\\.2\\.[1-9]|fd00::/8".boxed(),
        KeyName::AllowUid => "[0-9]{1,4}|[a-z]{1,5}".boxed(),
        KeyName::Source => "10\\.0\\.0\\.[1-9]|fd00::[1-9]".boxed(),
        KeyName::BindDevice => "eth[0-9]".boxed(),
        KeyName::BufferSize => "(4|64)K|1M|65536".boxed(),
    }
}

/// Any set of keys with their values, often one that means something.
fn items() -> impl Strategy<Value = Vec<(KeyName, String)>> {
    let some = proptest::sample::subsequence(KeyName::ALL.to_vec(), 0..6);
    let roles: Vec<Vec<KeyName>> = vec![
        vec![KeyName::Listen, KeyName::Uds],
        vec![KeyName::Uds, KeyName::Target],
        vec![KeyName::Listen, KeyName::Uds, KeyName::Target, KeyName::Namespace],
        vec![KeyName::Target],
        vec![KeyName::UdpListen, KeyName::UdpTarget],
        vec![KeyName::Qrexec],
        vec![],
    ];
    (some, proptest::sample::select(roles)).prop_flat_map(|(mut keys, role)| {
        keys.extend(role);
        keys.sort();
        keys.dedup();
        keys.into_iter().map(|key| value(key).prop_map(move |value| (key, value))).collect::<Vec<_>>()
    })
}

fn as_list(items: &[(KeyName, String)], write: impl Fn(&str) -> String) -> String {
    items.iter().map(|(key, value)| format!("{}={}", key.name(), write(value))).collect::<Vec<_>>().join(",")
}

fn as_toml(items: &[(KeyName, String)]) -> String {
    let line = |(key, value): &(KeyName, String)| match value.parse::<u32>() {
        // Numbers as numbers, where they mean the same as in text.
        Ok(number) if !value.starts_with('0') || value == "0" => format!("{} = {number}\n", key.name()),
        _ => format!("{} = {}\n", key.name(), toml::Value::from(value.as_str())),
    };
    format!("[[forward]]\n{}", items.iter().map(line).collect::<String>())
}

proptest! {
    #[test]
    fn a_forward_means_the_same_as_a_name_an_argument_and_a_table(items in items()) {
        prop_assume!(!items.is_empty());
        let name = as_list(&items, |value| text::escaped(value.as_bytes()));
        let argument = as_list(&items, |value| {
            let data = [("\\", "\\x5c"), (",", "\\x2c"), ("'", "\\x27"), ("\"", "\\x22")];
            let value = data.iter().fold(value.to_owned(), |value, (plain, escaped)| value.replace(plain, escaped));
            value.replace(' ', if value.trim() == value { " " } else { "\\x20" })
        });
        let table = as_toml(&items);

        let Name::List(from_name) = fdname::parse(&name).expect(&name) else { panic!("{name} is a list") };
        let from_argument = forward(&argument).expect(&argument);
        let from_table = file::FileText::read("x", &table, false).forwards.remove(0).0;
        prop_assert_eq!(&from_name, &from_argument);
        prop_assert_eq!(&from_name, &from_table);

        // So do the forwards, wherever their socket comes from; and what is wrong is wrong in each.
        let defaults = &Config::default().defaults;
        let sides = [SocketKind::Tcp, SocketKind::Unix, SocketKind::Udp].map(role::ListenSide::Inherited);
        for side in sides.into_iter().chain([role::ListenSide::Own]) {
            let [name, argument, table] = [&from_name, &from_argument, &from_table].map(|keys| role::mean(keys, side, defaults));
            match (name, argument, table) {
                (Ok(name), Ok(argument), Ok(table)) => prop_assert!(name == argument && name == table),
                (Err(name), Err(argument), Err(table)) => {
                    let whats = |faults: &Faults| faults.0.iter().map(|fault| fault.what().to_owned()).collect::<Vec<_>>();
                    for what in whats(&name) {
                        prop_assert!(what.chars().count() <= 160, "{what}");
                    }
                    prop_assert_eq!(whats(&name), whats(&argument));
                    prop_assert_eq!(whats(&name), whats(&table));
                }
                mixed => prop_assert!(false, "{:?}", mixed),
            }
        }
    }

    #[test]
    fn no_text_makes_a_reader_panic(text in "\\PC*|[ -~\n]{0,200}|(\\[\\[forward\\]\\]\n([a-z_]{3,9} = [ -~]{0,9}\n){0,3}){0,3}") {
        if let Err(faults) = Config::gather(Some(("x", &text)), [&text]) {
            prop_assert!(!faults.0.is_empty());
            let _ = (faults.render(true), faults.to_string());
        }
    }
}

#[test]
fn every_key_of_the_contract_is_there_and_no_other() {
    let contract = "label qrexec listen udp_listen listen_namespace uds namespace setns_path target udp_target mode owner \
                    backlog connect_timeout idle_timeout udp_idle_timeout udp_responses max_connections setup_timeout max_setups max_calls \
                    drain_timeout keepalive on_remove proxy_protocol allow_from allow_uid source bind_device buffer_size \
                    dir_mode dir_owner retry_timeout start_unit stop_when_idle";
    let mut names: Vec<&str> = KeyName::ALL.iter().map(|key| key.name()).collect();
    let mut expected: Vec<&str> = contract.split_whitespace().collect();
    names.sort_unstable();
    expected.sort_unstable();
    assert_eq!(names, expected);
    for time in "connect_timeout idle_timeout udp_idle_timeout setup_timeout drain_timeout retry_timeout stop_when_idle"
        .split_whitespace()
    {
        assert_eq!(KeyName::named(&format!("{time}_secs")), KeyName::named(time));
    }
    assert_eq!(KeyName::named("mode_secs"), None);
}
