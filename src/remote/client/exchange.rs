//! One exchange with dom0: a request out, and frames both ways until its result.
//!
//! # Theory
//! The text goes first, as far as there is credit for it. From ACCEPT on, standard input goes to the command and its
//! output comes back; output counts as passed on when a thread has written it ([`OutputThread`]), and only then dom0 gets
//! credit for more. What ends an exchange: EXIT (the command's result, which must be signed), REJECT, the end of the
//! connection, or a time that is over. Whoever gives up (a signal, an output that nobody reads) cancels first and
//! still waits for dom0's word for a while, so that nothing runs on unseen.

use std::{io, os::fd::AsFd as _, time::Duration};

use sha2::{Digest as _, Sha256};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    connection::Connection,
    history::HistoryEntry,
    stdio,
    submission::{ClientError, Submission},
    terminal::{ClientSignals, OutputThread, RawMode, read_input},
};
use crate::{
    log::escape,
    proto::{
        mac::{Digest, Key, Outcome},
        remote::{CREDIT, Ending, Frame, Refusal, Request, SLICE, WaitReason, flags},
    },
    remote::{frames::Frames, pipe::AsyncPipe},
    sys,
};

/// How long dom0 may take to end what was cancelled: TERM, five seconds, KILL.
const CANCEL: Duration = Duration::from_secs(8);
/// dom0 watches the time-out; beyond this it has forgotten.
const MARGIN: Duration = Duration::from_secs(10);
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(30);
/// How long dom0 may take to take a request up, once the agent has it.
const TAKE_UP: Duration = Duration::from_secs(2);

/// Why an exchange has no result.
#[derive(Debug)]
pub(super) enum ExchangeError {
    /// Another request took our number's place: nothing was run, and asking anew may help.
    Stale,
    /// Any other error.
    Client(ClientError),
}

impl From<ClientError> for ExchangeError {
    fn from(trouble: ClientError) -> Self {
        Self::Client(trouble)
    }
}

fn own(e: io::Error) -> ClientError {
    ClientError::Local(e.to_string())
}

/// One exchange.
pub(super) struct Exchange<'a> {
    ask: &'a Submission,
    record: &'a mut HistoryEntry,
    id: String,
    takes_input: bool,
    to: AsyncPipe,
    /// Bytes of the payload that were sent.
    sent: usize,
    /// Bytes that may still be sent.
    credit: usize,
    /// Standard output and standard error.
    writers: [OutputThread; 2],
    digests: [Sha256; 2],
    /// Bytes that wait to be written.
    pending: u64,
    /// Bytes that were written and dom0 has no credit for yet.
    owed: u32,
    input: Option<mpsc::Receiver<Vec<u8>>>,
    /// The terminal's mode, put back at the end.
    raw: Option<RawMode>,
    accepted: bool,
    /// The command got one interrupt already.
    interrupted: bool,
    /// When we wait for dom0's word no longer, and what is said then.
    give_up: Option<(Instant, ClientError)>,
    /// When dom0 must have said something, until it has.
    dom0_by: Option<Instant>,
    began: Instant,
    progress: Instant,
    /// What dom0's log says of the request: the number of the entry, the head behind it, their code.
    receipt: Option<(u64, Digest, Digest)>,
}

impl<'a> Exchange<'a> {
    /// Sends the request, and ends with the command's status.
    pub(super) async fn run(
        connection: Connection,
        request: Request,
        key: &Key,
        ask: &'a Submission,
        record: &'a mut HistoryEntry,
        mut signals: ClientSignals,
        connect_by: Instant,
    ) -> Result<u8, ExchangeError> {
        let Connection { mut frames, to, .. } = connection;
        let request_mac = key.request(&request);
        let (done, mut written) = mpsc::unbounded_channel();
        let stdout = match &ask.output {
            Some(file) => stdio::file(file),
            None => stdio::file(io::stdout()),
        };
        let stdout = stdout.map_err(own)?;
        let stderr = stdio::file(io::stderr()).map_err(own)?;
        let began = Instant::now();
        let mut exchange = Self {
            id: request.id.clone(),
            takes_input: request.has(flags::STDIN),
            ask,
            record,
            to,
            sent: 0,
            credit: CREDIT as usize,
            writers: [OutputThread::start(stdout, done.clone()), OutputThread::start(stderr, done)],
            digests: [Sha256::new(), Sha256::new()],
            pending: 0,
            owed: 0,
            input: None,
            raw: None,
            accepted: false,
            interrupted: false,
            give_up: None,
            dom0_by: Some(connect_by.max(began + TAKE_UP)),
            began,
            progress: began + PROGRESS,
            receipt: None,
        };
        exchange.send_body(Frame::Open(Box::new(request), request_mac).to_vec(1)).await?;
        let (ending, code) = exchange.pass(&mut frames, &mut signals, &mut written).await?;
        Ok(exchange.finish(ending, &code, key, &request_mac, written).await?)
    }

