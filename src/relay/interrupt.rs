//! How a running session is told to stop: one small cell each, no channel, no timer.

use std::{
    sync::atomic::{AtomicU8, Ordering::SeqCst},
    task::{Context, Poll},
};

use atomic_waker::AtomicWaker;

/// Why a session is interrupted. A stronger reason replaces a weaker one, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// To be handed over to the next process.
    Park = 1,
    /// The drain's deadline has passed.
    Drained = 2,
    /// Somebody asked for this session's end.
    Killed = 3,
}

/// A request to stop, made from any thread and noticed by the one task that runs the session.
#[derive(Debug, Default)]
pub struct Interrupt {
    why: AtomicU8,
    waker: AtomicWaker,
}

impl Interrupt {
    /// Asks the session to stop. A weaker reason than an earlier one changes nothing.
    pub fn request(&self, why: Why) {
        self.why.fetch_max(why as u8, SeqCst);
        self.waker.wake();
    }

    /// The reason, if there is one by now.
    pub fn requested(&self) -> Option<Why> {
        match self.why.load(SeqCst) {
            1 => Some(Why::Park),
            2 => Some(Why::Drained),
            3 => Some(Why::Killed),
            _ => None,
        }
    }

    /// Ready once there is a reason. Only one task may poll it.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<Why> {
        if let Some(why) = self.requested() {
            return Poll::Ready(why);
        }
        self.waker.register(cx.waker());
        self.requested().map_or(Poll::Pending, Poll::Ready)
    }

    /// Waits for a reason.
    ///
    /// # Cancel safety
    /// Safe: the reason stays.
    pub async fn requested_async(&self) -> Why {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stronger_reason_replaces_a_weaker_one_and_never_the_other_way() {
        let i = Interrupt::default();
        assert_eq!(i.requested(), None);
        i.request(Why::Drained);
        i.request(Why::Park);
        assert_eq!(i.requested(), Some(Why::Drained));
        i.request(Why::Killed);
        assert_eq!(i.requested(), Some(Why::Killed));
    }
}
