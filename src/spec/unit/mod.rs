//! Socket units of systemd, as texts: what systemd makes of one that somebody wrote, and those that we write.
//!
//! `parsed` reads a unit as systemd reads it, `address` what it listens on, `name` what stands in
//! `FileDescriptorName=`. `judge` says where systemd makes something else of a unit than is written. `write` makes units
//! of forwards.

mod address;
mod judge;
mod name;
mod parsed;
mod write;

pub use address::ListenAddress;
pub use judge::{Consequence, ReadListening, UnitFault};
pub use name::{UnknownSpecifier, expand, rejected, repair, with_double_zone_percents};
pub use parsed::{ListenKind, Listening, Setting, Unit};

#[cfg(test)]
mod tests;