    /// Passes frames, input and signals on until the result.
    async fn pass(
        &mut self,
        frames: &mut Frames<AsyncPipe>,
        signals: &mut ClientSignals,
        written: &mut mpsc::UnboundedReceiver<u32>,
    ) -> Result<(Ending, Digest), ExchangeError> {
        let guard = self.began + self.ask.timeout + MARGIN;
        loop {
            while let Some((raw, _)) = frames.ready().map_err(|e| ClientError::Transport(e.to_string()))? {
                let frame = raw.parse().map_err(|e| ClientError::Transport(e.to_string()))?;
                if let Some(result) = self.take(frame).await? {
                    return Ok(result);
                }
            }
            if !self.body_sent() {
                self.send_body(Vec::new()).await?;
            }
            let late = self.give_up.as_ref().map(|(at, _)| *at);
            tokio::select! {
                more = frames.fill() => if !more.is_ok_and(|more| more) {
                    return Err(self.connection_lost().into());
                },
                Some(n) = written.recv() => self.was_written(n).await,
                data = next(&mut self.input), if self.body_sent() && self.credit >= SLICE => self.send_input(data).await,
                n = signals.next() => self.signal(n).await?,
                () = sleep_until(late.unwrap_or(self.began)), if late.is_some() => {
                    return Err(self.give_up.take().map_or(ClientError::Timeout, |(_, trouble)| trouble).into());
                }
                () = sleep_until(self.dom0_by.unwrap_or(self.began)), if self.dom0_by.is_some() => {
                    return Err(ClientError::Transport(format!("dom0 does not answer (id={})", self.id)).into());
                }
                () = sleep_until(guard), if late.is_none() => {
                    self.send(Frame::Cancel).await;
                    return Err(ClientError::Timeout.into());
                }
                () = sleep_until(self.progress) => self.show_progress(),
            }
        }
    }

    /// Takes a frame of dom0's; the result, when it is the last one.
    async fn take(&mut self, frame: Frame<'_>) -> Result<Option<(Ending, Digest)>, ExchangeError> {
        match frame {
            Frame::Stdout(data) => self.output(0, data),
            Frame::Stderr(data) => self.output(1, data),
            Frame::Credit(n) => self.credit += n as usize,
            Frame::Accept => self.begin_input().await?,
            Frame::Wait(WaitReason::Recorded(number, head, code)) => {
                (self.dom0_by, self.receipt) = (None, Some((number, head, code)));
            }
            Frame::Wait(reason) => {
                self.dom0_by = None;
                // a busy moment is no news; what a person has to end is
                if !self.ask.quiet && matches!(reason, WaitReason::Approval(_) | WaitReason::LogRoom | WaitReason::Disk)
                {
                    eprintln!("[qvm-remote] waiting {}", escape(reason.to_string().as_bytes()));
                }
            }
            Frame::Reject(refusal, why) => return Err(self.rejected(refusal, why)),
            Frame::Exit(ending, code) => return Ok(Some((ending, code))),
            _ => return Err(ClientError::Transport("dom0 sent what makes no sense".into()).into()),
        }
        Ok(None)
    }

    fn rejected(&mut self, refusal: Refusal, why: &str) -> ExchangeError {
        match self.give_up.take() {
            Some((_, trouble)) => trouble.into(),
            None if refusal == Refusal::Stale && !self.accepted => ExchangeError::Stale,
            None => ClientError::Refused(refusal.status(), escape(why.as_bytes())).into(),
        }
    }

    /// The command runs: from here on it gets standard input, and a terminal's size.
    async fn begin_input(&mut self) -> Result<(), ClientError> {
        (self.accepted, self.dom0_by) = (true, None);
        if !self.takes_input {
            return Ok(());
        }
        if self.ask.tty {
            self.raw = RawMode::set();
            self.send_size().await;
        }
        let source = match &self.ask.input {
            Some(file) => stdio::file(file),
            None => stdio::file(io::stdin()),
        };
        self.input = Some(read_input(source.map_err(own)?));
        Ok(())
    }

    /// Keeps output and has it written.
    fn output(&mut self, which: usize, data: &[u8]) {
        self.digests[which].update(data);
        self.record.keep(which, data);
        self.pending += data.len() as u64;
        let _ = self.writers[which].to.send(data.to_vec());
    }

    /// So many bytes were written; 0: nobody reads any more.
    async fn was_written(&mut self, n: u32) {
        if n == 0 && self.give_up.is_none() {
            self.cancel(ClientError::Signal(13)).await;
        }
        self.pending -= u64::from(n);
        self.owed += n;
        if self.owed >= CREDIT / 4 || self.pending == 0 {
            let owed = std::mem::take(&mut self.owed);
            self.send(Frame::Credit(owed)).await;
        }
    }

