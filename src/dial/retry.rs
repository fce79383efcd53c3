//! Retries of a dial whose upstream is not there yet.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{
    failure::{DialStep, Failure},
    netns,
};

/// The first pause before another try, and the longest: 1/32 s, that doubled comes to whole seconds.
const PAUSE: (Duration, Duration) = (Duration::from_micros(31_250), Duration::from_secs(1));
/// Of the tries with the longest pause, every one of this number is reported: about one in a minute.
const REPORTED: u32 = 60;

/// Until when failures are retried.
#[derive(Clone, Copy, Debug)]
pub struct RetryUntil {
    /// For an upstream that is not there yet.
    pub absent: Instant,
    /// For a UNIX socket with a full backlog (EAGAIN, unix(7)), where other sockets would wait by themselves.
    pub busy: Instant,
    /// Whether the dial begins in its own namespace, where a missing route is one that is not there yet.
    pub in_namespace: bool,
}

impl RetryUntil {
    /// When retries of this failure end; `None` where it is not retried.
    fn of(self, failure: &Failure) -> Option<Instant> {
        match failure {
            // `ip netns add` makes a file, and then puts the namespace in its place.
            Failure::Netns(netns::Trouble::Missing(_) | netns::Trouble::Strange(_)) => Some(self.absent),
            Failure::Addresses { tried, .. } => {
                tried.iter().filter_map(|(_, failure)| self.of(failure.as_ref()?)).max()
            }
            Failure::Io { step: step @ (DialStep::Tcp | DialStep::Unix | DialStep::Udp), error, .. } => match error
                .raw_os_error()?
            {
                libc::ECONNREFUSED | libc::ENOENT => Some(self.absent),
                libc::EAGAIN if *step == DialStep::Unix => Some(self.busy),
                // EADDRNOTAVAIL: a route, and no address of that family yet.
                libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EADDRNOTAVAIL if self.in_namespace => Some(self.absent),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Dials until it succeeds, fails for a reason that time does not mend, or the time for retries is over. The pause
/// between tries is 1/32 s, doubling to 1 s; `waiting` is called before a pause, once for each errno in a row and then
/// about once a minute. Retries do not shorten a try: each has the time that `dial` gives it.
///
/// # Errors
/// That of the last try.
///
/// # Cancel safety
/// As `dial`.
pub async fn retrying<T, F: Future<Output = Result<T, Failure>>>(
    until: RetryUntil,
    mut waiting: impl FnMut(&Failure, Duration),
    dial: impl Fn() -> F,
) -> Result<T, Failure> {
    let mut pause = PAUSE.0;
    let mut at_longest = 0;
    let mut told = None;
    loop {
        let failure = match dial().await {
            Ok(connected) => return Ok(connected),
            Err(failure) => failure,
        };
        let now = Instant::now();
        let Some(end) = until.of(&failure).filter(|end| now < *end) else { return Err(failure) };
        let next = (now + pause).min(end);
        let number = errno(&failure);
        if told.replace(number) != Some(number) || (at_longest > 0 && at_longest % REPORTED == 0) {
            waiting(&failure, next - now);
        }
        sleep_until(next).await;
        if pause == PAUSE.1 {
            at_longest += 1;
        }
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// The errno of a failure, where there is one.
fn errno(failure: &Failure) -> Option<i32> {
    match failure {
        Failure::Io { error, .. } => error.raw_os_error(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, io, path::PathBuf};

    use super::*;

    fn failure(step: DialStep, number: i32) -> Failure {
        Failure::Io { step, doing: "connect".into(), error: io::Error::from_raw_os_error(number) }
    }

    fn until(seconds: u64, in_namespace: bool) -> RetryUntil {
        let now = Instant::now();
        RetryUntil { absent: now + Duration::from_secs(seconds), busy: now + Duration::from_secs(9), in_namespace }
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_to_a_second_and_the_last_try_is_at_the_end_of_the_time() {
        let (tries, pauses) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        let began = Instant::now();
        let result = retrying::<(), _>(
            until(150, false),
            |_, pause| pauses.borrow_mut().push(pause.as_millis()),
            || {
                tries.borrow_mut().push(began.elapsed());
                async { Err(failure(DialStep::Tcp, libc::ECONNREFUSED)) }
            },
        );
        assert!(result.await.is_err());
        assert_eq!(began.elapsed(), Duration::from_secs(150));
        let tries = tries.into_inner();
        assert_eq!(tries.len(), 6 + 150, "{tries:?}");
        assert_eq!(*tries.last().unwrap(), Duration::from_secs(150));
        assert_eq!(pauses.into_inner(), [31, 1000, 1000], "the first, then about one in a minute");
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_time_mends_is_retried() {
        let missing = || Failure::Netns(netns::Trouble::Missing(PathBuf::from("/run/netns/x")));
        let half_made = || Failure::Netns(netns::Trouble::Strange(PathBuf::from("/run/netns/x")));
        let tcp = |number| failure(DialStep::Tcp, number);
        let several = |number| Failure::Addresses {
            name: "x:1".into(),
            tried: vec![(([1, 1, 1, 1], 1).into(), None), (([1, 1, 1, 2], 1).into(), Some(tcp(number)))],
            timed_out: None,
        };
        for (failure, here, inside) in [
            (tcp(libc::ECONNREFUSED), 5, 5),
            (tcp(libc::EHOSTUNREACH), 0, 5),
            (tcp(libc::ENETUNREACH), 0, 5),
            (tcp(libc::EADDRNOTAVAIL), 0, 5),
            (failure(DialStep::Unix, libc::ENOENT), 5, 5),
            (failure(DialStep::Unix, libc::EAGAIN), 9, 9),
            (failure(DialStep::Unix, libc::EACCES), 0, 0),
            (failure(DialStep::Name, libc::ENOENT), 0, 0),
            (missing(), 5, 5),
            (half_made(), 5, 5),
            (several(libc::ECONNREFUSED), 5, 5),
            (several(libc::EACCES), 0, 0),
            (Failure::TimedOut(Duration::from_secs(1)), 0, 0),
        ] {
            let left = |until: RetryUntil| until.of(&failure).map_or(0, |end| (end - Instant::now()).as_secs());
            assert_eq!((left(until(5, false)), left(until(5, true))), (here, inside), "{failure:?}");
        }
    }
}
