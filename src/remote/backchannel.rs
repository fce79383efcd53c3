//! The socket between the daemon and the supervisor of one command: what each says, and the end that each holds.
//!
//! The daemon first gives the command: its plan and its descriptors, by SCM_RIGHTS; before that it may ask whether the
//! supervisor is there. Then it gives [`Instruction`]s, and the
//! supervisor reports once, how the command itself ended ([`Ending`]); each is two bytes. Both ends are the same program
//! (`/proc/self/exe`), so there is no version to agree on.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::net::UnixStream as StdUnixStream,
    },
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

use crate::{proto::remote::Ending, sys};

/// Descriptors from this number on are free for a supervisor: those below are the command's.
const ABOVE: i32 = 10;
/// What comes with a command: the plan, the three standard ones, the text of a script.
const MOST: usize = 5;
/// What stands before the command's descriptors.
const COMMAND: u8 = b'C';
/// Asks whether a supervisor waits, which it answers with the same byte.
const THERE: u8 = b'?';

/// How long a supervisor may take to make room for an instruction.
const TAKEN: Duration = Duration::from_secs(1);

/// What the daemon tells the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// Send this signal to the command's process group.
    Signal(u8),
    /// End the whole tree. A daemon that goes away without [`Leave`](Self::Leave) means the same.
    End,
    /// The command is done: leave alone what lives on in the background.
    Leave,
}

impl Instruction {
    /// As on the socket.
    pub fn to_bytes(self) -> [u8; 2] {
        match self {
            Self::Signal(number) => [b'S', number],
            Self::End => [b'K', 0],
            Self::Leave => [b'D', 0],
        }
    }

    /// The inverse of [`to_bytes`](Self::to_bytes).
    pub fn from_bytes(bytes: [u8; 2]) -> Option<Self> {
        match bytes {
            [b'S', number] => Some(Self::Signal(number)),
            [b'K', 0] => Some(Self::End),
            [b'D', 0] => Some(Self::Leave),
            _ => None,
        }
    }
}

/// Makes a backchannel: the daemon's two directions, and the descriptor that the supervisor gets as its standard input.
///
/// # Errors
/// What socketpair(2) and epoll_ctl(2) say.
pub fn pair() -> io::Result<(Instructions, Report, OwnedFd)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let (from, to) = UnixStream::from_std(ours)?.into_split();
    Ok((Instructions(to), Report(from), theirs.into()))
}

/// The daemon's end: instructions. Dropped, it says that the daemon is gone.
#[derive(Debug)]
pub struct Instructions(OwnedWriteHalf);

impl Instructions {
    /// Gives the command: the file of its plan, its three standard descriptors, and the text where it is a script. Once,
    /// and before any instruction.
    ///
    /// # Errors
    /// What sendmsg(2) says: EPIPE when the supervisor is gone.
    pub fn command(&self, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let numbers: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let (byte, control) = ([IoSlice::new(&[COMMAND])], [ControlMessage::ScmRights(&numbers)]);
        let socket: &UnixStream = self.0.as_ref();
        sendmsg::<()>(socket.as_raw_fd(), &byte, &control, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// Gives an instruction. A supervisor that has ended already needs none; one that takes none for a second, because its
    /// command has stopped it, gets none.
    pub async fn give(&mut self, instruction: Instruction) {
        let _ = timeout(TAKEN, self.0.write_all(&instruction.to_bytes())).await;
    }
}

/// The daemon's end: how the command ended.
#[derive(Debug)]
pub struct Report(OwnedReadHalf);

impl Report {
    /// Whether the supervisor waits for a command and answers within a second: it was not killed, nor is it stopped.
    pub async fn waits(&mut self, instructions: &mut Instructions) -> bool {
        let asked = async {
            instructions.0.write_all(&[THERE]).await?;
            self.0.read_u8().await
        };
        matches!(timeout(TAKEN, asked).await, Ok(Ok(THERE)))
    }

    /// Waits for the report; `None` when the supervisor ended without one.
    pub async fn ending(&mut self) -> Option<Ending> {
        let mut bytes = [0; 2];
        self.0.read_exact(&mut bytes).await.ok()?;
        Ending::from_bytes(bytes[0], bytes[1])
    }
}

/// The supervisor's end.
#[derive(Debug)]
pub struct Daemon(StdUnixStream);

/// What came with a command. No number of these is one that the command knows a descriptor by.
#[derive(Debug)]
pub struct Given {
    /// The file of its plan.
    pub plan: File,
    /// Its standard input, output and error.
    pub standard: [OwnedFd; 3],
    /// The text that the command reads, where it is a script.
    pub script: Option<OwnedFd>,
}

/// The same descriptor under a number that no command knows a descriptor by.
///
/// # Errors
/// What fcntl(2) says.
pub fn above(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(sys::own(fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(ABOVE))?))
}

impl Daemon {
    /// Takes the socket that the daemon has passed as standard input, and keeps it from the command.
    ///
    /// # Errors
    /// What fcntl(2) says.
    pub fn inherited() -> io::Result<Self> {
        Ok(Self(above(io::stdin().as_fd())?.into()))
    }

