//! Which process of this machine is at the other end of a connection: asked of the kernel when somebody wants to know,
//! never for each connection.
//!
//! * UNIX: the process that called connect(2) was told at accept (SO_PEERCRED, unix(7)) and is part of the peer's name
//!   in logs, where a later process of ours finds it, too.
//! * TCP from this machine and network namespace: /proc/net/tcp has the inode of the peer's socket, and whoever has a
//!   descriptor with that inode is it. Descriptors of other users' processes are hidden from all but the mightiest.
//!
//! A process id may have come round again since: a process that started after the session was accepted is not its peer.
//! What the kernel gives here, a peer may have chosen (command lines, names of units of its own): all is escaped.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use nix::time::{ClockId, clock_gettime};

use super::api::{self, Process};
use crate::{
    log::escape,
    session::{Peer, SessionInfo},
    sys::proc::{self, Groups, Tcp},
};

/// The most that is read of a command line, in bytes.
const LIMIT: u64 = 4096;
/// A command line is cut after so many characters.
const COMMAND: usize = 256;
/// Start times come in hundredths of a second, and the two clocks are not read at once.
const SLACK: Duration = Duration::from_millis(50);

/// Whom to look for.
#[derive(Clone, Debug)]
pub struct PeerQuery {
    /// The peer.
    peer: Peer,
    /// The port of the listener, where the listener is in our network namespace.
    port: Option<u16>,
    /// Age of the session.
    age: Duration,
}

impl PeerQuery {
    /// The peer of a session of another process, which tells of it in text.
    pub fn told(session: &api::Session) -> Self {
        let peer = Peer::read(&session.peer).unwrap_or(Peer::Unknown);
        Self { peer, port: port_of(&session.listener), age: Duration::from_millis(session.age_ms) }
    }

    /// The peer of a session of ours.
    pub fn of(info: &SessionInfo) -> Self {
        let (peer, port) = (info.peer.clone(), port_of(&info.route.listener.address));
        Self { peer, port, age: Duration::from_millis(info.age_ms()) }
    }
}

/// Whether the peer of a session is this process, whose end has the address `local`; over a Unix socket it has none.
pub fn is_of(session: &api::Session, local: Option<SocketAddr>) -> bool {
    match (Peer::read(&session.peer), local) {
        (Some(Peer::Inet(address)), Some(local)) => canonical(address) == canonical(local),
        (Some(Peer::Unix { pid, .. }), None) => u32::try_from(pid) == Ok(std::process::id()),
        _ => false,
    }
}

/// The process of each, where the kernel tells. Reads /proc: not for a thread that must not wait.
pub fn look_up(wanted: &[PeerQuery]) -> Vec<Option<Process>> {
    let mut pids: Vec<Option<(u32, Option<u32>)>> = Vec::with_capacity(wanted.len());
    // TCP connections as the peer's own socket has them: local address, port of the other side.
    let mut ends: HashMap<(SocketAddr, u16), usize> = HashMap::new();
    for (index, one) in wanted.iter().enumerate() {
        pids.push(match &one.peer {
            Peer::Unix { uid, pid, .. } => u32::try_from(*pid).ok().filter(|pid| *pid > 0).map(|p| (p, Some(*uid))),
            Peer::Inet(address) => {
                if let Some(port) = one.port {
                    ends.insert((canonical(*address), port), index);
                }
                None
            }
            Peer::Unknown => None,
        });
    }
    if !ends.is_empty() {
        for (index, pid, uid) in holders(inodes(&ends)) {
            pids[index] = Some((pid, Some(uid)));
        }
    }
    let describe = |(one, pid): (&PeerQuery, Option<(u32, Option<u32>)>)| {
        let (pid, uid) = pid?;
        process(pid, uid, one.age)
    };
    wanted.iter().zip(pids).map(describe).collect()
}

/// The port of `127.0.0.1:80`, `[::1]:80` and `0.0.0.0:80 in NAMESPACE`; the latter is of another world.
fn port_of(listener: &str) -> Option<u16> {
    listener.parse::<SocketAddr>().ok().map(|address| address.port())
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Inode and user of the socket of each.
fn inodes(ends: &HashMap<(SocketAddr, u16), usize>) -> HashMap<u64, (usize, u32)> {
    let mut found = HashMap::new();
    Tcp::all(|socket| {
        let end = ends.get(&(canonical(socket.local), socket.port));
        if let Some(index) = end.filter(|_| socket.inode > 0) {
            found.insert(socket.inode, (*index, socket.user));
        }
    });
    found
}

/// Who holds these sockets: index, process, user.
fn holders(mut inodes: HashMap<u64, (usize, u32)>) -> Vec<(usize, u32, u32)> {
    let mut found = Vec::new();
    for (pid, process) in proc::Process::all() {
        if inodes.is_empty() {
            break;
        }
        for inode in process.sockets() {
            if let Some((index, uid)) = inodes.remove(&inode) {
                found.push((index, pid, uid));
            }
        }
    }
    found
}

/// What there is to say of a process, unless it started after the session.
fn process(pid: u32, uid: Option<u32>, age: Duration) -> Option<Process> {
    let it = proc::Process::of(pid);
    let uid = uid.or_else(|| it.user())?;
    let (unit, command) = (unit(&it.groups()), command(&it));
    // Last: whoever has the number by now has it for good.
    let was_there = it.stat()?.started()? <= since_boot().saturating_sub(age) + SLACK;
    was_there.then_some(Process { pid, uid, unit, command })
}

fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from)
}

