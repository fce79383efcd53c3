//! A second process that shares this process's table of descriptors, and gives the descriptors away when this process
//! has died.
//!
//! clone(2) with CLONE_FILES and without CLONE_VM: the memory is a copy, the table is the same. When the process that
//! started the shadow dies, however it dies, the table stays as it was in that moment, because the shadow still has it.
//! A descriptor that is opened or closed later is opened or closed in both: nothing is registered, and nothing is open
//! for longer than the process wants it.
//!
//! The shadow is a copy of a process with one thread. Its loop makes plain system calls, allocates nothing, takes no
//! lock and never returns: what it needs is in [`ShadowPlan`], made before it starts.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    io,
    os::fd::RawFd,
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Release},
    },
};

/// Descriptors in one message; the kernel takes 253 (SCM_MAX_FD, unix(7)).
pub const BATCH: usize = 250;
/// The highest number of a descriptor that is looked for where /proc cannot be read.
const MOST: RawFd = 1 << 20;
/// The name of the shadow among processes: not that of the program, so that `pkill -9 NAME` leaves the shadow alone.
const NAME: &std::ffi::CStr = c"crash-shadow";

/// What the shadow reads and writes in the shared words.
#[derive(Clone, Copy, Debug)]
pub struct ShadowWords<'a> {
    /// Set to `generation` when the shadow is where no kill of the service reaches it.
    pub ready: &'a AtomicU64,
    /// What is to become of the descriptors; read when the process has died.
    pub mode: &'a AtomicU64,
    /// The value of `mode` at which the shadow leaves without giving anything.
    pub leave: [u64; 2],
    /// Set to the time of the death, in nanoseconds of CLOCK_MONOTONIC.
    pub died: &'a AtomicU64,
    /// The number of descriptors that were given.
    pub given: &'a AtomicU64,
    /// The number of shadows that are done; 1 is added at the end.
    pub done: &'a AtomicU64,
    /// Who has the sessions: swapped from the first value to the second when all is given.
    pub owner: (&'a AtomicU64, u64, u64),
}

/// Everything that a shadow needs.
#[derive(Debug)]
pub struct ShadowPlan<'a> {
    pub words: ShadowWords<'a>,
    /// Which shadow this is.
    pub generation: u64,
    /// Stands for the process that starts the shadow.
    pub process: RawFd,
    /// The end of a SEQPACKET pair, blocking, that descriptors are sent to; the other end; the memfd of the words.
    pub pair: (RawFd, RawFd),
    pub memfd: RawFd,
    /// `cgroup.procs` of the group that the shadow moves to.
    pub group: CString,
    /// The socket of the keeper, which gets a message, the reading end and the memfd.
    pub keeper: Option<libc::sockaddr_un>,
    /// The message to the keeper.
    pub message: &'static [u8],
}

/// Starts a shadow: its process id.
///
/// # Errors
/// What clone(2) says; `Other` where this process has more than one thread.
pub fn start(plan: &ShadowPlan<'_>) -> io::Result<u32> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("the shadow is started before the first thread"));
    }
    let flags = libc::c_long::from(libc::CLONE_FILES | libc::SIGCHLD);
    // The stack comes first there (clone(2), "C library/kernel differences").
    let [first, second] = if cfg!(target_arch = "s390x") { [0, flags] } else { [flags, 0] };
    // SAFETY: without CLONE_VM and with no stack given this is a fork that shares the table of descriptors. This
    // process has one thread, so no lock is held by anybody else; the child makes system calls only and never returns.
    let pid = unsafe { libc::syscall(libc::SYS_clone, first, second, 0, 0, 0) };
    match pid {
        0 => live(plan),
        pid if pid < 0 => Err(io::Error::last_os_error()),
        pid => u32::try_from(pid).map_err(|_| io::ErrorKind::InvalidData.into()),
    }
}

/// The shadow's life.
fn live(plan: &ShadowPlan<'_>) -> ! {
    let words = &plan.words;
    // SAFETY: system calls with integers and with pointers to what outlives them.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
        libc::prctl(libc::PR_SET_NAME, NAME.as_ptr());
        if !moved_to(&plan.group) {
            libc::_exit(1);
        }
        words.ready.store(plan.generation, Release);
        let mut process = libc::pollfd { fd: plan.process, events: libc::POLLIN, revents: 0 };
        while libc::poll(&raw mut process, 1, -1) < 1 {}
        words.died.store(monotonic(), Release);
        let mode = words.mode.load(Acquire);
        if !plan.words.leave.contains(&mode) {
            give_all(plan);
            let (owner, from, to) = words.owner;
            let free = owner.compare_exchange(from, to, AcqRel, Acquire).is_ok();
            words.done.fetch_add(1, AcqRel);
            if free {
                tell_keeper(plan);
            }
        } else {
            words.done.fetch_add(1, AcqRel);
        }
        libc::_exit(0);
    }
}

