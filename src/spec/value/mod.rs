//! The values that keys take: each kind reads what a name or a TOML file gave it, and writes itself back as text.
//!
//! A name and an argument hold text only; TOML has numbers and booleans besides. One reading serves both, so that
//! a forward means the same wherever it is written. What is out of range is refused here, with what to write.

mod account;
mod keepalive;
mod label;
mod mode;
mod network;
mod place;
mod port;
mod quantity;
mod raw;
mod start_unit;
mod word;

pub use account::{Account, Owner};
pub use keepalive::{Keepalive, KeepaliveTimes};
pub use label::{Device, Label};
pub use mode::FileMode;
pub use network::Network;
pub(super) use place::UdsDir;
pub use place::{NetnsName, NetnsPath};
pub(super) use port::LowPort;
pub use quantity::{Backlog, BufferSize, Count, Idle, Pause, Responses, StopWhenIdle, Timeout};
pub use raw::Many;
pub(super) use raw::{Raw, Value};
pub use start_unit::StartUnit;
pub use word::{LogLevel, OnRemove, ProxyProtocol};
