//! Programs of dom0 that this one runs: each with an end, its output bounded, no shell between.

use std::{
    fmt,
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    log::escape,
    report::{Code, Fatal},
    systemd::systemctl::{Answer, bounded},
};

/// How long a question to qubesd or an order may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program with its arguments, as `--dry-run` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ToolOrder(Vec<String>);

impl ToolOrder {
    pub(super) fn new<S: Into<String>>(words: impl IntoIterator<Item = S>) -> Self {
        Self(words.into_iter().map(Into::into).collect())
    }

    /// Runs the program; its output comes back, and its messages go to our standard error.
    pub(super) fn ask(&self, patience: Duration) -> Result<Answer, Fatal> {
        self.run(patience, Stdio::inherit())
    }

    /// As [`Self::ask`], with its messages dropped.
    pub(super) fn ask_quietly(&self, patience: Duration) -> Result<Answer, Fatal> {
        self.run(patience, Stdio::null())
    }

    fn run(&self, patience: Duration, messages: Stdio) -> Result<Answer, Fatal> {
        let mut command = Command::new(&self.0[0]);
        command.args(&self.0[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(messages);
        bounded(command, patience).map_err(|e| Fatal::new(Code::Failure, format!("{}: {e}", self.0[0])))
    }

    /// Runs the program, which must succeed.
    pub(super) fn carry_out(&self) -> Result<(), Fatal> {
        let status = self.ask(PATIENCE)?.status;
        if status.success() { Ok(()) } else { Err(Fatal::new(Code::Failure, format!("'{self}' failed: {status}"))) }
    }

    /// Whether a directory of PATH has the program.
    pub(super) fn installed(&self) -> bool {
        let places = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&places).any(|place| place.join(&self.0[0]).is_file())
    }

    /// Whether the program exists, runs and succeeds.
    pub(super) fn holds(&self) -> bool {
        self.ask_quietly(PATIENCE).is_ok_and(|answer| answer.status.success())
    }
}

/// As somebody would type it.
impl fmt::Display for ToolOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, word) in self.0.iter().enumerate() {
            let plain = word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./:=,@%".contains(&byte));
            let gap = if index == 0 { "" } else { " " };
            match plain && !word.is_empty() {
                true => write!(f, "{gap}{word}")?,
                false => write!(f, "{gap}'{}'", escape(word.as_bytes()).replace('\'', "'\\''"))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_printed_as_it_can_be_typed() {
        let order = ToolOrder::new(["qvm-features", "--", "sys-net", "vm-config.x", "0.0.0.0:1 @default a+1"]);
        assert_eq!(order.to_string(), "qvm-features -- sys-net vm-config.x '0.0.0.0:1 @default a+1'");
    }
}
