//! Two ends in, bytes moved both ways, an ending out.
//!
//! The relay knows no addresses and no services: it is given two connected [`RelayEnd`]s and tells how it ended, or, when
//! interrupted, leaves everything in a state that another process can take up ([`Relay::park`]).

mod counters;
pub mod datagram;
mod direction;
mod end;
mod interrupt;
mod outcome;
mod pool;
mod stream;
#[cfg(test)]
mod tests;

pub use counters::Counters;
pub use direction::{ParkedBytes, ParkedDirection, Phase};
pub use end::{ParkedEnd, RelayEnd};
pub use interrupt::{Interrupt, Why};
pub use outcome::{RelayOutcome, Side};
pub use pool::empty as let_go;
pub use stream::{Parked, Relay};
