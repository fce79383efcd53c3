//! An argument reads, or is refused with faults that can be shown; and any set of arguments makes a plan or faults.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qrexec_connect::spec::{Config, forward};

fuzz_target!(|text: &str| {
    let _ = forward(text);
    match Config::gather(None, text.lines()) {
        Ok((_, plan)) => assert!(plan.forwards.len() + plan.waiting.len() == text.lines().count()),
        Err(faults) => {
            assert!(!faults.0.is_empty());
            assert!(!faults.to_string().replace('\n', "").contains(char::is_control));
            let _ = faults.render(true);
        }
    }
});
