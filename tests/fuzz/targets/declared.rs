//! A value of QubesDB is a forward, or one fault that can be shown; the unit of a forward has only the lines of ours, and
//! is known again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qrexec_connect::spec::{
    declared::{KEY, declared, is_unit_of},
    unit::{Unit, rejected},
};

const LINES: [&str; 5] = ["Description", "ListenStream", "FreeBind", "BindIPv6Only", "FileDescriptorName"];

fuzz_target!(|value: &[u8]| {
    let key = format!("{KEY}8443");
    let (wanted, faults) = declared([(key.as_bytes(), value)], &[]);
    assert_eq!(wanted.len() + faults.len(), 1);
    assert!(faults.iter().all(|fault| !fault.to_string().contains(char::is_control)));
    for forward in wanted.values() {
        let text = forward.unit_text();
        let unit = Unit::parse("", &text);
        let keys = text.lines().filter_map(|line| line.split_once('='));
        assert!(text.is_ascii() && keys.clone().all(|(key, _)| LINES.contains(&key)), "{text}");
        let name = unit.fd_name().expect("a name");
        assert!(rejected(&name.value).0.is_empty() && !name.value.contains('%'), "{text}");
        assert!(is_unit_of(8443, &text), "{text}");
    }
});
