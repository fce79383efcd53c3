//! Looks at paths that a qube names. A look can block without end (an automount, a server that is gone, FUSE), so each
//! has a separate thread, is waited for no longer than [`TIME`], and a qube has at most [`LOOKS`] at a time: looks that
//! do not end keep their places, so the further requests of that qube are refused, and nobody else notices.

use std::{sync::Arc, thread, time::Duration};

use tokio::{
    sync::{Semaphore, oneshot},
    time::timeout,
};

/// How long a look is waited for, the wait for a place included.
pub(super) const TIME: Duration = Duration::from_secs(5);
/// Looks of one qube at a time.
const LOOKS: usize = 4;

/// The looks of one qube.
#[derive(Clone, Debug)]
pub(super) struct Looks(Arc<Semaphore>);

/// A look that did not end in time, or found no thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoAnswer;

impl Default for Looks {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LOOKS)))
    }
}

impl Looks {
    /// Does something that may block, in a separate thread.
    ///
    /// # Errors
    /// When it did not end in time. It may still be going on then.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let looked = async {
            let place = self.0.clone().acquire_owned().await.map_err(|_| NoAnswer)?;
            let (answer, wait) = oneshot::channel();
            let look = move || {
                let _ = answer.send(work());
                drop(place);
            };
            thread::Builder::new().name("look".into()).spawn(look).map_err(|_| NoAnswer)?;
            wait.await.map_err(|_| NoAnswer)
        };
        timeout(TIME, looked).await.unwrap_or(Err(NoAnswer))
    }
}

#[cfg(test)]
impl Looks {
    /// Whether no look is going on.
    pub(super) fn idle(&self) -> bool {
        self.0.available_permits() == LOOKS
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_look_that_does_not_end_keeps_its_place_and_nobody_else_waits() {
        let (looks, other) = (Looks::default(), Looks::default());
        let (release, held) = channel::<()>();
        let held = Arc::new(std::sync::Mutex::new(held));
        for _ in 0..LOOKS {
            let held = held.clone();
            let stuck = looks.look(move || _ = crate::sys::lock(&held).recv());
            assert_eq!(stuck.await, Err(NoAnswer));
        }
        assert_eq!(looks.look(|| 1).await, Err(NoAnswer), "no place is free");
        tokio::time::resume();
        assert_eq!(other.look(|| 2).await, Ok(2));
        drop(release);
        assert_eq!(looks.look(|| 3).await, Ok(3), "places come back with the looks that held them");
    }
}
