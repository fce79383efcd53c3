//! `qvm-remote-dom0 approve`: a person sees all of a command and decides.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _},
    os::fd::AsFd as _,
    path::Path,
    process::{Command as Process, ExitCode, Stdio},
};

use super::{
    failure::{answered, fail},
    tables,
};
use crate::{
    cli::table::{LookOptions, Style},
    log::escape,
    remote::dom0::question::{self, SHORT_ID},
    report::Fatal,
    sys,
};

/// Runs the command. Without an id it lists what waits.
pub(super) fn run(run: &Path, id: Option<&str>, deny: bool, yes: bool, look: LookOptions) -> Result<ExitCode, Fatal> {
    let waiting = answered(question::approvals(run))?;
    let Some(prefix) = id else {
        let none = "Nothing waits for approval.\n";
        print!(
            "{}",
            if waiting.is_empty() { none.to_owned() } else { tables::approvals(Style::stdout(look), &waiting) }
        );
        return Ok(ExitCode::SUCCESS);
    };
    let id = whole(prefix, &waiting)?;
    // a qube can make two texts whose ids begin alike; without the question, nothing but the id says which was seen
    if yes && !deny && prefix != id {
        return Err(fail(format!("--yes needs all {} digits of the id, as approve without --yes shows it", id.len())));
    }
    if !deny {
        let sheet = answered(question::sheet(run, id))?.ok_or_else(|| fail("it waits no longer"))?;
        show(&format!("{sheet}{:<14}{}\n{:<14}{}\n", "approval", &id[..32], "", &id[32..])).map_err(fail)?;
        if !yes && !confirmed()? {
            println!("Not allowed; it still waits.");
            return Ok(ExitCode::FAILURE);
        }
    }
    if !answered(question::decide(run, id, !deny))? {
        return Err(fail("it waits no longer"));
    }
    println!("{}", if deny { "Refused." } else { "Allowed." });
    Ok(ExitCode::SUCCESS)
}

/// The id that begins with these digits.
fn whole<'a>(prefix: &str, waiting: &'a [(String, String)]) -> Result<&'a str, Fatal> {
    let shown = escape(prefix.as_bytes());
    if prefix.len() < SHORT_ID {
        return Err(fail(format!("'{shown}': write at least {SHORT_ID} digits of the id")));
    }
    let mut found = waiting.iter().map(|(id, _)| id.as_str()).filter(|id| id.starts_with(prefix));
    let id = found.next().ok_or_else(|| fail(format!("nothing waits under '{shown}'")))?;
    match found.next() {
        Some(_) => Err(fail(format!("'{shown}' is the start of more than one id; write more digits"))),
        None => Ok(id),
    }
}

/// Asks at the terminal.
fn confirmed() -> Result<bool, Fatal> {
    if !io::stdin().is_terminal() {
        return Err(fail("no terminal to ask on; without one use --yes, with the whole id"));
    }
    print!("Allow it? [y/N] ");
    let _ = io::stdout().flush();
    let mut line = String::new();
    io::stdin().lock().take(64).read_line(&mut line).map_err(fail)?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

/// Prints a text; by a pager where it is longer than the terminal.
fn show(text: &str) -> io::Result<()> {
    let stdout = io::stdout();
    let (rows, columns) = sys::window_size(stdout.as_fd()).unwrap_or((0, 0));
    let long = stdout.is_terminal() && rows > 0 && rows_of(text, columns.into()) + 1 > rows.into();
    if !(long && paged(text).unwrap_or(false)) {
        stdout.lock().write_all(text.as_bytes())?;
    }
    Ok(())
}

/// Rows that a text takes on a terminal, which goes on with a long line in the next row; 0 columns: nobody knows. The
/// text is printable ASCII: a byte is a column.
fn rows_of(text: &str, columns: usize) -> usize {
    let rows = |line: &str| if columns == 0 { 1 } else { line.len().div_ceil(columns).max(1) };
    text.lines().map(rows).sum()
}

/// Shows a text by `$PAGER`, or less; whether that could be done. The pager can start no other program.
fn paged(text: &str) -> io::Result<bool> {
    let pager = std::env::var("PAGER").ok().filter(|pager| !pager.trim().is_empty());
    let mut process = Process::new("/bin/sh");
    process.args(["-c", pager.as_deref().unwrap_or("exec less")]).env("LESSSECURE", "1").stdin(Stdio::piped());
    let mut child = process.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(text.as_bytes()); // who has read enough leaves
    }
    Ok(child.wait()?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_wider_than_the_terminal_takes_more_rows() {
        let text = format!("{}\n\n{}\n", "x".repeat(80), "y".repeat(81));
        assert_eq!([0, 40, 80, 200].map(|columns| rows_of(&text, columns)), [3, 6, 4, 3]);
    }
}
