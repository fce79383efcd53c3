//! UNIX sockets that are served: whose they are, what is in the way, and who may connect at every moment.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, symlink},
        net::UnixListener,
    },
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;

use crate::{
    sandbox::{echo_tcp, forwarding, pfwd, run},
    support::{Activated, Pace, Process, Wire, eventually, exchange},
};

const UDS: &str = "/run/served/a.sock";

fn endpoint(more: &str) -> String {
    let server = echo_tcp(std::net::TcpListener::bind("127.0.0.1:0").expect("free"), "");
    format!("uds={UDS},target={server}{more}")
}

fn works() {
    exchange(&mut Wire::unix(Path::new(UDS)), 3, 10_000, Pace::BULK);
}

fn refused(forward: &str, why: &str) {
    let service = forwarding(&[forward, "label=other,listen=127.0.0.1+0,target=127.0.0.1+9"]);
    let line = service.process.stderr.wait_for("is not served");
    assert!(line.contains(why), "{line}");
    // the other one is served, and the status says so
    assert_eq!(service.notifications.status().as_deref(), Some("1 of 2 forwards, 0 sessions"));
    service.stop();
    // and with --strict nothing is
    let mut strict = pfwd().args(["--strict", "--forward", forward]).start();
    let status = strict.process.wait();
    assert_eq!(status.code(), Some(1), "{:?}", strict.process.stderr.so_far());
    assert!(strict.process.stderr.to_the_end().iter().any(|line| line.contains("--strict") && line.contains(why)));
}

#[test]
fn a_path_is_bound_with_the_rights_asked_for_and_directories_are_made_for_it() {
    sandbox!();
    fs::create_dir("/run/there").expect("new");
    fs::set_permissions("/run/there", fs::Permissions::from_mode(0o711)).expect("ours");
    let forward = endpoint("").replace("/run/served", "/run/there/deep/er");
    let service = forwarding(&[&format!("{forward},mode=0640,owner=1:2,dir_mode=0750,dir_owner=3:4")]);
    let socket = fs::metadata("/run/there/deep/er/a.sock").expect("it is served");
    assert_eq!((socket.mode() & 0o7777, socket.uid(), socket.gid()), (0o640, 1, 2));
    for made in ["/run/there/deep", "/run/there/deep/er"] {
        let dir = fs::metadata(made).expect("it was made");
        assert_eq!((dir.mode() & 0o7777, dir.uid(), dir.gid()), (0o750, 3, 4), "{made}");
    }
    assert_eq!(fs::metadata("/run/there").expect("ours").mode() & 0o7777, 0o711, "what was there stays as it was");
    service.stop();
    assert!(fs::read_dir("/run/there/deep/er").expect("it stays").next().is_none(), "the socket and its lock are gone");
}

#[test]
fn each_thing_in_the_way_has_its_outcome() {
    sandbox!();
    fs::create_dir("/run/served").expect("new");
    let forward = endpoint("");
    fs::write(UDS, "precious").expect("new");
    refused(&forward, "is a regular file, and the service does not touch it");
    assert_eq!(fs::read(UDS).expect("it is still there"), b"precious");
    fs::remove_file(UDS).expect("ours");

    symlink("/run/served/elsewhere", UDS).expect("new");
    refused(&forward, "is a symbolic link");
    assert!(
        fs::symlink_metadata(UDS).expect("still there").is_symlink() && !Path::new("/run/served/elsewhere").exists()
    );
    fs::remove_file(UDS).expect("ours");

    fs::create_dir(UDS).expect("new");
    refused(&forward, "is a directory");
    fs::remove_dir(UDS).expect("ours, and empty");

    // another program listens there: it notices nothing
    let other = UnixListener::bind(UDS).expect("free");
    other.set_nonblocking(true).expect("ours");
    refused(&forward, "another program listens on /run/served/a.sock");
    assert!(other.accept().is_err(), "nobody connected to find out");
    // gone, it leaves a dead socket, which is replaced
    drop(other);
    // a child that another test starts at this moment has a copy of the socket until its execve(2)
    eventually("nobody listens there", || {
        !fs::read_to_string("/proc/thread-self/net/unix").expect("procfs").contains(UDS)
    });
    let first = forwarding(&[&forward]);
    works();

    // one of our own kind: the lock says which
    let pid = first.process.pid();
    refused(&forward, &format!("is served by process {pid} already"));
    works();
    first.stop();
    assert!(fs::read_dir("/run/served").expect("it stays").next().is_none());
}

