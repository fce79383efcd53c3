//! The socket between the daemon and the supervisor of one command: what each says, and the end that each holds.
//!
//! The daemon gives [`Instruction`]s; the supervisor reports once, how the command itself ended ([`Ending`]). Every
//! message is two bytes. Both ends are the same program (`/proc/self/exe`), so there is no version to agree on.

use std::{
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    time::Duration,
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

/// The supervisor's end: the number of its descriptor.
pub const CONTROL: i32 = 3;

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

/// Makes a backchannel: the daemon's two directions, and the descriptor that the supervisor gets as [`CONTROL`].
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

impl Daemon {
    /// Takes the descriptor that the daemon has passed, and keeps it from the command.
    ///
    /// # Errors
    /// What fcntl(2) says: there is none.
    pub fn inherited() -> io::Result<Self> {
        let socket = StdUnixStream::from(sys::own(CONTROL));
        nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        Ok(Self(socket))
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
