//! One stream, seen from the command's side: what the VM sends is put together in a box of constant size, however it
//! is cut or repeated; what goes to the VM waits its turn behind the other streams.

use std::{
    ops::DerefMut,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use crate::{
    proto::{
        mac::Digest,
        remote::{CREDIT, Frame, WaitReason, frame},
    },
    sys::lock,
};

/// Frames on their way to one VM. Whoever sends waits in line, so streams take turns.
pub type Out = mpsc::Sender<Bytes>;

/// What a VM sent for one stream and the command has not taken yet.
#[derive(Debug)]
struct Inside {
    /// Body or standard input; at most [`CREDIT`] bytes.
    data: Vec<u8>,
    /// Bytes that the VM may still send.
    window: u32,
    /// Bytes that we may still send.
    credit: u32,
    eof: bool,
    cancel: bool,
    /// Bit n: signal n.
    signals: u32,
    resize: Option<(u16, u16)>,
    /// The channel has ended.
    gone: bool,
}

/// What a VM sent for one stream, and who waits for it.
#[derive(Debug)]
pub struct Inbox {
    inside: Mutex<Inside>,
    /// For whoever takes data, signals or the end.
    input: Notify,
    /// For whoever waits to send.
    credit: [Notify; 2],
}

/// Something other than data that the VM sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// The command is to be ended.
    Cancel,
    /// The channel ended, so nobody waits for the result.
    Gone,
    /// A signal for the process group.
    Signal(u8),
    /// The terminal's size.
    Resize(u16, u16),
}

impl Default for Inbox {
    fn default() -> Self {
        let inside = Inside {
            data: Vec::new(),
            window: CREDIT,
            credit: CREDIT,
            eof: false,
            cancel: false,
            signals: 0,
            resize: None,
            gone: false,
        };
        Self { inside: Mutex::new(inside), input: Notify::new(), credit: [Notify::new(), Notify::new()] }
    }
}

impl Inbox {
    fn with<T>(&self, change: impl FnOnce(&mut Inside) -> T) -> T {
        change(&mut lock(&self.inside))
    }

    /// Takes a frame in; `false` when the VM had no right to send it.
    pub fn put(&self, frame: &Frame<'_>) -> bool {
        let fine = self.with(|inside| {
            match frame {
                Frame::Body(data) | Frame::Stdin(data) => {
                    let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
                    let Some(left) = inside.window.checked_sub(size).filter(|_| !inside.eof) else { return false };
                    inside.window = left;
                    inside.data.extend_from_slice(data);
                }
                Frame::Credit(n) => {
                    // more than there ever was would let it ask for memory
                    match inside.credit.checked_add(*n).filter(|sum| *sum <= CREDIT) {
                        Some(sum) => inside.credit = sum,
                        None => return false,
                    }
                }
                Frame::Eof => inside.eof = true,
                Frame::Cancel => inside.cancel = true,
                Frame::Signal(n) => inside.signals |= 1 << n,
                Frame::Resize(rows, columns) => inside.resize = Some((*rows, *columns)),
                _ => return false,
            }
            true
        });
        if matches!(frame, Frame::Credit(_)) {
            self.credit.iter().for_each(Notify::notify_one);
        } else {
            self.input.notify_waiters();
            if matches!(frame, Frame::Cancel) {
                self.credit.iter().for_each(Notify::notify_one);
            }
        }
        fine
    }

    /// The channel has ended.
    pub fn gone(&self) {
        self.with(|inside| inside.gone = true);
        self.input.notify_waiters();
        self.credit.iter().for_each(Notify::notify_one);
    }

    /// Whether the qube sent the end of its data.
    pub fn has_ended(&self) -> bool {
        self.with(|inside| inside.eof)
    }

