//! One exchange with dom0: a request out, and frames both ways until its result.
//!
//! # Theory
//! The text goes first, as far as there is credit for it. From ACCEPT on, standard input goes to the command and its
//! output comes back; output counts as passed on when a thread has written it ([`OutputThread`]), and only then dom0
//! gets credit for more. What ends an exchange: EXIT (the command's result, which must be signed), REJECT, the end of
//! the connection, or a time that is over. Whoever gives up (a signal, an output that nobody reads) cancels first and
//! still waits for dom0's word for a while, so that nothing runs on unseen.

use std::{io, os::fd::AsFd as _, time::Duration};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    connection::Connection,
    history::HistoryEntry,
    stdio,
    submission::{APPROVAL, ClientError, Submission, TimeOver, waiting, waits},
    terminal::{ClientSignals, OutputThread, RawMode, read_input},
};
use crate::{
    log::escape,
    proto::{
        mac::{self, Digest, Key, Outcome},
        remote::{CREDIT, Ending, Frame, Mode, Refusal, Request, SLICE, WaitReason, flags, frame},
    },
    remote::{frames::Frames, pipe::AsyncPipe},
    sys,
};

/// How long dom0 may take to end what was cancelled: TERM, five seconds, KILL.
const CANCEL: Duration = Duration::from_secs(8);
/// dom0 watches the time-out; beyond this it has forgotten.
const MARGIN: Duration = Duration::from_secs(10);
/// A command that ran for our limit less this was ended by our limit: dom0 began to count a moment before we did.
const SLACK: Duration = Duration::from_millis(500);
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(30);
/// How long dom0 may take to take a request up, once the agent has it.
const TAKE_UP: Duration = Duration::from_secs(2);

