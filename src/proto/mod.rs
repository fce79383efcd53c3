//! Bytes to values: what other programs' protocols and exit codes mean, and our own protocols with dom0 and with the other
//! end of a call. Pure.

#[cfg(any(feature = "remote", feature = "dom0"))]
pub mod mac;
#[cfg(feature = "forward")]
pub mod mux;
#[cfg(feature = "forward")]
pub mod qrexec;
#[cfg(any(feature = "remote", feature = "dom0", feature = "lan"))]
pub mod qube;
#[cfg(feature = "forward")]
pub mod qubesdb;
#[cfg(any(feature = "remote", feature = "dom0"))]
pub mod remote;
#[cfg(all(feature = "v1", any(feature = "remote", feature = "dom0")))]
mod v1;
