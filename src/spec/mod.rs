//! Text to meaning: what a name, a `--forward` or a configuration file says, as validated values.
//!
//! Pure: no sockets, no files, no clock, no environment; whoever calls reads the file and hands over its text.
//!
//! Read in this order: `text` (words and `\xNN`), `value` and `endpoint` and `call` (what single values may be), `keys`
//! (the one set of keys that all sources share), `fdname`, `forward` and `file` (the three sources), `merge` (arguments
//! over a file), `role` (what a set of keys means) and `resolve` (what the name on a socket means). Beside them stands
//! `unit`, which reads unit files for the generator and for `check`, `together`, which compares listeners, and `limit`,
//! which counts them.
//!
//! Two layers: [`Keys`] is what was written, each value with its place; [`Forward`] is what it means, with nothing left
//! that "must be there". All faults of a text are found at once and cited where they stand ([`Faults`]).

mod call;
mod config;
pub mod declared;
mod effective;
mod endpoint;
mod error;
pub mod fdname;
mod file;
mod forward;
mod keys;
mod limit;
mod load;
mod meant;
mod merge;
mod nearest;
mod options;
mod plan;
mod resolve;
mod role;
mod text;
mod together;
pub mod unit;
mod value;
mod weigh;

pub use call::{Call, Service, Target, policy_line};
pub use config::{Config, ConfigEntry};
pub use effective::{EffectiveValue, ValueOrigin};
pub use endpoint::{Host, HostPort, ListenAddr, Netns, Ports, UnixAddr, Upstream, Zone};
pub use error::{Cite, Faults, Flaw, Origin, Place, SpecFault};
pub use fdname::Name;
pub use forward::{forward, forwards};
pub use keys::{At, KeyName, Keys};
pub use limit::{beside_forwards, without_descriptors};
pub use load::{ConfigFault, FaultEffect, LastText, LastTexts, Loaded, Text, Texts, load, load_knowing};
pub use meant::meant_service;
pub use options::{Admit, DEFAULT_BACKLOG, Options, START_RETRY, UnitFlaw, UnitUse, Via};
pub use plan::{Forward, Leg, Legs, Listen, ListenKey, Plan, SocketKind, UnixRights};
pub use resolve::{PREFIXES, unnamed};
pub use together::{ListenPlace, PlaceIndex, PlacedListener, circles, exclusions};
pub use value::{
    Account, Backlog, BufferSize, Count, Device, FileMode, Idle, Keepalive, KeepaliveTimes, Label, LogLevel, Many,
    NetnsName, NetnsPath, Network, OnRemove, Owner, Pause, ProxyProtocol, StartUnit, StopWhenIdle, Timeout,
};
pub use weigh::{Beside, Machine};

#[cfg(test)]
mod tests;
