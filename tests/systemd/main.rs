//! The real binaries under a real systemd: `tests/with-systemd` boots one for each test, in half a second.
//!
//! A test makes a [`tree`] and boots it once or more; what it does inside is ordinary Rust, for this very binary runs
//! again inside the boot ([`tree::Tree::boot`]). `SYSTEMD_ROOT=DIR` has all of them boot the tree in DIR, of another
//! release (`tests/mk-root DIR`). Where there is no systemd to boot (not root, no cgroup2) a test says so on stderr
//! and passes; with `CI=true` that is a failure.

extern crate support; // `crate::support`: what every suite stands on
#[macro_use]
mod tree; // first: the macro `tree!`
mod arrival;
mod control;
mod crash;
mod crowd;
mod datagrams;
mod declared;
mod enable;
mod faults;
mod figures;
mod future;
mod handover;
mod harness;
mod journal;
mod lan;
mod life;
mod mistakes;
mod ondemand;
mod pfwd;
mod qubesdb;
mod readme;
mod reload;
mod remote;
mod security;
mod service;
mod start_unit;
mod states;
mod storm;
mod sweep;
mod system;
mod upgrade;
