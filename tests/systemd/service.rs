//! qrexec-connect.service as the tests inside a boot see it: its sockets, its state, its journal, and what it must
//! not leave behind. All of the test user's own manager.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

use crate::{
    support::eventually,
    tree::{attempt, shell, user_unit},
};

/// MESSAGE_IDs, by the names that the catalog has for them.
pub(crate) fn message_id(name: &str) -> String {
    let catalog = concat!(
        include_str!("../../packaging/catalog/qrexec-connect.catalog"),
        include_str!("../../packaging/catalog/qvm-remote.catalog")
    );
    let mut lines = catalog.lines();
    lines.by_ref().find(|line| *line == format!("# {name}")).unwrap_or_else(|| panic!("the catalog has no {name}"));
    lines.next().and_then(|line| line.strip_prefix("-- ")).expect("the id stands below the name").to_owned()
}

/// Writes the three lines of `qrexec-connect-NAME.socket`.
pub(crate) fn socket(name: &str, listen: &str, fd_name: &str) {
    let text = format!("[Socket]\nListenStream={listen}\nFileDescriptorName={fd_name}\n");
    user_unit(&format!("qrexec-connect-{name}.socket"), &text);
}

/// `enable --now` for these sockets, after one daemon-reload.
#[track_caller]
pub(crate) fn enable_now(names: &[&str]) {
    shell(&format!("systemctl --user daemon-reload; systemctl --user enable --now {}", units(names)));
}

/// The unit names of these sockets.
pub(crate) fn units(names: &[&str]) -> String {
    let units: Vec<_> = names.iter().map(|name| format!("qrexec-connect-{name}.socket")).collect();
    units.join(" ")
}

/// Puts more lines into the service's unit, in a drop-in called `name`; they count after the next daemon-reload.
pub(crate) fn service_drop_in(name: &str, lines: &str) {
    user_unit(&format!("qrexec-connect.service.d/{name}.conf"), lines);
}

/// `systemctl show -p NAME` of the service.
#[track_caller]
pub(crate) fn property(name: &str) -> String {
    shell(&format!("systemctl --user show -p {name} --value qrexec-connect.service"))
}

/// The service's process; 0 while there is none.
#[track_caller]
pub(crate) fn main_pid() -> u32 {
    property("MainPID").parse().expect("systemctl prints a number")
}

/// Waits until the manager has no job left and the service is ready.
#[track_caller]
pub(crate) fn settled() {
    eventually("the service is ready and no job is left", || {
        let (code, stdout, _) = attempt(
            "systemctl --user show -p ActiveState -p SubState --value qrexec-connect.service; \
             systemctl --user list-jobs --no-legend",
        );
        code == Some(0) && stdout == "active\nrunning"
    });
}

/// Restarts the service, which must come back as another process.
#[track_caller]
pub(crate) fn restart() {
    let before = main_pid();
    shell("systemctl --user restart qrexec-connect.service");
    assert_ne!(main_pid(), before, "a restart starts another process");
}

/// What the service has written to the journal and what matches, oldest first, field by field.
#[track_caller]
pub(crate) fn journal(matches: &str) -> Vec<BTreeMap<String, Value>> {
    let lines = shell(&format!("journalctl --user -q -o json --all -t qrexec-connect {matches}"));
    lines.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

/// The service's events of this kind.
#[track_caller]
pub(crate) fn events(kind: &str) -> Vec<BTreeMap<String, Value>> {
    journal(&format!("MESSAGE_ID={}", message_id(kind)))
}

/// The messages of the service's events of this kind.
#[track_caller]
pub(crate) fn messages(kind: &str) -> Vec<String> {
    events(kind).iter().map(|event| text(event, "MESSAGE").to_owned()).collect()
}

/// Waits for an event of this kind with `part` in its message; the message.
#[track_caller]
pub(crate) fn wait_for_message(kind: &str, part: &str) -> String {
    let mut found = None;
    eventually(&format!("a {kind} with {part:?}"), || {
        found = messages(kind).into_iter().find(|message| message.contains(part));
        found.is_some()
    });
    found.expect("it was found")
}

/// A field that must be there.
#[track_caller]
pub(crate) fn text<'a>(event: &'a BTreeMap<String, Value>, field: &str) -> &'a str {
    event.get(field).and_then(Value::as_str).unwrap_or_else(|| panic!("no {field} in {event:#?}"))
}

/// What the manager itself complained of, about anything: `Found left-over process`, `refusing`…
#[track_caller]
pub(crate) fn complaints() -> Vec<String> {
    let lines = shell("journalctl --user -q -o cat -p warning -t systemd");
    // there is no D-Bus in these boots
    lines.lines().filter(|line| !line.starts_with("Failed to connect to system bus")).map(str::to_owned).collect()
}

/// The manager has not complained of anything but what `expected` says.
#[track_caller]
pub(crate) fn assert_no_complaints_but(expected: &[&str]) {
    let others: Vec<_> =
        complaints().into_iter().filter(|line| !expected.iter().any(|part| line.contains(part))).collect();
    assert!(others.is_empty(), "the manager complains:\n{}", others.join("\n"));
}

/// What a process of the service holds, by kind: sockets, pipes…; how many of each.
pub(crate) fn held_by(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        if let Ok(to) = fs::read_link(entry.path()) {
            let to = to.to_string_lossy();
            let kind = if to.starts_with('/') { "file" } else { to.split('[').next().unwrap_or("?") };
            *kinds.entry(kind.trim_end_matches(':').to_owned()).or_default() += 1;
        }
    }
    kinds
}

