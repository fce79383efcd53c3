//! Files in a qube: how much output results keep, the texts of `.meta`, and the log beside the key.

use std::time::Duration;

use crate::proto::remote::Refusal;

/// Bytes of each output stream that the original passes on.
pub(crate) const MAX_OUTPUT: usize = 10 << 20;
/// What the original writes after that many.
pub(crate) const TRUNCATED: &[u8] = b"\n[truncated at 10485760 bytes]\n";

/// Adds output to what is kept of it, cut as the original cuts it.
pub(crate) fn collect(kept: &mut Vec<u8>, more: &[u8]) {
    if kept.len() > MAX_OUTPUT {
        return; // the mark is there already
    }
    let room = MAX_OUTPUT - kept.len();
    kept.extend_from_slice(&more[..more.len().min(room)]);
    if more.len() > room {
        kept.extend_from_slice(TRUNCATED);
    }
}

/// The exit status in the result of a command that dom0 did not run: as that of the client.
pub(crate) fn refused(refusal: Refusal) -> u8 {
    if refusal == Refusal::Failed { 125 } else { 126 }
}

/// What the result says on stderr of a command that ran out of time.
pub(crate) fn timed_out(after: Duration) -> String {
    format!("qvm-remote-dom0: command timed out after {}s\n", after.as_secs())
}

/// The four lines of `.meta`, and a fifth where the result is authenticated.
pub(crate) fn meta(id: &str, started: &str, duration_ms: u128, status: u8) -> String {
    format!("id={id}\nstarted={started}\nduration_ms={duration_ms}\nexit_code={status}\n")
}

/// The line that dom0 adds to the VM's audit log.
pub(crate) fn audit_line(id: &str, started: &str, duration_ms: u128, status: u8, text: &[u8]) -> String {
    let shown: Vec<u8> = text.iter().take(200).map(|b| if *b == b'\n' { b' ' } else { *b }).collect();
    format!(
        "[{started}] id={id} exit={status} duration={duration_ms}ms cmd={}",
        crate::log::escape(shown.trim_ascii_end())
    )
}

#[cfg(feature = "remote")]
/// Appends a line to the log in a VM, `~/.qvm-remote/audit.log`; kept below 4 MiB and one older file.
///
/// # Errors
/// What the file system says.
pub(crate) fn append(path: &std::path::Path, line: &str) -> std::io::Result<()> {
    if std::fs::symlink_metadata(path).is_ok_and(|m| m.is_file() && m.len() > 4 << 20) {
        std::fs::rename(path, path.with_extension("log.1"))?;
    }
    use std::io::Write as _;
    super::files::append(path, 0o600)?.write_all(format!("{line}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_where_the_original_cuts_it() {
        let mut kept = Vec::new();
        for _ in 0..12 {
            collect(&mut kept, &vec![b'x'; 1 << 20]);
        }
        assert_eq!(kept.len(), MAX_OUTPUT + 31);
        assert!(kept.ends_with(TRUNCATED));
        let mut exact = vec![b'x'; MAX_OUTPUT];
        collect(&mut exact, b"");
        assert_eq!(exact.len(), MAX_OUTPUT);
    }
}
