//! The life of one session, from accept to its one end event.
//!
//! # Theory
//! A session is at one of four stages ([`Stage`]), and each can be parked for the next process as it stands:
//!
//! * **Waiting**: the peer is connected to us and nothing else is: the session waits for its turn, for a back-off to
//!   pass or for its upstream to answer. Nothing was read from the peer, so the next process can dial again.
//! * **SettingUp**: the session's `qrexec-client-vm` asks dom0. The call is handed over as it is: no question is asked
//!   twice.
//! * **Relaying**: bytes flow.
//! * **Flow**: datagrams flow.
//!
//! While the peer is not read it is watched; when the peer is gone, the session ends.
//!
//! # The files, in the order of a session's life
//! `route` says where the sessions of a listener lead, `access` who may connect, `tally` what is counted. `run` starts
//! a session's task and runs its stages: `stream` and `call` for streams, `flow` for datagrams (`flows` is the table of
//! them, `doubt` says when the upstream of one is looked at again). `redial` says when a call is made again. `story` is
//! what became of a session so far; it tells the end. `parked` is a session for the next process.
//! `sessions` is the registry that other rooms hold; `info` is what they may know about one session, `watch` how they
//! subscribe. `event` words what the journal says, `checkpoint` what a process after a crash needs. `foreign` finds
//! connections to an upstream that no session has. `descriptors` and `tidy` keep house.

mod access;
mod call;
mod checkpoint;
mod descriptors;
mod doubt;
mod event;
mod flow;
mod flows;
mod foreign;
mod identity;
mod info;
mod keepalive;
mod parked;
mod permits;
mod ports;
mod redial;
mod route;
mod run;
mod sessions;
mod stage;
mod story;
mod stream;
mod tally;
mod tidy;
mod watch;

pub use access::Peer;
pub use descriptors::{limit as descriptor_limit, warning as descriptor_warning};
pub use doubt::DoubtKept;
pub use event::{ended as ended_event, seconds};
pub use flows::Flows;
pub use identity::ListenerIdentity;
pub use info::{SessionInfo, WaitsFor};
pub use parked::{FlowKept, ParkedPeer, ParkedSession, ParkedStage, abandon};
pub use permits::Permits;
pub use redial::RedialsKept;
pub use route::{CallLimits, Route, Routes};
pub use run::{begin, resume};
pub use sessions::{Sessions, drain};
pub use stage::{SettingUp, Stage};
pub use story::tell_end;
pub use tally::{Counted, DIAL_BOUNDS_MS, Reason, Snapshot, Tallies, Tally, TallyKey, TallyLabels};
pub use tidy::after_crowds;
pub use watch::{Figures, Happened, Happening, SessionEnding};

#[cfg(test)]
mod tests;
