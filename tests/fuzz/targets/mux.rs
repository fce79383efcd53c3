//! Bytes from the other end of a call are frames, each written anew as the bytes it was read from, or a fault; and
//! whatever frames an end hears, what it holds stays within its bounds.
#![no_main]

use std::{collections::HashMap, num::NonZeroU16, time::Duration};

use libfuzzer_sys::fuzz_target;
use qrexec_connect::proto::mux::{
    CREDIT_OF_CALL, FLOOR, MAX_CREDIT, MAX_STREAMS, MuxCall, MuxContent, MuxFrame, MuxHello, MuxNews, MuxRole, MuxType,
    ResetCause, StreamId,
};

fuzz_target!(|bytes: &[u8]| {
    // what the sockets of the end do is chosen by the first byte
    let Some((choice, bytes)) = bytes.split_first() else { return };
    for role in [MuxRole::Near, MuxRole::Far] {
        for content in [MuxContent::Bytes, MuxContent::Datagrams] {
            hear(role, content, *choice, bytes);
        }
    }
});

fn hear(role: MuxRole, content: MuxContent, choice: u8, mut bytes: &[u8]) {
    let mut call = MuxCall::new(role, content, FLOOR);
    let mut now = Duration::ZERO;
    if choice & 1 != 0 {
        let hello = MuxHello { version: 1, content, credit: 1 << 15, streams: 16 };
        call.hear(MuxFrame::Hello(hello), now).expect("legal");
        for _ in 0..4 {
            if let Some(id) = call.open(now) {
                call.wake(id);
            }
        }
    }
    let mut queued = HashMap::<StreamId, u64>::new();
    while let Ok(Some((frame, size))) = MuxFrame::split(bytes) {
        let mut again = Vec::new();
        frame.put(&mut again);
        if frame.kind() != MuxType::Hello {
            assert_eq!(again, bytes[..size]);
        }
        bytes = &bytes[size..];
        now += Duration::from_millis(choice.into());
        let Ok(news) = call.hear(frame, now) else { return };
        match news {
            MuxNews::Wanted(id) if choice & 2 != 0 => call.reset(id, ResetCause::Refused),
            MuxNews::Wanted(id) => call.opened(id),
            MuxNews::Bytes(id, bytes) if choice & 4 != 0 => call.delivered(id, bytes.len(), now),
            MuxNews::Bytes(id, bytes) => {
                let held = queued.entry(id).or_default();
                *held += bytes.len() as u64;
                assert!(*held <= MAX_CREDIT.into());
            }
            MuxNews::Ended(id) if choice & 8 != 0 => call.end(id),
            MuxNews::Ended(id) => call.wake(id),
            MuxNews::Reset(id, _) => {
                queued.remove(&id);
                call.release(id);
            }
            _ => {}
        }
        if let (Some(turn), true) = (call.turn(), choice & 16 != 0) {
            let length = u16::try_from(turn.most).unwrap_or(u16::MAX);
            if content == MuxContent::Datagrams {
                let _ = call.sent_datagram(turn, length, choice & 32 != 0);
            } else if let Some(length) = NonZeroU16::new(length) {
                let _ = call.sent(turn, length, choice & 32 != 0);
            }
        }
        assert!(call.windows() <= CREDIT_OF_CALL && call.held() <= MAX_STREAMS as usize);
        // what an end says is frames
        let said = std::mem::take(call.answers());
        let mut rest = &said[..];
        while let Some((_, size)) = MuxFrame::split(rest).expect("an end writes frames") {
            rest = &rest[size..];
        }
        assert!(rest.is_empty());
    }
}
