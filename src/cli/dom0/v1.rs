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
        println!(
            "dom0 accepts tokens of protocol v1 from '{vm}'. They cover an id and no command: every program that can"
        );
        println!("write into its queue can run any command. To end this: qvm-remote-dom0 v1 {vm} off");
    } else {
        println!("dom0 no longer accepts tokens of protocol v1 from '{vm}'.");
    }
    Ok(ExitCode::SUCCESS)
}