/// Nanoseconds of CLOCK_MONOTONIC: the clock of all processes until the next boot.
pub fn monotonic() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Moves this process to a control group. Writing 0 means the process that writes.
///
/// # Safety
/// Only to be called by a process with one thread (it opens and closes a descriptor in the shared table).
unsafe fn moved_to(group: &CString) -> bool {
    // SAFETY: a C string, two bytes and integers.
    unsafe {
        let file = libc::open(group.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file < 0 {
            return false;
        }
        let written = libc::write(file, c"0\n".as_ptr().cast(), 2);
        libc::close(file);
        written == 2
    }
}

/// Gives every descriptor that a session or a listener can have, each once.
///
/// # Safety
/// The process that had the table is dead, so nobody else changes it.
unsafe fn give_all(plan: &ShadowPlan<'_>) {
    let mut batch = [0; BATCH];
    let mut count = 0;
    // SAFETY: getdents64 fills the buffer with whole entries, whose length and name are read within what it returned.
    unsafe {
        // The process has died, and nobody waits for that any more: a table that is full has room for one again.
        libc::close(plan.process);
        let directory = libc::open(c"/proc/self/fd".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC);
        let mut give = |fd: RawFd| {
            let ours = [plan.pair.0, plan.pair.1, plan.memfd, directory];
            if fd > 2 && !ours.contains(&fd) && is_to_be_given(fd) {
                batch[count] = fd;
                count += 1;
            }
            if count == BATCH {
                send(plan, &batch);
                count = 0;
            }
        };
        if directory < 0 {
            // Without the list: every number that there can be.
            let mut limit: libc::rlimit = std::mem::zeroed();
            libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
            (0..RawFd::try_from(limit.rlim_max).unwrap_or(RawFd::MAX).min(MOST)).for_each(give);
        } else {
            let mut entries = [0_u64; 4096];
            loop {
                let size = size_of_val(&entries);
                let n = libc::syscall(libc::SYS_getdents64, directory, entries.as_mut_ptr(), size);
                let Ok(n @ 1..) = usize::try_from(n) else { break };
                let bytes = std::slice::from_raw_parts(entries.as_ptr().cast::<u8>(), n);
                let mut at = 0;
                // d_ino, d_off, d_reclen (u16), d_type, d_name
                while let Some(entry) = bytes.get(at..).filter(|entry| entry.len() > 19) {
                    let length = usize::from(u16::from_ne_bytes([entry[16], entry[17]]));
                    at += length.max(20);
                    number(&entry[19..]).into_iter().for_each(&mut give);
                }
            }
            libc::close(directory);
        }
        send(plan, &batch[..count]);
    }
}

/// The number at the beginning of a name.
fn number(name: &[u8]) -> Option<RawFd> {
    let digits = name.iter().take_while(|byte| **byte != 0);
    let mut value: RawFd = 0;
    for digit in digits {
        value = value.checked_mul(10)?.checked_add(RawFd::from(char::from(*digit).to_digit(10)? as u8))?;
    }
    (name.first() != Some(&0)).then_some(value)
}

/// Whether a descriptor may belong to a session or a listener: a socket, a pipe, a process, a lock file. A TCP
/// connection is set to end with a reset, so that whatever nobody takes up never looks complete. A listener is not:
/// the connections that are accepted on it later inherit the option.
///
/// # Safety
/// See [`give_all`].
unsafe fn is_to_be_given(fd: RawFd) -> bool {
    // SAFETY: fstat, getsockopt and setsockopt read and write what they are given with its size.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        if libc::fstat(fd, &raw mut stat) < 0 {
            return false;
        }
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFSOCK => {
                let ask = |option: libc::c_int| {
                    let mut value: libc::c_int = 0;
                    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
                    let to = (&raw mut value).cast();
                    (libc::getsockopt(fd, libc::SOL_SOCKET, option, to, &raw mut size) == 0).then_some(value)
                };
                let kind = ask(libc::SO_TYPE);
                if ask(libc::SO_ACCEPTCONN) == Some(0) {
                    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
                    let size = size_of::<libc::linger>() as libc::socklen_t;
                    libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size);
                }
                kind == Some(libc::SOCK_STREAM) || kind == Some(libc::SOCK_DGRAM)
            }
            libc::S_IFIFO | libc::S_IFREG => true,
            // A pidfd of Linux before 6.9 has no type; signal 0 is no signal, and EBADF for every other descriptor.
            0 => {
                libc::syscall(libc::SYS_pidfd_send_signal, fd, 0, 0, 0) == 0 || *libc::__errno_location() != libc::EBADF
            }
            _ => false,
        }
    }
}

