//! /proc, read in one place (proc(5)): control groups, processes, the kernel's tables of sockets.
//!
//! A file about one process is read up to a limit: its owner decides how long a command line is. The tables of sockets
//! have no limit, so they are read line by line. Nothing here is escaped: names and paths are as their owners chose them.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::unistd::{SysconfVar, sysconf};

use super::file::read;

/// The most that is read of a file about one process, in bytes.
const LIMIT: u64 = 64 << 10;
/// The most that is read of the list of mounts, in bytes: what some ten thousand containers have.
const MOUNTS: u64 = 16 << 20;
/// The longest line of a table, in bytes; the path of a UNIX socket has 108 (unix(7)).
const LINE: u64 = 4096;

/// A process, by its directory.
#[derive(Clone, Debug)]
pub struct Process(PathBuf);

impl Process {
    /// The process that asks.
    pub fn own() -> Self {
        Self("/proc/self".into())
    }

    /// The process with this number, whoever has it now.
    pub fn of(pid: u32) -> Self {
        Self(Path::new("/proc").join(pid.to_string()))
    }

    /// All processes, with their process ids.
    pub fn all() -> impl Iterator<Item = (u32, Self)> {
        fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, Self(entry.path())))
        })
    }

    fn read(&self, file: &str, limit: u64) -> Vec<u8> {
        read(&self.0.join(file), limit).unwrap_or_default()
    }

    pub fn groups(&self) -> Groups {
        Groups(String::from_utf8_lossy(&self.read("cgroup", LIMIT)).into_owned())
    }

    /// The line of numbers that the kernel keeps of it; `None` when it is gone.
    pub fn stat(&self) -> Option<Stat> {
        Stat::parse(&self.read("stat", LIMIT))
    }

    /// The user that it runs as.
    pub fn user(&self) -> Option<u32> {
        self.0.metadata().ok().map(|meta| meta.uid())
    }

    /// The first `most` bytes of its command line, each word followed by NUL; empty for a thread of the kernel.
    pub fn command_line(&self, most: u64) -> Vec<u8> {
        self.read("cmdline", most)
    }

    /// How many descriptors it has open. Linux says so at once since 6.2; before, they are counted.
    pub fn open_descriptors(&self) -> Option<u64> {
        let directory = self.0.join("fd");
        match fs::metadata(&directory).ok()?.len() {
            0 => fs::read_dir(&directory).ok().map(|entries| entries.count() as u64),
            n => Some(n),
        }
    }

    /// The first 15 bytes of its name.
    pub fn name(&self) -> Option<Vec<u8>> {
        self.read("comm", LIMIT).strip_suffix(b"\n").map(<[u8]>::to_vec)
    }

    /// The variables that it was started with, up to a limit.
    pub fn environment(&self) -> Vec<Vec<u8>> {
        self.read("environ", MOUNTS).split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
    }

    /// The inodes of the sockets that it holds; none where it may not be looked at.
    pub fn sockets(&self) -> impl Iterator<Item = u64> {
        fs::read_dir(self.0.join("fd")).into_iter().flatten().flatten().filter_map(|descriptor| {
            let target = fs::read_link(descriptor.path()).ok()?;
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        })
    }

    /// The capabilities that are in effect, as bits of capabilities(7).
    pub fn capabilities(&self) -> Option<u64> {
        self.bits("CapEff:")
    }

    /// Whether a signal is ignored.
    pub fn ignores(&self, signal: i32) -> bool {
        let bit = u32::try_from(signal - 1).ok().and_then(|n| 1_u64.checked_shl(n));
        self.bits("SigIgn:").zip(bit).is_some_and(|(ignored, bit)| ignored & bit != 0)
    }

    /// A set of bits in the status of the process.
    fn bits(&self, name: &str) -> Option<u64> {
        let status = String::from_utf8_lossy(&self.read("status", LIMIT)).into_owned();
        let bits = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(bits.trim(), 16).ok()
    }
}

/// The control groups of a process (cgroups(7), /proc/PID/cgroup): one line `NUMBER:CONTROLLERS:PATH` each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups(String);