    /// Data that came, or `None` at its end and at the end of the channel; [`Self::has_ended`] tells which.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn data(&self) -> Option<Vec<u8>> {
        self.wait(|inside| {
            if !inside.data.is_empty() {
                Some(Some(std::mem::take(&mut inside.data)))
            } else if inside.eof || inside.gone {
                Some(None)
            } else {
                None
            }
        })
        .await
    }

    /// The next thing that is no data.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn order(&self) -> StreamEvent {
        self.wait(|inside| {
            if inside.gone {
                Some(StreamEvent::Gone)
            } else if inside.cancel {
                Some(StreamEvent::Cancel)
            } else if inside.signals != 0 {
                let n = inside.signals.trailing_zeros();
                inside.signals &= !(1 << n);
                Some(StreamEvent::Signal(u8::try_from(n).unwrap_or(0)))
            } else {
                inside.resize.take().map(|(rows, columns)| StreamEvent::Resize(rows, columns))
            }
        })
        .await
    }

    /// Waits until the client gave up or the channel ended; leaves everything else where it is.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn abandoned(&self) -> StreamEvent {
        self.wait(
            |inside| if inside.gone { Some(StreamEvent::Gone) } else { inside.cancel.then_some(StreamEvent::Cancel) },
        )
        .await
    }

    async fn wait<T>(&self, look: impl Fn(&mut Inside) -> Option<T>) -> T {
        loop {
            let notified = self.input.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if let Some(found) = self.with(&look) {
                return found;
            }
            notified.await;
        }
    }

    /// Takes credit for up to `most` bytes, at least one; 0 when nobody will read it: the client gave up, or the
    /// channel has ended. `who` is 0 or 1: two may wait.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn credit(&self, who: usize, most: u32) -> u32 {
        loop {
            let (taken, gone) = self.with(|inside| {
                let taken = inside.credit.min(most);
                inside.credit -= taken;
                (taken, inside.gone || inside.cancel)
            });
            if taken > 0 || gone {
                return if gone { 0 } else { taken };
            }
            self.credit[who].notified().await;
        }
    }

    /// Gives credit back that was not used.
    pub fn unused(&self, n: u32) {
        self.with(|inside| inside.credit += n);
        self.credit.iter().for_each(Notify::notify_one);
    }

    fn reopen(&self, n: u32) {
        self.with(|inside| inside.window = inside.window.saturating_add(n).min(CREDIT));
    }
}

/// The place of a request in dom0's log, as its qube gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The number of the entry.
    pub number: u64,
    /// The head of the chain behind it.
    pub head: Digest,
    /// The code of both.
    pub code: Digest,
}

/// A stream's two directions.
#[derive(Clone, Debug)]
pub struct Port {
    /// The number of the stream.
    pub stream: u32,
    /// Frames to the VM.
    pub out: Out,
    /// What came from the VM.
    pub inbox: Arc<Inbox>,
}

impl Port {
    /// Sends a frame when it is its turn; a VM that is gone loses it. A VM that reads nothing makes this wait until the
    /// channel's writer gives up ([`crate::remote::line`]), so whoever runs a command waits here beside the reasons to
    /// end it.
    pub async fn send(&self, frame: Frame<'_>) {
        if let Some(place) = self.place_in_line().await {
            place.send(frame.to_vec(self.stream).into());
        }
    }

    /// Says that the request runs, and where it stands in the log.
    pub async fn accept(&self, receipt: Option<Receipt>) {
        if let Some(Receipt { number, head, code }) = receipt {
            self.send(Frame::Wait(WaitReason::Recorded(number, head, code))).await;
        }
        self.send(Frame::Accept).await;
    }

    /// Waits until a frame may be sent; `None` when the channel has ended.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn place_in_line(&self) -> Option<mpsc::Permit<'_, Bytes>> {
        self.out.reserve().await.ok()
    }

    /// The frame of data that stands behind room for a header ([`frame::HEADER`]).
    pub fn data<B: DerefMut<Target = [u8]> + Into<Bytes>>(&self, mut bytes: B, kind: frame::Type) -> Bytes {
        frame::seal(&mut bytes, self.stream, kind);
        bytes.into()
    }

    /// Says that `n` bytes of what the VM sent were passed on, so that it may send as many again.
    pub async fn taken(&self, n: usize) {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        self.inbox.reopen(n);
        self.send(Frame::Credit(n)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_cannot_send_more_than_its_credit_nor_grant_more_than_there_is() {
        let inbox = Inbox::default();
        let data = vec![0; 32 << 10];
        for _ in 0..8 {
            assert!(inbox.put(&Frame::Stdin(&data)));
        }
        assert!(!inbox.put(&Frame::Stdin(b"x")));
        assert!(!inbox.put(&Frame::Credit(1)), "nothing was used yet");
        assert!(!inbox.put(&Frame::Credit(u32::MAX)));
    }

    #[test]
    fn repeated_orders_take_no_room() {
        let inbox = Inbox::default();
        for _ in 0..10_000 {
            assert!(inbox.put(&Frame::Signal(2)) && inbox.put(&Frame::Signal(15)) && inbox.put(&Frame::Resize(1, 2)));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let got = runtime.block_on(async { [inbox.order().await, inbox.order().await, inbox.order().await] });
        assert_eq!(got, [StreamEvent::Signal(2), StreamEvent::Signal(15), StreamEvent::Resize(1, 2)]);
    }

    #[test]
    fn credit_is_taken_given_back_and_ends_with_the_channel() {
        let inbox = Inbox::default();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            assert_eq!(inbox.credit(0, CREDIT).await, CREDIT);
            inbox.unused(5);
            assert_eq!(inbox.credit(1, 100).await, 5);
            assert!(inbox.put(&Frame::Credit(7)));
            assert_eq!(inbox.credit(0, 100).await, 7);
            inbox.gone();
            assert_eq!(inbox.credit(0, 100).await, 0);
            assert_eq!(inbox.data().await, None);
            assert!(!inbox.has_ended(), "the channel ended, not the data");
        });
    }
}
