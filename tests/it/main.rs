//! The real binaries, under faked activation, on the loopback; and the house rules of the source.
//!
//! Start reading at [`support`]: what a test may stand on.

mod activation;
mod architecture;
mod drain;
mod endings;
mod fake;
mod harness;
mod limits;
mod names;
mod qrexec;
mod support;
