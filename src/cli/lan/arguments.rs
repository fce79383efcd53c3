//! The command line of `qvm-forward`: commands, options and the bounds of their values.

use std::{net::SocketAddr, time::Duration};

use clap::{Args, Parser, Subcommand};

use super::declared::{LanNetwork, LanTarget, QubeName, listen};
use crate::cli::table::LookOptions;

/// The program's name.
pub(super) const PROGRAM: &str = "qvm-forward";

/// `--help`.
const ABOUT: &str = "\
Makes a port of a qube reachable through another qube.

Connections to the listening qube become qrexec calls to the target, which dom0's policy allows one by one: the target
needs no network, and no packet is forwarded. The listening qube needs the package qrexec-connect in its template.";

#[derive(Debug, Parser)]
#[command(name = PROGRAM, version, about = "Makes a port of a qube reachable through another qube", long_about = ABOUT)]
#[command(after_help = "Exit status: 0 success, 1 failure, 2 usage error, 78 error in the policy file.")]
pub(super) struct LanArguments {
    #[command(subcommand)]
    pub(super) command: LanCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum LanCommand {
    /// Declare a forward: policy, feature of the qube, end time
    Add(AddForward),
    /// Remove a forward; its open connections end as the listening qube's service decides
    Remove(RemoveForward),
    /// List the declared forwards, what dom0 allows, and what is served
    List(ListOptions),
    /// Show what is wrong with the declared forwards, and what to do
    Check {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove the forwards whose time is over (run by systemd)
    #[command(hide = true)]
    Expire,
}

/// Options of `add`.
#[derive(Clone, Debug, Args)]
pub(super) struct AddForward {
    /// The qube that listens
    pub(super) source: QubeName,
    /// Where it listens: ADDRESS:PORT, or a port of 127.0.0.1
    #[arg(value_name = "LISTEN", value_parser = listen)]
    pub(super) listen: SocketAddr,
    /// Where connections go: QUBE:PORT
    pub(super) target: LanTarget,
    /// Accept connections from this address or network only (repeatable)
    #[arg(long, value_name = "NETWORK")]
    pub(super) from: Vec<LanNetwork>,
    /// Remove the forward after this time: 8h, 2days 12h
    #[arg(long, value_name = "SPAN", value_parser = span)]
    pub(super) r#for: Option<Duration>,
    /// Let dom0 ask its user before each connection
    #[arg(long)]
    pub(super) ask: bool,
    /// Print what would be written and run, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

/// Options of `remove`.
#[derive(Clone, Debug, Args)]
pub(super) struct RemoveForward {
    /// The qube that listens
    pub(super) source: QubeName,
    /// The port on which it listens
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) port: u16,
    /// Print what would be written and run, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

/// Options of `list`.
#[derive(Clone, Debug, Args)]
pub(super) struct ListOptions {
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) look: LookOptions,
}

/// The longest time of a forward that ends: with more, the end would be forgotten before it comes.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// A span of time of at least a second, in whole seconds.
fn span(text: &str) -> Result<Duration, String> {
    let span = humantime::parse_duration(text).map_err(|e| format!("{e}; write 90min, 8h or 2days"))?;
    let span = Duration::from_secs(span.as_secs());
    match span {
        Duration::ZERO => Err("the shortest time is 1s".to_owned()),
        span if span > LONGEST => Err("the longest time is 366days".to_owned()),
        span => Ok(span),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_arguments_is_sound() {
        use clap::CommandFactory as _;
        LanArguments::command().debug_assert();
    }

    #[test]
    fn a_span_has_bounds() {
        assert_eq!(span("8h"), Ok(Duration::from_secs(8 * 3600)));
        assert_eq!(span("1500ms"), Ok(Duration::from_secs(1)));
        for refused in ["", "8", "0s", "900ms", "400days", "-1h", "99999999999999999999h"] {
            assert!(span(refused).is_err(), "{refused}");
        }
    }
}
