//! Names on sockets become connections: the library behind `qrexec-connect`, `pfwd`, `qvm-remote` and
//! `qvm-remote-dom0`.
//!
//! # The map
//! Read in the order in which a connection travels:
//!
//! | module | what it does |
//! |---|---|
//! | [`activation`] | inherited descriptors become named, typed listeners |
//! | [`spec`] | text becomes meaning: names, units, configuration; pure |
//! | [`proto`] | bytes become values: qrexec's exit codes, `qvm-remote`'s frames and codes; pure |
//! | [`dial`] | an endpoint becomes a connected stream, by a deadline |
//! | [`relay`] | two ends in, bytes moved, an ending out; knows no addresses |
//! | [`service`] | the life of sessions: accept, limits, drain, handover, control |
//! | [`systemd`] | what we say to the service manager, and what it asks for |
//! | [`remote`] | `qvm-remote`: commands in dom0 for qubes that may |
//! | [`cli`] | one face for each program: arguments, plan, run, exit code |
//! | [`stream`] | one descriptor with its readiness: what `dial` gives and `relay` takes |
//! | [`log`], [`report`], [`sys`] | events; errors as one line; the only unsafe code |
//!
//! # The vocabulary
//! *listener*: a bound socket we accept on. *activation*: receiving listeners from systemd. *fd name*: the
//! `FileDescriptorName=` string. *endpoint*: an address; *upstream*: the endpoint dialled for a session. *target*:
//! the qube of a qrexec call, nothing else. *peer*: who connected to a listener. *session*: one accepted stream and
//! its upstream. *up*/*down*: peer to upstream / upstream to peer. *half-close*: one direction ended, the other
//! lives. *drain*: stop accepting, let sessions end by a deadline. *refuse*/*fail*: we or policy said no / it broke.

#[cfg(feature = "forward")]
pub mod activation;
pub mod cli;
#[cfg(feature = "forward")]
pub mod control;
#[cfg(feature = "forward")]
pub mod dial;
#[cfg(feature = "forward")]
pub mod handover;
#[cfg(feature = "forward")]
pub mod listener;
pub mod log;
pub mod proto;
#[cfg(feature = "forward")]
pub mod relay;
#[cfg(any(feature = "remote", feature = "dom0"))]
pub mod remote;
pub mod report;
#[cfg(feature = "forward")]
pub mod service;
#[cfg(feature = "forward")]
pub mod session;
#[cfg(feature = "forward")]
pub mod spec;
#[cfg(feature = "forward")]
pub mod stream;
pub mod sys;
#[cfg(any(feature = "forward", feature = "dom0"))]
pub mod systemd;
