//! Streams between clients in this VM and dom0: opened in order, each with the frames that came for it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, atomic::AtomicU64},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::{
    proto::remote::{
        Frame, Hello, RawFrame,
        frame::{Type, restream},
    },
    sys::lock,
};

/// What comes from dom0 for one stream, as whole frames. Bounded by the stream's credit.
pub(super) type Inward = mpsc::UnboundedSender<Vec<u8>>;

/// What clients and the queue share.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) hello: Hello,
    /// To dom0.
    pub(super) out: mpsc::Sender<Vec<u8>>,
    pub(super) streams: Mutex<OpenStreams>,
    /// Streams that may be opened.
    pub(super) free: Arc<Semaphore>,
    pub(super) seq: AtomicU64,
}

#[derive(Debug, Default)]
pub(super) struct OpenStreams {
    last: u32,
    pub(super) open: HashMap<u32, Inward>,
}

/// An open stream.
#[derive(Debug)]
pub(super) struct AgentStream {
    number: u32,
    agent: Arc<Agent>,
    pub(super) frames: mpsc::UnboundedReceiver<Vec<u8>>,
    _free: OwnedSemaphorePermit,
}

impl Agent {
    /// Opens a stream with its first frame, when one is free.
    pub(super) async fn open(self: &Arc<Self>, mut first: Vec<u8>) -> Option<AgentStream> {
        let free = self.free.clone().acquire_owned().await.ok()?;
        let place = self.out.reserve().await.ok()?;
        let (inward, frames) = mpsc::unbounded_channel();
        let number = {
            // number and place in the line are taken together: dom0 wants numbers that only grow
            let mut streams = lock(&self.streams);
            streams.last += 1;
            let number = streams.last;
            streams.open.insert(number, inward);
            restream(&mut first, number);
            place.send(first);
            number
        };
        Some(AgentStream { number, agent: self.clone(), frames, _free: free })
    }

    pub(super) fn deliver(&self, raw: RawFrame<'_>, bytes: &[u8]) {
        let mut streams = lock(&self.streams);
        if let Some(inward) = streams.open.get(&raw.stream) {
            let _ = inward.send(bytes.to_vec());
        }
        if matches!(raw.kind, Type::Exit | Type::Reject) {
            streams.open.remove(&raw.stream);
        }
    }
}

impl AgentStream {
    /// Sends a whole frame of whatever stream number as one of this stream.
    pub(super) async fn send(&self, mut frame: Vec<u8>) -> bool {
        restream(&mut frame, self.number);
        self.agent.out.send(frame).await.is_ok()
    }

    /// Its client is gone: dom0 is told, and what still comes is dropped until the stream's end.
    pub(super) async fn abandon(mut self) {
        self.send(Frame::Cancel.to_vec(1)).await;
        while let Some(bytes) = self.frames.recv().await {
            let Ok(Some((raw, _))) = RawFrame::split(&bytes) else { return };
            if matches!(raw.kind, Type::Stdout | Type::Stderr) {
                let n = u32::try_from(raw.body.len()).unwrap_or(0);
                self.send(Frame::Credit(n).to_vec(1)).await;
            }
        }
    }
}
