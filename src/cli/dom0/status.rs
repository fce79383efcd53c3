//! `qvm-remote-dom0 status` and `kill`: what runs and what waits, and the end of a command.

use std::{path::Path, process::ExitCode};

use super::failure::{answered, fail};
use crate::{
    log::escape,
    remote::{
        clock,
        dom0::question::{self, CommandStatus, SHORT_ID},
    },
    report::Fatal,
};

/// Columns of a line; JSON has the whole of a command's text.
const COLUMNS: usize = 80;

/// Prints what the daemon does.
pub(super) fn show(run: &Path, json: bool) -> Result<ExitCode, Fatal> {
    if json {
        print!("{}", answered(question::status_json(run))?);
        return Ok(ExitCode::SUCCESS);
    }
    let status = answered(question::status(run))?;
    println!("qvm-remote-dom0 runs (pid {}), {}", status.pid, clock::now());
    if let Some(why) = &status.log_failure {
        println!("  THE LOG CANNOT BE WRITTEN: {}", escape(why.as_bytes()));
    }
    for (vm, qube) in &status.qubes {
        let v1 = if qube.v1 { ", takes v1 tokens" } else { "" };
        let keyed = if qube.keyed { "" } else { ", NO KEY" };
        println!("  {vm:<20} {}{v1}{keyed}", qube.channel);
    }
    for command in &status.commands {
        println!("{}", line("runs", command));
    }
    for command in &status.background {
        println!("{}", line("left in the background", command));
    }
    for request in &status.waiting {
        println!("  waits ({}) {} s: {} {}", request.state, request.seconds, request.vm, request.id);
    }
    if !(status.commands.is_empty() && status.background.is_empty() && status.waiting.is_empty()) {
        println!("To end one: qvm-remote-dom0 kill ID");
    }
    for (id, summary) in &status.approvals {
        println!("  waits for approval: {}  {summary}", &id[..SHORT_ID.min(id.len())]);
    }
    if !status.approvals.is_empty() {
        println!("To see all of one and decide: qvm-remote-dom0 approve ID");
    }
    Ok(ExitCode::SUCCESS)
}

/// Two lines: which command, and the beginning of its text. The text is visible ASCII.
fn line(does: &str, command: &CommandStatus) -> String {
    let text = &command.shown;
    let room = COLUMNS - 4;
    let text = if text.len() > room { format!("{}...", &text[..room - 3]) } else { text.clone() };
    format!("  {does} {} s: {} {}\n    {text}", command.seconds, command.vm, command.id)
}

/// Ends the request with this id, whether it runs, waits or left something in the background; `vm` where two qubes have one with the same id.
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
    println!("Ended {count} command(s).");
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_takes_two_lines_of_eighty_columns() {
        let command = |text: &str| CommandStatus {
            vm: "work".into(),
            id: "20251120-101500-77-0a1b2c3d".into(),
            seconds: 12,
            shown: text.into(),
        };
        let short = line("runs", &command("cmd=qvm-ls"));
        assert_eq!(short, "  runs 12 s: work 20251120-101500-77-0a1b2c3d\n    cmd=qvm-ls");
        let long = line("runs", &command(&"x".repeat(5000)));
        assert!(long.lines().all(|line| line.len() <= 80) && long.ends_with("x..."), "{long}");
    }
}
