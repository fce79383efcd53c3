//! A command through the agent: the request, and the exchange that answers it.

use std::{os::unix::ffi::OsStringExt as _, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    connection::Connection,
    exchange::{Exchange, ExchangeError},
    history::HistoryEntry,
    home::Home,
    submission::{ClientError, Submission},
    terminal::ClientSignals,
};
use crate::{
    proto::{
        mac::{self, Key},
        remote::{COVERED_INPUT, Hello, Mode, Refusal, Request, flags},
    },
    remote::clock::now_ms,
};

/// How often a request is made while dom0 says that it is not current.
const ATTEMPTS: u32 = 3;
/// Between two looks whether a daemon that is restarted has ended its channel.
const RESTART: Duration = Duration::from_millis(200);

/// Asks, again when another request took our number's place or dom0's part is being restarted.
pub async fn ask(
    home: &Home,
    key: &Key,
    id: &str,
    ask: &Submission,
    record: &mut HistoryEntry,
) -> Result<u8, ClientError> {
    let mut connect_by = Instant::now() + ask.connect_timeout;
    let mut stale = 0;
    // the channel of a daemon that is restarted, and its words: a request on its way is lost when the channel ends
    let mut restarts: Option<([u8; 32], String)> = None;
    loop {
        let mut signals = ClientSignals::new().map_err(|e| ClientError::Local(e.to_string()))?;
        let connection = tokio::select! {
            found = Connection::open(home, connect_by) => found?,
            n = signals.next() => return Err(ClientError::Signal(n)),
        };
        let nonce = connection.hello.nonce;
        if let Some((_, why)) = restarts.as_ref().filter(|(ends, _)| *ends == nonce) {
            if Instant::now() >= connect_by {
                return Err(ClientError::Refused(Refusal::Draining.status(), why.clone()));
            }
            drop(connection);
            tokio::select! {
                () = sleep(RESTART) => {}
                n = signals.next() => return Err(ClientError::Signal(n)),
            }
            continue;
        }
        let request = request(ask, key, id, &connection.hello);
        match Exchange::run(connection, request, key, ask, record, signals, connect_by).await {
            Ok(status) => return Ok(status),
            Err(ExchangeError::Stale) => {
                stale += 1;
                if stale == ATTEMPTS {
                    return Err(ClientError::Transport("dom0 keeps saying that the request is not current".into()));
                }
            }
            Err(ExchangeError::Restart(why)) => {
                if restarts.replace((nonce, why)).is_none() {
                    connect_by = Instant::now() + ask.connect_timeout; // it may have waited in dom0 for long
                }
            }
            Err(ExchangeError::Client(trouble)) => return Err(trouble),
        }
    }
}

fn request(ask: &Submission, key: &Key, id: &str, hello: &Hello) -> Request {
    let stdin = ask.stdin || ask.tty || ask.mode == Mode::Put;
    let mut env: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    // a terminal has no end of input
    if stdin && !ask.tty {
        let (name, value) = COVERED_INPUT;
        env.push((name.to_vec(), value.to_vec()));
    }
    if matches!(ask.mode, Mode::Shell | Mode::Argv) {
        let mut size = 0;
        for (name, value) in std::env::vars_os() {
            let (name, value) = (name.into_vec(), value.into_vec());
            let fine = !name.is_empty()
                && !name[0].is_ascii_digit()
                && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_');
            // dom0 drops all that its policy does not name; only what commonly is named is offered at all
            if fine && offered(&name) && size < 16 << 10 {
                size += name.len() + value.len();
                env.push((name, value));
            }
        }
    }
    let cwd = std::env::current_dir().map(|d| d.into_os_string()).unwrap_or_default();
    Request {
        kid: key.id(),
        vm: hello.vm.clone(),
        nonce: hello.nonce,
        seq: hello.seq,
        id: id.to_owned(),
        created_ms: now_ms(),
        timeout_ms: ask.timeout_ms(),
        flags: if stdin { flags::STDIN } else { 0 } | if ask.tty { flags::TTY } else { 0 },
        user: ask.user.clone(),
        cwd: cwd.into_vec(),
        mode: ask.mode,
        length: u32::try_from(ask.payload.len()).unwrap_or(u32::MAX),
        payload: mac::digest(&ask.payload),
        env,
    }
}

