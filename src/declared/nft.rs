//! The firewall, as nft(8) changes it: never by a shell, each change in one transaction.

use std::{
    fs::File,
    io::{self, Seek as _, Write as _},
    process::{Command, Stdio},
    time::Duration,
};

use super::ruleset::{PortRule, Ruleset};
use crate::{
    log::escape,
    sys,
    systemd::systemctl::{self, Answer},
};

/// How long nft may take; it takes 10 to 50 ms.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much of what nft says about a failure is told, in characters.
const SAID: usize = 300;

/// Why the rules are not as they should be.
enum NftFault {
    /// There is no nft here: no rule of ours, and often no firewall.
    Absent,
    Failed(String),
}

/// Leaves these rules of ours and no other one. What could not be done is told in the sentences that come back.
pub(super) fn settle(wanted: &[PortRule]) -> Vec<String> {
    let told = |rule: &PortRule, why: &str| {
        format!(
            "no rule of the {} firewall was set: {why}; where a firewall runs: {}",
            rule.family().name(),
            rule.by_hand()
        )
    };
    match settled(wanted) {
        Ok(missing) => {
            missing.into_iter().map(|rule| told(rule, "the chain custom-input of Qubes is not there")).collect()
        }
        Err(NftFault::Absent) => wanted.iter().map(|rule| told(rule, "there is no nft")).collect(),
        Err(NftFault::Failed(why)) if wanted.is_empty() => vec![format!("rules of the firewall may be left: {why}")],
        Err(NftFault::Failed(why)) => wanted.iter().map(|rule| told(rule, &why)).collect(),
    }
}

fn settled(wanted: &[PortRule]) -> Result<Vec<&PortRule>, NftFault> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => NftFault::Absent,
        _ => NftFault::Failed(format!("nft cannot be run: {e}")),
    };
    let mut list = Command::new("nft");
    list.args(["-j", "list", "ruleset"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let listed = run(list).map_err(failed)?;
    if !listed.status.success() {
        return Err(NftFault::Failed(format!("nft cannot list the rules ({})", listed.status)));
    }
    let (transaction, missing) = Ruleset::read(&listed.text).map_err(NftFault::Failed)?.transaction(wanted);
    if let Some(transaction) = transaction {
        let mut change = Command::new("nft");
        change.args(["-j", "-f", "-"]).stdin(input(&transaction).map_err(failed)?);
        change.stdout(Stdio::null()).stderr(Stdio::piped());
        let changed = run(change).map_err(failed)?;
        if !changed.status.success() {
            let said: String = changed.text.lines().collect::<Vec<_>>().join(" ").chars().take(SAID).collect();
            return Err(NftFault::Failed(format!("nft refuses the change: {}", escape(said.as_bytes()))));
        }
    }
    Ok(missing)
}

/// A file without a name, so that no pipe can fill up.
fn input(text: &str) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

fn run(mut command: Command) -> io::Result<Answer> {
    for name in sys::OURS_ALONE {
        command.env_remove(name);
    }
    systemctl::bounded(command, PATIENCE)
}
