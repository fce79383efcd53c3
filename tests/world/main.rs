//! `qvm-remote` and `qvm-remote-dom0` from end to end, in a world of namespaces that stands in for dom0 and its qubes.
//!
//! `world` makes such a world and explains it; [`world`] lets a test stand in it. It needs root; elsewhere a test
//! says so on stderr and passes, and with `CI=true` that is a failure.

extern crate support; // `crate::support`: what every suite stands on
#[macro_use]
mod world; // first: the macro `world!`
mod approve;
mod attacks;
mod clocks;
mod commands;
mod control;
mod crashes;
mod daily;
mod lan;
mod life;
mod load;
mod owner;
mod policies;
mod programs;
mod readme;
mod schema;
mod shells;
mod v1;
