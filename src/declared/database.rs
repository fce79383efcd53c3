//! The socket of qubesdb-daemon: watching the keys, and reading them.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    proto::qubesdb::{DbHeader, DbMessage, HEADER},
    spec::declared::KEY,
};

/// The daemon's socket in a qube.
pub(super) const SOCKET: &str = "/run/qubes/qubesdb.sock";
/// What is watched: a path that ends in a slash stands for all below it.
const DIRECTORY: &str = "/vm-config/";
/// How long the daemon may take for an answer, and for each part of one.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much of an answer is kept, in bytes. The rest is read and dropped.
const KEPT: usize = 1 << 20;

/// A key of QubesDB and its value.
pub(super) type DbEntry = (Vec<u8>, Vec<u8>);

/// Watches the keys until the daemon ends the connection. `changed` is called when the watch stands and after each
/// change: it must not block, because the daemon waits for whoever does not read.
pub(super) fn watch(socket: &Path, mut changed: impl FnMut()) -> io::Error {
    let mut watch = || -> io::Result<()> {
        let mut stream = ask(socket, DbMessage::Watch, DIRECTORY)?;
        loop {
            match header(&mut stream)?.message() {
                DbMessage::Ok => break,
                DbMessage::Changed => {}
                _ => return Err(io::Error::other("the daemon refuses the watch")),
            }
        }
        stream.set_read_timeout(None)?;
        changed();
        loop {
            let event = header(&mut stream)?;
            io::copy(&mut (&mut stream).take(event.data() as u64), &mut io::sink())?;
            // The path of a directory that was removed ends in a slash.
            let ours = event.path().starts_with(KEY.as_bytes()) || event.path().ends_with(b"/");
            if event.message() == DbMessage::Changed && ours {
                changed();
            }
        }
    };
    watch().err().unwrap_or_else(|| ErrorKind::UnexpectedEof.into())
}

/// All declarations. `false` beside them: there are more than are kept.
///
/// # Errors
/// The daemon is not there, does not answer in time, or answers what none does.
pub(super) fn read(socket: &Path) -> io::Result<(Vec<DbEntry>, bool)> {
    let deadline = Instant::now() + PATIENCE;
    let mut stream = ask(socket, DbMessage::Multiread, KEY)?;
    let (mut entries, mut size) = (Vec::new(), 0);
    loop {
        if Instant::now() > deadline {
            return Err(io::Error::new(ErrorKind::TimedOut, "the answer does not end"));
        }
        let header = header(&mut stream)?;
        let mut value = vec![0; header.data()];
        stream.read_exact(&mut value)?;
        match header.message() {
            DbMessage::Entry if header.path().is_empty() => return Ok((entries, size <= KEPT)),
            DbMessage::Entry => {
                size += HEADER + value.len();
                if size <= KEPT && header.path().starts_with(KEY.as_bytes()) {
                    entries.push((header.path().to_owned(), value));
                }
            }
            DbMessage::Changed => {}
            _ => return Err(io::Error::other("the daemon refuses to read")),
        }
    }
}

/// Connects and asks.
fn ask(socket: &Path, message: DbMessage, path: &str) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let header = DbHeader::new(message, path.as_bytes(), 0).map_err(io::Error::other)?;
    stream.write_all(&header.encode())?;
    Ok(stream)
}

fn header(stream: &mut UnixStream) -> io::Result<DbHeader> {
    let mut bytes = [0; HEADER];
    stream.read_exact(&mut bytes)?;
    DbHeader::decode(&bytes).map_err(|fault| io::Error::new(ErrorKind::InvalidData, fault))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, sync::mpsc, thread};

    use super::*;

    /// A daemon that gives these messages to one client after its question.
    fn daemon(
        messages: Vec<(DbMessage, &'static str, &'static [u8])>,
    ) -> (tempfile::TempDir, thread::JoinHandle<DbHeader>) {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("db")).expect("bound");
        let thread = thread::spawn(move || {
            let (mut client, _) = listener.accept().expect("a client");
            let asked = header(&mut client).expect("a question");
            for (message, path, data) in messages {
                let length = u32::try_from(data.len()).expect("short");
                let header = DbHeader::new(message, path.as_bytes(), length).expect("a header");
                client.write_all(&[&header.encode(), data].concat()).expect("the client reads to the end");
            }
            asked
        });
        (directory, thread)
    }

    #[test]
    fn all_entries_are_read_and_a_change_between_them_is_no_entry() {
        let (directory, daemon) = daemon(vec![
            (DbMessage::Entry, "/vm-config/qrexec-connect-1", b"a"),
            (DbMessage::Changed, "/vm-config/qrexec-connect-2", b""),
            (DbMessage::Entry, "/vm-config/qrexec-connect-2", b""),
            (DbMessage::Entry, "", b""),
        ]);
        let (entries, whole) = read(&directory.path().join("db")).expect("read");
        let entry =
            |port: u8, value: &[u8]| (format!("/vm-config/qrexec-connect-{port}").into_bytes(), value.to_owned());
        assert_eq!((entries, whole), (vec![entry(1, b"a"), entry(2, b"")], true));
        assert_eq!(daemon.join().expect("no panic").message(), DbMessage::Multiread);
    }

    #[test]
    fn what_is_too_much_is_read_to_the_end_and_dropped() {
        let mut messages = vec![(DbMessage::Entry, "/vm-config/qrexec-connect-1", &[b'a'; 3000][..]); 400];
        messages.push((DbMessage::Entry, "", b""));
        let (directory, daemon) = daemon(messages);
        let (entries, whole) = read(&directory.path().join("db")).expect("read");
        assert!(!whole && entries.len() < 400 && !entries.is_empty(), "{}", entries.len());
        daemon.join().expect("all was taken");
    }

    #[test]
    fn a_watch_tells_that_it_stands_and_of_changes_of_our_keys_alone() {
        let (directory, daemon) = daemon(vec![
            (DbMessage::Ok, "/vm-config/", b""),
            (DbMessage::Changed, "/vm-config/other", b""),
            (DbMessage::Changed, "/vm-config/qrexec-connect-1", b""),
            (DbMessage::Changed, "/vm-config/", b""),
        ]);
        let (sender, told) = mpsc::channel();
        let error = watch(&directory.path().join("db"), || sender.send(()).expect("heard"));
        assert_eq!((told.try_iter().count(), error.kind()), (3, ErrorKind::UnexpectedEof));
        assert_eq!(daemon.join().expect("no panic").path(), DIRECTORY.as_bytes());
    }

    #[test]
    fn a_refused_watch_and_no_daemon_are_errors() {
        let (directory, _daemon) = daemon(vec![(DbMessage::Error, "", b"")]);
        assert!(watch(&directory.path().join("db"), || panic!("no watch")).to_string().contains("refuses"));
        assert_eq!(watch(&directory.path().join("none"), || ()).kind(), ErrorKind::NotFound);
    }
}
