//! The conductor: a service from its start to its end.
//!
//! # Theory
//! [`run`] starts a service step by step; `serve` is its own task, which waits for orders: read the configuration again
//! (`reload`), hand everything over to the next process or drain (`stop`), answer the control room (`answer`), follow
//! namespaces, retry listeners. `adopt` takes up the sessions of the previous process. `state` holds what the task knows.
//! [`keep`] is another process: the keeper of what waits between two processes of the service.

mod adopt;
mod answer;
mod keeper;
mod last;
mod reload;
mod run;
mod serve;
mod setup;
mod state;
mod stop;
mod units;

pub use keeper::{Stay, keep};
pub use last::read as last_texts;
pub use run::{run, sockets};
pub use setup::{Ended, ReadTexts, Setup, load};
pub use units::{unit_flaws, usable};
