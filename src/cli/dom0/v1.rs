//! `qvm-remote-dom0 v1`: whether the tokens of protocol v1 are taken from a qube.

use std::{fs, process::ExitCode};

use super::{
    failure::{fail, write},
    record::record,
};
use crate::{
    log::escape,
    remote::{config::Paths, keys::Store},
    report::Fatal,
};

/// Writes the setting into the policy of the qube.
pub(super) fn set(paths: &Paths, store: &Store, vm: &str, on: bool) -> Result<ExitCode, Fatal> {
    let path = store.path(vm, "policy").map_err(|e| fail(format!("'{}': {e}", escape(vm.as_bytes()))))?;
    let text = fs::read_to_string(&path).map_err(|e| fail(format!("{}: {e}", path.display())))?;
    let setting = |line: &str| line.split_once('=').is_some_and(|(key, _)| key.trim() == "v1");
    let mut text: String = text.lines().filter(|line| !setting(line)).map(|line| format!("{line}\n")).collect();
    if on {
        text.push_str("v1 = yes\n");
    }
    write(&path, &text)?;
    record(paths, vm, "V1", &format!("vm={vm} {}", if on { "on" } else { "off" }));
    if on {
        println!("Tokens of protocol v1 are taken from '{vm}': they cover an id and no command, so whoever can write");
        println!("into its queue can have any command run. To end this: qvm-remote-dom0 v1 {vm} off");
    } else {
        println!("Tokens of protocol v1 are no longer taken from '{vm}'.");
    }
    Ok(ExitCode::SUCCESS)
}
