//! A machine for one test: a separate network, `/run` of its own, and in it the namespaces that the test makes.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, UdpSocket},
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::support::{Activated, Activation, PATIENCE, Process, eventually, skip};

/// Enters a sandbox, or ends the test where there can be none.
macro_rules! sandbox {
    () => {
        if !crate::sandbox::enter() {
            return;
        }
    };
}

/// Puts this test's thread, and all it will start, into namespaces of their own.
#[track_caller]
pub(crate) fn enter() -> bool {
    if !nix::unistd::geteuid().is_root() {
        skip("network namespaces need root");
        return false;
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("root may");
    run("mount --make-rprivate /");
    run("mount -t tmpfs -o mode=755 tmpfs /run");
    fs::create_dir("/run/netns").expect("a new file system");
    run("ip link set lo up");
    true
}

/// Runs a command line to its end.
#[track_caller]
pub(crate) fn run(line: &str) {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().expect("a command")).args(words).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("{line}: {e}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A new namespace, with its loopback up.
#[track_caller]
pub(crate) fn netns(name: &str) {
    run(&format!("ip netns add {name}"));
    run(&format!("ip -n {name} link set lo up"));
}

/// A new namespace with a way to it: `inner` there on the device `inside`, `outer` here on the device returned, both
/// with their prefix's length.
#[track_caller]
pub(crate) fn netns_with_link(name: &str, outer: &str, inner: &str) -> String {
    netns(name);
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let here = format!("v{}", NEXT.fetch_add(1, Ordering::Relaxed));
    run(&format!("ip link add {here} type veth peer name inside netns {name}"));
    run(&format!("ip link set {here} up"));
    run(&format!("ip -n {name} link set inside up"));
    address(None, &here, outer);
    address(Some(name), "inside", inner);
    here
}

/// Gives a device, in a namespace or here, an address with its prefix's length, and waits until it is of use. An IPv6
/// address, even one that nobody is asked about (nodad), can be bound some time before the kernel knows it as a way to
/// itself, and what is sent to it until then is lost.
#[track_caller]
pub(crate) fn address(namespace: Option<&str>, device: &str, address: &str) {
    let ip = namespace.map_or_else(|| "ip".to_owned(), |name| format!("ip -n {name}"));
    if !address.contains(':') {
        return run(&format!("{ip} addr add {address} dev {device}"));
    }
    run(&format!("{ip} addr add {address} dev {device} nodad"));
    let local = format!("local {} ", address.split('/').next().expect("an address"));
    eventually(&format!("{address} is of use"), || {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{ip} -6 route show table local")]).stdin(Stdio::null());
        String::from_utf8_lossy(&command.output().expect("iproute2").stdout).contains(&local)
    });
}

/// What `work` makes in a namespace; only sockets and such stay there.
pub(crate) fn inside<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = fs::File::open(PathBuf::from("/run/netns").join(name)).expect("it was made");
    thread::scope(|scope| {
        let entered = scope.spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).expect("root may");
            work()
        });
        entered.join().expect("no panic inside")
    })
}

/// `net:[…]` of a namespace.
pub(crate) fn inode_of(name: &str) -> String {
    use std::os::unix::fs::MetadataExt as _;
    format!("net:[{}]", fs::metadata(format!("/run/netns/{name}")).expect("it was made").ino())
}

/// `net:[…]` of this test.
pub(crate) fn inode_here() -> String {
    fs::read_link("/proc/thread-self/ns/net").expect("/proc is there").to_string_lossy().into_owned()
}

/// Sends everything back, for ever; after `prefix`, by which the server is known.
pub(crate) fn echo_tcp(listener: TcpListener, prefix: &'static str) -> SocketAddr {
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let _ = stream.write_all(prefix.as_bytes());
                let Ok(mut back) = stream.try_clone() else { return };
                let _ = std::io::copy(&mut stream, &mut back);
                let _ = back.shutdown(std::net::Shutdown::Write);
                let _ = stream.read(&mut [0]);
            });
        }
    });
    address
}

/// Sends each datagram back to where it came from, for ever.
pub(crate) fn echo_udp(socket: UdpSocket) -> SocketAddr {
    let address = socket.local_addr().expect("it is bound");
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], from);
        }
    });
    address
}

/// An echo server in a namespace, on a port of its own choice.
pub(crate) fn echo_inside(name: &str, ip: &str, prefix: &'static str) -> SocketAddr {
    let listener = inside(name, || TcpListener::bind(format!("{ip}:0")).expect("a free port"));
    echo_tcp(listener, prefix)
}

/// A UDP echo server in a namespace.
pub(crate) fn echo_udp_inside(name: &str, ip: &str) -> SocketAddr {
    let socket = inside(name, || UdpSocket::bind(format!("{ip}:0")).expect("a free port"));
    echo_udp(socket)
}

/// `pfwd`, not started yet.
pub(crate) fn pfwd() -> Activation {
    Activation::of(env!("CARGO_BIN_EXE_pfwd"))
}

/// `pfwd` with these forwards, ready.
#[track_caller]
pub(crate) fn forwarding(forwards: &[&str]) -> Activated {
    pfwd().args(forwards.iter().flat_map(|forward| ["--forward", forward])).start().ready()
}

/// The address that a listener has, from the line in which the log tells of it: what stands before ` leads to`.
#[track_caller]
pub(crate) fn told_address(service: &Activated, leads_to: &str) -> SocketAddr {
    let line = service.process.stderr.wait_for(&format!("leads to {leads_to}"));
    let before = line.split(" leads to").next().expect("it holds that");
    let words = before.split([' ']).filter_map(|word| word.parse().ok()).next();
    words.unwrap_or_else(|| panic!("no address in {line}"))
}

/// A `socat` in a namespace, killed with the test.
#[track_caller]
pub(crate) fn socat(name: Option<&str>, args: &[&str]) -> Process {
    let mut command = match name {
        Some(name) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", name, "socat"]);
            command
        }
        None => Command::new("socat"),
    };
    command.args(args).stdin(Stdio::null());
    Process::start(command)
}

/// A datagram socket that waits for answers, but not for ever.
pub(crate) fn asker(ip: &str) -> UdpSocket {
    let socket = UdpSocket::bind(format!("{ip}:0")).expect("a free port");
    socket.set_read_timeout(Some(PATIENCE)).expect("not zero");
    socket
}
