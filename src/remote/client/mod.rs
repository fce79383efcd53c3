//! `qvm-remote` in a VM: asks, shows what comes as it comes, ends as the command ended.

mod connection;
mod exchange;
pub mod history;
mod home;
mod live;
mod run;
mod spool;
pub mod stdio;
mod submission;
mod terminal;

pub use home::Home;
pub use run::ask;
pub use spool::{clean, counts};
pub use submission::{ClientError, Delivery, Submission};