/// Sends descriptors. Where the pair is full, it waits until somebody reads from it; where too many are in flight, a
/// moment.
///
/// # Safety
/// See [`give_all`].
unsafe fn send(plan: &ShadowPlan<'_>, fds: &[RawFd]) {
    #[repr(C)]
    union ControlBuffer {
        _align: libc::cmsghdr,
        _header: [u8; 64],
        _room: [RawFd; BATCH],
    }
    if fds.is_empty() {
        return;
    }
    let mut control = [const { std::mem::MaybeUninit::<ControlBuffer>::zeroed() }; 2];
    // SAFETY: the message points to one word and to a control buffer with room for a header and BATCH descriptors.
    unsafe {
        let count = fds.len() as u64;
        let mut part = libc::iovec { iov_base: (&raw const count).cast_mut().cast(), iov_len: size_of::<u64>() };
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        let bytes = size_of_val(fds) as libc::c_uint;
        message.msg_controllen = libc::CMSG_SPACE(bytes) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(bytes) as _;
        std::ptr::copy_nonoverlapping(fds.as_ptr(), libc::CMSG_DATA(header).cast(), fds.len());
        // About ten seconds for descriptors in flight to become fewer.
        for _ in 0..1000 {
            if libc::sendmsg(plan.pair.0, &raw const message, libc::MSG_NOSIGNAL) >= 0 {
                plan.words.given.fetch_add(count, AcqRel);
                return;
            }
            match *libc::__errno_location() {
                libc::EINTR => {}
                libc::ETOOMANYREFS | libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN => {
                    let pause = libc::timespec { tv_sec: 0, tv_nsec: 10_000_000 };
                    libc::nanosleep(&raw const pause, std::ptr::null_mut());
                }
                _ => return,
            }
        }
    }
}

/// Tells the keeper where the descriptors wait, and gives it the reading end and the memfd.
///
/// # Safety
/// See [`give_all`].
unsafe fn tell_keeper(plan: &ShadowPlan<'_>) {
    #[repr(C)]
    union ControlBuffer {
        _align: libc::cmsghdr,
        _room: [u8; 128],
    }
    let Some(keeper) = &plan.keeper else { return };
    let fds = [plan.memfd, plan.pair.1];
    let mut control = std::mem::MaybeUninit::<ControlBuffer>::zeroed();
    // SAFETY: as in `send`; the address is a whole sockaddr_un.
    unsafe {
        let socket = libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        let mut part = libc::iovec { iov_base: plan.message.as_ptr().cast_mut().cast(), iov_len: plan.message.len() };
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_name = (&raw const *keeper).cast_mut().cast();
        message.msg_namelen = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        let bytes = size_of_val(&fds) as libc::c_uint;
        message.msg_controllen = libc::CMSG_SPACE(bytes) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(bytes) as _;
        std::ptr::copy_nonoverlapping(fds.as_ptr(), libc::CMSG_DATA(header).cast(), fds.len());
        libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT);
    }
}

