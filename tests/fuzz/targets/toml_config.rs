//! A configuration reads and makes a plan, or is refused with faults that lie in its text; arguments laid over it do not
//! matter to that.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qrexec_connect::spec::Config;

fuzz_target!(|text: &str| {
    match Config::gather(Some(("f", text)), [""; 0]) {
        Ok(_) => {
            let over = ["label=a,target=b:1", "listen=127.0.0.1:1,uds=/a", "uds=/a,target=b:1"];
            let _ = Config::gather(Some(("f", text)), over);
        }
        Err(faults) => {
            assert!(!faults.0.is_empty());
            let lines = text.split('\n').count();
            for fault in &faults.0 {
                assert!(fault.line() <= lines, "{fault}");
                assert!(fault.excerpt().get(fault.span()).is_some(), "{fault}");
            }
            let _ = faults.render(false);
        }
    }
    if let Err(faults) = Config::gather(Some(("f", text)), ["uds=/a,mode=0600"]) {
        assert!(!faults.to_string().is_empty());
    }
});
