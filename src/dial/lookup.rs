//! Look-ups of host names.
//!
//! # Theory
//! getaddrinfo(3) blocks its thread for as long as the name servers do not answer, and nothing can cancel it. So each
//! look-up has a separate thread. Nobody joins that thread: neither a session that has no time left nor the end of
//! the process. Those who ask for a name while it is being looked up share that look-up. Nothing is remembered of an
//! answer: the next dial looks the name up again.
//!
//! The number of look-ups at a time is limited. A name whose last look-up was slow may use only a part of these
//! places, so that many names of a dead name server leave places to all other names.
//!
//! Names are looked up in the service's own network namespace alone (`spec` refuses the others), so the name identifies
//! a look-up.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{SocketAddr, ToSocketAddrs as _},
    sync::{Arc, LazyLock, Mutex},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch};

use crate::sys::lock;

/// Look-ups at a time.
const PLACES: usize = 64;
/// Look-ups at a time of names whose last look-up was slow.
const SLOW_PLACES: usize = 48;
/// A look-up that takes longer was slow: a name server that answers does so within a fraction of it.
const SLOW: Duration = Duration::from_secs(1);

/// Result of a look-up, for all who wait for it. The ports are 0.
type LookupResult = Result<Arc<[SocketAddr]>, Arc<io::Error>>;
/// A function that looks a name up and blocks meanwhile.
type Resolver = fn(&str) -> io::Result<Vec<SocketAddr>>;

/// The look-ups of this process.
static LOOKUPS: LazyLock<Arc<Lookups>> = LazyLock::new(|| Arc::new(Lookups::new(get_addr_info)));

/// The addresses of `name`, with `port`.
///
/// # Errors
/// What getaddrinfo(3) says; the error of the kernel when no thread can be started.
///
/// # Cancel safety
/// Safe. The look-up goes on, and who asks for the same name meanwhile gets its result.
pub(super) async fn addresses(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    match LOOKUPS.addresses(name).await {
        Ok(found) => Ok(found
            .iter()
            .map(|&(mut address)| {
                address.set_port(port);
                address
            })
            .collect()),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    }
}

fn get_addr_info(name: &str) -> io::Result<Vec<SocketAddr>> {
    (name, 0).to_socket_addrs().map(Iterator::collect)
}

/// Look-ups that run, and the names whose last look-up was slow.
#[derive(Debug)]
struct Lookups {
    resolver: Resolver,
    state: Mutex<LookupState>,
    /// A look-up has ended.
    ended: Notify,
}

#[derive(Debug, Default)]
struct LookupState {
    /// The look-ups that run, by name.
    running: HashMap<String, Lookup>,
    /// Names whose last look-up was slow. Names come from the configuration, so there are few.
    slow: HashSet<String>,
}

/// A look-up that runs.
#[derive(Debug)]
struct Lookup {
    answer: watch::Receiver<Option<LookupResult>>,
    /// Whether it uses one of the places for slow names.
    slow: bool,
}

impl Lookups {
    fn new(resolver: Resolver) -> Self {
        Self { resolver, state: Mutex::default(), ended: Notify::new() }
    }

    async fn addresses(self: &Arc<Self>, name: &str) -> LookupResult {
        let mut answer = loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            match self.join(name).map_err(Arc::new)? {
                Some(answer) => break answer,
                None => ended.await,
            }
        };
        match answer.wait_for(Option::is_some).await {
            Ok(answer) => answer.clone().expect("it was waited for"),
            Err(_) => Err(Arc::new(io::Error::other("its look-up broke off"))),
        }
    }

    /// The look-up of `name` that runs, or a new one; `None` when there is no place for a new one.
    fn join(self: &Arc<Self>, name: &str) -> io::Result<Option<watch::Receiver<Option<LookupResult>>>> {
        let mut state = lock(&self.state);
        if let Some(running) = state.running.get(name) {
            return Ok(Some(running.answer.clone()));
        }
        let slow = state.slow.contains(name);
        let slow_now = state.running.values().filter(|lookup| lookup.slow).count();
        if state.running.len() >= PLACES || (slow && slow_now >= SLOW_PLACES) {
            return Ok(None);
        }
        let (sender, answer) = watch::channel(None);
        let (lookups, asked) = (self.clone(), name.to_owned());
        thread::Builder::new().name("lookup".into()).spawn(move || {
            let end = LookupEnd { lookups: &lookups, name: &asked, began: Instant::now() };
            let found = (lookups.resolver)(&asked);
            drop(end); // before the answer: who asks after it gets a new look-up
            sender.send_replace(Some(found.map(Arc::from).map_err(Arc::new)));
        })?;
        state.running.insert(name.to_owned(), Lookup { answer: answer.clone(), slow });
        Ok(Some(answer))
    }
}

/// Gives the place of a look-up back when it is dropped, also when the resolver panics.
struct LookupEnd<'a> {
    lookups: &'a Lookups,
    name: &'a str,
    began: Instant,
}

impl Drop for LookupEnd<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.lookups.state);
        state.running.remove(self.name);
        if self.began.elapsed() > SLOW {
            state.slow.insert(self.name.to_owned());
        } else {
            state.slow.remove(self.name);
        }
        drop(state);
        self.lookups.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::time::timeout;

    use super::*;

    /// Look-ups of names that begin with `dead` begun so far; they go on until one that is `released` was asked for.
    static DEAD: AtomicUsize = AtomicUsize::new(0);
    static RELEASED: Mutex<bool> = Mutex::new(false);
    static RELEASE: std::sync::Condvar = std::sync::Condvar::new();

    fn resolver(name: &str) -> io::Result<Vec<SocketAddr>> {
        if name.starts_with("dead") {
            DEAD.fetch_add(1, SeqCst);
            drop(RELEASE.wait_while(RELEASED.lock().unwrap(), |released| !*released).unwrap());
            return Err(io::Error::other("no answer"));
        }
        Ok(vec![([127, 0, 0, 1], 0).into()])
    }

    #[tokio::test]
    async fn names_without_an_answer_are_looked_up_once_at_a_time_and_leave_places_to_others() {
        let lookups = Arc::new(Lookups::new(resolver));
        let ask = |name: String| {
            let lookups = lookups.clone();
            tokio::spawn(async move { lookups.addresses(&name).await })
        };
        // many who ask for one name: one look-up
        let same: Vec<_> = (0..700).map(|_| ask("dead".into())).collect();
        assert!(timeout(Duration::from_millis(50), lookups.addresses("dead")).await.is_err());
        assert_eq!(DEAD.load(SeqCst), 1);
        lock(&lookups.state).slow.extend((0..100).map(|n| format!("dead{n}")));
        let many: Vec<_> = (0..100).map(|n| ask(format!("dead{n}"))).collect();
        assert!(timeout(Duration::from_millis(50), lookups.addresses("dead99")).await.is_err());
        assert_eq!(lock(&lookups.state).running.len(), SLOW_PLACES + 1, "slow names have their own limit");
        assert_eq!(&*lookups.addresses("localhost").await.unwrap(), [([127, 0, 0, 1], 0).into()]);
        *RELEASED.lock().unwrap() = true;
        RELEASE.notify_all();
        for task in same.into_iter().chain(many) {
            assert_eq!(task.await.unwrap().unwrap_err().to_string(), "no answer");
        }
        assert_eq!(DEAD.load(SeqCst), 101, "those that had no place were looked up later");
        assert!(lock(&lookups.state).running.is_empty());
    }
}