/// The address of a UNIX socket, as [`ShadowPlan`] has it; `None` where the path is too long.
pub fn unix_address(path: &std::path::Path) -> Option<libc::sockaddr_un> {
    use std::os::unix::ffi::OsStrExt as _;
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: sockaddr_un is plain old data, for which all zeroes is a value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if bytes.len() >= address.sun_path.len() {
        return None;
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Some(address)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        net::{TcpListener, TcpStream},
        os::fd::{AsFd as _, AsRawFd as _, IntoRawFd as _, OwnedFd},
        sync::atomic::Ordering::Relaxed,
    };

    use nix::{
        errno::Errno,
        sys::{
            signal::Signal,
            socket::{AddressFamily, MsgFlags, SockFlag, SockType, getsockopt, send, setsockopt, socketpair, sockopt},
            stat::fstat,
            wait::{WaitStatus, waitpid},
        },
        unistd::{ForkResult, fork, pipe},
    };

    use super::*;
    use crate::sys::{self, shared::SharedWords};

    /// Words of the tests.
    const READY: usize = 0;
    const MODE: usize = 1;
    const DIED: usize = 2;
    const DONE: usize = 4;
    const OWNER: usize = 5;

    /// As [`killed_in`], with room in the table.
    fn killed(kept: &[RawFd], mode: u64, words: &SharedWords, pair: &(OwnedFd, OwnedFd)) {
        killed_in(kept, mode, words, pair, false);
    }

    /// What a process with these descriptors has, which starts a shadow and is killed; the mode is `mode` then, and the
    /// table may be full.
    fn killed_in(kept: &[RawFd], mode: u64, words: &SharedWords, pair: &(OwnedFd, OwnedFd), full: bool) {
        let group = std::env::temp_dir().join(format!("shadow-{}-{mode}", std::process::id()));
        std::fs::write(&group, "").expect("a file");
        words[MODE].store(mode, Relaxed);
        let plan = |process: RawFd| ShadowPlan {
            words: ShadowWords {
                ready: &words[READY],
                mode: &words[MODE],
                leave: [7, 8],
                died: &words[DIED],
                given: &words[3],
                done: &words[DONE],
                owner: (&words[OWNER], 0, 9),
            },
            generation: 3,
            process,
            pair: (pair.0.as_raw_fd(), pair.1.as_raw_fd()),
            memfd: words.as_fd().as_raw_fd(),
            group: CString::new(group.to_str().expect("text")).expect("no zero"),
            keeper: None,
            message: b"",
        };
        let ours = [pair.0.as_raw_fd(), pair.1.as_raw_fd(), words.as_fd().as_raw_fd()];
        // SAFETY: the child has one thread; it closes descriptors of its own table, and ends without a destructor.
        let child = match unsafe { fork() }.expect("fork") {
            ForkResult::Parent { child } => child,
            // SAFETY: as above.
            ForkResult::Child => unsafe {
                // The descriptors of other tests are not to be touched.
                for fd in (3..4096).filter(|fd| !kept.contains(fd) && !ours.contains(fd)) {
                    libc::close(fd);
                }
                if full {
                    let highest = kept.iter().chain(&ours).max().map_or(0, |fd| *fd);
                    let few = highest.unsigned_abs().max(16) + 16;
                    let limit = libc::rlimit { rlim_cur: few.into(), rlim_max: few.into() };
                    libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
                }
                let process = sys::pidfd_open(std::process::id());
                let shadow = process.and_then(|process| start(&plan(process.into_raw_fd())));
                if shadow.is_err() {
                    libc::_exit(1);
                }
                while words[READY].load(Relaxed) != 3 {
                    libc::sched_yield();
                }
                while full && libc::dup(ours[2]) >= 0 {}
                libc::kill(libc::getpid(), libc::SIGKILL);
                libc::_exit(2)
            },
        };
        let ended = waitpid(child, None).expect("our child");
        assert!(matches!(ended, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{ended:?}");
        while words[DONE].load(Relaxed) == 0 {
            std::thread::yield_now();
        }
        assert_eq!(std::fs::read_to_string(&group).expect("a file"), "0\n", "the shadow moves itself");
        let _ = std::fs::remove_file(group);
    }

    fn words_and_pair() -> (SharedWords, (OwnedFd, OwnedFd)) {
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        (SharedWords::create(16, 0).expect("a memfd"), pair.expect("a pair"))
    }

    /// A listener, a connection that it accepted, a pipe and a file; the inodes of those that belong to sessions.
    struct Table {
        listener: TcpListener,
        accepted: TcpStream,
        all: Vec<OwnedFd>,
    }

    impl Table {
        fn new() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let peer = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
            let (accepted, _) = listener.accept().expect("it came");
            let (reader, writer) = pipe().expect("a pipe");
            let directory = std::fs::File::open("/").expect("it is there");
            Self { listener, accepted, all: vec![peer.into(), reader, writer, directory.into()] }
        }

        fn fds(&self) -> Vec<RawFd> {
            let first = [self.listener.as_raw_fd(), self.accepted.as_raw_fd()];
            first.into_iter().chain(self.all.iter().map(|fd| fd.as_raw_fd())).collect()
        }
    }

    #[test]
    fn a_shadow_gives_what_a_killed_process_had_and_no_listener_passes_a_linger_on() {
        gives_all(1, false);
    }

    #[test]
    fn a_shadow_gives_everything_when_its_process_was_at_the_limit_of_descriptors() {
        gives_all(3, true);
    }

    fn gives_all(mode: u64, full: bool) {
        let (words, pair) = words_and_pair();
        let table = Table::new();
        killed_in(&table.fds(), mode, &words, &pair, full);
        let message = || sys::receive::<BATCH>(pair.1.as_fd(), &mut [0; 16], MsgFlags::MSG_DONTWAIT).ok();
        let given: Vec<_> = std::iter::from_fn(message).flat_map(|(_, given)| given).collect();
        let inode = |fd: &OwnedFd| fstat(fd).expect("open").st_ino;
        let mut inodes: Vec<_> = given.iter().map(inode).collect();
        let own = [table.listener.as_fd(), table.accepted.as_fd()].map(|fd| fd.try_clone_to_owned().expect("open"));
        let mut expected: Vec<_> = own.iter().chain(&table.all[..3]).map(inode).collect();
        // The pidfd is among them; where the kernel gives pidfds one inode for all, too.
        let known = expected.clone();
        inodes.retain(|inode| known.contains(inode));
        inodes.sort_unstable();
        inodes.dedup();
        expected.sort_unstable();
        expected.dedup();
        assert_eq!(inodes, expected);
        assert_eq!(words[3].load(Relaxed), given.len() as u64);
        assert_eq!(words[OWNER].load(Relaxed), 9, "nobody has them");
        let linger = |fd: &OwnedFd| getsockopt(fd, sockopt::Linger).expect("a socket").l_onoff;
        assert_eq!([linger(&own[0]), linger(&own[1])], [0, 1]);
    }

    #[test]
    fn a_shadow_waits_while_the_pair_is_full_and_gives_everything() {
        let (words, pair) = words_and_pair();
        setsockopt(&pair.0, sockopt::SndBuf, &0).expect("a socket"); // the kernel makes it its least
        let fill = || send(pair.0.as_raw_fd(), &[0; 8], MsgFlags::MSG_DONTWAIT);
        let full = std::iter::repeat_with(fill).find_map(Result::err);
        assert_eq!(full, Some(Errno::EAGAIN));
        let pipes: Vec<_> = (0..BATCH).map(|_| pipe().expect("a pipe")).collect();
        let inode = |fd: &OwnedFd| fstat(fd).expect("open").st_ino;
        let receive = || sys::receive::<BATCH>(pair.1.as_fd(), &mut [0; 16], MsgFlags::MSG_DONTWAIT);
        let read = || {
            let mut inodes = HashSet::new();
            while words[DIED].load(Relaxed) == 0 {
                std::thread::yield_now();
            }
            loop {
                let done = words[DONE].load(Relaxed) > 0;
                match receive() {
                    Ok((_, given)) => inodes.extend(given.iter().map(inode)),
                    Err(_) if done => return inodes,
                    Err(_) => std::thread::yield_now(),
                }
            }
        };
        let given = std::thread::scope(|scope| {
            let reading = scope.spawn(read);
            let fds: Vec<_> = pipes.iter().flat_map(|(from, to)| [from.as_raw_fd(), to.as_raw_fd()]).collect();
            killed(&fds, 2, &words, &pair);
            reading.join().expect("it reads")
        });
        assert!(pipes.iter().all(|(from, _)| given.contains(&inode(from))));
        assert!(words[3].load(Relaxed) >= 2 * BATCH as u64, "both ends of each");
    }

    #[test]
    fn a_shadow_leaves_what_its_process_has_given_itself() {
        let (words, pair) = words_and_pair();
        killed(&Table::new().fds(), 8, &words, &pair);
        let nothing = sys::receive::<BATCH>(pair.1.as_fd(), &mut [0; 16], MsgFlags::MSG_DONTWAIT);
        assert!(nothing.is_err(), "{nothing:?}");
        assert_eq!([3, OWNER].map(|n| words[n].load(Relaxed)), [0, 0]);
    }

    #[test]
    fn a_process_with_several_threads_starts_no_shadow() {
        let (words, pair) = words_and_pair();
        let another = std::thread::spawn(std::thread::park);
        let ready = &words[READY];
        let plan = ShadowPlan {
            words: ShadowWords {
                ready,
                mode: ready,
                leave: [0; 2],
                died: ready,
                given: ready,
                done: ready,
                owner: (ready, 1, 1),
            },
            generation: 1,
            process: -1,
            pair: (pair.0.as_raw_fd(), pair.1.as_raw_fd()),
            memfd: -1,
            group: CString::default(),
            keeper: None,
            message: b"",
        };
        assert!(start(&plan).is_err());
        another.thread().unpark();
        another.join().expect("it ends");
    }
}