    /// Waits for the command; `None` when the daemon is gone.
    ///
    /// # Errors
    /// What recvmsg(2) says; `InvalidData` when descriptors are missing.
    pub fn command(&self) -> io::Result<Option<Given>> {
        let mut descriptors = VecDeque::new();
        loop {
            let (mut byte, mut space) = ([0], nix::cmsg_space!([RawFd; MOST]));
            let mut parts = [IoSliceMut::new(&mut byte)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let message = recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
            if message.bytes == 0 {
                return Ok(None);
            }
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(numbers) = control {
                    descriptors.extend(numbers.into_iter().map(sys::own));
                }
            }
            match byte {
                [THERE] => (&self.0).write_all(&[THERE])?,
                _ => break,
            }
        }
        let mut next = || descriptors.pop_front().map(|fd| above(fd.as_fd())).transpose();
        let mut due = || next()?.ok_or(io::Error::from(io::ErrorKind::InvalidData));
        let (plan, standard) = (due()?.into(), [due()?, due()?, due()?]);
        let script = next()?;
        Ok(Some(Given { plan, standard, script }))
    }

    /// The next instruction; `None` when the daemon is gone.
    pub fn instruction(&self) -> Option<Instruction> {
        let mut bytes = [0; 2];
        (&self.0).read_exact(&mut bytes).ok()?;
        Instruction::from_bytes(bytes)
    }

    /// Reports how the command itself ended.
    ///
    /// # Errors
    /// What write(2) says: the daemon is gone.
    pub fn report(&self, ending: Ending) -> io::Result<()> {
        let (kind, value) = ending.to_bytes();
        (&self.0).write_all(&[kind, value])
    }
}

impl AsFd for Daemon {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_read_back_as_they_were_given() {
        for instruction in [Instruction::Signal(15), Instruction::End, Instruction::Leave] {
            assert_eq!(Instruction::from_bytes(instruction.to_bytes()), Some(instruction));
        }
        assert_eq!(Instruction::from_bytes([b'K', 1]), None);
        assert_eq!(Instruction::from_bytes([0, 0]), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_takes_no_instruction_keeps_nobody_waiting() {
        let (mut instructions, _report, theirs) = pair().expect("a pair of sockets");
        let began = tokio::time::Instant::now();
        let giving = async {
            while began.elapsed() < TAKEN {
                instructions.give(Instruction::Signal(2)).await; // until the socket is full, and one more
            }
        };
        timeout(TAKEN * 5, giving).await.expect("it returns");
        drop(theirs);
    }

    #[tokio::test]
    async fn a_supervisor_that_is_gone_or_does_not_answer_does_not_wait() {
        let (mut instructions, mut report, theirs) = pair().expect("a pair of sockets");
        let daemon = Daemon(theirs.into());
        tokio::time::pause();
        assert!(!report.waits(&mut instructions).await, "nobody reads");
        tokio::time::resume();
        let (answer, given) = tokio::join!(
            async {
                let answer = report.waits(&mut instructions).await;
                let (file, null) = (tempfile::tempfile().expect("a file"), File::open("/dev/null").expect("there"));
                let standard = [file.as_fd(), null.as_fd(), null.as_fd(), null.as_fd()];
                instructions.command(&standard).expect("it is there");
                answer
            },
            async { tokio::task::spawn_blocking(move || daemon.command()).await.expect("no panic") },
        );
        let given = given.expect("a command").expect("the daemon lives");
        assert!(answer && given.script.is_none());
        assert!(!report.waits(&mut instructions).await, "it is gone");
    }

    #[tokio::test]
    async fn each_end_hears_what_the_other_says_and_when_it_is_gone() {
        let (mut instructions, mut report, theirs) = pair().expect("a pair of sockets");
        let daemon = Daemon(theirs.into());
        instructions.give(Instruction::Signal(2)).await;
        instructions.give(Instruction::End).await;
        assert_eq!(daemon.instruction(), Some(Instruction::Signal(2)));
        assert_eq!(daemon.instruction(), Some(Instruction::End));
        daemon.report(Ending::Signal(9)).expect("the daemon lives");
        assert_eq!(report.ending().await, Some(Ending::Signal(9)));
        drop(instructions);
        assert_eq!(daemon.instruction(), None);
        drop(daemon);
        assert_eq!(report.ending().await, None);
    }
}