/// The unit that a process belongs to, by its place in the cgroup tree (cgroups(7)): the innermost service or scope.
fn unit(groups: &Groups) -> Option<String> {
    let unit = |path: &str| {
        let found = path.rsplit('/').find(|part| part.ends_with(".service") || part.ends_with(".scope"));
        found.map(|unit| escape(unit.as_bytes()))
    };
    groups.of_systemd().find_map(unit)
}

/// A command line, escaped, with words that need it in quotes; a process without one in brackets, as ps(1) has it.
fn command(process: &proc::Process) -> Option<String> {
    let bytes = process.command_line(LIMIT);
    let Some(words) = bytes.strip_suffix(b"\0").or(Some(&bytes[..])).filter(|words| !words.is_empty()) else {
        return Some(format!("[{}]", escape(&process.name()?)));
    };
    let words = words.split(|b| *b == 0).map(|word| {
        let word = escape(word);
        if word.is_empty() || word.contains([' ', '\'', '"']) { format!("'{word}'") } else { word }
    });
    let line = words.collect::<Vec<_>>().join(" ");
    Some(match line.char_indices().nth(COMMAND) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        net::{TcpListener, TcpStream},
        process::{Command, Stdio},
    };

    use super::*;

    fn wanted(peer: impl ToString, listener: impl ToString) -> Vec<PeerQuery> {
        let peer = Peer::read(&peer.to_string()).expect("a peer");
        vec![PeerQuery { peer, port: port_of(&listener.to_string()), age: Duration::ZERO }]
    }

    #[test]
    fn a_tcp_peer_of_this_machine_is_found_by_its_socket() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(any).unwrap();
            let at = listener.local_addr().unwrap();
            let peer = TcpStream::connect(at).unwrap();
            let found = look_up(&wanted(peer.local_addr().unwrap(), at)).remove(0).expect("it is this process");
            assert_eq!(found.pid, std::process::id(), "{any}");
            assert_eq!(look_up(&wanted("192.0.2.1:7", at)), [None]);
        }
    }

    #[test]
    fn a_process_that_started_after_the_session_is_not_its_peer() {
        let me = wanted(format!("uid 0 pid {}", std::process::id()), "/x");
        assert!(look_up(&me)[0].is_some());
        let long_ago = PeerQuery { age: since_boot(), ..me[0].clone() };
        assert_eq!(look_up(&[long_ago]), [None]);
    }

    #[test]
    fn a_hostile_command_line_is_spelled_out_and_cut() {
        let mut command = Command::new("/bin/sh");
        let hostile = "\u{1b}]0;owned\u{7}\r\n\u{202e}\u{9b}31m";
        command.args(["-c", "echo; read line", hostile, &"x".repeat(1000)]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap(); // it is the shell by now
        let found = look_up(&wanted(format!("uid 7 pid {}", child.id()), "/x")).remove(0).expect("it lives");
        drop(child.stdin.take());
        child.wait().unwrap();
        let line = found.command.expect("it has one");
        assert!(
            line.starts_with("/bin/sh -c 'echo; read line' \\x1b]0;owned\\x07\\x0d\\x0a\\u{202e}\\x9b31m xxx"),
            "{line}"
        );
        assert!(line.ends_with("x…") && line.chars().count() == COMMAND + 1, "{line}");
        assert_eq!(found.uid, 7);
    }

    #[test]
    fn the_innermost_service_or_scope_is_the_unit() {
        let of = |text: &str| unit(&Groups::of(text));
        let user = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/firefox.service\n";
        assert_eq!(of(user).as_deref(), Some("firefox.service"));
        assert_eq!(of("0::/system.slice/x.service/calls\n").as_deref(), Some("x.service"));
        assert_eq!(of("9:name=systemd:/\n0::/a/b.service/c\n").as_deref(), Some("b.service"));
        assert_eq!(of("2:cpu:/x.service\n1:name=systemd:/a/b.scope\n").as_deref(), Some("b.scope"));
        assert_eq!(of("0::/a\u{1b}[31m.service\n").as_deref(), Some("a\\x1b[31m.service"));
        assert_eq!(of("0::/\n"), None);
    }
}
