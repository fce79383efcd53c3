//! A name reads, or is refused with faults that can be shown; what reads is read back from its canonical form, which
//! systemd takes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qrexec_connect::spec::{Cite, Config, SocketKind, fdname, unit};

fuzz_target!(|text: &str| {
    let config = Config::default();
    match fdname::parse(text) {
        Ok(name) => {
            let canonical = name.to_string();
            let again = fdname::parse(&canonical).expect("the canonical form reads");
            assert_eq!(again, name, "{canonical}");
            assert_eq!(again.to_string(), canonical);
            let rejected = unit::rejected(&canonical);
            assert!(rejected.0.iter().all(|fault| fault.what().contains("are the most")), "{rejected}");
            for socket in [SocketKind::Tcp, SocketKind::Unix, SocketKind::Udp] {
                match name.resolve(socket, &config) {
                    Ok(forward) => assert!(!forward.to_string().contains(char::is_control)),
                    Err(faults) => assert!(!faults.to_string().replace('\n', "").contains(char::is_control)),
                }
            }
        }
        Err(faults) => {
            assert!(!faults.0.is_empty());
            assert!(!faults.to_string().replace('\n', "").contains(char::is_control));
            assert!(fdname::resolve(text, SocketKind::Tcp, &config).is_err());
            let _ = faults.cited(&Cite::Listener("127.0.0.1:1")).render(false);
        }
    }
});
