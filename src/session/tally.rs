//! What is counted: plain numbers beside each route, added to a few times in a session's life, read when somebody asks.
//!
//! A tally belongs to a listener's address and transport and outlives its routes: a new configuration goes on counting.
//! It is also where a listener's pause is kept, for the same reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::identity::ListenerIdentity;
use crate::{
    dial::{Failure, qrexec::gate::BackOff},
    log::{End, labels},
    proto::qrexec::SetUp,
    spec::{Netns, SocketKind},
    sys::lock,
};

/// Upper bounds of the buckets of dial times, in milliseconds: from a local socket to an `ask` prompt that somebody has
/// to walk to.
pub const DIAL_BOUNDS_MS: [u64; 16] =
    [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000];
/// Those, and the one without a bound.
const BUCKETS: usize = DIAL_BOUNDS_MS.len() + 1;

labels! {
    /// Why a dial failed, coarse enough to be a label.
    Reason {
        /// dom0 said no.
        Refused = "refused",
        /// The qube has no such service.
        NoService = "no-service",
        /// The address or the qube is there, and nobody listens.
        NobodyListens = "nobody-listens",
        /// There is no socket at the path.
        NotFound = "not-found",
        /// The kernel denied the connection.
        Permission = "permission",
        /// Nobody answered in time.
        Timeout = "timeout",
        /// The peer did not wait.
        PeerGone = "peer-gone",
        /// The network namespace is not there.
        NoNamespace = "no-namespace",
        /// The local qrexec agent, or what speaks to it, failed.
        Agent = "agent",
        /// Any other reason.
        Other = "other",
    }
}

const REASONS: usize = Reason::ALL.len();
const ENDS: usize = End::Lost as usize;

impl From<&Failure> for Reason {
    fn from(failure: &Failure) -> Self {
        match failure {
            Failure::Call(Some(SetUp::Refused)) | Failure::RefusedAlready => Self::Refused,
            Failure::Call(Some(SetUp::Missing)) => Self::NoService,
            Failure::Call(Some(SetUp::Qrexec)) => Self::NobodyListens,
            Failure::Call(Some(SetUp::Local | SetUp::Usage)) => Self::Agent,
            Failure::Call(Some(SetUp::Service(_)) | None) | Failure::Unit(_) => Self::Other,
            Failure::TimedOut(_) | Failure::ManyUndecided(_) | Failure::Unresolved { .. } => Self::Timeout,
            Failure::Addresses { timed_out: Some(_), .. } => Self::Timeout,
            Failure::Addresses { tried, .. } => {
                tried.iter().rev().find_map(|(_, failure)| failure.as_ref()).map_or(Self::Other, Self::from)
            }
            Failure::PeerGone => Self::PeerGone,
            Failure::Netns(_) => Self::NoNamespace,
            Failure::Start { error, .. } | Failure::Io { error, .. } => match error.kind() {
                io::ErrorKind::ConnectionRefused => Self::NobodyListens,
                io::ErrorKind::NotFound => Self::NotFound,
                io::ErrorKind::PermissionDenied => Self::Permission,
                _ => Self::Other,
            },
        }
    }
}

/// What a tally belongs to: the address of a listener as logs have it, and the transport. TCP and UDP may share an
/// address.
pub type TallyKey = (Arc<str>, SocketKind);

/// What else metrics say of a listener, as its last route has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TallyLabels {
    /// LABEL.
    pub label: Option<Arc<str>>,
    /// The namespace that the upstream is in.
    pub netns: Option<Arc<str>>,
    /// LISTEN_NETNS.
    pub listen_netns: Option<Arc<str>>,
}

/// What one listener's sessions amount to.
#[derive(Debug, Default)]
pub struct Tally {
    labels: Mutex<TallyLabels>,
    counted: Mutex<Counted>,
    /// Whether the listener is paused: connections wait.
    paused: watch::Sender<bool>,
}

/// A [`Tally`] at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Sessions that were accepted.
    pub began: u64,
    /// Sessions that ended, in the order of [`End::ALL`], but for the last.
    pub ends: [u64; ENDS],
    /// Sessions that were lost in a crash. A process that does not know this field forgets the number.
    #[serde(default)]
    pub lost: u64,
    /// Dials that failed, in the order of [`Reason::ALL`].
    pub failures: [u64; REASONS],
    /// Those of them that are among [`Self::dials`], too.
    pub late: u64,
    /// Peers that were not let in.
    pub denied: u64,
    /// Bytes of sessions that ended: up, down.
    pub bytes: [u64; 2],
    /// Dials that succeeded: for each of [`DIAL_BOUNDS_MS`] those that took no longer (and longer than the bound
    /// before), then the rest.
    pub dials: [u64; BUCKETS],
    /// Sum of the times of successful dials, in milliseconds.
    pub dials_ms: u64,
}