    async fn send_input(&mut self, data: Option<Vec<u8>>) {
        match data {
            Some(data) => {
                self.credit -= data.len();
                self.send(Frame::Stdin(&data)).await;
            }
            None => {
                self.input = None;
                self.send(Frame::Eof).await;
            }
        }
    }

    /// A signal of ours: the first interrupt is the command's, the next one and every other ends it, a third ends us.
    async fn signal(&mut self, n: u8) -> Result<(), ClientError> {
        match n {
            28 if self.ask.tty => self.send_size().await,
            28 => {}
            2 if self.accepted && !self.interrupted => {
                self.interrupted = true;
                self.send(Frame::Signal(2)).await;
            }
            n if self.give_up.is_some() => return Err(ClientError::Signal(n)), // the agent cancels for us
            n => self.cancel(ClientError::Signal(n)).await,
        }
        Ok(())
    }

    /// Gives up: dom0 ends the command, and has some time to say so.
    async fn cancel(&mut self, trouble: ClientError) {
        self.send(Frame::Cancel).await;
        self.give_up = Some((Instant::now() + CANCEL, trouble));
    }

    async fn send_size(&self) {
        if let Some((rows, columns)) = sys::window_size(io::stdin().as_fd()) {
            self.send(Frame::Resize(rows, columns)).await;
        }
    }

    /// Sends a frame. A connection that is lost is noticed by whoever reads from it.
    async fn send(&self, frame: Frame<'_>) {
        let _ = self.to.write_all(&frame.to_vec(1)).await;
    }

    fn body_sent(&self) -> bool {
        self.sent == self.ask.payload.len()
    }

    /// Sends this, and as much of the payload as there is credit for.
    async fn send_body(&mut self, mut first: Vec<u8>) -> Result<(), ClientError> {
        let payload = &self.ask.payload;
        while self.sent < payload.len() && self.credit > 0 {
            let n = (payload.len() - self.sent).min(SLICE).min(self.credit);
            Frame::Body(&payload[self.sent..self.sent + n]).write(1, &mut first);
            (self.sent, self.credit) = (self.sent + n, self.credit - n);
        }
        self.to.write_all(&first).await.map_err(|_| self.lost("before it took the command"))
    }

    fn lost(&self, when: &str) -> ClientError {
        ClientError::Transport(format!("the connection to dom0 was lost {when} (id={})", self.id))
    }

    fn connection_lost(&mut self) -> ClientError {
        match self.give_up.take() {
            Some((_, trouble)) => trouble,
            None if self.accepted => self.lost("while the command ran; it was ended there"),
            None => self.lost("before the command was begun, or as it began"),
        }
    }

    fn show_progress(&mut self) {
        self.progress += PROGRESS;
        if !self.ask.quiet && self.pending == 0 && !self.ask.tty {
            let seconds = self.began.elapsed().as_secs() / 30 * 30;
            eprintln!("[qvm-remote] waiting... {seconds}s/{}s", self.ask.timeout.as_secs());
        }
    }

    /// Waits until all output is written, and holds the result against its code.
    async fn finish(
        self,
        ending: Ending,
        code: &Digest,
        key: &Key,
        request: &Digest,
        mut written: mpsc::UnboundedReceiver<u32>,
    ) -> Result<u8, ClientError> {
        // all of it must be out before we end; whoever reads slowly may take his time
        drop(self.writers);
        while let Some(n) = written.recv().await {
            if n == 0 {
                return Err(ClientError::Signal(13));
            }
        }
        drop(self.raw); // the last output was meant for a raw terminal, too
        if let Some((number, head, code)) = &self.receipt {
            if !key.verify_receipt(&self.id, request, *number, head, code) {
                let text = format!("what dom0's log says is not authentic: dom0 did not write it (id={})", self.id);
                return Err(ClientError::Transport(text));
            }
            self.record.logged(*number, head);
        }
        if let Some((_, trouble)) = self.give_up {
            return Err(trouble);
        }
        let [stdout, stderr] = self.digests.map(|digest| digest.finalize().into());
        let outcome = Outcome { id: &self.id, request, ending, stdout: &stdout, stderr: &stderr };
        if !key.verify_result(&outcome, code) {
            let text = format!("the result is not authentic: dom0 did not write it (id={})", self.id);
            return Err(ClientError::Transport(text));
        }
        match ending {
            Ending::Timeout => Err(ClientError::Timeout),
            Ending::Limit => {
                Err(ClientError::Refused(125, "dom0 ended the command: it wrote more than its policy allows".into()))
            }
            Ending::Cancelled => Err(ClientError::Refused(130, "dom0 ended the command".into())),
            ending => Ok(ending.status()),
        }
    }
}

async fn next(input: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match input {
        Some(line) => line.recv().await,
        None => std::future::pending().await,
    }
}
