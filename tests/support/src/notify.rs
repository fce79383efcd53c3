//! The manager's end of `$NOTIFY_SOCKET`: what a service says of itself, and its descriptor store.

use std::{
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    thread::{self, JoinHandle},
    time::Instant,
};

use crate::{PATIENCE, raw};

/// One notification: its assignments, in order.
#[derive(Clone, Debug)]
pub struct Message(pub Vec<(String, String)>);

impl Message {
    /// The value of `key`, when the message assigns it.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }
}

#[derive(Default)]
struct Heard {
    messages: Vec<Message>,
    /// As systemd keeps it: names may repeat.
    store: Vec<(String, OwnedFd)>,
}

/// Receives notifications until it is dropped.
pub struct Notifications {
    path: PathBuf,
    shared: Arc<(Mutex<Heard>, Condvar)>,
    receiver: Option<JoinHandle<()>>,
}

/// Told by us to our own receiver, to end it.
const END: &str = "X_END_OF_TEST=1";

impl Notifications {
    /// Binds a socket at `path`, to be named in `$NOTIFY_SOCKET`.
    pub fn at(path: PathBuf) -> Self {
        let socket = UnixDatagram::bind(&path).expect("the test's own directory is writable");
        let shared: Arc<(Mutex<Heard>, Condvar)> = Arc::default();
        let theirs = Arc::clone(&shared);
        let receiver = thread::spawn(move || {
            let mut buffer = [0; 65536];
            loop {
                let (n, descriptors) =
                    raw::receive_with_descriptors(&socket, &mut buffer).expect("a bound datagram socket can receive");
                let text = String::from_utf8_lossy(&buffer[..n]);
                if text == END {
                    return;
                }
                let assignments = text.lines().filter_map(|line| line.split_once('='));
                let message = Message(assignments.map(|(k, v)| (k.to_owned(), v.to_owned())).collect());
                theirs.0.lock().expect("no panic under this lock").take_in(message, descriptors);
                theirs.1.notify_all();
            }
        });
        Self { path, shared, receiver: Some(receiver) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All messages so far.
    pub fn so_far(&self) -> Vec<Message> {
        self.shared.0.lock().expect("no panic under this lock").messages.clone()
    }

    /// How many messages so far assign `value` to `key`.
    pub fn count(&self, key: &str, value: &str) -> usize {
        self.so_far().iter().filter(|m| m.get(key) == Some(value)).count()
    }

    /// The last `STATUS=`.
    pub fn status(&self) -> Option<String> {
        self.so_far().iter().rev().find_map(|m| m.get("STATUS").map(str::to_owned))
    }

    /// The names of the descriptors in the store.
    pub fn stored(&self) -> Vec<String> {
        self.shared.0.lock().expect("no panic under this lock").store.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Copies of the descriptors in the store, as the next start inherits them.
    pub fn store(&self) -> Vec<(String, OwnedFd)> {
        let heard = self.shared.0.lock().expect("no panic under this lock");
        heard.store.iter().map(|(name, fd)| (name.clone(), fd.try_clone().expect("a free descriptor"))).collect()
    }

    /// The store is emptied, as after a real stop.
    pub fn drop_store(&self) {
        self.shared.0.lock().expect("no panic under this lock").store.clear();
    }

    /// Waits for the first message, old or new, that assigns a value to `key` which `accept` accepts; that value.
    #[track_caller]
    pub fn wait_for(&self, key: &str, accept: impl Fn(&str) -> bool) -> String {
        self.wait(key, |messages| messages.iter().filter_map(|m| m.get(key)).find(|v| accept(v)).map(str::to_owned))
    }

    /// Waits until `find` finds something in the messages so far.
    #[track_caller]
    pub fn wait<T>(&self, what: &str, find: impl Fn(&[Message]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = self.shared.0.lock().expect("no panic under this lock");
        loop {
            if let Some(found) = find(&heard.messages) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let messages = format!("{:#?}", heard.messages);
                drop(heard);
                panic!("no such notification in time: {what}; there was {messages}");
            }
            heard = self.shared.1.wait_timeout(heard, left).expect("no panic under this lock").0;
        }
    }
}

impl Heard {
    /// What sd_notify(3) says of FDSTORE and FDSTOREREMOVE. (BARRIER needs nothing: its descriptor is closed here.)
    fn take_in(&mut self, message: Message, descriptors: Vec<OwnedFd>) {
        let name = message.get("FDNAME").unwrap_or("stored").to_owned();
        if message.get("FDSTORE") == Some("1") {
            self.store.extend(descriptors.into_iter().map(|fd| (name.clone(), fd)));
        } else if message.get("FDSTOREREMOVE") == Some("1") {
            self.store.retain(|(stored, _)| *stored != name);
        }
        self.messages.push(message);
    }
}

impl Drop for Notifications {
    fn drop(&mut self) {
        let told = UnixDatagram::unbound().and_then(|s| s.send_to(END.as_bytes(), &self.path));
        if let (Ok(_), Some(receiver)) = (told, self.receiver.take()) {
            let _ = receiver.join();
        }
    }
}