/// The processes of calls to other qubes: those in the unit that owns them, but for its own.
#[track_caller]
pub(crate) fn calls() -> Vec<u32> {
    let group = shell("systemctl --user show -p ControlGroup --value qrexec-connect-calls.service");
    let procs = fs::read_to_string(format!("/sys/fs/cgroup{group}/calls/cgroup.procs")).unwrap_or_default();
    procs.lines().filter_map(|line| line.parse().ok()).collect()
}

/// With every session over, the service holds no more than a process that has just been started, and nothing waits
/// in its descriptor store.
#[track_caller]
pub(crate) fn assert_nothing_leaked() {
    eventually("every session is over", || property("StatusText").ends_with(", 0 sessions"));
    eventually("every call is over", || calls().is_empty());
    // The checkpoints for a crash, and the two ends of their pair.
    assert_eq!(property("NFileDescriptorStore"), "3");
    // Pipes may be kept for the next session; nothing else may. The socket of the last status line closes in a moment.
    let mut used = BTreeMap::new();
    eventually("two looks in a row find the same", || {
        let now = held_by(main_pid());
        std::mem::replace(&mut used, now.clone()) == now
    });
    used.remove("pipe");
    restart();
    let mut fresh = held_by(main_pid());
    fresh.remove("pipe");
    assert!(fresh.values().sum::<usize>() > 3, "{fresh:?} cannot be all");
    let more: Vec<_> = used.iter().filter(|(kind, n)| **n > fresh.get(*kind).copied().unwrap_or(0)).collect();
    assert!(more.is_empty(), "held after use: {used:?}, by a fresh process: {fresh:?}");
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", main_pid())).expect("it runs");
    let names: Vec<_> = children
        .split_whitespace()
        .map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned())
        .collect();
    assert_eq!(names, ["crash-shadow"]);
}

/// Stops the sockets and the service; then nothing of it is left.
#[track_caller]
pub(crate) fn assert_stops_clean() {
    shell("systemctl --user stop 'qrexec-connect-*.socket' qrexec-connect.service");
    assert_eq!(property("ActiveState"), "inactive");
    assert_eq!(property("Result"), "success");
    assert_eq!(property("NFileDescriptorStore"), "0");
    eventually("the unit of the calls has gone", || {
        attempt("systemctl --user is-active qrexec-connect-calls.service").1 == "inactive"
    });
    let left = processes_called(&["qrexec-connect", "qrexec-client-v"]);
    assert!(left.is_empty(), "left behind: {left:?}");
    eventually("the shadow has ended, too", || processes_called(&["crash-shadow"]).is_empty());
}

/// Processes with one of these names (15 characters of each, proc(5) `comm`).
pub(crate) fn processes_called(names: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if names.contains(&comm.trim_end()) {
            found.push(format!("{} ({})", Path::new(&entry.file_name()).display(), comm.trim_end()));
        }
    }
    found
}

/// Every session of which the journal tells has at most one start, and then exactly one end; how many sessions there
/// were.
#[track_caller]
pub(crate) fn assert_each_session_is_told_once() -> usize {
    sessions_told_once("journalctl --user -q -t qrexec-connect").len()
}

/// The same for what this `journalctl …` shows: how each session ended, by its id. All sessions must be over; what their
/// service wrote as the last comes into the journal a moment after the service has ended.
#[track_caller]
pub(crate) fn sessions_told_once(journalctl: &str) -> BTreeMap<String, String> {
    let mut stories = BTreeMap::new();
    eventually("the journal has an end of each session", || {
        stories = session_stories(journalctl);
        stories.values().all(|story: &Vec<String>| story.last().is_some_and(|last| last != "start"))
    });
    for (session, story) in &stories {
        let (first, last) = (story.first().map(String::as_str), story.last().map(String::as_str));
        let starts = usize::from(first == Some("start"));
        assert!(story.len() == starts + 1 && last != Some("start"), "session {session}: {story:?}");
    }
    stories.into_iter().filter_map(|(session, mut story)| Some((session, story.pop()?))).collect()
}

/// As [`assert_each_session_is_told_once`], for all sessions but those of this listener, which are short: of these, one
/// that ended just before its process was killed may have no end, and none has two starts or two ends.
#[track_caller]
pub(crate) fn assert_each_session_is_told_once_but_at(listener: &str) {
    const JOURNAL: &str = "journalctl --user -q -t qrexec-connect";
    let short = session_stories(&format!("{JOURNAL} LISTENER={listener}"));
    assert!(!short.is_empty(), "no session of {listener}");
    let mut stories = BTreeMap::new();
    eventually("the journal has an end of each other session", || {
        stories = session_stories(JOURNAL);
        let mut others = stories.iter().filter(|(session, _)| !short.contains_key(*session));
        others.all(|(_, story)| story.last().is_some_and(|last| last != "start"))
    });
    for (session, story) in &stories {
        let starts = story.iter().filter(|what| *what == "start").count();
        let ends = story.len() - starts;
        let told = if short.contains_key(session) { ends <= 1 } else { ends == 1 };
        assert!(starts <= 1 && told, "session {session}: {story:?}");
    }
}

/// The starts and ends of each session, by its id, in the order of the journal.
fn session_stories(journalctl: &str) -> BTreeMap<String, Vec<String>> {
    let start = message_id("session-start");
    let mut stories: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let lines = shell(&format!("{journalctl} -o json --output-fields=MESSAGE_ID,SESSION_ID,END"));
    for line in lines.lines() {
        let event: BTreeMap<String, Value> = serde_json::from_str(line).expect("journalctl writes JSON");
        if !event.contains_key("SESSION_ID") {
            continue;
        }
        let story = stories.entry(text(&event, "SESSION_ID").to_owned()).or_default();
        if text(&event, "MESSAGE_ID") == start {
            story.push("start".to_owned());
        } else if event.contains_key("END") {
            story.push(text(&event, "END").to_owned());
        }
    }
    stories
}