impl Groups {
    /// Of text that a test has written.
    #[cfg(test)]
    pub fn of(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The path in the unified hierarchy, whose line begins with `0::`; it begins with `/`.
    pub fn unified(&self) -> Option<&str> {
        self.after("0::").next()
    }

    /// The paths in the unified hierarchy and in the one that systemd keeps beside others, in this order.
    pub fn of_systemd(&self) -> impl Iterator<Item = &str> {
        self.after("0::").chain(self.0.lines().filter_map(|line| line.split_once(":name=systemd:").map(|(_, p)| p)))
    }

    fn after<'a>(&'a self, start: &'static str) -> impl Iterator<Item = &'a str> {
        self.0.lines().filter_map(move |line| line.strip_prefix(start))
    }
}

/// What stands in /proc/PID/stat behind the name of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat(Vec<String>);

impl Stat {
    /// The name in field 2 may hold anything, so the fields are counted from its last parenthesis.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().rposition(|byte| *byte == b')')?;
        let rest = String::from_utf8_lossy(&bytes[end + 1..]);
        Some(Self(rest.split_ascii_whitespace().map(str::to_owned).collect()))
    }

    /// A field by its number in proc_pid_stat(5), from 3 on.
    fn field<T: std::str::FromStr>(&self, number: usize) -> Option<T> {
        self.0.get(number.checked_sub(3)?)?.parse().ok()
    }

    /// The parent's number.
    pub fn parent(&self) -> Option<u32> {
        self.field(4)
    }

    /// Whether the process has a controlling terminal.
    pub fn has_terminal(&self) -> bool {
        self.field::<i64>(7).is_some_and(|device| device != 0)
    }

    /// When the process started, since boot, in hundredths of a second.
    pub fn started(&self) -> Option<Duration> {
        let ticks: u64 = self.field(22)?;
        let per_second = sysconf(SysconfVar::CLK_TCK).ok()?.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0)?;
        Some(Duration::from_millis(ticks.saturating_mul(1000) / per_second))
    }
}

/// Where the unified hierarchy of control groups is mounted.
pub fn unified_hierarchy() -> Option<PathBuf> {
    unified_in(&String::from_utf8_lossy(&read(Path::new("/proc/self/mounts"), MOUNTS).ok()?))
}

/// `mounts` is /proc/self/mounts: `SOURCE PLACE TYPE OPTIONS …`.
fn unified_in(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (_, at, kind) = (words.next()?, words.next()?, words.next()?);
        (kind == "cgroup2").then(|| at.into())
    })
}

/// Calls `each` with the lines of a table, without the heading, as far as the table can be read.
fn lines(table: &str, each: impl FnMut(&[u8])) {
    let _ = all_lines(table, each);
}

/// Calls `each` with all lines of a table, without the heading. No line of the kernel reaches the limit.
///
/// # Errors
/// The table cannot be read to its end.
fn all_lines(table: &str, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(64 << 10, File::open(table)?);
    let mut line = Vec::new();
    let mut heading = true;
    loop {
        line.clear();
        if reader.by_ref().take(LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if !std::mem::take(&mut heading) {
            each(line.strip_suffix(b"\n").unwrap_or(&line));
        }
    }
}

/// A TCP socket of this network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    pub local: SocketAddr,
    /// The port at the other end.
    pub port: u16,
    pub user: u32,
    /// What descriptors of it are called; 0 when nobody has one any more.
    pub inode: u64,
}

impl Tcp {
    /// Calls `each` with every TCP socket of this network namespace.
    pub fn all(mut each: impl FnMut(Self)) {
        for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
            lines(table, |line| {
                if let Some(socket) = std::str::from_utf8(line).ok().and_then(Self::parse) {
                    each(socket);
                }
            });
        }
    }

    /// A line of /proc/net/tcp (proc_pid_net(5)): `sl local remote st tx:rx tr:when retransmits uid timeout inode …`.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace().skip(1);
        let local = address(words.next()?)?;
        let port = address(words.next()?)?.port();
        let mut words = words.skip(4);
        Some(Self { local, port, user: words.next()?.parse().ok()?, inode: words.nth(1)?.parse().ok()? })
    }
}

