//! What `systemctl show` says of a unit.

use crate::log::escape;

/// State of a unit, in systemd's words (`ActiveState`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnitState {
    #[default]
    Inactive,
    Activating,
    /// Also while it reloads or is refreshed.
    Active,
    Deactivating,
    Failed,
}

impl UnitState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Activating => "activating",
            Self::Active => "active",
            Self::Deactivating => "deactivating",
            Self::Failed => "failed",
        }
    }

    fn parse(word: &str) -> Self {
        match word {
            "activating" => Self::Activating,
            "active" | "reloading" | "refreshing" | "maintenance" => Self::Active,
            "deactivating" => Self::Deactivating,
            "failed" => Self::Failed,
            _ => Self::Inactive,
        }
    }

    /// Whether a start has something to do.
    pub fn is_down(self) -> bool {
        matches!(self, Self::Inactive | Self::Deactivating | Self::Failed)
    }
}

/// One look at a unit: the properties of systemd.unit(5) and systemd.service(5) that matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    pub load: String,
    pub state: UnitState,
    /// The time between two halves of a `Restart=`: the old invocation is gone, the new one is not there yet.
    pub between: bool,
    /// InvocationID; empty where there is none.
    pub invocation: String,
    /// NRestarts: how often `Restart=` has started the unit since somebody did.
    pub restarts: u64,
    pub result: String,
    /// ExecMainCode and ExecMainStatus, of a main process that has ended.
    pub exit: Option<(u8, u8)>,
    pub can_start: bool,
    pub can_stop: bool,
    pub stop_when_unneeded: bool,
    /// A job of the unit is queued or runs.
    pub job: bool,
    /// The units that a stop of this one would take down or that start this one again.
    pub needed_by: Vec<String>,
    /// MemoryCurrent in bytes, where the memory controller is on.
    pub memory: Option<u64>,
    /// When the state changed, in microseconds of CLOCK_MONOTONIC.
    pub changed: Option<u64>,
}

/// The properties that [`Look::parse`] reads.
pub const PROPERTIES: &str = "LoadState,ActiveState,SubState,InvocationID,NRestarts,Result,ExecMainCode,ExecMainStatus,\
                              CanStart,CanStop,StopWhenUnneeded,Job,RequiredBy,RequisiteOf,WantedBy,BoundBy,UpheldBy,\
                              MemoryCurrent,StateChangeTimestampMonotonic";

impl Look {
    /// Reads lines of `NAME=VALUE`.
    pub fn parse(text: &str) -> Self {
        let mut look = Self { can_start: true, can_stop: true, ..Self::default() };
        let mut exit = (0, 0);
        for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
            match name {
                "LoadState" => look.load = escape(value.as_bytes()),
                "ActiveState" => look.state = UnitState::parse(value),
                // auto-restart-queued: since 254
                "SubState" => look.between = value.starts_with("auto-restart"),
                "InvocationID" => look.invocation = id(value),
                "NRestarts" => look.restarts = value.parse().unwrap_or(0),
                "Result" => look.result = escape(value.as_bytes()),
                "ExecMainCode" => exit.0 = value.parse().unwrap_or(0),
                "ExecMainStatus" => exit.1 = value.parse().unwrap_or(0),
                "CanStart" => look.can_start = value != "no",
                "CanStop" => look.can_stop = value != "no",
                "StopWhenUnneeded" => look.stop_when_unneeded = value == "yes",
                "Job" => look.job = !matches!(value, "" | "0"),
                "RequiredBy" | "RequisiteOf" | "WantedBy" | "BoundBy" | "UpheldBy" => {
                    look.needed_by.extend(value.split_ascii_whitespace().map(str::to_owned));
                }
                // "[not set]", or the largest number
                "MemoryCurrent" => look.memory = value.parse().ok().filter(|bytes| *bytes != u64::MAX),
                "StateChangeTimestampMonotonic" => look.changed = value.parse().ok().filter(|at| *at > 0),
                _ => {}
            }
        }
        look.between |= look.state == UnitState::Activating && look.invocation.is_empty();
        look.exit = (exit.0 > 0).then_some(exit);
        look
    }

    /// Whether the invocation is over, and no `Restart=` follows it.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, UnitState::Inactive | UnitState::Failed) && !self.between
    }

    /// How the main process ended, as a part of a sentence; empty where it has not.
    pub fn ending(&self) -> String {
        /// CLD_EXITED of sigaction(2); the others are signals.
        const EXITED: u8 = 1;
        match self.exit {
            Some((EXITED, status)) => format!(", exit status {status}"),
            Some((_, signal)) => format!(", killed by signal {signal}"),
            None => String::new(),
        }
    }
}

/// An InvocationID: 32 hexadecimal digits; anything else is none.
fn id(value: &str) -> String {
    let whole = value.len() == 32 && value.bytes().all(|byte| byte.is_ascii_hexdigit());
    if whole { value.to_owned() } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemctl_prints_is_read() {
        let id = "0123456789abcdef0123456789abcdef";
        let look = Look::parse(&format!(
            "LoadState=loaded\nActiveState=failed\nSubState=failed\nInvocationID={id}\nNRestarts=2\nResult=exit-code\n\
             ExecMainCode=1\nExecMainStatus=3\nCanStart=yes\nCanStop=no\nStopWhenUnneeded=no\nJob=\n\
             RequiredBy=a.service\nWantedBy=b.target c.target\nMemoryCurrent=[not set]\nStateChangeTimestampMonotonic=7\n"
        ));
        assert_eq!((look.state, look.invocation.as_str(), look.restarts), (UnitState::Failed, id, 2));
        assert_eq!((look.can_start, look.can_stop, look.job, look.memory), (true, false, false, None));
        assert_eq!(look.needed_by, ["a.service", "b.target", "c.target"]);
        assert_eq!((look.ending().as_str(), look.changed), (", exit status 3", Some(7)));
        assert!(Look::parse("ActiveState=activating\nSubState=auto-restart\n").between);
        assert!(Look::parse("ActiveState=activating\nSubState=start\nInvocationID=\n").between);
        assert!(!Look::parse(&format!("ActiveState=activating\nSubState=start\nInvocationID={id}\n")).between);
        assert!(Look::parse("InvocationID=../x\n").invocation.is_empty());
    }
}
