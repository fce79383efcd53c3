//! A unit file reads whatever is in it; a name of it that is repaired is one that systemd takes, needs no more repair,
//! and means what the written one means.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qrexec_connect::spec::{fdname, unit};

fuzz_target!(|text: &str| {
    let (unit_text, drop_in) = text.split_once("\n---\n").unwrap_or((text, ""));
    let mut unit = unit::Unit::parse("/etc/x.socket", unit_text);
    unit.overlay("/etc/x.socket.d/1.conf", drop_in);
    let _ = (unit.listens().len(), unit.has_install(), unit.service());
    for fault in unit.dropped() {
        assert!(fault.excerpt().get(fault.span()).is_some(), "{fault}");
    }
    for setting in unit.all("Socket", "FileDescriptorName") {
        let rejected = unit::rejected(&setting.value);
        let Some(repaired) = unit::repair(&setting.value) else { continue };
        assert!(!rejected.0.is_empty(), "{repaired}");
        assert!(unit::rejected(&repaired).0.is_empty(), "{repaired}");
        assert_eq!(unit::repair(&repaired), None);
        if let Ok(meant) = fdname::parse(&setting.value) {
            assert_eq!(fdname::parse(&repaired), Ok(meant), "{repaired}");
        }
        let _ = rejected.cited(&setting.cite()).render(false);
    }
});
