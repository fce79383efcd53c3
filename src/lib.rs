//! Names on sockets become connections: the library behind `qrexec-connect`, `pfwd`, `qvm-remote`, `qvm-remote-dom0`
//! and `qvm-forward`.
//!
//! # The map
//! Read in the order in which a connection travels; `src/README.md` has the picture, and who may import whom:
//!
//! | module | what it does |
//! |---|---|
//! | [`activation`] | inherited descriptors become named, typed listeners |
//! | [`spec`] | text becomes meaning: names, units, configuration; pure |
//! | [`listener`] | binds, accepts, receives; opens and closes the listeners of the configuration |
//! | [`session`] | the life of one session: its stages, its route, its limits, its counters, its events |
//! | [`dial`] | an endpoint becomes a connected stream, by a deadline |
//! | [`mux`] | many streams in one call: serves their far ends |
//! | [`ondemand`] | units that are started at the first session and stopped when none uses them |
//! | [`declared`] | forwards that dom0 declares in QubesDB become socket units and rules of the firewall |
//! | [`relay`] | two ends in, bytes moved, an ending out; knows no addresses |
//! | [`handover`] | sessions and listeners become bytes and descriptors, and come back in the next process |
//! | [`crash`] | what outlives a crash: the checkpoint of each session, the causes of crashes |
//! | [`control`] | answers questions: `status`, `sessions`, `kill`, `pause`, `metrics` |
//! | [`service`] | conducts one running service: start, orders, reload, adoption, stop |
//! | [`proto`] | bytes become values: qrexec's exit codes, the frames of `qvm-remote` and of [`mux`]; pure |
//! | [`remote`] | `qvm-remote`: commands in dom0 for qubes that may run them |
//! | [`cli`] | arguments, help and exit codes of each program |
//! | [`systemd`] | what a process says to the service manager and hears from it |
//! | [`stream`] | one descriptor with its readiness: `dial` gives it, `relay` takes it |
//! | [`log`], [`report`], [`sys`] | events; errors as one line; system calls and the only unsafe code |
//!
//! # The vocabulary
//! One word has one meaning, in code, logs, manuals and messages.
//!
//! *Listening.* *listener*: a bound socket on which the service accepts connections or receives datagrams.
//! *activation*: receiving listeners from systemd. *fd name*: the `FileDescriptorName=` of a socket. *forward*: what
//! one name or one `[[forward]]` asks for. *leg*: one listening side with one upstream; a forward has one or two, or
//! one for each port of a range. *range*: consecutive ports of one address in one forward. *front leg*, *back leg*: in
//! a forward with two, the front leg dials into the back leg. *post*: a leg whose listener is ours to open, and what
//! became of it.
//! *refused listener*: an inherited socket whose name means nothing now.
//!
//! *Configuration.* *main file*, *drop-in file*: `pfwd.toml`, and a file in `pfwd.toml.d`. *text*: what a file holds.
//! *fault*: what is wrong with a text, and where. *in force*: used now. *last good text*: the text of a file that was
//! in force before a fault came into the file; it stays in force. *entry*: one `[[forward]]` or `--forward`.
//!
//! *Connecting.* *peer*: who connected to a listener. *session*: one accepted stream and its upstream. *flow*: the same
//! for datagrams, known by the peer's address. *route*: where the sessions of a listener lead, with their limits and
//! counters. *endpoint*: an address. *upstream*: the endpoint that is dialled for a session. *call*: a qrexec call,
//! made by one `qrexec-client-vm` process, the *helper*. *look-up*: the question for the addresses of a host name.
//! *zone*: the interface of a link-local address. *circle*: forwards that lead back to the first of them. *hop*: a
//! listener of this service through which the bytes of an outgoing socket came; *passage*: the last hop of a session,
//! and the socket before it; *note*: the record of an outgoing socket with its passage; *entrance*: the part of a
//! listener that finds out, for each connection and datagram, whether it comes from a noted socket. *retry*: another
//! try of a dial whose upstream is not there yet. *set-up*: the part of a call in which dom0 and the other qube decide.
//! *gate*: bounds the set-ups of one service in one qube; *ticket*: a place in a gate; *back-off*: the time that a gate
//! stays closed after a refusal. *target*: in a qrexec call, the qube; in the key `target=`, a TCP or UDP address. The
//! code uses the word for the qube only.
//!
//! *Forwards that dom0 declares.* *declaration*: a key of QubesDB with its value, which asks for a forward. *pass*: one
//! comparison of what is declared with what is there, and the steps between them. *to withdraw*: to take away what a
//! declaration brought about.
//!
//! *Units on demand.* *user* of a unit: a session whose forward names the unit. *conductor*: the task that speaks with
//! the service manager about one unit. *ours*: an invocation of a unit that our own start brought about. *idle*, of a
//! unit: without a user.
//!
//! *Many streams in one call.* *near end*: made the call and opens streams; *far end*: serves it and connects them.
//! *credit*: bytes that the other end may send in a stream. *window*: bytes that it can make us hold. *in flight*: sent
//! into the call and not taken from it yet. *turn*: the right to send a frame.
//!
//! *Moving bytes.* *up*/*down*: from the peer to the upstream / from the upstream to the peer. *half-close*: one
//! direction has ended, the other lives. *tally*: the counters of one listener. *run*: datagrams of equal size, the last of
//! which may be shorter, that the kernel takes and gives as one message.
//!
//! *Ending.* *refuse*/*fail*: we or a policy said no / something broke. *drain*: accept no more, let sessions end by a
//! deadline. *deadline*/*timeout*/*idle*: a moment / an allowed duration / time without bytes. *abandon*: end, with a
//! reset, what no process takes up.
//!
//! *Restarting.* *handover*: sessions and listeners go from one process of the service to the next. *park*: take a
//! session off the runtime for the handover; *adopt*: take a session up in the next process. *keeper*: the process that
//! holds parked sessions between two processes of the service. *descriptor store*: descriptors that systemd keeps.
//!
//! *Crashing.* *crash*: the end of a process of the service that nobody ordered. *checkpoint*: what is written down of
//! a session while it lives, for the process after a crash. *region*: the memory of all checkpoints; *slot*: that of
//! one. *shadow*: the process that shares the table of descriptors and gives them away when the service has died.
//! *guard*: region and shadow of a process. *key*: the cookie of a socket or the inode of a pipe, by which checkpoints
//! know it. *busy*: its bytes are being moved now. *lost*: reset and reported, because a crash left no way to go on.
//! *poison*: a session that makes the process crash that works on it.
//!
//! *qvm-remote.* *agent*: its process in a qube that speaks with dom0. *spool*: requests and answers that wait in
//! files.
//! *gate* of dom0: the one way from a request to a command that runs. *look*: one question to the file system about a
//! path that a qube names, in a separate thread; *sight*: its answer, with the policy that it belongs to. *reach* of a
//! policy: the paths at which a rule can give a right. *place*: the right of a request to run, or of a look to begin; a
//! qube has a number of both. *chain*, *head*: the entries of dom0's log, each with a digest over it and all before it.
//! *receipt*: number and head of an entry, with a code. *record* of a key: when the key was authorised, used last and
//! retired.
//! *pending restart*: one that waits until no command runs or waits; requests are *held* while it begins. *ledger*:
//! what dom0 has run already. *sheet*: all that decides what a command does, as a person sees it before approving; its
//! digest is the id of the *approval*. *v1*: the protocol of the older qvm-remote.
//!
//! *qvm-forward.* *declared*: a forward that dom0's policy file has. *feature*: what dom0 writes down about a qube and
//! shows to it.

