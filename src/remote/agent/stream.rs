//! Streams between clients in this VM and dom0: opened in order, each with the frames that came for it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, atomic::AtomicU64},
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::{
    proto::remote::{
        Frame, Hello, WholeFrame,
        frame::{Type, restream},
    },
    sys::lock,
};

/// What comes from dom0 for one stream. Bounded by the stream's credit.
pub(super) type Inward = mpsc::UnboundedSender<WholeFrame>;

/// What clients and the queue share.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) hello: Hello,
    /// To dom0.
    pub(super) out: mpsc::Sender<Bytes>,
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
    pub(super) frames: mpsc::UnboundedReceiver<WholeFrame>,
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
            place.send(first.into());
            number
        };
        Some(AgentStream { number, agent: self.clone(), frames, _free: free })
    }

    pub(super) fn deliver(&self, whole: WholeFrame) {
        let (stream, kind) = (whole.raw().stream, whole.raw().kind);
        let mut streams = lock(&self.streams);
        if let Some(inward) = streams.open.get(&stream) {
            let _ = inward.send(whole);
        }
        if matches!(kind, Type::Exit | Type::Reject) {
            streams.open.remove(&stream);
        }
    }
}

impl AgentStream {
    /// Sends a frame.
    pub(super) async fn send(&self, frame: Frame<'_>) {
        let _ = self.agent.out.send(frame.to_vec(self.number).into()).await;
    }

    /// Sends a frame of whatever stream number as one of this stream.
    pub(super) async fn pass(&self, mut frame: WholeFrame) {
        frame.restream(self.number);
        let _ = self.agent.out.send(frame.into_bytes()).await;
    }

    /// Its client is gone: dom0 gets a message, and what still comes is dropped until the stream's end.
    pub(super) async fn abandon(mut self) {
        self.send(Frame::Cancel).await;
        while let Some(whole) = self.frames.recv().await {
            let raw = whole.raw();
            if matches!(raw.kind, Type::Stdout | Type::Stderr) {
                let n = u32::try_from(raw.body.len()).unwrap_or(0);
                self.send(Frame::Credit(n)).await;
            }
        }
    }
}
