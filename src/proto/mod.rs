//! Bytes to values: what other programs' protocols and exit codes mean. Pure.

pub mod qrexec;