impl Counted {
    /// Sessions that ended, by how.
    pub fn ended(&self) -> impl Iterator<Item = (End, u64)> + use<> {
        End::ALL.iter().copied().zip(self.ends.into_iter().chain([self.lost]))
    }
}

/// Adds row to row. The numbers of an earlier process were read from a file: they may be any.
fn add(numbers: &mut [u64], more: &[u64]) {
    numbers.iter_mut().zip(more).for_each(|(n, more)| *n = n.saturating_add(*more));
}

impl Tally {
    /// Notes what else is to be said of the listener.
    pub(super) fn describe(&self, listener: &ListenerIdentity, netns: Option<&Netns>) {
        let netns = netns.map(|netns| netns.to_string().into());
        let (label, listen_netns) = (listener.label.clone(), listener.netns.clone());
        *lock(&self.labels) = TallyLabels { label, netns, listen_netns };
    }

    /// What else is to be said of the listener.
    pub fn labels(&self) -> TallyLabels {
        lock(&self.labels).clone()
    }

    /// A session was accepted.
    pub fn session_began(&self) {
        lock(&self.counted).began += 1;
    }

    /// A session has both its ends, `ms` milliseconds after it was accepted.
    pub fn dialled(&self, ms: u64) {
        let mut counted = lock(&self.counted);
        counted.dials[DIAL_BOUNDS_MS.partition_point(|bound| *bound < ms)] += 1;
        counted.dials_ms = counted.dials_ms.saturating_add(ms);
    }

    /// A dial failed, perhaps after it had looked like a success.
    pub fn dial_failed(&self, why: Reason, connected: bool) {
        let mut counted = lock(&self.counted);
        counted.failures[why as usize] += 1;
        counted.late += u64::from(connected);
    }

    /// A session ended, with so many bytes up and down.
    pub fn session_ended(&self, how: End, (up, down): (u64, u64)) {
        let mut counted = lock(&self.counted);
        match counted.ends.get_mut(how as usize) {
            Some(n) => *n += 1,
            None => counted.lost += 1,
        }
        add(&mut counted.bytes, &[up, down]);
    }

    /// A peer was not let in.
    pub fn peer_denied(&self) {
        lock(&self.counted).denied += 1;
    }

    /// All numbers, as they are now.
    pub fn counted(&self) -> Counted {
        lock(&self.counted).clone()
    }

    /// Goes on from what an earlier process had counted.
    fn go_on_from(&self, earlier: &Counted) {
        let mut counted = lock(&self.counted);
        let Counted { began, ends, lost, failures, late, denied, bytes, dials, dials_ms } = &mut *counted;
        add(ends, &earlier.ends);
        add(failures, &earlier.failures);
        add(bytes, &earlier.bytes);
        add(dials, &earlier.dials);
        let one = [
            (began, earlier.began),
            (lost, earlier.lost),
            (late, earlier.late),
            (denied, earlier.denied),
            (dials_ms, earlier.dials_ms),
        ];
        one.into_iter().for_each(|(n, more)| *n = n.saturating_add(more));
    }

    /// Whether the listener is paused: connections wait.
    pub fn paused(&self) -> bool {
        *self.paused.borrow()
    }

    /// Has connections wait, or no longer; whether that is news.
    pub fn pause(&self, paused: bool) -> bool {
        self.paused.send_if_modified(|now| std::mem::replace(now, paused) != paused)
    }

    /// Waits until connections need not wait.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn resumed(&self) {
        if self.paused() {
            // The sender is this tally's own, so it is there.
            let _ = self.paused.subscribe().wait_for(|paused| !paused).await;
        }
    }
}

/// All tallies.
#[derive(Debug)]
pub struct Tallies {
    of: Mutex<BTreeMap<TallyKey, Arc<Tally>>>,
    /// Listeners that a file without transports may have meant as paused, until there is one.
    maybe_paused: Mutex<BTreeSet<TallyKey>>,
    /// Handovers that the sessions counted here have seen.
    handovers: AtomicU64,
    /// When the counting began, in milliseconds since 1970: with the first of a row of processes that handed over.
    since_ms: AtomicU64,
}

impl Default for Tallies {
    fn default() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let since_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX).into();
        Self { of: Mutex::default(), maybe_paused: Mutex::default(), handovers: AtomicU64::new(0), since_ms }
    }
}

