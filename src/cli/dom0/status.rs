//! `qvm-remote-dom0 status` and `kill`: what runs and what waits, and the end of a command.

use std::{path::Path, process::ExitCode};

use super::{
    failure::{answered, fail},
    tables,
};
use crate::{
    cli::table::{LookOptions, Style},
    log::{counted, escape},
    remote::dom0::question,
    report::Fatal,
};

/// Prints what the daemon does.
pub(super) fn show(run: &Path, json: bool, look: LookOptions) -> Result<ExitCode, Fatal> {
    if json {
        print!("{}", answered(question::status_json(run))?);
        return Ok(ExitCode::SUCCESS);
    }
    print!("{}", tables::status(Style::stdout(look), &answered(question::status(run))?));
    Ok(ExitCode::SUCCESS)
}

/// Ends the request with this id, whether it runs, waits or left something in the background; `vm` where two qubes have
/// one with the same id.
pub(super) fn kill(run: &Path, id: &str, vm: Option<&str>) -> Result<ExitCode, Fatal> {
    let status = answered(question::status(run))?;
    let commands = status.commands.iter().chain(&status.background).map(|c| (&c.vm, &c.id));
    let all = commands.chain(status.waiting.iter().map(|r| (&r.vm, &r.id)));
    let mut vms: Vec<&str> = all.filter(|(_, known)| *known == id).map(|(name, _)| name.as_str()).collect();
    vms.retain(|name| vm.is_none_or(|vm| vm == *name));
    vms.sort_unstable();
    vms.dedup();
    let shown = escape(id.as_bytes());
    let count = match vms[..] {
        [] => {
            return Err(fail(format!("nothing runs or waits under '{shown}'; those that do: qvm-remote-dom0 status")));
        }
        [vm] => answered(question::kill_one(run, vm, id))?,
        _ => return Err(fail(format!("'{shown}' is a command of {}; which one: --qube QUBE", vms.join(" and of ")))),
    };
    println!("Ended {}.", counted(count, "command"));
    Ok(ExitCode::SUCCESS)
}
