//! Why a command does not run: the answer to its client, and the entry in the log.

use std::{io, sync::Arc};

use super::state::{Shared, Vm};
use crate::{
    log::{Kind, escape},
    proto::remote::Refusal,
    remote::{audit::EntryOrigin, policy_file::PolicyFileError},
};

/// A command that does not run, and the answer to its client.
pub(super) struct Rejected(pub(super) Refusal, pub(super) String);

/// What a refusal is written down as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Category {
    /// The code, the token or the session is wrong.
    AuthFail,
    /// Nobody of this qube may ask, or not so.
    AuthDeny,
    /// The policy cannot be used.
    Policy,
    /// The request is not valid.
    Reject,
    /// The request was begun before.
    Replay,
    /// The policy, or a person, says no.
    Deny,
    /// The request ended before it began: its client cancelled it, or the daemon stops.
    Cancel,
}

impl Category {
    fn as_str(self) -> &'static str {
        match self {
            Self::AuthFail => "AUTH-FAIL",
            Self::AuthDeny => "AUTH-DENY",
            Self::Policy => "POLICY",
            Self::Reject => "REJECT",
            Self::Replay => "REPLAY",
            Self::Deny => "DENY",
            Self::Cancel => "CANCEL",
        }
    }

    /// Who can have caused such a refusal.
    fn source(self) -> EntryOrigin {
        match self {
            Self::AuthFail | Self::AuthDeny => EntryOrigin::Anybody,
            Self::Policy | Self::Reject | Self::Replay | Self::Deny | Self::Cancel => EntryOrigin::Known,
        }
    }
}

/// One command, as both logs name it.
#[derive(Clone, Copy)]
pub(super) struct Case<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) vm: &'a Arc<Vm>,
    pub(super) id: &'a str,
}

impl Case<'_> {
    /// Refuses the command.
    pub(super) fn refuse(self, category: Category, refusal: Refusal, text: &str) -> Rejected {
        self.write(category, text, &format!("id={} {text}", self.id));
        Rejected(refusal, text.to_owned())
    }

    /// Refuses what was asked, and shows it.
    pub(super) fn deny(self, text: &str, shown: &str) -> Rejected {
        self.write(Category::Deny, &format!("{text}: {shown}"), &format!("id={} {text} {shown}", self.id));
        Rejected(Refusal::Denied, text.to_owned())
    }

    /// Refuses a request that was begun before.
    pub(super) fn again(self) -> Rejected {
        let text =
            "it was begun before and is not run twice; its result was lost (the daemon or the qube was restarted)";
        self.refuse(Category::Replay, Refusal::Invalid, text)
    }

    /// Somebody in dom0 ended it before it began.
    pub(super) fn ended(self) -> Rejected {
        self.audit("CANCEL", "ended in dom0 before it began");
        Rejected(Refusal::Denied, "it was ended in dom0 before it began".into())
    }

    /// The command or the transfer was allowed, and could not be started.
    pub(super) fn not_started(self, e: &io::Error) -> Rejected {
        let text = format!("it could not be started: {}", escape(e.to_string().as_bytes()));
        self.audit("ERROR", &text);
        Rejected(Refusal::Failed, text)
    }

    /// The file of a transfer could not be copied.
    pub(super) fn not_copied(self, text: String) -> Rejected {
        self.audit("ERROR", &text);
        Rejected(Refusal::Failed, text)
    }

    /// Its client gave up before it began.
    pub(super) fn abandoned(self) -> Rejected {
        self.cancel("before it began");
        Rejected(Refusal::Invalid, "cancelled".into())
    }

    /// The daemon stops before the command began.
    pub(super) fn draining(self) -> Rejected {
        if self.shared.restart.holds() {
            self.cancel("before it began: the daemon is being restarted");
            return Rejected(Refusal::Draining, "qvm-remote-dom0 is being restarted; ask again".into());
        }
        self.cancel("before it began: the daemon is being stopped");
        Rejected(Refusal::Draining, "qvm-remote-dom0 is being stopped".into())
    }

    /// The policy of the qube cannot be used: the owner reads why, the qube does not.
    pub(super) fn faulty(self, error: &PolicyFileError) -> Rejected {
        let vm = &self.vm.name;
        let why = format!("the policy of {vm} cannot be used: {}", escape(error.first().as_bytes()));
        self.write(Category::Policy, &why, &format!("id={} {why}", self.id));
        let text = match error {
            PolicyFileError::Missing(_) => "the policy of this qube is missing, so nothing is allowed",
            _ => "the policy of this qube has an error; see qvm-remote-dom0 check in dom0",
        };
        Rejected(Refusal::Denied, text.into())
    }

    /// Writes an entry about the command.
    pub(super) fn audit(self, category: &str, text: &str) {
        self.shared.audit.write(category, &format!("vm={} id={} {text}", self.vm.name, self.id));
    }

    /// Writes an event to the journal.
    pub(super) fn event(self, kind: Kind, text: String, status: Option<u8>) {
        self.shared.event(kind, self.vm, self.id, text, status);
    }

    /// Writes an entry within the limits of refusals: a qube without any right can cause as many as it likes.
    fn cancel(self, text: &str) {
        let category = Category::Cancel;
        let entry = format!("id={} {text}", self.id);
        self.shared.audit.refused(&self.vm.name, category.source(), category.as_str(), &entry);
    }

    fn write(self, category: Category, text: &str, entry: &str) {
        if self.shared.audit.refused(&self.vm.name, category.source(), category.as_str(), entry) {
            self.event(Kind::CommandRefused, format!("a command of {} was refused: {text}", self.vm.name), None);
        }
    }
}