/// Pauses and numbers that outlive this process.
///
/// Addresses of UDP listeners have fields of their own. A process that does not know these forgets what they hold; an
/// older file has all transports in one: its pauses are of both listeners at an address, its numbers of the TCP one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The addresses of stream listeners that are paused.
    pub paused: Vec<String>,
    /// The addresses of UDP listeners that are paused; absent in a file that has all in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_udp: Option<Vec<String>>,
    /// What was counted, when a handover took place: after a crash counting starts from zero, as whoever reads expects.
    pub counts: Option<Counts>,
    /// Gates that dom0 refused last. A process that does not know this field asks dom0 again at once.
    #[serde(default)]
    pub back_offs: Vec<BackOff>,
}

/// Numbers of all processes since the last stop or crash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Handovers, that to the reader of this included.
    pub handovers: u64,
    /// When the counting began, in milliseconds since 1970.
    pub since_ms: u64,
    /// Numbers of each stream listener, by its address.
    pub of: BTreeMap<String, Counted>,
    /// Numbers of each UDP listener, by its address.
    #[serde(default)]
    pub udp: BTreeMap<String, Counted>,
}

impl Tallies {
    /// The tally of a listener.
    pub fn of(&self, listener: &ListenerIdentity) -> Arc<Tally> {
        let key = (listener.address.clone(), listener.transport);
        let paused = lock(&self.maybe_paused).remove(&key);
        let tally = self.at(key);
        if paused {
            tally.pause(true);
        }
        tally
    }

    fn at(&self, key: TallyKey) -> Arc<Tally> {
        lock(&self.of).entry(key).or_default().clone()
    }

    pub fn all(&self) -> Vec<(TallyKey, Arc<Tally>)> {
        lock(&self.of).iter().map(|(key, tally)| (key.clone(), tally.clone())).collect()
    }

    /// Handovers so far.
    pub fn handovers(&self) -> u64 {
        self.handovers.load(Relaxed)
    }

    /// When the counting began, in milliseconds since 1970.
    pub fn since_ms(&self) -> u64 {
        self.since_ms.load(Relaxed)
    }

    /// Forgets listeners that no route leads from any more and that are not paused.
    pub fn prune(&self) {
        lock(&self.of).retain(|_, tally| Arc::strong_count(tally) > 1 || tally.paused());
    }

    /// Takes up what an earlier process has left. A pause of a listener that is gone is kept for its return.
    pub fn take_up(&self, kept: &Snapshot) {
        let keys = |all: &[String], transport| all.iter().map(|address| key(address, transport)).collect::<Vec<_>>();
        let (streams, udp) = (keys(&kept.paused, None), Some(SocketKind::Udp));
        match &kept.paused_udp {
            Some(paused) => {
                for key in streams.into_iter().chain(keys(paused, udp)) {
                    self.at(key).pause(true);
                }
            }
            None => lock(&self.maybe_paused).extend(streams.into_iter().chain(keys(&kept.paused, udp))),
        }
        let Some(counts) = &kept.counts else { return };
        self.handovers.fetch_add(counts.handovers, Relaxed);
        self.since_ms.fetch_min(counts.since_ms, Relaxed);
        let streams = counts.of.iter().map(|one| (None, one));
        for (transport, (address, counted)) in streams.chain(counts.udp.iter().map(|one| (Some(SocketKind::Udp), one)))
        {
            self.at(key(address, transport)).go_on_from(counted);
        }
    }

    /// What is to outlive this process; with the counts when it hands over.
    pub fn keep(&self, handing_over: bool) -> Snapshot {
        let (udp, streams): (Vec<_>, Vec<_>) =
            self.all().into_iter().partition(|((_, kind), _)| *kind == SocketKind::Udp);
        type All = [(TallyKey, Arc<Tally>)];
        let paused = |all: &All| -> Vec<String> {
            all.iter().filter(|(_, tally)| tally.paused()).map(|((address, _), _)| address.to_string()).collect()
        };
        let counted =
            |all: &All| all.iter().map(|((address, _), tally)| (address.to_string(), tally.counted())).collect();
        let counts = handing_over.then(|| Counts {
            handovers: self.handovers() + 1,
            since_ms: self.since_ms(),
            of: counted(&streams),
            udp: counted(&udp),
        });
        let (mut paused, paused_udp) = (paused(&streams), paused(&udp));
        let maybe = lock(&self.maybe_paused);
        let nobody = maybe
            .iter()
            .filter(|(address, kind)| *kind != SocketKind::Udp && maybe.contains(&(address.clone(), SocketKind::Udp)));
        paused.extend(nobody.map(|(address, _)| address.to_string()));
        // Nothing to keep is nothing to write.
        let paused_udp = (!paused.is_empty() || !paused_udp.is_empty()).then_some(paused_udp);
        Snapshot { paused, paused_udp, counts, back_offs: Vec::new() }
    }
}

