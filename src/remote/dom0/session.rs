//! A live channel: frames come from the agent, and each stream is a command's.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    task::yield_now,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    command,
    judge::Opening,
    port::{Inbox, Out, Port},
    replay::Replay,
    state::{Shared, Vm},
};
use crate::{
    proto::remote::{Frame, Hello, MAX_STREAMS, VERSION},
    remote::{
        frames::Frames,
        line::{DEAD, SILENCE, WAITING},
        pipe::AsyncPipe,
    },
};

/// With `--once`: how long clients that wait for a channel may take to come once it is there. They look for it every 50 ms.
const LATECOMERS: Duration = Duration::from_secs(1);

/// A live channel.
pub(super) struct Session<'a> {
    shared: &'a Arc<Shared>,
    vm: &'a Arc<Vm>,
    nonce: [u8; 32],
    out: Out,
    streams: HashMap<u32, Arc<Inbox>>,
    /// Streams whose commands have ended.
    finished: mpsc::UnboundedSender<u32>,
    ends: mpsc::UnboundedReceiver<u32>,
    /// The agent has read its queue to the end.
    empty: bool,
    /// The agent has nothing more in its queue, and this was all that was wanted.
    pub(super) idle: bool,
}

/// However it ends, its commands hear of it.
impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<'a> Session<'a> {
    /// Greets the agent, with a nonce that no session had before.
    pub(super) async fn begin(shared: &'a Arc<Shared>, vm: &'a Arc<Vm>, out: Out) -> io::Result<Self> {
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce)?;
        *vm.replay() = Replay::default();
        let hello = Hello { version: VERSION, nonce, vm: vm.name.clone(), streams: MAX_STREAMS, seq: 1 };
        let _ = out.send(Frame::Hello(hello).to_vec(0)).await;
        let (finished, ends) = mpsc::unbounded_channel();
        Ok(Self { shared, vm, nonce, out, streams: HashMap::new(), finished, ends, empty: false, idle: false })
    }

    /// The commands hear that the channel has ended.
    pub(super) fn leave(&mut self) {
        self.streams.drain().for_each(|(_, inbox)| inbox.gone());
    }

    /// Reads until the end; `None` when it was an ordinary one.
    pub(super) async fn read(&mut self, frames: &mut Frames<AsyncPipe>) -> Option<&'static str> {
        let (mut heard, mut quiet) = (Instant::now(), None);
        loop {
            if let Err(why) = self.take_all(frames).await {
                return Some(why);
            }
            let nothing = self.shared.once && self.empty && self.streams.is_empty();
            let since = *quiet.get_or_insert_with(Instant::now);
            if !nothing {
                quiet = None;
            }
            tokio::select! {
                biased;
                Some(stream) = self.ends.recv() => {
                    self.streams.remove(&stream);
                }
                () = self.out.closed() => return Some("it reads nothing"),
                more = frames.fill() => match more {
                    Ok(true) => {
                        heard = Instant::now();
                        yield_now().await; // other qubes have their turn between two reads of one that floods
                    }
                    Ok(false) | Err(_) => return None,
                },
                () = sleep_until(since + LATECOMERS), if nothing => {
                    self.idle = true;
                    self.say_goodbye().await;
                    return None;
                }
                () = sleep(SILENCE) => {
                    if heard.elapsed() > DEAD {
                        return Some("it has been silent for too long");
                    }
                    // never waits: a VM that reads nothing is noticed by its silence
                    let _ = self.out.try_send(Frame::Ping(1).to_vec(0));
                }
            }
        }
    }

    /// Takes every frame that has come.
    async fn take_all(&mut self, frames: &mut Frames<AsyncPipe>) -> Result<(), &'static str> {
        while let Some((raw, _)) = frames.ready().map_err(|fault| fault.0)? {
            match raw.parse().map_err(|fault| fault.0)? {
                Frame::Ping(n) => {
                    self.empty |= n == 0; // the agent's queue was read to its end
                    // never waits: a VM that reads nothing keeps nobody from hearing it
                    let _ = self.out.try_send(Frame::Pong(n).to_vec(0));
                }
                Frame::Pong(_) => {}
                frame => self.take(raw.stream, frame)?,
            }
        }
        Ok(())
    }

    /// Ends the session; what is on its way must arrive before the pipe is closed.
    async fn say_goodbye(&mut self) {
        let _ = self.out.send(Frame::Goaway("once").to_vec(0)).await;
        let _ = timeout(Duration::from_secs(5), async {
            while self.out.capacity() < WAITING {
                sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    /// Takes a frame of a stream: begins a command, or gives the frame to the one that runs.
    fn take(&mut self, stream: u32, frame: Frame<'_>) -> Result<(), &'static str> {
        let opening = match frame {
            Frame::Open(request, mac) => Opening::Open(request, mac),
            Frame::V1(id, token, length) => Opening::V1(id.to_owned(), token.to_vec(), length),
            frame => {
                // a stream that has ended meanwhile gets what was on its way
                return match self.streams.get(&stream) {
                    Some(inbox) if !inbox.put(&frame) => Err("it sent what it had no right to send"),
                    _ => Ok(()),
                };
            }
        };
        if self.streams.len() >= usize::from(MAX_STREAMS) {
            return Err("it opened more streams than there are");
        }
        if self.streams.contains_key(&stream) {
            return Err("it opened a stream twice");
        }
        let port = Port { stream, out: self.out.clone(), inbox: Arc::default() };
        self.streams.insert(stream, port.inbox.clone());
        let (shared, vm, nonce, finished) = (self.shared.clone(), self.vm.clone(), self.nonce, self.finished.clone());
        self.shared.tasks.spawn(async move {
            command::serve(shared, vm, Some(nonce), port, opening).await;
            let _ = finished.send(stream);
        });
        Ok(())
    }
}
