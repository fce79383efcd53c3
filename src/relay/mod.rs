//! Two ends in, bytes moved both ways, an ending out.
//!
//! The relay knows no addresses and no services: it is given two connected [`End`]s and tells how it ended, or, when
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
pub use direction::{ParkedDirection, Phase};
pub use end::{End, ParkedEnd};
pub use interrupt::{Interrupt, Why};
pub use outcome::{Outcome, Side};
pub use stream::{Parked, Relay};

/// Closes the pipes that are kept for the next bulk transfer: for when there is none to be expected soon.
pub fn let_go() {
    pool::empty();
}
