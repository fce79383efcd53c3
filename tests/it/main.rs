//! The real binaries, under faked activation, on the loopback; and the house rules of the source.
//!
//! Start reading at [`support`]: what a test may stand on.

extern crate support; // `crate::support`

mod access;
mod activation;
mod again;
mod architecture;
mod by_hand;
mod connect_unix;
mod control;
mod demo;
mod deny;
mod drain;
mod endings;
mod fake;
mod far_end;
mod features;
mod handover;
mod harness;
mod imports;
mod labels;
mod limits;
mod log;
mod manual;
mod metrics;
mod mistakes;
mod mistakes_of_units;
mod monitoring;
mod names;
mod notify;
mod pause;
mod qrexec;
mod readme;
mod records;
mod reload;
mod schema;
mod sessions;
mod stages;
mod tables;
mod toolbox;
mod trial;
mod units_unknown;
mod words;
