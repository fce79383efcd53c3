//! What both ends of a channel have in common: how frames get into it, and when it counts as dead.

use std::time::Duration;

use bytes::Bytes;
use tokio::{sync::mpsc, time::timeout};

use super::pipe::AsyncPipe;

/// Frames that wait for the other end: with data, one megabyte.
pub const WAITING: usize = 16;
/// A ping after so much silence.
pub const SILENCE: Duration = Duration::from_secs(15);
/// A channel that is silent for so long has ended. Timers of tokio stand still while the machine sleeps
/// (CLOCK_MONOTONIC), so a suspend ends none.
pub const DEAD: Duration = Duration::from_secs(45);
/// Frames that wait are written together up to so many bytes.
pub(super) const TOGETHER: usize = 4096;

/// Writes frames in the order in which they came, until nobody sends any more or nobody reads ([`DEAD`] without progress):
/// the streams wait in line for each. Small ones go together: ACCEPT, output and EXIT of a short command are one write.
pub async fn write(to: AsyncPipe, mut line: mpsc::Receiver<Bytes>) {
    let mut together = Vec::new();
    while let Some(first) = line.recv().await {
        together.clear();
        while first.len().max(together.len()) < TOGETHER {
            let Ok(more) = line.try_recv() else { break };
            if together.is_empty() {
                together.extend_from_slice(&first);
            }
            together.extend_from_slice(&more);
        }
        let mut rest = if together.is_empty() { &first[..] } else { &together[..] };
        while !rest.is_empty() {
            match timeout(DEAD, to.write(rest)).await {
                Ok(Ok(n)) if n > 0 => rest = &rest[n..],
                _ => return,
            }
        }
    }
}
