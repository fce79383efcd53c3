//! One face for each program: arguments, then a plan, then the run, then an exit code.

mod config;
pub mod connect;
mod control;
pub mod dom0;
mod generator;
pub mod pfwd;
pub mod remote;
mod serve;
mod units;