/// The TCP sockets, in whichever state, of the network namespace of the calling thread whose other end is `to`. Each of
/// them has a local port that no other socket to the same place can have.
pub fn sockets_towards(to: SocketAddr) -> usize {
    let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
    let mut count = 0;
    let remote = |line: &[u8]| address(std::str::from_utf8(line).ok()?.split_ascii_whitespace().nth(2)?);
    for table in tables {
        lines(table, |line| {
            let same = |at: SocketAddr| (at.ip().to_canonical(), at.port()) == (to.ip().to_canonical(), to.port());
            count += usize::from(remote(line).is_some_and(same));
        });
    }
    count
}

/// Whether a connection of the network namespace of the calling thread has `place` as one of its two ends: of TCP, or of
/// a connected UDP socket. Where `place` is an address of that namespace, whoever serves it may serve all others too:
/// then a connection to any address of the namespace with that port counts.
///
/// # Errors
/// The tables cannot be read.
pub fn is_connected(place: SocketAddr, datagrams: bool) -> io::Result<bool> {
    /// `TCP_ESTABLISHED` of linux/tcp_states.h, of connected UDP sockets too.
    const ESTABLISHED: &str = "01";
    let tables = match datagrams {
        false => ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"],
        true => ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"],
    };
    let here = UdpSocket::bind((place.ip(), 0)).is_ok(); // bind(2) refuses addresses of others
    let same = |at: SocketAddr| (at.ip().to_canonical(), at.port()) == (place.ip().to_canonical(), place.port());
    let has = |line: &[u8]| {
        let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace().skip(1);
        let [local, remote] = [address(words.next()?)?, address(words.next()?)?];
        let served = same(local) || same(remote) || (here && local.port() == place.port());
        (words.next()? == ESTABLISHED).then_some(served)
    };
    let mut found = false;
    for table in tables {
        match all_lines(table, |line| found |= has(line) == Some(true)) {
            // There is no IPv6.
            Err(e) if e.kind() == io::ErrorKind::NotFound && table.ends_with('6') => {}
            read => read?,
        }
    }
    Ok(found)
}

/// Whether somebody is connected to the UNIX socket at a path, or at an abstract name with `@` before it: the socket
/// that the other side accepted has the address that its listener was bound to. Paths that lead to the same directory
/// are the same; a relative path, whose directory nobody knows, counts wherever it is.
///
/// # Errors
/// The table cannot be read.
pub fn is_connected_unix(path: &OsStr) -> io::Result<bool> {
    /// `SS_CONNECTED` of linux/net.h.
    const CONNECTED: &[u8] = b"03";
    let given = Path::new(path);
    let real = fs::canonicalize(given).or_else(|_| in_real_directory(given));
    let same = |at: &[u8]| {
        let at = Path::new(OsStr::from_bytes(at));
        match &real {
            _ if at == given => true,
            Ok(real) if at.file_name() == real.file_name() && !at.as_os_str().as_bytes().starts_with(b"@") => {
                at.is_relative() || in_real_directory(at).is_ok_and(|at| at == *real)
            }
            _ => false,
        }
    };
    let mut found = false;
    all_lines("/proc/thread-self/net/unix", |line| {
        found |= unix_address(line).is_some_and(|(state, at)| state == CONNECTED && same(at));
    })?;
    Ok(found)
}

/// The path by the real name of its directory.
fn in_real_directory(path: &Path) -> io::Result<PathBuf> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    Ok(fs::canonicalize(directory)?.join(name))
}

/// State and address of a line of /proc/net/unix (unix(7)): `Num RefCount Protocol Flags Type St Inode Path`.
fn unix_address(line: &[u8]) -> Option<(&[u8], &[u8])> {
    /// The fields before the path.
    const FIELDS: usize = 7;
    let (mut rest, mut state) = (line, None);
    for field in 0..FIELDS {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(|byte| *byte == b' ')?;
        if field == FIELDS - 2 {
            state = Some(&rest[..end]);
        }
        rest = &rest[end..];
    }
    Some((state?, &rest[1..]))
}

/// The number of local ports that the kernel chooses from in the network namespace of the calling thread (ip(7),
/// ip_local_port_range).
pub fn local_ports() -> Option<u32> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ends = range.split_ascii_whitespace().map(str::parse::<u32>);
    let (first, last) = (ends.next()?.ok()?, ends.next()?.ok()?);
    Some(last.checked_sub(first)? + 1)
}