/// Whether a variable is offered to dom0's policy.
fn offered(name: &[u8]) -> bool {
    let begins = |start: &[u8]| name.starts_with(start);
    OFFERED.iter().any(|offered| name == offered.as_bytes())
        || begins(b"LC_")
        || begins(b"QVM_") && !begins(b"QVM_REMOTE_")
}

/// Variables that are offered, besides those that begin with `LC_` or `QVM_`.
const OFFERED: &[&str] = &["TERM", "COLORTERM", "LANG", "TZ", "NO_COLOR", "EDITOR", "PAGER", "COLUMNS", "LINES"];

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Read as _, Seek as _, Write as _},
        os::{
            fd::OwnedFd,
            unix::net::{UnixListener, UnixStream},
        },
    };

    use super::*;
    use crate::{
        proto::{
            mac::Outcome,
            remote::{Buffer, Ending, Frame, VERSION, WaitReason},
        },
        remote::{
            agent,
            client::submission::{Delivery, TimeOver},
        },
    };

    /// Greets a client as an agent does.
    fn hello(client: &mut UnixStream, seq: u64) {
        let hello = Hello { version: VERSION, nonce: [seq.to_be_bytes()[7]; 32], vm: "work".into(), streams: 1, seq };
        client.write_all(&Frame::Hello(hello).to_vec(0)).expect("the client reads");
    }

    /// Greets a client; the request that it sends, and its code.
    fn greet(client: &mut UnixStream, seq: u64) -> (Request, mac::Digest) {
        hello(client, seq);
        let (mut buffer, mut bytes) = (Buffer::default(), [0; 4096]);
        loop {
            let n = client.read(&mut bytes).expect("the client writes");
            buffer.add(&bytes[..n]);
            if let Some((raw, _)) = buffer.frame().expect("frames") {
                match raw.parse().expect("a frame") {
                    Frame::Open(request, code) => return (*request, code),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn submission(mode: Mode, path: &[u8]) -> Submission {
        Submission {
            mode,
            payload: path.to_vec(),
            shown: Vec::new(),
            timeout: Some(Duration::from_secs(20)),
            connect_timeout: Duration::from_secs(20),
            stdin: false,
            tty: false,
            user: String::new(),
            way: Delivery::Live,
            quiet: true,
            progress: false,
            output: None,
            input: None,
            recorded: false,
        }
    }

    /// How a request ends whose agent does this.
    async fn asked_of(
        request: &Submission,
        agent: impl FnOnce(&UnixListener, &Key) + Send + 'static,
    ) -> Result<u8, ClientError> {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home(dir.path().join(".qvm-remote"));
        let socket = home.at(agent::SOCKET);
        fs::create_dir_all(socket.parent().expect("it has one")).expect("made");
        let listener = UnixListener::bind(&socket).expect("bound");
        let key = Key::new([1; 32]);
        let theirs = key.clone();
        let agent = std::thread::spawn(move || agent(&listener, &theirs));
        let status = ask(&home, &key, "id-1", request, &mut HistoryEntry::none()).await;
        agent.join().expect("the agent saw what it wanted");
        status
    }

    /// Answers a request so, without a word of output.
    fn end(client: &mut UnixStream, key: &Key, news: Option<WaitReason<'_>>, ending: Ending) {
        end_of(client, 1, key, news, ending);
    }

    /// The same, in a channel of this number.
    fn end_of(client: &mut UnixStream, seq: u64, key: &Key, news: Option<WaitReason<'_>>, ending: Ending) {
        let (request, code) = greet(client, seq);
        let nothing = mac::digest(b"");
        let outcome = Outcome { id: &request.id, request: &code, ending, stdout: &nothing, stderr: &nothing };
        let exit = Frame::Exit(ending, key.result(&outcome));
        for frame in [Some(Frame::Accept), news.map(Frame::Wait), Some(exit)].into_iter().flatten() {
            client.write_all(&frame.to_vec(1)).expect("the client reads");
        }
        let _ = client.read_to_end(&mut Vec::new());
    }

    #[tokio::test]
    async fn the_limit_that_dom0_names_ended_the_command_however_long_it_ran() {
        for (news, limit) in [
            (WaitReason::SpentByClient, TimeOver::Client(Duration::from_secs(20))),
            (WaitReason::Spent(3), TimeOver::Policy(Duration::from_secs(3))),
        ] {
            let status = asked_of(&submission(Mode::Shell, b"true\n"), move |listener, key| {
                end(&mut listener.accept().expect("the client comes").0, key, Some(news), Ending::Timeout);
            })
            .await;
            assert!(matches!(&status, Err(ClientError::Timeout(found)) if *found == limit), "{status:?}");
        }
    }

    #[tokio::test]
    async fn a_request_that_meets_a_restart_is_made_again() {
        let command = submission(Mode::Shell, b"true\n");
        let status = asked_of(&command, |listener, key| {
            let mut client = listener.accept().expect("the client comes").0;
            greet(&mut client, 1);
            let refusal = [Frame::Wait(WaitReason::Restart), Frame::Reject(Refusal::Draining, "it is being restarted")];
            client.write_all(&refusal.map(|frame| frame.to_vec(1)).concat()).expect("the client reads");
            drop(client);
            // the same channel has not ended yet: no request goes there
            let mut client = listener.accept().expect("the client looks").0;
            hello(&mut client, 1);
            assert_eq!(client.read(&mut [0; 64]).expect("its end"), 0);
            let mut client = listener.accept().expect("the client comes again").0;
            end_of(&mut client, 2, key, None, Ending::Exit(7));
        })
        .await;
        assert!(matches!(status, Ok(7)), "{status:?}");
        // a stop is none
        let status = asked_of(&command, |listener, _| {
            let mut client = listener.accept().expect("the client comes").0;
            greet(&mut client, 1);
            client.write_all(&Frame::Reject(Refusal::Draining, "it is being stopped").to_vec(1)).expect("it reads");
        })
        .await;
        assert!(matches!(status, Err(ClientError::Refused(255, _))), "{status:?}");
    }

    /// How a request with the input `the file` ends when dom0 signs these bytes for those that it got; `None`: as an older
    /// dom0, or as one whose command ends before the input, nothing.
    async fn signed_for(mode: Mode, got: Option<&'static [u8]>) -> Result<u8, ClientError> {
        let mut input = tempfile::tempfile().expect("a file");
        input.write_all(b"the file").and_then(|()| input.rewind()).expect("written");
        let mut request = submission(mode, b"/root/x");
        (request.stdin, request.input) = (true, Some(input));
        asked_of(&request, move |listener, key| {
            let (mut client, _) = listener.accept().expect("the client comes");
            let (request, code) = greet(&mut client, 1);
            client.write_all(&Frame::Accept.to_vec(1)).expect("the client reads");
            let (mut bytes, mut all) = ([0; 4096], Vec::new());
            while !all.ends_with(&Frame::Eof.to_vec(1)) {
                let n = client.read(&mut bytes).expect("the client writes");
                all.extend_from_slice(&bytes[..n]);
            }
            exit(&mut client, key, &request, &code, got);
        })
        .await
    }

    /// Ends a request with a code that covers these bytes as its input.
    fn exit(client: &mut UnixStream, key: &Key, request: &Request, code: &mac::Digest, got: Option<&[u8]>) {
        let (ending, stdout) = (Ending::Exit(0), mac::digest(b""));
        let stderr = got.map_or(stdout, |got| mac::with_input(&stdout, &mac::digest(got)));
        let outcome = Outcome { id: &request.id, request: code, ending, stdout: &stdout, stderr: &stderr };
        client.write_all(&Frame::Exit(ending, key.result(&outcome)).to_vec(1)).expect("the client reads");
        let _ = client.read_to_end(&mut Vec::new());
    }

    #[tokio::test]
    async fn the_code_of_a_result_covers_the_input_that_dom0_got() {
        for mode in [Mode::Put, Mode::Shell] {
            assert!(matches!(signed_for(mode, Some(b"the file")).await, Ok(0)));
            assert!(matches!(signed_for(mode, None).await, Ok(0)), "an older dom0 covers no input");
            // other bytes, a part of them, and none at all
            for got in [&b"the fi1e"[..], b"the", b""] {
                let status = signed_for(mode, Some(got)).await;
                let Err(ClientError::Transport(why)) = status else { panic!("{got:?}: {status:?}") };
                assert!(why.starts_with("the result is not authentic"), "{why}");
            }
        }
    }

    #[tokio::test]
    async fn a_code_that_covers_an_end_of_input_which_was_not_sent_is_not_authentic() {
        let (_silent, input) = UnixStream::pair().expect("a pair");
        let mut request = submission(Mode::Shell, b"cat\n");
        (request.stdin, request.input) = (true, Some(fs::File::from(OwnedFd::from(input))));
        for (covered, authentic) in [(Some(&b""[..]), false), (None, true)] {
            let status = asked_of(&request, move |listener, key| {
                let (mut client, _) = listener.accept().expect("the client comes");
                let (request, code) = greet(&mut client, 1);
                client.write_all(&Frame::Accept.to_vec(1)).expect("the client reads");
                exit(&mut client, key, &request, &code, covered);
            })
            .await;
            assert_eq!(matches!(status, Ok(0)), authentic, "{status:?}");
        }
    }

    #[tokio::test]
    async fn a_second_attempt_after_a_stale_number_writes_to_the_same_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home(dir.path().join(".qvm-remote"));
        let socket = home.at(agent::SOCKET);
        fs::create_dir_all(socket.parent().expect("it has one")).expect("made");
        let listener = UnixListener::bind(&socket).expect("bound");
        let key = Key::new([1; 32]);
        let theirs = key.clone();
        let agent = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().expect("the first attempt");
            let (first, _) = greet(&mut client, 1);
            client.write_all(&Frame::Reject(Refusal::Stale, "its number was used before").to_vec(1)).expect("read");
            let (mut client, _) = listener.accept().expect("the second attempt");
            let (second, code) = greet(&mut client, 2);
            assert_eq!((first.seq, second.seq), (1, 2));
            let (stdout, stderr) = (mac::digest(b"the file"), mac::digest(b""));
            let ending = Ending::Exit(0);
            let outcome = Outcome { id: &second.id, request: &code, ending, stdout: &stdout, stderr: &stderr };
            let exit = Frame::Exit(ending, theirs.result(&outcome));
            let frames = [Frame::Accept, Frame::Stdout(b"the file"), exit].map(|frame| frame.to_vec(1));
            client.write_all(&frames.concat()).expect("the client reads");
            let _ = client.read_to_end(&mut Vec::new()); // credit, until the client is done
        });
        let output = dir.path().join("output");
        let mut get = submission(Mode::Get, b"/var/log/x");
        get.output = Some(fs::File::create(&output).expect("created"));
        let status = ask(&home, &key, "id-1", &get, &mut HistoryEntry::none()).await;
        assert!(matches!(status, Ok(0)), "{status:?}");
        assert_eq!(fs::read(&output).expect("there"), b"the file");
        agent.join().expect("the agent saw what it wanted");
    }
}
