//! Commands that wait for a person in dom0.
//!
//! Each has a [`Sheet`]: everything that decides what will run. The id of an approval is the sheet's SHA-256, so what a
//! person approves is the text that was shown. Lists and notifications have the qube and the kind of command only: no
//! summary stands for a text that a person has not seen.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
};

use tokio::sync::oneshot;

use crate::{proto::mac::hex, remote::shown::Sheet, sys::lock};

/// Commands of one qube that may wait at a time: a person reads them, and each keeps its text.
const MAX_WAITING: usize = 8;

/// Bytes of all that one qube has waiting at most: what is shown of it.
const MAX_BYTES: usize = 4 << 20;
/// Bytes of all that all qubes have waiting at most. Each qube has its share, so none keeps another's commands from a
/// person.
const ALL_BYTES: usize = 64 << 20;

/// Commands that wait for a person, by their ids.
#[derive(Debug, Default)]
pub(super) struct Approvals(Mutex<HashMap<String, PendingApproval>>);

#[derive(Debug)]
struct PendingApproval {
    vm: String,
    /// The qube and the kind of command.
    summary: String,
    sheet: Sheet,
    /// Hears the answer; taken with the first one.
    answer: Option<oneshot::Sender<bool>>,
}

/// Why a command cannot wait for approval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CannotWait {
    /// This very request waits already.
    Waits,
    /// The qube has as many waiting as it may.
    TooMany,
    /// What is shown of the command, with what is shown of those of the qube that wait, is longer than this many bytes.
    TooLong(usize),
}

impl Approvals {
    fn all(&self) -> MutexGuard<'_, HashMap<String, PendingApproval>> {
        lock(&self.0)
    }

    /// Adds one, where so many qubes are served: its id, and who hears the answer. Dropped unanswered, the answer is an
    /// error.
    pub(super) fn ask(
        &self,
        qubes: usize,
        vm: &str,
        what: &str,
        sheet: Sheet,
    ) -> Result<(String, oneshot::Receiver<bool>), CannotWait> {
        let (answer, wait) = oneshot::channel();
        let id = hex(&sheet.id());
        let mut all = self.all();
        if all.contains_key(&id) {
            return Err(CannotWait::Waits);
        }
        let waiting = || all.values().filter(|pending| pending.vm == vm);
        if waiting().count() >= MAX_WAITING {
            return Err(CannotWait::TooMany);
        }
        let most = MAX_BYTES.min(ALL_BYTES / qubes.max(1));
        let bytes: usize = waiting().map(|pending| pending.sheet.as_str().len()).sum();
        if bytes + sheet.as_str().len() > most {
            return Err(CannotWait::TooLong(most));
        }
        let summary = format!("{vm} asks for {what}");
        all.insert(id.clone(), PendingApproval { vm: vm.to_owned(), summary, sheet, answer: Some(answer) });
        Ok((id, wait))
    }

    /// How many commands of a qube wait for an answer.
    pub(super) fn count(&self, vm: &str) -> usize {
        self.all().values().filter(|pending| pending.vm == vm && pending.answer.is_some()).count()
    }

    /// The command waits no longer.
    pub(super) fn forget(&self, id: &str) {
        self.all().remove(id);
    }

    /// Nobody will be asked any more.
    pub(super) fn deny_all(&self) {
        self.all().clear();
    }

    /// A person decided; whether the command still waited. The whole id is wanted.
    pub(super) fn answer(&self, id: &str, yes: bool) -> bool {
        let sender = self.all().get_mut(id).and_then(|pending| pending.answer.take());
        sender.is_some_and(|sender| sender.send(yes).is_ok())
    }

    /// Ids, and what stands for each in a list.
    pub(super) fn list(&self) -> Vec<(String, String)> {
        self.all().iter().map(|(id, pending)| (id.clone(), pending.summary.clone())).collect()
    }

    /// The sheet of a command.
    pub(super) fn sheet(&self, id: &str) -> Option<String> {
        self.all().get(id).map(|pending| pending.sheet.as_str().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet(text: &str) -> Sheet {
        let mut sheet = Sheet::default();
        sheet.text(text.as_bytes());
        sheet
    }

    #[test]
    fn an_answer_is_for_the_text_that_was_shown_and_counts_once() {
        let approvals = Approvals::default();
        let (id, mut wait) = approvals.ask(1, "work", "a text", sheet("true")).expect("room");
        assert_eq!(approvals.ask(1, "work", "a text", sheet("true")).err(), Some(CannotWait::Waits));
        let shown = approvals.sheet(&id).expect("there");
        assert_eq!(hex(&crate::remote::shown::id(&shown)), id);
        assert!(!approvals.answer(&id[..12], true), "a part of an id is none");
        assert!(approvals.answer(&id, true) && !approvals.answer(&id, false));
        assert_eq!(wait.try_recv(), Ok(true));
    }

    #[test]
    fn a_qube_fills_its_own_places_only() {
        let approvals = Approvals::default();
        let waits: Vec<_> = (0..MAX_WAITING)
            .map(|n| approvals.ask(1, "work", "a text", sheet(&n.to_string())).expect("room"))
            .collect();
        assert_eq!(approvals.ask(1, "work", "a text", sheet("one more")).err(), Some(CannotWait::TooMany));
        assert!(approvals.ask(1, "dev", "a text", sheet("another qube's")).is_ok());
        assert_eq!((approvals.count("work"), approvals.count("dev")), (MAX_WAITING, 1));
        approvals.forget(&waits[0].0);
        assert!(approvals.ask(1, "work", "a text", sheet("one more")).is_ok());
    }

    #[test]
    fn the_texts_that_wait_are_bounded_for_each_qube_and_for_all() {
        for qubes in [1, 16, 40] {
            let approvals = Approvals::default();
            let most = MAX_BYTES.min(ALL_BYTES / qubes);
            let mut kept = Vec::new();
            for qube in 0..qubes {
                let vm = format!("qube-{qube}");
                let text = |n: usize, bytes: usize| sheet(&format!("{vm} {n} {}", "x".repeat(bytes)));
                assert_eq!(approvals.ask(qubes, &vm, "", text(0, most)).err(), Some(CannotWait::TooLong(most)));
                // one line of a text has 80 columns for 66 of its bytes
                let parts = (0..MAX_WAITING).map(|n| approvals.ask(qubes, &vm, "", text(n, most / 4)));
                kept.push(parts.filter_map(Result::ok).collect::<Vec<_>>());
                assert_eq!(kept[qube].len(), 3, "no qube takes the share of another");
            }
            let bytes: usize = approvals.all().values().map(|pending| pending.sheet.as_str().len()).sum();
            assert!(bytes <= ALL_BYTES, "{bytes}");
            approvals.forget(&kept[0][0].0);
            assert!(approvals.ask(qubes, "qube-0", "", sheet("one more")).is_ok());
        }
    }
}
