//! The texts of qvm-remote: a policy allows nothing that it does not name, a listing is read or refused, and so on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qrexec_connect::{
    proto::{mac::Key, remote::valid_id},
    remote::{
        agent,
        config::RemoteConfig,
        policy::{Action, AskedProgram, PATH, Policy, ProgramName, Verdict},
        v1,
    },
};

fuzz_target!(|bytes: &[u8]| {
    let _ = Key::from_hex(bytes);
    let _ = v1::parse(&mut &bytes[..], &mut Vec::new());
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if valid_id(text) {
        assert!(!text.contains('/') && !text.contains("..") && !text.starts_with('-'));
    }
    let _ = (RemoteConfig::parse(text, |_| None), agent::read_mac(text));
    match Policy::parse(text) {
        Ok(policy) => {
            if !text.contains("shell") {
                assert_eq!(policy.decide(Action::Shell(bytes)).verdict, Verdict::Deny);
            }
            let words: Vec<Vec<u8>> = bytes.split(|b| *b == b' ').map(<[u8]>::to_vec).collect();
            // no other name of a program widens a right
            let plain = AskedProgram::plain(&words[0]);
            let other = ProgramName { path: words[words.len() - 1].clone(), in_path: true };
            let linked = AskedProgram { others: vec![other], ..plain.clone() };
            let decide = |program| policy.decide(Action::Argv(program, &words[1..])).verdict;
            if decide(&linked) == Verdict::Allow {
                assert_eq!(decide(&plain), Verdict::Allow);
            }
            // what a rule allows, or has a person asked, is reached through every directory on its way
            if words[0].starts_with(b"/") && decide(&plain) != Verdict::Deny {
                let search: Vec<Vec<u8>> = PATH.iter().map(|dir| dir.as_bytes().to_vec()).collect();
                let ends = (1..words[0].len()).filter(|end| words[0][*end] == b'/').chain([words[0].len()]);
                for end in ends {
                    assert!(policy.reaches(&words[0][..end], None, &search));
                }
            }
            let got = policy.decide(Action::Get(bytes));
            if got.verdict == Verdict::Allow {
                assert!(!text.split('/').any(|part| part == ".."));
            }
        }
        Err(faults) => assert!(!faults.is_empty()),
    }
});