#[test]
fn what_was_put_in_its_place_is_not_removed() {
    sandbox!();
    let service = forwarding(&[&endpoint("")]);
    fs::remove_file(UDS).expect("root may");
    let _other = UnixListener::bind(UDS).expect("free now");
    service.stop();
    assert!(Path::new(UDS).exists(), "it is another's");
}

#[test]
fn a_killed_process_leaves_a_socket_that_the_next_one_replaces() {
    sandbox!();
    let forward = endpoint("");
    for _ in 0..5 {
        let mut service = forwarding(&[&forward]);
        works();
        service.process.signal(Signal::SIGKILL);
        service.process.wait();
        assert!(Path::new(UDS).exists(), "nobody could remove it");
    }
    let service = forwarding(&[&forward]);
    works();
    service.process.signal(Signal::SIGINT);
    let mut process = service.process;
    assert!(process.wait().success());
    assert!(!Path::new(UDS).exists());
}

/// Connects to the socket all the time, as somebody who may not; its standard output tells how often it got through.
fn intruder(mode: &str) -> Process {
    let script = r#"
use Socket; $| = 1; my ($path, $tried, $in) = ($ARGV[0], 0, 0);
$SIG{TERM} = sub { print "tried $tried in $in\n"; exit };
print "begun\n";
while (1) {
    socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die;
    if (connect($s, pack_sockaddr_un($path))) { print "entered\n" unless $in++ }
    $tried++;
    print "on\n" if $tried % 20000 == 0;
}"#;
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "perl", "-e", script, mode]);
    command.stdin(Stdio::null());
    Process::start(command)
}

#[test]
fn at_no_moment_can_anybody_connect_who_may_not_under_any_umask() {
    sandbox!();
    let forward = endpoint("");
    fs::create_dir("/run/served").expect("new");
    for umask in ["000", "077", "777"] {
        let intruder = intruder(UDS);
        intruder.stdout.wait_for("begun");
        let config = Path::new("/run/umask.toml");
        fs::write(config, "").expect("ours");
        // started and stopped many times, the intruder always at the door
        let line = format!("umask {umask}; exec \"$0\" \"$@\"");
        for round in 0..15 {
            let mut command = Command::new("sh");
            command.args(["-c", &line, env!("CARGO_BIN_EXE_pfwd"), "--forward", &forward]).stdin(Stdio::null());
            let mut process = Process::start(command);
            process.stderr.wait_for("ready:");
            let mode = fs::metadata(UDS).expect("it is served").mode() & 0o777;
            assert_eq!(mode, 0o600, "umask {umask}");
            works();
            let signal = if round % 2 == 0 { Signal::SIGTERM } else { Signal::SIGKILL };
            process.signal(signal);
            process.wait();
        }
        intruder.stdout.wait_for("on"); // it did try
        intruder.signal(Signal::SIGTERM);
        let line = intruder.stdout.wait_for("tried ");
        assert!(line.ends_with(" in 0"), "umask {umask}: {line}");
        run(&format!("rm -f {UDS} {UDS}.lock"));
    }
    // the intruder would have been seen: where it may, it gets in
    let intruder = intruder(UDS);
    intruder.stdout.wait_for("begun");
    let service = forwarding(&[&format!("{forward},mode=0666")]);
    service.process.stderr.wait_for("uid 65534");
    intruder.stdout.wait_for("entered");
    intruder.signal(Signal::SIGTERM);
    let line = intruder.stdout.wait_for("tried ");
    assert!(!line.ends_with(" in 0"), "{line}");
    drop(intruder);
    service.stop();
}

#[test]
fn the_inode_outlives_a_restart_and_no_client_is_refused() {
    sandbox!();
    let forward = endpoint("");
    let mut service: Activated = forwarding(&[&forward]);
    let inode = fs::metadata(UDS).expect("it is served").ino();
    let mut old = Wire::unix(Path::new(UDS));
    for _ in 0..5 {
        service.restart(|process| {
            process.signal(Signal::SIGUSR1);
            process.signal(Signal::SIGTERM);
        });
        assert_eq!(fs::metadata(UDS).expect("it is served").ino(), inode);
        works();
    }
    // nobody else can take it in between
    service.park();
    let other = pfwd().args(["--strict", "--forward", &forward]).start().process.wait();
    assert_eq!(other.code(), Some(1), "the lock is in the descriptor store");
    let mut early = Wire::unix(Path::new(UDS)); // waits in the backlog
    service.start_again();
    exchange(&mut early, 9, 10_000, Pace::BULK);
    exchange(&mut old, 2, 10_000, Pace::BULK);
    service.stop();
    assert!(!Path::new(UDS).exists());
}
