//! A stand-in for qubesdb-daemon: the same socket, the same messages, the same order of events.
//!
//! As the daemon (`daemon/db-cmds.c` of qubes-core-qubesdb) it answers a write before it tells the watchers, gives the
//! entries in the order of their paths, and tells of the removal of a directory by the path of the directory.

use std::{
    collections::BTreeMap,
    fs, io,
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
};

use qrexec_connect::proto::qubesdb::{DbHeader, DbMessage, HEADER};

const SOCKET: &str = "/run/qubes/qubesdb.sock";

/// A running daemon; dropped, it ends with all its connections.
pub(crate) struct QubesDb {
    state: Arc<Mutex<Database>>,
}

#[derive(Default)]
struct Database {
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
    /// All clients, and whether each watches `/vm-config/`.
    clients: Vec<(UnixStream, bool)>,
    ended: bool,
}

impl QubesDb {
    /// Starts it with these keys below `/vm-config/`.
    pub(crate) fn start(entries: &[(&str, &str)]) -> Self {
        let directory = Path::new(SOCKET).parent().expect("a directory");
        fs::create_dir_all(directory).expect("root's own tree");
        let _ = fs::remove_file(SOCKET);
        let listener = UnixListener::bind(SOCKET).expect("bound");
        let state = Arc::new(Mutex::new(Database::default()));
        let accepting = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = Arc::clone(&accepting);
                let mut database = state.lock().expect("no panic");
                if database.ended {
                    return;
                }
                let index = database.clients.len();
                database.clients.push((client.try_clone().expect("a descriptor"), false));
                drop(database);
                thread::spawn(move || serve(client, index, &state));
            }
        });
        let database = Self { state };
        entries.iter().for_each(|(key, value)| database.set(key, value.as_bytes()));
        database
    }

    /// Writes a key below `/vm-config/`, as dom0 or a process of the qube does.
    pub(crate) fn set(&self, key: &str, value: &[u8]) {
        let path = format!("/vm-config/{key}").into_bytes();
        let mut database = self.state.lock().expect("no panic");
        database.entries.insert(path.clone(), value.to_owned());
        database.fire(&path);
    }

    /// Removes a key; below a path that ends in a slash, all.
    pub(crate) fn remove(&self, key: &str) {
        let path = format!("/vm-config/{key}").into_bytes();
        let mut database = self.state.lock().expect("no panic");
        database.entries.retain(|entry, _| *entry != path && !(path.ends_with(b"/") && entry.starts_with(&path)));
        database.fire(&path);
    }
}

impl Drop for QubesDb {
    fn drop(&mut self) {
        let _ = fs::remove_file(SOCKET);
        let mut database = self.state.lock().expect("no panic");
        database.ended = true;
        database.clients.iter().for_each(|(client, _)| drop(client.shutdown(Shutdown::Both)));
    }
}

impl Database {
    fn fire(&mut self, path: &[u8]) {
        let message = bytes(DbMessage::Changed, path, b"");
        for (client, _) in self.clients.iter_mut().filter(|(_, watches)| *watches) {
            let _ = client.write_all(&message);
        }
    }
}

fn bytes(message: DbMessage, path: &[u8], data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("short");
    let header = DbHeader::new(message, path, length).expect("within the limits");
    [&header.encode(), data].concat()
}

fn serve(mut client: UnixStream, index: usize, state: &Mutex<Database>) {
    let mut once = || -> io::Result<()> {
        let mut header = [0; HEADER];
        client.read_exact(&mut header)?;
        let asked = DbHeader::decode(&header).map_err(io::Error::other)?;
        let mut database = state.lock().expect("no panic");
        match asked.message() {
            DbMessage::Watch => {
                assert_eq!(asked.path(), b"/vm-config/");
                database.clients[index].1 = true;
                client.write_all(&bytes(DbMessage::Ok, asked.path(), b""))
            }
            DbMessage::Multiread => {
                let found = database.entries.iter().filter(|(path, _)| path.starts_with(asked.path()));
                let mut answer: Vec<u8> =
                    found.flat_map(|(path, value)| bytes(DbMessage::Entry, path, value)).collect();
                answer.extend(bytes(DbMessage::Entry, b"", b""));
                client.write_all(&answer)
            }
            other => panic!("{other:?} was not to be expected"),
        }
    };
    while once().is_ok() {}
}