/// Why an exchange has no result.
#[derive(Debug)]
pub(super) enum ExchangeError {
    /// Another request took our number's place: nothing was run, and asking again may help.
    Stale,
    /// The daemon is restarted, as it says: nothing was run, and the next daemon will take the request.
    Restart(String),
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

/// Nobody reads the output any more, or it cannot be written.
fn not_written(e: &io::Error) -> ClientError {
    if e.kind() == io::ErrorKind::BrokenPipe { ClientError::Signal(13) } else { ClientError::Local(e.to_string()) }
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
    writers: Option<[OutputThread; 2]>,
    digests: [Sha256; 2],
    /// Bytes that wait to be written.
    pending: u64,
    /// Bytes that were written and dom0 has no credit for yet.
    owed: u32,
    input: Option<mpsc::Receiver<io::Result<Vec<u8>>>>,
    /// The digest of the input, where the code of the result shall cover it.
    covered: Option<Sha256>,
    /// The same of all of the input, when its end was sent.
    whole: Option<Digest>,
    /// The terminal's mode, put back at the end.
    raw: Option<RawMode>,
    /// The command got one interrupt already.
    interrupted: bool,
    /// When the wait for dom0's answer ends, and the message of that moment.
    give_up: Option<(Instant, ClientError)>,
    /// When dom0 must have said something, until it has.
    dom0_by: Option<Instant>,
    began: Instant,
    progress: Instant,
    /// When we expect dom0 to have ended the command; later than its own limit.
    guard: Option<Instant>,
    /// When dom0 began the command.
    accepted_at: Option<Instant>,
    /// The limit that ended the command, as dom0 says.
    spent: Option<TimeOver>,
    /// The daemon is being restarted.
    restarts: bool,
    /// What the command waited for last.
    waits_for: Option<String>,
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
        let copy = || format!("the copy of {}", escape(&ask.payload));
        let stdout_name = ask.output.as_ref().map_or_else(|| "standard output".to_owned(), |_| copy());
        let writers = [
            OutputThread::start(stdout, stdout_name, done.clone()),
            OutputThread::start(stderr, "standard error".to_owned(), done),
        ];
        let began = Instant::now();
        let mut exchange = Self {
            id: request.id.clone(),
            takes_input: request.has(flags::STDIN),
            covered: request.covers_input().then(Sha256::new),
            whole: None,
            guard: ask.timeout.map(|time| began + time + MARGIN),
            accepted_at: None,
            spent: None,
            restarts: false,
            waits_for: None,
            ask,
            record,
            to,
            sent: 0,
            credit: CREDIT as usize,
            writers: Some(writers),
            digests: [Sha256::new(), Sha256::new()],
            pending: 0,
            owed: 0,
            input: None,
            raw: None,
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
        written: &mut mpsc::UnboundedReceiver<io::Result<u32>>,
    ) -> Result<(Ending, Digest), ExchangeError> {
        loop {
            while let Some(whole) = frames.ready().map_err(|e| ClientError::Transport(e.to_string()))? {
                let frame = whole.raw().parse().map_err(|e| ClientError::Transport(e.to_string()))?;
                match frame {
                    Frame::Stdout(_) => self.output(0, whole.into_body()),
                    Frame::Stderr(_) => self.output(1, whole.into_body()),
                    frame => {
                        if let Some(result) = self.take(frame).await? {
                            return Ok(result);
                        }
                    }
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
                    return Err(self.give_up.take().map_or_else(|| self.timed_out(), |(_, trouble)| trouble).into());
                }
                () = sleep_until(self.dom0_by.unwrap_or(self.began)), if self.dom0_by.is_some() => {
                    return Err(ClientError::Transport(format!("dom0 does not answer (id={})", self.id)).into());
                }
                () = sleep_until(self.guard.unwrap_or(self.began)), if late.is_none() && self.guard.is_some() => {
                    self.send(Frame::Cancel).await;
                    return Err(self.never_began().unwrap_or_else(|| self.timed_out()).into());
                }
                () = sleep_until(self.progress) => self.show_progress(),
            }
        }
    }

    /// Takes a frame of dom0's that is no output; the result, when it is the last one.
    async fn take(&mut self, frame: Frame<'_>) -> Result<Option<(Ending, Digest)>, ExchangeError> {
        match frame {
            Frame::Credit(n) => self.credit += n as usize,
            Frame::Accept => self.begin_input().await?,
            Frame::Wait(WaitReason::Recorded(number, head, code)) => {
                (self.dom0_by, self.receipt) = (None, Some((number, head, code)));
            }
            Frame::Wait(WaitReason::Spent(seconds)) => {
                self.spent = Some(TimeOver::Policy(Duration::from_secs(seconds)));
            }
            Frame::Wait(WaitReason::SpentByClient) => self.spent = self.ask.timeout.map(TimeOver::Client),
            Frame::Wait(WaitReason::Restart) => self.restarts = true,
            Frame::Wait(reason) => {
                self.dom0_by = None;
                self.waits_for = Some(escape(reason.to_string().as_bytes()));
                if matches!(reason, WaitReason::Approval(_)) {
                    // a person has that long, and then the command has its time
                    self.guard = self.ask.timeout.map(|time| Instant::now() + APPROVAL + time + MARGIN);
                }
                // a busy moment is no news; what a person has to end is
                if !self.ask.quiet && matches!(reason, WaitReason::Approval(_) | WaitReason::LogRoom | WaitReason::Disk)
                {
                    eprintln!("{}", waits(reason));
                }
            }
            Frame::Reject(refusal, why) => return Err(self.rejected(refusal, why)),
            Frame::Exit(ending, code) => return Ok(Some((ending, code))),
            _ => return Err(ClientError::Transport("dom0 sent an answer that cannot be read".into()).into()),
        }
        Ok(None)
    }

    fn rejected(&mut self, refusal: Refusal, why: &str) -> ExchangeError {
        match self.give_up.take() {
            Some((_, trouble)) => trouble.into(),
            None if refusal == Refusal::Stale && self.accepted_at.is_none() => ExchangeError::Stale,
            None if refusal == Refusal::Draining && self.restarts && self.accepted_at.is_none() => {
                ExchangeError::Restart(escape(why.as_bytes()))
            }
            None if refusal == Refusal::NotAuthorised => ClientError::Unauthorised(escape(why.as_bytes())).into(),
            // a fault of a file is a fault of the copy, and no trouble with dom0
            None if refusal == Refusal::Failed && matches!(self.ask.mode, Mode::Get | Mode::Put) => {
                ClientError::Local(escape(why.as_bytes())).into()
            }
            None => ClientError::Refused(refusal.status(), escape(why.as_bytes())).into(),
        }
    }

    /// The command runs: from here on it gets standard input, and a terminal's size.
    async fn begin_input(&mut self) -> Result<(), ClientError> {
        let now = Instant::now();
        (self.accepted_at, self.dom0_by) = (Some(now), None);
        // of a transfer dom0 watches no limit but its own
        let margin = if matches!(self.ask.mode, Mode::Get | Mode::Put) { Duration::ZERO } else { MARGIN };
        self.guard = self.ask.timeout.map(|time| now + time + margin);
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
    fn output(&mut self, which: usize, data: Bytes) {
        self.digests[which].update(&data);
        self.record.keep(which, &data);
        self.pending += data.len() as u64;
        if let Some(writers) = &self.writers {
            let _ = writers[which].to.send(data);
        }
    }

    /// So many bytes were written, or why they were not.
    async fn was_written(&mut self, written: io::Result<u32>) {
        let n = match written {
            Ok(n) => n,
            Err(e) => {
                if self.give_up.is_none() {
                    self.cancel(not_written(&e)).await;
                }
                return;
            }
        };
        self.pending -= u64::from(n);
        self.owed += n;
        if self.owed >= CREDIT / 4 || self.pending == 0 {
            let owed = std::mem::take(&mut self.owed);
            self.send(Frame::Credit(owed)).await;
        }
    }

    async fn send_input(&mut self, data: Option<io::Result<Vec<u8>>>) {
        match data {
            Some(Ok(mut frame)) => {
                let data = &frame[frame::HEADER..];
                self.credit -= data.len();
                if let Some(digest) = &mut self.covered {
                    digest.update(data);
                }
                frame::seal(&mut frame, 1, frame::Type::Stdin);
                let _ = self.to.write_all(&frame).await;
            }
            // a part is not the whole: dom0 drops the file, and ends a command that got a part of its input
            Some(Err(e)) => {
                self.input = None;
                let what = if self.ask.input.is_some() { "the file" } else { "standard input" };
                if self.give_up.is_none() {
                    self.cancel(ClientError::Local(format!("{what} cannot be read: {e}"))).await;
                }
            }
            None => {
                self.input = None;
                self.whole = self.covered.take().map(|digest| digest.finalize().into());
                self.send(Frame::Eof).await;
            }
        }
    }

    /// A signal of ours: the first interrupt is the command's, the next one and every other ends it, a third ends us.
    async fn signal(&mut self, n: u8) -> Result<(), ClientError> {
        match n {
            28 if self.ask.tty => self.send_size().await,
            28 => {}
            2 if self.accepted_at.is_some() && !self.interrupted => {
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
            None if self.accepted_at.is_some() => self.lost("while the command ran; it was ended there"),
            None => self.lost("before the command was begun, or as it began"),
        }
    }

    /// The time of the command was over while it waited in dom0.
    fn never_began(&self) -> Option<ClientError> {
        let (None, Some(reason)) = (self.accepted_at, &self.waits_for) else { return None };
        let (seconds, whose) = (self.began.elapsed().as_secs(), TimeOver::Client(self.ask.timeout?).whose());
        let text = format!("it never began: it waited {reason}, given up after {seconds}s (id={}): {whose}", self.id);
        Some(ClientError::Refused(124, text))
    }

    /// The time of the command was over, by the limit that dom0 names. A dom0 of an earlier version names none: a
    /// command that had less time than we gave it was ended by the policy.
    fn timed_out(&self) -> ClientError {
        let ran = self.accepted_at.unwrap_or(self.began).elapsed();
        let guessed = || match self.ask.timeout {
            Some(own) if ran + SLACK >= own => TimeOver::Client(own),
            _ => TimeOver::Policy(ran),
        };
        ClientError::Timeout(self.spent.unwrap_or_else(guessed))
    }

    fn show_progress(&mut self) {
        self.progress += PROGRESS;
        if !self.ask.quiet && self.ask.progress && self.pending == 0 && !self.ask.tty {
            eprintln!("{}", waiting(self.began, self.ask.timeout));
        }
    }

    /// Waits until all output is written, and holds the result against its code.
    async fn finish(
        mut self,
        ending: Ending,
        code: &Digest,
        key: &Key,
        request: &Digest,
        mut written: mpsc::UnboundedReceiver<io::Result<u32>>,
    ) -> Result<u8, ClientError> {
        // all of it must be out before we end; whoever reads slowly may take his time
        self.writers = None;
        while let Some(result) = written.recv().await {
            if let Err(e) = result {
                return Err(self.give_up.take().map_or_else(|| not_written(&e), |(_, trouble)| trouble));
            }
        }
        self.raw = None; // the last output was meant for a raw terminal, too
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
        let timed_out = self.timed_out();
        let [stdout, stderr] = self.digests.map(|digest| digest.finalize().into());
        let authentic = |stderr: &Digest| {
            let outcome = Outcome { id: &self.id, request, ending, stdout: &stdout, stderr };
            key.verify_result(&outcome, code)
        };
        // a dom0 of an earlier version covers no input; one that covers it signs nothing else when it has seen the end
        let covered = self.whole.is_some_and(|input| authentic(&mac::with_input(&stderr, &input)));
        if !covered && !authentic(&stderr) {
            let or = if self.takes_input { ", or did not get the input as it was sent" } else { "" };
            let text = format!("the result is not authentic: dom0 did not write it{or} (id={})", self.id);
            return Err(ClientError::Transport(text));
        }
        match ending {
            Ending::Timeout => Err(timed_out),
            Ending::Limit if self.ask.mode == Mode::Put => Err(ClientError::Refused(
                125,
                "the file is larger than dom0's policy allows (max-size= of the rule); dom0 keeps nothing of it".into(),
            )),
            Ending::Limit => {
                Err(ClientError::Refused(125, "dom0 ended the command: it wrote more than its policy allows".into()))
            }
            Ending::Cancelled => Err(ClientError::Refused(130, "dom0 ended the command".into())),
            ending => Ok(ending.status()),
        }
    }
}

async fn next(input: &mut Option<mpsc::Receiver<io::Result<Vec<u8>>>>) -> Option<io::Result<Vec<u8>>> {
    match input {
        Some(line) => line.recv().await,
        None => std::future::pending().await,
    }
}
