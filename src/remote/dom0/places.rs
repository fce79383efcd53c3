//! The places of one qube: how many of its commands run at a time. The bound is asked for each time that a place is
//! taken, so that a policy that was changed counts for whoever waits.

use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::sys::lock;

/// The places of one qube.
#[derive(Debug, Default)]
pub(super) struct Places(Arc<TakenPlaces>);

#[derive(Debug, Default)]
struct TakenPlaces {
    taken: Mutex<usize>,
    /// For those who wait, the first first.
    freed: Notify,
}

/// A place that was taken, until it is dropped.
#[derive(Debug)]
pub(super) struct CommandPlace(Arc<TakenPlaces>);

impl Places {
    /// Takes a place, if fewer than `most` are taken.
    pub(super) fn take(&self, most: usize) -> Option<CommandPlace> {
        let mut taken = lock(&self.0.taken);
        let free = *taken < most;
        *taken += usize::from(free);
        free.then(|| CommandPlace(self.0.clone()))
    }

    /// The bound may be another one: whoever waits asks for it again.
    pub(super) fn look_again(&self) {
        self.0.freed.notify_one();
    }

    /// Waits for a place.
    ///
    /// # Cancel safety
    /// Safe: nothing was taken when it is dropped, and the next in line is woken instead.
    pub(super) async fn wait(&self, most: impl Fn() -> usize) -> CommandPlace {
        loop {
            self.0.freed.notified().await;
            if let Some(place) = self.take(most()) {
                if *lock(&self.0.taken) < most() {
                    self.0.freed.notify_one(); // the bound was raised
                }
                return place;
            }
        }
    }
}

impl Drop for CommandPlace {
    fn drop(&mut self) {
        *lock(&self.0.taken) -= 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[tokio::test]
    async fn places_are_given_in_turn_and_a_bound_that_changes_counts_for_those_who_wait() {
        let (places, most) = (Arc::<Places>::default(), Arc::new(AtomicUsize::new(2)));
        let held = [places.take(2), places.take(2)];
        assert!(held.iter().all(Option::is_some) && places.take(2).is_none());
        let wait =
            |places: Arc<Places>, most: Arc<AtomicUsize>| async move { places.wait(|| most.load(Relaxed)).await };
        let waiting = [(); 3].map(|()| tokio::spawn(wait(places.clone(), most.clone())));
        tokio::task::yield_now().await;
        most.store(1, Relaxed);
        let [first, second] = held;
        drop(first);
        tokio::task::yield_now().await;
        assert!(waiting.iter().all(|task| !task.is_finished()), "one place is taken, and one is all there is now");
        most.store(9, Relaxed);
        drop(second);
        for task in waiting {
            task.await.expect("it gets a place");
        }
    }

    #[tokio::test]
    async fn a_bound_that_is_raised_counts_at_once() {
        let (places, most) = (Arc::<Places>::default(), Arc::new(AtomicUsize::new(1)));
        let _held = places.take(1).expect("the first");
        let wait =
            |places: Arc<Places>, most: Arc<AtomicUsize>| async move { places.wait(|| most.load(Relaxed)).await };
        let waiting = [(); 2].map(|()| tokio::spawn(wait(places.clone(), most.clone())));
        tokio::task::yield_now().await;
        places.look_again();
        tokio::task::yield_now().await;
        assert!(waiting.iter().all(|task| !task.is_finished()), "nothing was raised");
        most.store(3, Relaxed);
        places.look_again();
        for task in waiting {
            task.await.expect("it gets a place while the first is held");
        }
    }
}
