//! Bytes to values: what other programs' protocols and exit codes mean, and our own protocol with dom0. Pure.

pub mod mac;
pub mod qrexec;
pub mod remote;
