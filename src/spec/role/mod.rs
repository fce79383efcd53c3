//! What a set of keys means: which legs, between what, or what is missing for it to mean anything.
//!
//! | keys | role |
//! |---|---|
//! | `listen + uds` (or inherited + `uds`) | host proxy: accept, dial the UDS |
//! | `uds + target [+ namespace]`, no listening side | namespace endpoint: serve the UDS, dial the target |
//! | `listen + uds + target [+ namespace]` (or inherited + these) | combined pipeline: both |
//! | `listen + target [+ namespace]` (or inherited) | straight through |
//! | `udp_listen + udp_target [+ namespace]` (or inherited datagram + `target`) | UDP flows |
//!
//! `qrexec` stands where `target` stands, for streams. The keys that say *what* decide the role; then every other key
//! that was given must have something to act on in it, for a limit that limits nothing is believed to protect. A
//! default is different: it was given for whom it may concern.
//!
//! A range of ports is one forward with a leg for each port (`range`).

use super::{
    error::Faults,
    keys::Keys,
    plan::{Forward, SocketKind},
};

mod idle;
mod range;
mod reading;

use reading::Reading;
pub(super) use reading::{Defaults, ListenSide};

/// The forward that these keys mean.
///
/// # Errors
/// Everything that is missing, contradictory or without effect.
pub(super) fn mean(keys: &Keys, side: ListenSide, defaults: &Defaults) -> Result<Forward, Faults> {
    let datagram = match side {
        ListenSide::Inherited(kind) => kind == SocketKind::Udp,
        ListenSide::Own => {
            let streams = keys.listen.is_some() || keys.uds.is_some() || keys.target.is_some();
            keys.udp_listen.is_some() || (keys.udp_target.is_some() && !streams)
        }
    };
    let mut reading = Reading { keys, side, defaults, datagram, needs_target: false, faults: Vec::new() };
    reading.refuse_listening_keys();
    reading.refuse_contradictions();
    reading.refuse_ranges();
    let legs = reading.legs();
    if let Some(legs) = &legs {
        reading.refuse_idle_keys(legs);
    }
    match legs {
        Some(legs) if reading.faults.is_empty() => {
            let label = keys.label.as_ref().map(|label| label.value().clone());
            Ok(Forward { label, legs, options: reading.options() })
        }
        _ => Err(Faults(reading.faults)),
    }
}

#[cfg(test)]
mod tests;
