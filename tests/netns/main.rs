//! `pfwd` among real network namespaces, made by `ip netns` in a sandbox of each test's own; the peers are this test,
//! and `socat`.
//!
//! A test's thread leaves the machine's mount and network namespaces for new ones ([`sandbox::enter`]); whatever it
//! starts from there lives there too, and with the last of it the sandbox is gone. That takes root: otherwise a test
//! says so on stderr and passes; with `CI=true` that is a failure.

extern crate support; // `crate::support`: what every suite stands on
#[macro_use]
mod sandbox; // first: the macro `sandbox!`
mod circles;
mod cli;
mod dial;
mod flows;
mod keepalive;
mod life;
mod ports;
mod proxy;
mod ranges;
mod reload;
mod restart;
mod retry;
mod roles;
mod runs;
mod trial;
mod udp;
mod uds;
mod walk;
mod zones;
