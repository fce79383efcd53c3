//! What a crowd leaves behind is given back: the pipes of the relay, and the heap.
//!
//! The allocator keeps what was freed for the next use, between what is still used, for ever. After thousands of
//! sessions have ended that is megabytes, so it is asked to return them (malloc_trim(3), which takes milliseconds).

use std::time::Duration;

use tokio::{sync::watch, time::sleep};

use crate::{relay, sys};

/// How long after a change it is looked: a crowd leaves one by one.
const PAUSE: Duration = Duration::from_millis(500);
/// Sessions above which memory is given back to the kernel.
const CROWD: usize = 256;

/// Gives back what is left when most sessions have ended; for ever.
pub async fn after_crowds(mut sessions: watch::Receiver<usize>) {
    let mut most = 0;
    while sessions.changed().await.is_ok() {
        most = most.max(*sessions.borrow());
        sleep(PAUSE).await;
        let now = *sessions.borrow_and_update();
        if now > most / 2 {
            most = most.max(now);
            continue;
        }
        relay::let_go();
        if most >= CROWD {
            let _ = tokio::task::spawn_blocking(sys::trim).await;
        }
        most = now;
    }
}
