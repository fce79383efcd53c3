//! Bytes from a qube are frames, each written again as the very bytes it was read from, or a fault; so is a request.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qrexec_connect::proto::remote::{Buffer, Request, argv, argv_payload};

fuzz_target!(|bytes: &[u8]| {
    let mut buffer = Buffer::default();
    let _ = buffer.magic();
    for part in bytes.chunks(7) {
        buffer.room(0).extend_from_slice(part);
        loop {
            match buffer.frame() {
                Ok(Some(whole)) => {
                    let raw = whole.raw();
                    if let Ok(frame) = raw.parse() {
                        assert_eq!(frame.to_vec(raw.stream), whole.as_bytes());
                    }
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    if let Ok(request) = Request::parse(bytes) {
        assert_eq!(request.canonical(), bytes);
    }
    if let Ok(words) = argv(bytes) {
        assert_eq!(argv_payload(&words), bytes);
    }
});
