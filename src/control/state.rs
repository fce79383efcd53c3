//! What outlives a restart beside sessions and listeners: pauses, what was counted, and back-offs after refusals. One small file beside the control
//! socket, in the runtime directory that the unit keeps over a restart and that goes away with a stop.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{session::Snapshot, sys};

/// More than that was not written by us, in bytes.
const LIMIT: u64 = 16 << 20;

fn file(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".state");
    name.into()
}

/// What lies beside the socket. A file that cannot be read, or is of another version, says nothing.
pub fn read(socket: &Path) -> Snapshot {
    let bytes = sys::file::read(&file(socket), LIMIT);
    bytes.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Leaves it beside the socket, whole or not at all; where there is nothing to keep, no file.
///
/// # Errors
pub fn write(socket: &Path, kept: &Snapshot) -> io::Result<()> {
    let file = file(socket);
    if *kept == Snapshot::default() {
        return match fs::remove_file(&file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
    }
    sys::file::replace(&file, 0o600, &serde_json::to_vec(kept)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_read_back_and_rubbish_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control");
        assert_eq!(read(&socket), Snapshot::default());
        let kept =
            Snapshot { paused: vec!["127.0.0.1:1".into()], paused_udp: None, counts: None, back_offs: Vec::new() };
        write(&socket, &kept).unwrap();
        assert_eq!(read(&socket), kept);
        fs::write(file(&socket), "{\"paused\": 7}").unwrap();
        assert_eq!(read(&socket), Snapshot::default());
        write(&socket, &Snapshot::default()).unwrap();
        assert!(!file(&socket).exists());
        write(&socket, &Snapshot::default()).unwrap();
    }
}
