//! One face for each program: arguments, then a plan, then the run, then an exit code.

#[cfg(feature = "forward")]
mod arguments;
#[cfg(feature = "forward")]
mod check;
#[cfg(feature = "forward")]
mod complete;
#[cfg(feature = "forward")]
mod config;
#[cfg(feature = "forward")]
pub mod connect;
#[cfg(feature = "forward")]
mod control;
#[cfg(feature = "dom0")]
pub mod dom0;
#[cfg(feature = "forward")]
mod effective;
#[cfg(feature = "forward")]
mod generator;
#[cfg(feature = "forward")]
mod help;
#[cfg(feature = "lan")]
pub mod lan;
#[cfg(feature = "forward")]
pub mod pfwd;
#[cfg(feature = "forward")]
mod refresh;
#[cfg(feature = "forward")]
mod reload;
#[cfg(feature = "remote")]
pub mod remote;
#[cfg(feature = "forward")]
mod serve;
#[cfg(feature = "forward")]
mod systemctl;
// A program with one feature needs a part of it; with all features the compiler finds what nobody uses.
#[cfg(any(feature = "forward", feature = "dom0", feature = "lan"))]
#[cfg_attr(not(feature = "forward"), allow(dead_code))]
mod table;
#[cfg(feature = "forward")]
mod units;
#[cfg(any(feature = "forward", feature = "dom0"))]
mod wrap;

#[cfg(feature = "forward")]
pub use help::EXIT_CODES;
