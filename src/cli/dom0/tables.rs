//! The tables of `qvm-remote-dom0`: authorised qubes, what the daemon does, what waits for approval.

use std::time::{Duration, SystemTime};

use crate::{
    cli::table::{self, Cell, Colour, Column, Style, duration},
    remote::{
        clock,
        dom0::question::{CommandStatus, DaemonStatus, QubeStatus, SHORT_ID},
    },
};

/// What `keys` knows of a qube.
#[derive(Debug)]
pub(super) struct KeyRow {
    pub(super) vm: String,
    /// Its keys, the newest first, or why none is usable.
    pub(super) keys: Result<Vec<KeyShown>, String>,
    /// Tokens of protocol v1 are taken.
    pub(super) v1: bool,
}

/// What `keys` knows of a key.
#[derive(Clone, Debug)]
pub(super) struct KeyShown {
    pub(super) id: String,
    /// Seconds since it was authorised; `None` where that was by an earlier version.
    pub(super) age: Option<u64>,
    /// Seconds since its last use.
    pub(super) unused: Option<u64>,
}

/// What `keys` prints.
pub(super) fn keys(style: Style, rows: &[KeyRow]) -> String {
    const COLUMNS: [Column; 5] = [
        Column::long("QUBE", 8),
        Column::whole("V1"),
        Column::whole("AGE"),
        Column::whole("LAST USE"),
        Column::long("KEY ID", 16),
    ];
    let time = |seconds: u64| duration(seconds.saturating_mul(1000));
    let rows = rows.iter().flat_map(|row| {
        let row_of = |age: String, used: String, key: Cell| {
            let v1 = if row.v1 { "on" } else { "off" };
            [Cell::from(&row.vm), Cell::from(v1), Cell::from(age), Cell::from(used), key]
        };
        let key = |key: &KeyShown| {
            let used = key.unused.map_or_else(|| "never".to_owned(), |seconds| format!("{} ago", time(seconds)));
            row_of(key.age.map_or_else(|| "?".to_owned(), time), used, Cell::from(&key.id))
        };
        match &row.keys {
            Ok(keys) => keys.iter().map(key).collect(),
            Err(why) => {
                vec![row_of(String::new(), String::new(), Cell::from(format!("unusable: {why}")).painted(Colour::Red))]
            }
        }
    });
    table::render(style, &COLUMNS, &rows.collect::<Vec<_>>())
}

/// What `status` prints.
pub(super) fn status(style: Style, status: &DaemonStatus) -> String {
    let mut out = format!("qvm-remote-dom0 runs (pid {}), {}\n", status.pid, clock::now());
    if status.draining {
        out += "The daemon is stopping and takes no new commands.\n";
    }
    if let Some(since) = status.restart_pending_since {
        let since = clock::local(SystemTime::UNIX_EPOCH + Duration::from_secs(since));
        out += &format!("A restart is pending since {since}; it comes when no command runs or waits.\n");
    }
    if let Some(why) = &status.log_failure {
        let text = format!("THE LOG CANNOT BE WRITTEN: {}", table::clean(why));
        for line in table::wrapped(&text, style.width.unwrap_or(usize::MAX)) {
            out += &format!("{}\n", style.paint(Some(Colour::Red), &line));
        }
    }
    out += &format!("\n{}", qubes(style, status));
    let requests = requests(style, status);
    if !requests.is_empty() {
        out += &format!("\n{requests}To end a command: qvm-remote-dom0 kill ID\n");
    }
    let waiting: Vec<_> = status.approvals.iter().map(|(id, summary)| (id.clone(), summary.clone())).collect();
    if !waiting.is_empty() {
        out += &format!("\n{}", approvals(style, &waiting));
    }
    out
}

/// The qubes that are served, with the state of their channels.
fn qubes(style: Style, status: &DaemonStatus) -> String {
    const COLUMNS: [Column; 3] = [Column::long("QUBE", 8), Column::long("CHANNEL", 8), Column::whole("NOTE")];
    let row = |(vm, qube): (&String, &QubeStatus)| {
        let notes = [(!qube.keyed, "NO KEY"), (qube.v1, "takes v1 tokens")];
        let notes: Vec<_> = notes.iter().filter(|(holds, _)| *holds).map(|(_, note)| *note).collect();
        let notes = Cell::from(notes.join(", "));
        let notes = if qube.keyed { notes } else { notes.painted(Colour::Red) };
        [Cell::from(vm), Cell::from(&qube.channel), notes]
    };
    table::render(style, &COLUMNS, &status.qubes.iter().map(row).collect::<Vec<_>>())
}

/// What runs, what is left of commands that have ended, and what has not started; empty where there is nothing.
pub(super) fn requests(style: Style, status: &DaemonStatus) -> String {
    // An id is never cut, so that it can be copied.
    const COLUMNS: [Column; 5] = [
        Column::whole("ID"),
        Column::long("QUBE", 8),
        Column::whole("STATE"),
        Column::whole("AGE"),
        Column::long("COMMAND", 24),
    ];
    let age = |seconds: u64| Cell::number(duration(seconds.saturating_mul(1000)));
    let command = |state: &'static str| {
        move |c: &CommandStatus| {
            [Cell::from(&c.id), Cell::from(&c.vm), Cell::from(state), age(c.seconds), Cell::from(&c.shown)]
        }
    };
    let waiting = status.waiting.iter().map(|r| {
        let state = Cell::from(format!("waits ({})", r.state)).painted(Colour::Yellow);
        [Cell::from(&r.id), Cell::from(&r.vm), state, age(r.seconds), Cell::from("")]
    });
    let commands = status.commands.iter().map(command("runs"));
    let rows: Vec<_> = commands.chain(status.background.iter().map(command("background"))).chain(waiting).collect();
    if rows.is_empty() { String::new() } else { table::render(style, &COLUMNS, &rows) }
}

/// What waits for approval: the beginning of each id, and a summary.
pub(super) fn approvals(style: Style, waiting: &[(String, String)]) -> String {
    const COLUMNS: [Column; 2] = [Column::whole("APPROVAL"), Column::long("WHAT", 20)];
    let row = |(id, summary): &(String, String)| [Cell::from(&id[..SHORT_ID.min(id.len())]), Cell::from(summary)];
    let table = table::render(style, &COLUMNS, &waiting.iter().map(row).collect::<Vec<_>>());
    format!("{table}To see a request and decide: qvm-remote-dom0 approve ID\n")
}