/// The key of a stream listener, whose address tells its transport, or of a UDP listener.
fn key(address: &str, transport: Option<SocketKind>) -> TallyKey {
    let stream = if address.starts_with(['/', '@']) { SocketKind::Unix } else { SocketKind::Tcp };
    (address.into(), transport.unwrap_or(stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those that there were before others were added.
    #[test]
    fn no_word_of_the_metrics_goes_away() {
        let ends: Vec<_> = End::ALL.iter().map(|end| end.as_str()).collect();
        let reasons: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        for end in ["eof", "reset", "idle", "refused", "dial-failed", "drained", "timeout", "killed", "panicked"] {
            assert!(ends.contains(&end), "{end} is gone: {ends:?}");
        }
        for reason in [
            "refused",
            "no-service",
            "nobody-listens",
            "not-found",
            "permission",
            "timeout",
            "peer-gone",
            "no-namespace",
            "agent",
            "other",
        ] {
            assert!(reasons.contains(&reason), "{reason} is gone: {reasons:?}");
        }
    }

    #[test]
    fn a_dial_is_counted_where_its_time_belongs() {
        let tally = Tally::default();
        for ms in [0, 1, 2, 3, 300_000, 300_001, u64::MAX / 2] {
            tally.dialled(ms);
        }
        let dials = tally.counted().dials;
        assert_eq!((dials[0], dials[1], dials[2], dials[15], dials[16]), (2, 1, 1, 1, 2));
        assert_eq!(dials.iter().sum::<u64>(), 7);
    }

    fn listener(address: &str, transport: SocketKind) -> ListenerIdentity {
        ListenerIdentity::new(address, transport, None)
    }

    #[test]
    fn the_next_process_counts_on_and_keeps_pauses() {
        let tcp = listener("127.0.0.1:53", SocketKind::Tcp);
        let udp = listener("127.0.0.1:53", SocketKind::Udp);
        let unix = listener("/run/a", SocketKind::Unix);
        let first = Tallies::default();
        let tally = first.of(&tcp);
        tally.session_began();
        tally.dial_failed(Reason::Timeout, true);
        tally.session_ended(End::Killed, (5, 7));
        tally.session_ended(End::Lost, (0, 0));
        tally.dialled(3);
        first.of(&udp).session_ended(End::Idle, (1, 2));
        assert!(tally.pause(true) && !tally.pause(true));
        first.of(&unix).pause(true);
        let kept = first.keep(true);
        let text = serde_json::to_string(&kept).expect("plain data");
        assert_eq!(serde_json::from_str::<Snapshot>(&text).expect("as it was written"), kept);

        let second = Tallies::default();
        second.take_up(&kept);
        assert_eq!(second.of(&tcp).counted(), tally.counted());
        assert_eq!(second.of(&udp).counted(), first.of(&udp).counted());
        assert_eq!([&tcp, &udp, &unix].map(|at| second.of(at).paused()), [true, false, true]);
        assert_eq!((second.handovers(), second.since_ms()), (1, first.since_ms()));
        assert_eq!(second.keep(true).counts.map(|c| c.handovers), Some(2));
        assert_eq!(second.keep(false).counts, None);
        assert_eq!(Tallies::default().keep(false), Snapshot::default(), "nothing to write");
    }

    #[test]
    fn old_keys_are_read_as_tcp_and_an_old_pause_as_one_of_both_transports() {
        let earlier = Tallies::default();
        let tcp = listener("127.0.0.1:53", SocketKind::Tcp);
        earlier.of(&tcp).session_began();
        earlier.of(&tcp).pause(true);
        let mut old = serde_json::to_value(earlier.keep(true)).expect("JSON");
        old.as_object_mut().expect("an object").remove("paused_udp");
        old["counts"].as_object_mut().expect("an object").remove("udp");
        let tallies = Tallies::default();
        tallies.take_up(&serde_json::from_value(old).expect("an older file"));
        assert_eq!(tallies.keep(false).paused, ["127.0.0.1:53"], "until it is there");
        let udp = listener("127.0.0.1:53", SocketKind::Udp);
        assert_eq!((tallies.of(&tcp).counted().began, tallies.of(&udp).counted().began), (1, 0));
        assert!(tallies.of(&tcp).paused() && tallies.of(&udp).paused());
        assert!(tallies.of(&tcp).pause(false) && !tallies.of(&tcp).paused(), "once");
    }
}