/// `0100007F:0050`: words of 32 bits in the machine's order, the port as it is read.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |n: usize| u32::from_str_radix(ip.get(n * 8..n * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (n, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(n)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// A socket that has a port of this network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenPort {
    pub local: SocketAddr,
    pub user: u32,
    /// What descriptors of it are called.
    pub inode: u64,
}

/// The TCP sockets of this network namespace that listen, or all its UDP sockets.
pub fn bound(datagrams: bool) -> Vec<OpenPort> {
    /// `TCP_LISTEN` of linux/tcp_states.h.
    const LISTENS: &str = "0A";
    let tables: [&str; 2] = match datagrams {
        false => ["/proc/self/net/tcp", "/proc/self/net/tcp6"],
        true => ["/proc/self/net/udp", "/proc/self/net/udp6"],
    };
    let mut found = Vec::new();
    for table in tables {
        lines(table, |line| {
            let Ok(line) = std::str::from_utf8(line) else { return };
            let state = line.split_ascii_whitespace().nth(3);
            let socket = Tcp::parse(line).filter(|_| datagrams || state == Some(LISTENS));
            found.extend(socket.map(|Tcp { local, user, inode, .. }| OpenPort { local, user, inode }));
        });
    }
    found
}

/// Whether some program listens on the UNIX socket at that path. Asking the kernel's list costs the listener nothing,
/// unlike connecting.
pub fn listens(path: &Path) -> bool {
    listener_at(path.as_os_str()).is_some()
}

/// The inode of the UNIX socket on which some program listens: at a path, or at an abstract name with `@` before it.
pub fn listener_at(path: &OsStr) -> Option<u64> {
    let mut found = None;
    lines("/proc/net/unix", |line| found = found.or(listener(line, path)));
    found
}

