//! `qvm-remote-dom0 log`: dom0's log, of all qubes or of one, and whether its chain holds.

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use super::failure::fail;
use crate::{
    log::escape,
    remote::{audit, config::Paths},
    report::Fatal,
};

/// Shows the log, or checks it.
pub(super) fn run(paths: &Paths, vm: Option<&str>, verify: bool, against: Option<&Path>) -> Result<ExitCode, Fatal> {
    let at = |path: &Path, e: io::Error| fail(format!("{}: {e}", path.display()));
    if !verify {
        let mut out = io::stdout().lock();
        audit::entries_of(&paths.log, vm, |line| _ = writeln!(out, "{}", harmless(line)))
            .map_err(|e| at(&paths.log, e))?;
        return Ok(ExitCode::SUCCESS);
    }
    let kept = match against {
        Some(file) => audit::read_kept(file).map_err(|e| at(file, e))?,
        None => audit::Kept::new(),
    };
    let found = audit::verify(&paths.log, &kept).map_err(|e| at(&paths.log, e))?;
    print!("{found}");
    if let Some(file) = against {
        let (count, confirmed, older) = (kept.len(), found.confirmed, found.older);
        println!("{}: {count} heads kept, {confirmed} confirmed, {older} older than the log", file.display());
        if count == 0 {
            return Err(fail(format!("{}: it holds no head (log=NUMBER head=HEX)", file.display())));
        }
    }
    Ok(if found.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A line as it is shown: what a terminal could obey is escaped, the escapes of the log stay as they are.
fn harmless(line: &str) -> String {
    line.split('\\').map(|part| escape(part.as_bytes())).collect::<Vec<_>>().join("\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_is_shown_as_it_stands_but_no_terminal_obeys_it() {
        assert_eq!(harmless(r"[t] CMD vm=work cmd=echo 'a\nb' \x1b"), r"[t] CMD vm=work cmd=echo 'a\nb' \x1b");
        assert_eq!(harmless("RELOAD \x1b[2J"), r"RELOAD \x1b[2J");
    }
}
