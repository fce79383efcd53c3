//! Requests of every kind, for tests.

use proptest::{collection::vec, prelude::*};

use super::request::{Mode, Request};

/// A request that a client could make.
pub(in crate::proto) fn any_request() -> impl Strategy<Value = Request> {
    let id = "[A-Za-z0-9][A-Za-z0-9_-]{0,40}";
    let mode = (0u8..5).prop_map(|n| Mode::from_byte(n).expect("there are five"));
    let env = vec(("[A-Z_][A-Z0-9_]{0,8}", vec(1u8.., 0..20)), 0..3)
        .prop_map(|all| all.into_iter().map(|(k, v)| (k.into_bytes(), v)).collect());
    (
        (any::<[u8; 8]>(), "[A-Za-z][A-Za-z0-9_-]{0,30}", any::<[u8; 32]>(), any::<u64>(), id, any::<u64>()),
        (any::<u32>(), 0u8..8, "[a-z]{0,8}", vec(1u8.., 0..20), mode, 0..=1u32 << 20, any::<[u8; 32]>(), env),
    )
        .prop_map(|((kid, vm, nonce, seq, id, created_ms), rest)| {
            let (timeout_ms, flags, user, cwd, mode, length, payload, env) = rest;
            Request { kid, vm, nonce, seq, id, created_ms, timeout_ms, flags, user, cwd, mode, length, payload, env }
        })
}