#[cfg(feature = "forward")]
mod activation;
pub mod cli;
#[cfg(feature = "forward")]
mod control;
#[cfg(feature = "forward")]
mod crash;
#[cfg(feature = "forward")]
mod declared;
#[cfg(feature = "forward")]
pub mod dial;
#[cfg(feature = "forward")]
mod handover;
#[cfg(feature = "forward")]
mod listener;
// A program with one feature needs a part of these rooms; with all features the compiler finds what nobody uses.
#[cfg_attr(
    not(all(feature = "forward", feature = "remote", feature = "dom0", feature = "lan")),
    allow(dead_code, unused_imports)
)]
pub mod log;
#[cfg(feature = "forward")]
pub mod mux;
#[cfg(feature = "forward")]
mod ondemand;
pub mod proto;
#[cfg(feature = "forward")]
mod relay;
#[cfg(any(feature = "remote", feature = "dom0"))]
pub mod remote;
#[cfg_attr(
    not(all(feature = "forward", feature = "remote", feature = "dom0", feature = "lan")),
    allow(dead_code, unused_imports)
)]
mod report;
#[cfg(feature = "forward")]
mod service;
#[cfg(feature = "forward")]
mod session;
#[cfg(feature = "forward")]
pub mod spec;
#[cfg(feature = "forward")]
pub mod stream;
#[cfg_attr(
    not(all(feature = "forward", feature = "remote", feature = "dom0", feature = "lan")),
    allow(dead_code, unused_imports)
)]
mod sys;
#[cfg(any(feature = "forward", feature = "dom0", feature = "lan"))]
#[cfg_attr(
    not(all(feature = "forward", feature = "remote", feature = "dom0", feature = "lan")),
    allow(dead_code, unused_imports)
)]
mod systemd;