/// The inode in a line of /proc/net/unix, where that is of a listener at `path`: `address: count protocol flags type
/// state inode path`.
fn listener(line: &[u8], path: &OsStr) -> Option<u64> {
    /// `__SO_ACCEPTCON` of linux/net.h.
    const LISTENS: u32 = 1 << 16;
    let mut fields = line.splitn(8, |byte| *byte == b' ').filter(|field| !field.is_empty());
    let flags = u32::from_str_radix(std::str::from_utf8(fields.nth(3)?).ok()?, 16).ok()?;
    let before = line.strip_suffix(path.as_bytes())?.strip_suffix(b" ")?;
    let inode = before.rsplit(|byte| *byte == b' ').next()?;
    Some(std::str::from_utf8(inode).ok()?.parse().ok()?).filter(|_| flags & LISTENS != 0)
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::unix::net::{UnixDatagram, UnixListener, UnixStream},
    };

    use super::*;

    #[test]
    fn groups_are_told_by_the_beginning_of_their_lines() {
        let groups = Groups::of("2:cpu:/x.service\n1:name=systemd:/a/b.scope\n0::/system.slice/y.service\n");
        assert_eq!(groups.unified(), Some("/system.slice/y.service"));
        assert_eq!(groups.of_systemd().collect::<Vec<_>>(), ["/system.slice/y.service", "/a/b.scope"]);
        assert_eq!(Groups::of("").unified(), None);
        assert!(Process::own().groups().of_systemd().all(|path| path.starts_with('/')));
    }

    #[test]
    fn the_unified_hierarchy_may_be_mounted_anywhere() {
        let mounts = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(unified_in(mounts).as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(unified_in("cgroup2 /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn a_name_with_parentheses_shifts_no_field() {
        let rest = "S 7 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4200 9";
        for name in ["sh", "a) S 1 (b", ") (", "\u{1b}\n"] {
            let stat = Stat::parse(format!("42 ({name}) {rest}").as_bytes()).expect("a line");
            assert_eq!(stat.parent(), Some(7), "{name}");
            assert_eq!(stat.field::<u64>(22), Some(4200), "{name}");
        }
        assert_eq!(Stat::parse(b"42 no name"), None);
        let own = Process::own().stat().expect("it lives");
        assert_eq!(own.parent(), Some(nix::unistd::getppid().as_raw().unsigned_abs()));
    }

    #[test]
    fn a_command_line_is_read_up_to_a_limit() {
        assert_eq!(Process::own().command_line(3).len(), 3);
        assert!(!Process::own().name().expect("it has one").is_empty());
        assert_eq!(Process::of(0).command_line(100), b"");
    }

    #[test]
    fn a_connection_to_another_address_of_the_same_server_counts() {
        let server = TcpListener::bind("0.0.0.0:0").expect("a free port");
        let port = server.local_addr().expect("it is bound").port();
        let place = |ip: [u8; 4]| SocketAddr::from((ip, port));
        let is_connected = |place, datagrams| is_connected(place, datagrams).expect("the tables are there");
        assert!(!is_connected(place([127, 0, 0, 1]), false));
        let _client = TcpStream::connect(place([127, 0, 0, 2])).expect("it listens");
        let _served = server.accept().expect("it is connected");
        assert!(is_connected(place([127, 0, 0, 1]), false));
        assert!(is_connected(place([127, 0, 0, 2]), false));
        assert!(!is_connected(place([192, 0, 2, 1]), false), "another machine's port");
    }

    #[test]
    fn a_unix_socket_is_the_same_by_each_path_to_its_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let [real, link, other] = ["real", "link", "other"].map(|name| dir.path().join(name));
        [&real, &other].into_iter().for_each(|dir| fs::create_dir(dir).expect("a free name"));
        std::os::unix::fs::symlink(&real, &link).expect("a free name");
        let connected =
            |directory: &Path| is_connected_unix(directory.join("a b").as_os_str()).expect("the table is there");
        let _other = UnixListener::bind(other.join("a b")).expect("a free path");
        for (bound, asked) in [(&link, &real), (&real, &link), (&real, &real)] {
            let server = UnixListener::bind(bound.join("a b")).expect("a free path");
            assert!(!connected(asked));
            let _client = UnixStream::connect(asked.join("a b")).expect("it listens");
            let _served = server.accept().expect("it is connected");
            assert!(connected(asked), "{bound:?} {asked:?}");
            assert!(!connected(&other));
            fs::remove_file(real.join("a b")).expect("it is there");
        }
    }

    #[test]
    fn a_tcp_socket_is_found_with_its_owner_and_inode() {
        let v4 = "0: 0100007F:0050 0A00000A:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 98765 1 0";
        let words = if cfg!(target_endian = "little") { v4.to_owned() } else { v4.replace("0100007F", "7F000001") };
        let expected = Tcp { local: "127.0.0.1:80".parse().expect("one"), port: 8080, user: 1000, inode: 98765 };
        assert_eq!(Tcp::parse(&words), Some(expected));
        for bad in ["", "sl local", &words[..40], &words.replace("0100007F", "0100007"), &words.replace("1000 ", "x ")]
        {
            assert_eq!(Tcp::parse(bad), None, "{bad}");
        }
        let listener = TcpListener::bind("[::1]:0").expect("loopback");
        let (at, mut found) = (listener.local_addr().expect("it has one"), None);
        Tcp::all(|socket| found = found.or(Some(socket).filter(|socket| socket.local == at)));
        let inode = found.expect("it listens").inode;
        assert!(bound(false).iter().any(|socket| socket.local == at && socket.inode == inode));
        let udp = UdpSocket::bind("127.0.0.1:0").expect("loopback");
        let udp_at = udp.local_addr().expect("it has one");
        assert!(bound(true).iter().any(|socket| socket.local == udp_at));
        assert!(Process::own().sockets().any(|socket| socket == inode));
    }

    #[test]
    fn only_a_listener_at_that_very_path_counts() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let _listener = UnixListener::bind(at("here")).expect("bound");
        let _datagram = UnixDatagram::bind(at("datagram")).expect("bound");
        assert!(listens(&at("here")));
        let inode = listener_at(at("here").as_os_str()).expect("it listens");
        assert!(Process::own().sockets().any(|socket| socket == inode));
        for other in ["her", "datagram", "nobody"] {
            assert!(!listens(&at(other)), "{other}");
        }
        assert!(!listens(Path::new("here")), "the end of a path is not the path");
    }
}
