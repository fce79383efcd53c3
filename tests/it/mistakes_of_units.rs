//! The listening side: what somebody wrote into a socket unit, what `check` says about it (the place, what is wrong,
//! what to do), and what systemd makes of the same text.

use std::{
    collections::BTreeSet,
    fs,
    net::{TcpListener, UdpSocket},
    os::unix::{fs::symlink, net::UnixListener},
    path::{Path, PathBuf},
    process::Command,
};

use proptest::{prelude::*, test_runner::TestRunner};

use crate::support::{run, skip};

const PFWD: &str = env!("CARGO_BIN_EXE_pfwd");
const CONNECT: &str = env!("CARGO_BIN_EXE_qrexec-connect");

/// A user with units and a configuration of their own, and no service manager.
struct Desk {
    root: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a directory");
        for dir in ["units", "config", "run", "elsewhere"] {
            fs::create_dir(root.path().join(dir)).expect("ours");
        }
        Self { root }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn put(&self, path: &str, text: &str) -> PathBuf {
        let path = self.at(path);
        fs::create_dir_all(path.parent().expect("in a directory")).expect("ours");
        fs::write(&path, text).expect("ours");
        path
    }

    /// Exit code, and everything that was said.
    fn says(&self, program: &str, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(program);
        command.args(arguments).env("HOME", self.root.path()).env("XDG_CONFIG_HOME", self.at("config"));
        command.env("XDG_RUNTIME_DIR", self.at("run")).env(
            "SYSTEMD_UNIT_PATH",
            format!("{}:{}", self.at("units").display(), self.at("config/systemd/user").display()),
        );
        command.env_remove("DBUS_SESSION_BUS_ADDRESS");
        let output = run(command);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout) + &text(output.stderr))
    }
}

/// A unit of three lines.
fn three(listen: &str, name: &str) -> String {
    format!("[Socket]\nListenStream={listen}\nFileDescriptorName={name}\n")
}

const CALL: &str = "work qubes.ConnectTCP+22";

/// A line that systemd leaves out, with what `check` says and what it tells to write.
const ADDRESSES: &[(&str, &str, &str)] = &[
    ("localhost:1235", "looks up no names", "write: ListenStream=127.0.0.1:1235"),
    ("*:1235", "looks up no names", "write: ListenStream=127.0.0.1:1235"),
    (":1235", "looks up no names", "write: ListenStream=127.0.0.1:1235"),
    ("work:1235", "looks up no names", "an address of this machine"),
    ("::1:1235", "brackets are missing", "write: ListenStream=[::1]:1235"),
    ("127.0.0.1:1234 127.0.0.1:1235", "several addresses", "write a line for each, the first: 127.0.0.1:1234"),
    ("127.0.0.1:1234, [::1]:1234", "several addresses", "write a line for each, the first: 127.0.0.1:1234"),
    ("127.0.0.1:8000-8010", "range", "one line for each port"),
    ("8000-8010", "range", "one line for each port"),
    ("127.0.0.1:1234 # web", "no comment behind a value", "write: ListenStream=127.0.0.1:1234"),
    ("127.0.0.1:1234 ; web", "no comment behind a value", "write: ListenStream=127.0.0.1:1234"),
    ("run/x.sock", "neither a port", "%t/NAME.sock"),
    ("./x.sock", "neither a port", "%t/NAME.sock"),
    ("~/x.sock", "not expanded", "%h/NAME.sock"),
    ("0", "not a port", "a number from 1 to 65535"),
    ("70000", "not a port", "a number from 1 to 65535"),
    ("127.0.0.1:0", "not a port", "a number from 1 to 65535"),
    ("127.0.0.1:http", "not a port", "a number from 1 to 65535"),
    ("127.0.0.1:080", "not a port", "without leading zeros"),
    ("127.0.0.1", "has no port", "write: ListenStream=127.0.0.1:1234"),
    ("127.0.0.1+1234", "a colon before a port here", "write: ListenStream=127.0.0.1:1234"),
    ("tcp://127.0.0.1:1234", "URL", "write: ListenStream=127.0.0.1:1234"),
    ("127.1:1234", "not an IP address", "127.0.0.1, [::1], or an address"),
    ("256.0.0.1:1234", "not an IP address", "127.0.0.1, [::1], or an address"),
    ("@", "has no name", "@name"),
    ("nothing", "neither a port", "127.0.0.1:1234"),
];

#[test]
fn an_address_that_systemd_leaves_out_is_a_fault_with_its_line_and_the_right_value() {
    for (listen, what, next) in ADDRESSES {
        let desk = Desk::new();
        let unit = desk.put("units/qrexec-connect-x.socket", &three(listen, CALL));
        let (code, said) = desk.says(CONNECT, &["check"]);
        assert_eq!(code, Some(78), "{listen}: {said}");
        let place = format!("{}:2:", unit.display());
        for part in [&place, *what, *next, "systemd ignores the line"] {
            assert!(said.contains(part), "{listen}: {part} is missing in\n{said}");
        }
        assert!(!said.contains("can be served"), "{listen}: {said}");
    }
}

/// Something else in a unit: its text, what `check` says, what follows from it.
const UNITS: &[(&str, &str, &str)] = &[
    ("ListenStream=127.0.0.1:1\nAccept=yes\nFileDescriptorName=a b", "Accept=yes", "does not load the unit"),
    ("ListenStream=127.0.0.1:1\nAccept=on\nFileDescriptorName=a b", "Accept=yes", "does not load the unit"),
    ("ListenSteam=127.0.0.1:1\nFileDescriptorName=a b", "did you mean ListenStream=", "systemd ignores the line"),
    ("ListenStream=127.0.0.1:1\nFileDescriptorname=a b", "did you mean FileDescriptorName=", "ignores the line"),
    ("FileDescriptorName=a b", "listens nowhere", "does not load the unit"),
    ("ListenStream=127.0.0.1:1\nListenStream=\nFileDescriptorName=a b", "listens nowhere", "does not load the unit"),
    (
        "ListenStream=127.0.0.1:1\nFileDescriptorName=a b\nListenStream=127.0.0.1:2\nFileDescriptorName=c d",
        "write a unit for each name",
        "connections go to another place",
    ),
    (
        "ListenStream=127.0.0.1:1\nListenStream=127.0.0.1:1\nFileDescriptorName=a b",
        "only one of them can",
        "cannot listen",
    ),
    ("ListenStream=1\nListenStream=127.0.0.1:1\nFileDescriptorName=a b", "only one of them can", "cannot listen"),
    ("ListenStream=127.0.0.1:1\nService=other.service\nFileDescriptorName=a b", "starts other.service", "not served"),
    ("ListenSequentialPacket=/run/x.sock\nFileDescriptorName=a b", "is not forwarded", "not served"),
    ("ListenFIFO=/run/x.fifo\nFileDescriptorName=a b", "is not forwarded", "not served"),
    ("ListenStream=vsock:2:1\nFileDescriptorName=a b", "is not forwarded", "not served"),
    ("ListenDatagram=127.0.0.1:1\nFileDescriptorName=a b", "a qrexec call carries streams", "not served"),
    ("ListenStream=192.0.2.1:1234\nFileDescriptorName=a b", "no address of this machine", "cannot listen"),
    ("ListenStream=127.0.0.1:1", "nothing says where to go", "not served"),
    ("ListenStream=127.0.0.1:1\nFileDescriptorName=work", "for the qube work write: work qubes.", "not served"),
    ("ListenStream=127.0.0.1:1\nFileDescriptorName=\"a b\"", "without the quotes: a b", "not served"),
    ("ListenStream=127.0.0.1:1\nFileDescriptorName=a b # why", "no comment behind a value", "not served"),
    (
        "ListenStream=127.0.0.1:1\nFileDescriptorName=target=[\\x3a\\x3a1\\x3a2223]",
        "target=[\\x3a\\x3a1]+2223",
        "not served",
    ),
    ("ListenStream=127.0.0.1:1\nFileDescriptorName=target=10.0.0.1", "such as 10.0.0.5+22", "not served"),
    ("ListenStream=127.0.0.1:1\nFileDescriptorName=a b c", "key=value", "not served"),
    ("ListenStream=127.0.0.1:1\nFileDescriptorName=%zz", "no specifier", "not served"),
    ("ListenStream=127.0.0.1:1\nFileDescriptorName=listen=127.0.0.1+1,target=a+1", "inherited socket", "not served"),
];

#[test]
fn what_else_is_wrong_in_a_unit_is_a_fault_that_says_what_a_start_does() {
    for (lines, what, follows) in UNITS {
        let desk = Desk::new();
        desk.put("units/qrexec-connect-x.socket", &format!("[Socket]\n{lines}\n"));
        let (code, said) = desk.says(CONNECT, &["check"]);
        assert_eq!(code, Some(78), "{lines}: {said}");
        for part in ["qrexec-connect-x.socket", what, follows] {
            assert!(said.contains(part), "{lines}: {part} is missing in\n{said}");
        }
    }
    for (text, what) in [
        ("ListenStream=127.0.0.1:1\nFileDescriptorName=a b\n", "is in no section"),
        ("[Sockets]\nListenStream=127.0.0.1:1\nFileDescriptorName=a b\n", "did you mean [Socket]?"),
        ("[Socket\nListenStream=127.0.0.1:1\n", "header has no ]"),
        ("[Socket]\njunk\nListenStream=127.0.0.1:1\nFileDescriptorName=a b\n", "not Key=value"),
    ] {
        let desk = Desk::new();
        desk.put("units/qrexec-connect-x.socket", text);
        let (code, said) = desk.says(CONNECT, &["check"]);
        assert!(code == Some(78) && said.contains(what), "{text}: {code:?} {said}");
    }
}

#[test]
fn files_that_are_no_units_and_units_that_nobody_reads_are_named() {
    let desk = Desk::new();
    symlink("gone", desk.at("units/qrexec-connect-dangling.socket")).expect("ours");
    fs::create_dir(desk.at("units/qrexec-connect-folder.socket")).expect("ours");
    let (code, said) = desk.says(CONNECT, &["check"]);
    assert_eq!(code, Some(78), "{said}");
    for part in ["qrexec-connect-dangling.socket", "leads to gone", "qrexec-connect-folder.socket", "is a directory"] {
        assert!(said.contains(part), "{part} is missing in\n{said}");
    }
    let desk = Desk::new();
    let good = three("127.0.0.1:1234", CALL);
    desk.put("units/qrexec-connect-empty.socket", "");
    desk.put("units/qrexec-connect-x.socket", &good);
    desk.put("units/qrexec-connect-x.socket.d/a.conf", "[Socket]\nBacklog=7\n");
    symlink("gone", desk.at("units/qrexec-connect-x.socket.d/b.conf")).expect("ours");
    fs::create_dir(desk.at("units/qrexec-connect-x.socket.d/c.conf")).expect("ours");
    let (code, said) = desk.says(CONNECT, &["check"]);
    assert_eq!(code, Some(78), "{said}");
    for part in [
        "qrexec-connect-empty.socket: the file is empty, and systemd takes that for a masked unit",
        "b.conf: the link leads to gone, which does not exist",
        "c.conf: this is a directory",
        "systemd ignores the file",
    ] {
        assert!(said.contains(part), "{part} is missing in\n{said}");
    }
    assert!(!said.contains("a.conf"), "{said}");
    let desk = Desk::new();
    let elsewhere = desk.put("elsewhere/qrexec-connect-x.socket", &good);
    let unprefixed = desk.put("units/gitweb.socket", &good);
    symlink("/dev/null", desk.at("units/qrexec-connect-masked.socket")).expect("ours");
    let path = |path: &Path| path.to_str().expect("plain").to_owned();
    for (what, part) in [
        (path(&elsewhere), "systemd reads no units in"),
        (path(&unprefixed), "rename the file to qrexec-connect-gitweb.socket"),
        ("qrexec-connect-masked.socket".to_owned(), "masked"),
        ("qrexec-connect-nothing.socket".to_owned(), "no such unit file"),
        ("/nowhere/qrexec-connect-x.socket".to_owned(), "no such unit file"),
    ] {
        let (code, said) = desk.says(CONNECT, &["check", &what]);
        assert!(code == Some(78) && said.contains(part), "{what}: {code:?} {said}");
    }
    // Also found by itself, where it lies among the units of the user.
    desk.put("config/systemd/user/calls.socket", &three("127.0.0.1:4321", CALL));
    desk.put("config/systemd/user/other.socket", &three("127.0.0.1:4322", "something-else"));
    let (code, said) = desk.says(CONNECT, &["check"]);
    assert!(
        code == Some(78) && said.contains("qrexec-connect-calls.socket") && !said.contains("other.socket"),
        "{said}"
    );
    desk.put("units/qrexec-connect-gitweb.socket", &three("127.0.0.1:4321", CALL));
    let (_, said) = desk.says(CONNECT, &["check", "qrexec-connect-gitwbe.socket"]);
    assert!(said.contains("did you mean qrexec-connect-gitweb.socket?"), "{said}");
}

#[test]
fn an_instance_is_checked_from_its_template_and_its_policy_line_is_right() {
    let desk = Desk::new();
    desk.put("units/qrexec-connect-port@.socket", &three("127.0.0.1:%i", "work qubes.ConnectTCP+%i"));
    let (code, said) = desk.says(CONNECT, &["check"]);
    assert!(code == Some(0) && said.contains("a template") && !said.contains("policy"), "{said}");
    let (code, said) = desk.says(CONNECT, &["check", "qrexec-connect-port@7001.socket"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("127.0.0.1:7001 -> ") && said.contains("qubes.ConnectTCP  +7001  SOURCE  work  allow"),
        "{said}"
    );
    // an instance that somebody has enabled is one of all units
    fs::create_dir(desk.at("units/sockets.target.wants")).expect("ours");
    symlink("../x", desk.at("units/sockets.target.wants/qrexec-connect-port@7002.socket")).expect("ours");
    desk.put("units/qrexec-connect-other.socket", &three("127.0.0.1:7002", CALL));
    let (code, said) = desk.says(CONNECT, &["check"]);
    assert!(code == Some(78) && said.contains("qrexec-connect-port@7002.socket"), "{said}");
}

#[test]
fn add_and_check_print_the_policy_line_of_the_readme() {
    const LINE: &str = "qubes.ConnectTCP  +1234  SOURCE  @default  allow target=TARGET";
    assert!(include_str!("../../README.md").contains(&format!("\n```\n{LINE}\n```\n")));
    let desk = Desk::new();
    let (code, said) = desk.says(CONNECT, &["add", "gitweb", "1234", "@default qubes.ConnectTCP+1234"]);
    assert!(code == Some(0) && said.contains(&format!("    {LINE}\n")), "{said}");
    let (code, said) = desk.says(CONNECT, &["check"]);
    assert!(code == Some(0) && said.contains(LINE), "{said}");
}

#[test]
fn listeners_that_exclude_each_other_are_named_both_over_units_and_forwards() {
    for (one, another) in
        [("127.0.0.1:1234", "127.0.0.1:1234"), ("0.0.0.0:1234", "127.0.0.1:1234"), ("1234", "127.0.0.1:1234")]
    {
        let desk = Desk::new();
        desk.put("units/qrexec-connect-a.socket", &three(one, CALL));
        desk.put("units/qrexec-connect-b.socket", &three(another, CALL));
        for asked in [&["check"][..], &["check", "qrexec-connect-b.socket"]] {
            let (code, said) = desk.says(CONNECT, asked);
            assert_eq!(code, Some(78), "{one} {another}: {said}");
            let line = said
                .lines()
                .find(|line| line.contains("only one of them can listen"))
                .unwrap_or_else(|| panic!("{said}"));
            assert!(line.contains("qrexec-connect-a.socket") && line.contains("qrexec-connect-b.socket"), "{line}");
        }
    }
    let desk = Desk::new();
    desk.put("units/pfwd-web.socket", &three("127.0.0.1:1234", "target=127.0.0.1+2"));
    let file = desk.put("pfwd.toml", "[[forward]]\nlisten = \"[::]:1234\"\ntarget = \"127.0.0.1:3\"\n");
    let (code, said) = desk.says(PFWD, &["--check", "--config", file.to_str().expect("plain")]);
    assert!(code == Some(78) && said.contains("pfwd-web.socket") && said.contains("pfwd.toml:1"), "{said}");
}

#[test]
fn circles_of_listeners_and_targets_are_found() {
    let forward = |listen: &str, target: &str| format!("[[forward]]\nlisten = \"{listen}\"\ntarget = \"{target}\"\n");
    for text in [
        forward("127.0.0.1:1234", "127.0.0.1:1234"),
        forward("0.0.0.0:1234", "127.0.0.1:1234"),
        forward("127.0.0.1:1234", "localhost:1234"),
        forward("127.0.0.1:1234", "127.0.0.1:1235") + &forward("127.0.0.1:1235", "127.0.0.1:1234"),
    ] {
        let desk = Desk::new();
        let file = desk.put("pfwd.toml", &text);
        let (code, said) = desk.says(PFWD, &["check", file.to_str().expect("plain")]);
        assert!(code == Some(78) && said.contains("each connection makes another one"), "{text}: {said}");
    }
    let desk = Desk::new();
    desk.put("units/qrexec-connect-self.socket", &three("127.0.0.1:1234", "target=127.0.0.1+1234"));
    let (code, said) = desk.says(CONNECT, &["check"]);
    assert!(code == Some(78) && said.contains("each connection makes another one"), "{said}");
}

#[test]
fn whoever_has_a_port_or_a_path_is_named_and_nothing_is_taken_to_find_out() {
    let desk = Desk::new();
    let (tcp, udp) =
        (TcpListener::bind("127.0.0.1:0").expect("a port"), UdpSocket::bind("127.0.0.1:0").expect("a port"));
    let path = desk.at("run/taken.sock");
    let unix = UnixListener::bind(&path).expect("a path");
    let (tcp_at, udp_at) = (tcp.local_addr().expect("bound"), udp.local_addr().expect("bound"));
    desk.put("units/qrexec-connect-tcp.socket", &three(&tcp_at.to_string(), CALL));
    desk.put("units/qrexec-connect-unix.socket", &three(path.to_str().expect("plain"), CALL));
    desk.put(
        "units/pfwd-udp.socket",
        &format!("[Socket]\nListenDatagram={udp_at}\nFileDescriptorName=target=127.0.0.1+53\n"),
    );
    let holder = format!("process {} (", std::process::id());
    for (program, count) in [(CONNECT, 2), (PFWD, 1)] {
        let (code, said) = desk.says(program, &["check"]);
        assert_eq!(code, Some(78), "{said}");
        let named = said.lines().filter(|line| line.contains("is taken already") && line.contains(&holder));
        assert_eq!(named.count(), count, "{said}");
    }
    drop((tcp, udp, unix));
    fs::remove_file(&path).expect("it is there");
    for program in [CONNECT, PFWD] {
        let (_, said) = desk.says(program, &["check"]);
        assert!(!said.contains("is taken already"), "{said}");
    }
}

#[test]
fn what_is_in_the_way_of_a_path_is_named() {
    let desk = Desk::new();
    desk.put("elsewhere/file", "");
    let at = |path: &str| desk.at(path).to_str().expect("plain").to_owned();
    for (path, what) in [
        (at("elsewhere"), "is a directory"),
        (at("elsewhere/file"), "systemd deletes it"),
        (at("elsewhere/file/x.sock"), "is no directory"),
    ] {
        desk.put("units/qrexec-connect-x.socket", &three(&path, CALL));
        let (code, said) = desk.says(CONNECT, &["check"]);
        assert!(code == Some(78) && said.contains(what), "{path}: {said}");
    }
}

#[test]
fn what_its_author_should_know_is_a_warning_and_exits_with_0() {
    let desk = Desk::new();
    let open = tempfile::Builder::new().prefix("open").tempdir_in("/tmp").expect("a directory");
    fs::set_permissions(open.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
    let path = open.path().join("x.sock");
    let path = path.to_str().expect("plain");
    for (text, warning) in [
        (three("1234", CALL), "write: ListenStream=127.0.0.1:1234"),
        (three(path, CALL), "SocketMode=0600"),
        (three("127.0.0.1:1234", CALL), ""),
        (three("[::]:1234", CALL), ""),
        (three(path, "work qubes.ConnectTCP+22 allow_uid=0"), ""),
        (three(path, CALL) + "SocketMode=0600\n", ""),
        (three("%t/x.sock", CALL) + "SocketMode=0660\n", ""),
    ] {
        desk.put("units/qrexec-connect-x.socket", &text);
        let (code, said) = desk.says(CONNECT, &["check"]);
        assert_eq!(code, Some(0), "{text}: {said}");
        assert!(said.contains("1 listener can be served"), "{said}");
        assert_eq!(said.contains("warning"), !warning.is_empty(), "{text}: {said}");
        assert!(said.contains(warning), "{text}: {warning} is missing in\n{said}");
    }
    let file = desk.put(
        "pfwd.toml",
        "[[forward]]\nlisten = \"127.0.0.1:1\"\nnamespace = \"no-such-one\"\ntarget = \"10.0.0.1:1\"\n",
    );
    let (code, said) = desk.says(PFWD, &["check", file.to_str().expect("plain")]);
    assert!(code == Some(0) && said.contains("no network namespace no-such-one now"), "{said}");
}

#[test]
fn add_refuses_what_check_would_and_makes_paths_private() {
    let desk = Desk::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let (code, said) = desk.says(CONNECT, &["add", "x", &port, CALL]);
    assert!(code == Some(78) && said.contains("is taken already"), "{code:?} {said}");
    assert!(!desk.at("config/systemd/user/qrexec-connect-x.socket").exists());
    let (code, said) = desk.says(CONNECT, &["add", "x", "192.0.2.1:1234", CALL]);
    assert!(code == Some(78) && said.contains("no address of this machine"), "{code:?} {said}");
    let (code, said) = desk.says(CONNECT, &["add", "x", "%t/x.sock", CALL]);
    assert_eq!(code, Some(0), "{said}");
    let written = fs::read_to_string(desk.at("config/systemd/user/qrexec-connect-x.socket")).expect("written");
    assert_eq!(written, format!("[Socket]\nListenStream=%t/x.sock\nSocketMode=0600\nFileDescriptorName={CALL}\n"));
}

/// Values in the form of another program, or several in one: lines of a forward, what `check` says, and what it tells
/// to write.
const FORMS: &[(&str, &str, &str)] = &[
    ("listen = 7001\ntarget = \"127.0.0.1:1\"", "in quotes", "write: listen = \"127.0.0.1:7001\""),
    ("listen = \"7001\"\ntarget = \"127.0.0.1:1\"", "no address", "write: listen = \"127.0.0.1:7001\""),
    ("listen = \"127.0.0.1:7001\"\ntarget = 22", "in quotes", "write: target = \"127.0.0.1:22\""),
    ("listen = \"127.0.0.1:7001\"\ntarget = \"work qubes.ConnectTCP+22\"", "a qrexec call", "qrexec"),
    ("listen = \"127.0.0.1:7001\"\ntarget = \"7001:work:22\"", "ssh -L", "with the target work:22"),
    ("listen = \"127.0.0.1:7001,127.0.0.1:7002\"\ntarget = \"127.0.0.1:1\"", "several", "a forward for each"),
    ("listen = \"127.0.0.1:7001 [::1]:7001\"\ntarget = \"127.0.0.1:1\"", "several", "a forward for each"),
    ("listen = \"127.0.0.1:7001\"\ntarget = \"127.0.0.1:1,127.0.0.1:2\"", "several", "a forward for each"),
    ("listen = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\ntarget = \"127.0.0.1:1\"", "not an array", "[[forward]] for each"),
];

#[test]
fn a_form_of_another_program_is_answered_with_what_to_write() {
    let desk = Desk::new();
    for (lines, what, next) in FORMS {
        let file = desk.put("pfwd.toml", &format!("[[forward]]\n{lines}\n"));
        let (code, said) = desk.says(PFWD, &["check", file.to_str().expect("plain")]);
        assert!(code == Some(78) && said.contains(what) && said.contains(next), "{lines}: {code:?} {said}");
    }
    for (argument, next) in [
        ("8080:host:80", "write: --forward listen=127.0.0.1:8080,target=host:80"),
        ("0.0.0.0:8080:host:80", "write: --forward listen=0.0.0.0:8080,target=host:80"),
        ("8080", "such as --forward listen=127.0.0.1:8080,target=HOST:PORT"),
        ("x", "items are key=value"),
    ] {
        let (code, said) = desk.says(PFWD, &["--forward", argument]);
        assert!(code == Some(78) && said.contains(next), "{argument}: {code:?} {said}");
    }
    // A name in quotes is cited as it stands there.
    desk.put("units/qrexec-connect-x.socket", &three("127.0.0.1:1", "\"work qubes.ConnectTCP+22\""));
    let (_, said) = desk.says(CONNECT, &["check"]);
    assert!(said.contains("3 | FileDescriptorName=\"work qubes.ConnectTCP+22\"") && !said.contains("\\x20"), "{said}");
}

#[test]
fn what_leads_nowhere_or_is_not_read_is_a_warning() {
    let desk = Desk::new();
    for (name, warning) in [
        ("work qubes.ConnectTPC+22", "no service qubes.ConnectTPC (did you mean qubes.ConnectTCP?)"),
        ("work ConnectTCP+22", "did you mean qubes.ConnectTCP?"),
        ("work my.Service", ""),
    ] {
        desk.put("units/qrexec-connect-x.socket", &three("127.0.0.1:1234", name));
        let (code, said) = desk.says(CONNECT, &["check"]);
        assert!(code == Some(0) && said.contains(warning), "{name}: {code:?} {said}");
        assert_eq!(said.contains("did you mean"), !warning.is_empty(), "{name}: {said}");
    }
    desk.put("config/qrexec-connect.toml.d/x.conf", "");
    desk.put("config/qrexec-connect.toml.d/old.toml.dpkg-old", "");
    let (code, said) = desk.says(CONNECT, &["check"]);
    assert!(code == Some(0) && said.contains("x.conf: it is not read (names of drop-in files end in .toml)"), "{said}");
    assert!(!said.contains("dpkg-old"), "{said}");
    let file = desk.put("pfwd.toml", "[[forward]]\nudp_listen = \"127.0.0.1:1\"\nudp_target = \"255.255.255.255:9\"\n");
    let (code, said) = desk.says(PFWD, &["check", file.to_str().expect("plain")]);
    assert!(code == Some(0) && said.contains("255.255.255.255 is a broadcast address"), "{code:?} {said}");
}

/// The lines of a unit that systemd says it ignores, as `systemd-analyze verify` tells.
fn ignored_by_systemd(unit: &Path) -> Option<BTreeSet<usize>> {
    let mut analyze = Command::new("systemd-analyze");
    analyze.args(["--man=no", "verify"]).arg(unit);
    analyze.env("SYSTEMD_UNIT_PATH", format!("{}:", unit.parent()?.display()));
    let output = analyze.output().ok()?;
    let place = format!("{}:", unit.display());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let numbers = said.lines().filter_map(|line| line.strip_prefix(&place)?.split(':').next()?.parse().ok());
    Some(numbers.collect())
}

/// The lines that `check` says systemd leaves out.
fn left_out_by_check(desk: &Desk, unit: &Path) -> BTreeSet<usize> {
    let (_, said) = desk.says(CONNECT, &["check", unit.to_str().expect("plain")]);
    let place = format!("--> {}:", unit.display());
    let mut lines = BTreeSet::new();
    let mut at: Option<usize> = None;
    for line in said.lines() {
        if let Some(rest) = line.trim_start().strip_prefix(&place) {
            at = rest.split(':').next().and_then(|number| number.parse().ok());
        } else if line.contains("systemd ignores the line") {
            lines.extend(at.take());
        }
    }
    lines
}

#[test]
fn check_leaves_out_the_lines_that_systemd_leaves_out_whatever_is_written() {
    let desk = Desk::new();
    desk.put("units/qrexec-connect.service", "[Service]\nExecStart=/bin/true\n");
    let unit = desk.at("units/qrexec-connect-x.socket");
    let head = "[Socket]\nService=qrexec-connect.service\nFileDescriptorName=a b\n";
    let probe = desk.put("units/qrexec-connect-x.socket", &format!("{head}ListenStream=nothing\n"));
    if ignored_by_systemd(&probe) != Some(BTreeSet::from([4])) {
        return skip("systemd-analyze is missing, or does not verify here");
    }
    // Every row of the table, and values made of the same parts.
    let table = ADDRESSES.iter().map(|(listen, ..)| (*listen).to_owned());
    let made = prop::collection::vec(
        prop_oneof![
            r"(127\.0\.0\.1|0\.0\.0\.0|10\.0\.0\.256|\[::1\]|\[fe80::1\]|::1|localhost|\*|)[:+]?[0-9]{0,6}",
            r"[+]?(0x|0b|0o|0)?[0-9a-f]{1,6}",
            r"[/@~.][a-z/. ]{0,12}",
            r"(127\.0\.0\.1:[1-9]|[1-9]{1,4}|/run/x) ?[#;] ?[a-z]{0,4}",
            r"[\[\]0-9a-z.:+@/#-]{1,20}",
        ],
        40,
    );
    let made = made
        .prop_filter("an empty value forgets those before it", |all| all.iter().all(|value| !value.trim().is_empty()));
    let agree = |values: Vec<String>| {
        let text: String = values.iter().map(|value| format!("ListenStream={}\n", value.trim())).collect();
        fs::write(&unit, format!("{head}{text}ListenStream=127.0.0.1:1\n")).expect("ours");
        let (theirs, ours) = (ignored_by_systemd(&unit).expect("it runs"), left_out_by_check(&desk, &unit));
        let lines: Vec<_> = text.lines().collect();
        let differ: Vec<_> =
            theirs.symmetric_difference(&ours).map(|n| (lines.get(n - 4), theirs.contains(n))).collect();
        prop_assert!(differ.is_empty(), "systemd and check differ: {differ:?} (true: systemd leaves it out)");
        Ok(())
    };
    agree(table.collect()).expect("the table");
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 4, failure_persistence: None, ..ProptestConfig::default() });
    runner.run(&made, agree).expect("they agree");
}

#[test]
fn config_shows_each_value_in_force_with_its_origin() {
    let desk = Desk::new();
    let file = desk.put(
        "config/qrexec-connect.toml",
        "[defaults]\nconnect_timeout = 3\n\n[[forward]]\nlabel = \"ssh\"\ntarget = \"10.0.0.5:22\"\nidle_timeout = 60\n",
    );
    desk.put("units/qrexec-connect-ssh.socket", "[Socket]\nListenStream=127.0.0.1:1\n");
    desk.put("units/qrexec-connect-web.socket", &three("127.0.0.1:2", "work qubes.ConnectTCP+80 max_setups=2"));
    let (code, said) = desk.says(CONNECT, &["config"]);
    assert_eq!(code, Some(0), "{said}");
    let file = file.display();
    for (key, value, origin) in [
        ("idle_timeout", "60", format!("{file}:7")),
        ("connect_timeout", "3", format!("[defaults] {file}:2")),
        ("max_connections", "1024", "default".to_owned()),
        ("max_setups", "2", "qrexec-connect-web.socket".to_owned()),
    ] {
        let found = said.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(key) && words.next() == Some(value) && line.ends_with(&origin)
        });
        assert!(found, "{key} {value} {origin} is missing in\n{said}");
    }
    let (code, said) = desk.says(CONNECT, &["config", "--json"]);
    assert!(code == Some(0) && said.contains("\"key\":\"idle_timeout\",\"value\":\"60\""), "{said}");
    let other = desk.put("pfwd.toml", "[[forward]]\nlisten = \"127.0.0.1:1\"\n");
    let (code, said) = desk.says(PFWD, &["config", "--config", other.to_str().expect("plain")]);
    assert!(code == Some(78) && said.contains("not served:") && said.contains("listen"), "{said}");
}

#[test]
fn check_says_which_max_calls_holds_where_the_listeners_of_a_qube_differ() {
    let desk = Desk::new();
    desk.put("units/qrexec-connect-a.socket", &three("@calls-a", "work qubes.ConnectTCP+80 max_calls=8"));
    desk.put("units/qrexec-connect-b.socket", &three("@calls-b", "work qubes.ConnectTCP+22"));
    desk.put("units/qrexec-connect-c.socket", &three("@calls-c", "mail qubes.ConnectTCP+25 max_calls=2"));
    let (code, said) = desk.says(CONNECT, &["check"]);
    let lines: Vec<_> = said.lines().filter(|line| line.contains("max_calls")).collect();
    assert!(code == Some(0) && lines.len() == 1, "a warning: {code:?} {said}");
    let parts = ["warning", "the qube work", "qrexec-connect-a.socket", "has 8", "-b.socket", "has 32, by default"];
    assert!(parts.iter().all(|part| lines[0].contains(part)), "{said}");
    desk.put("units/qrexec-connect-b.socket", &three("@calls-b", "work qubes.ConnectTCP+22 max_calls=8"));
    let (code, said) = desk.says(CONNECT, &["check"]);
    assert!(code == Some(0) && !said.contains("max_calls of the qube"), "{said}");
}

/// A forward that the service opens itself: what `check` says of its place.
#[test]
fn the_machine_is_asked_about_the_listeners_of_the_configuration_too() {
    let desk = Desk::new();
    desk.put("elsewhere/file", "");
    let at = |path: &str| desk.at(path).to_str().expect("plain").to_owned();
    for (listen, what) in [
        ("listen = \"192.0.2.9:7001\"".to_owned(), "192.0.2.9:7001 is no address of this machine"),
        ("listen = \"[fe80::1%9999]:7001\"".to_owned(), "no address of this machine"),
        ("udp_listen = \"192.0.2.9:7001\"\nudp_target = \"127.0.0.1:1\"".to_owned(), "no address of this machine"),
        (format!("uds = \"{}\"", at("elsewhere/file")), "is no socket"),
        (format!("uds = \"{}\"", at("elsewhere/file/x.sock")), "is no directory"),
    ] {
        let target = if listen.contains("udp") { "" } else { "target = \"127.0.0.1:1\"" };
        let file = desk.put("pfwd.toml", &format!("[[forward]]\n{listen}\n{target}\n"));
        let (code, said) = desk.says(PFWD, &["check", file.to_str().expect("plain")]);
        assert!(code == Some(78) && said.contains(what), "{listen}: {code:?} {said}");
        assert!(said.contains("the service retries") && said.contains("pfwd.toml:1"), "{listen}: {said}");
    }
}

#[test]
fn a_misspelt_namespace_in_a_name_or_behind_a_label_is_a_warning() {
    let desk = Desk::new();
    desk.put("units/pfwd-a.socket", &three("127.0.0.1:1", "namespace=no-such-one,target=10.0.0.1+1"));
    desk.put("units/pfwd-b.socket", &three("127.0.0.1:2", "web"));
    let file =
        desk.put("pfwd.toml", "[[forward]]\nlabel = \"web\"\nnamespace = \"nor-this\"\ntarget = \"10.0.0.1:1\"\n");
    let (code, said) = desk.says(PFWD, &["check", "--config", file.to_str().expect("plain")]);
    for name in ["no-such-one", "nor-this"] {
        assert!(said.contains(&format!("there is no network namespace {name} now")), "{code:?} {said}");
    }
}

#[test]
fn a_file_in_a_directory_of_drop_in_files_is_judged_as_one() {
    let desk = Desk::new();
    let forward = "[[forward]]\nlisten = \"127.0.0.1:7001\"\ntarget = \"127.0.0.1:1\"\n";
    let file = desk.put("pfwd.toml.d/x.toml", &format!("[defaults]\nmax_connections = 1\n{forward}"));
    let path = file.to_str().expect("plain");
    let (code, said) = desk.says(PFWD, &["check", path]);
    assert!(code == Some(78) && said.contains("defaults"), "{code:?} {said}");
    desk.put("pfwd.toml.d/x.toml", forward);
    desk.put("pfwd.toml.d/y.toml", &format!("junk\n{}", forward.replace("7001", "7002")));
    let (code, said) = desk.says(PFWD, &["check", path]);
    assert!(code == Some(0) && said.contains("1 listener can be served") && !said.contains("7002"), "{code:?} {said}");
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o646)).expect("ours");
    let (code, said) = desk.says(PFWD, &["check", path]);
    assert!(code == Some(78) && said.contains("chmod go-w"), "{code:?} {said}");
}

#[test]
fn a_link_local_address_has_an_interface_behind_a_double_percent_sign() {
    let desk = Desk::new();
    let units =
        [("a", three("[fe80::1]:8080", CALL)), ("b", three("127.0.0.1:8081", "target=[fe80\\x3a\\x3a1%tap0]+22"))];
    for (name, text) in units {
        let unit = desk.put(&format!("units/qrexec-connect-{name}.socket"), &text);
        let (code, said) = desk.says(CONNECT, &["check", unit.to_str().expect("plain")]);
        let says = ["needs its interface", "systemd expands what follows a single %"];
        let write = ["write: ListenStream=[fe80::1]:8080%%eth0", "%%tap0]+22"];
        let n = usize::from(name == "b");
        assert!(code == Some(78) && said.contains(says[n]) && said.contains(write[n]), "{code:?} {said}");
    }
    let add = ["add", "lan", "[fe80::1%lo]:8082", "target=[fe80\\x3a\\x3a1%tap0]+22", "--dry-run"];
    let (code, said) = desk.says(CONNECT, &add);
    assert!(code == Some(0) && said.contains("ListenStream=[fe80::1]:8082%%lo\n"), "{code:?} {said}");
    assert!(said.contains("FileDescriptorName=target=[fe80\\x3a\\x3a1%%tap0]+22\n"), "{said}");
}

#[test]
fn check_says_no_to_nothing_that_systemd_takes() {
    for specifier in ["%S", "%C", "%L", "%V", "/run/%g", "/run/%G", "/run/%m", "/run/%b", "/run/%v"] {
        let desk = Desk::new();
        desk.put("units/qrexec-connect-x.socket", &(three(&format!("{specifier}/x.sock"), CALL) + "SocketMode=0600\n"));
        let (code, said) = desk.says(CONNECT, &["check"]);
        assert!(code == Some(0) && said.contains("1 listener can be served"), "{specifier}: {code:?} {said}");
    }
    let desk = Desk::new();
    desk.put("units/qrexec-connect-a.socket", &three("[fe80::1]:8080%%lo", CALL));
    desk.put("units/qrexec-connect-b.socket", &three("[fe80::1]:8080%%99", CALL));
    for (name, device) in [("c", "lo"), ("d", "eth0")] {
        let unit = three("127.0.0.1:8081", CALL) + &format!("BindToDevice={device}\n");
        desk.put(&format!("units/qrexec-connect-{name}.socket"), &unit);
    }
    let (code, said) = desk.says(CONNECT, &["check"]);
    assert!(code == Some(0) && !said.contains("only one of them"), "{code:?} {said}");
    let unit = desk.at("units/../units/qrexec-connect-a.socket");
    for name in [unit.to_str().expect("plain"), "a", "qrexec-connect-a"] {
        let (code, said) = desk.says(CONNECT, &["check", name]);
        assert!(code == Some(0) && said.contains("1 listener can be served"), "{name}: {code:?} {said}");
    }
}

#[test]
fn a_fault_of_the_file_keeps_add_only_from_a_label() {
    let desk = Desk::new();
    desk.put("config/qrexec-connect.toml", "[[forward]]\nlabel = \"web\"\ntarget = \"nothing\"\n");
    let (code, said) = desk.says(CONNECT, &["add", "x", "7001", CALL, "--dry-run"]);
    assert!(code == Some(0) && said.contains("warning: ") && said.contains("qrexec-connect.toml:3"), "{code:?} {said}");
    let (code, said) = desk.says(CONNECT, &["add", "x", "7001", "web", "--dry-run"]);
    assert!(code == Some(78) && said.contains("qrexec-connect.toml:3"), "{code:?} {said}");
}

#[test]
fn whoever_else_can_connect_or_write_is_a_warning() {
    let desk = Desk::new();
    for (text, warning) in [
        (three("@foo", CALL), "every user of this machine can connect to @foo"),
        (three("%t/x.sock", CALL) + "SocketMode=0660\nSocketGroup=users\n", "every member of the group users"),
    ] {
        desk.put("units/qrexec-connect-x.socket", &text);
        let (code, said) = desk.says(CONNECT, &["check"]);
        assert!(code == Some(0) && said.contains(warning), "{text}: {code:?} {said}");
    }
    let file = desk.put("pfwd.toml", "[[forward]]\nlisten = \"127.0.0.1:7001\"\ntarget = \"127.0.0.1:1\"\n");
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o646)).expect("ours");
    let (code, said) = desk.says(PFWD, &["check", file.to_str().expect("plain")]);
    assert!(code == Some(0) && said.contains("other users can write to it"), "{code:?} {said}");
    let (_, said) = desk.says(PFWD, &["--check", file.to_str().expect("plain")]);
    assert!(!said.contains("options stand behind the command"), "{said}");
}

#[test]
fn what_a_start_and_a_reload_do_is_told_for_each_kind_of_fault() {
    let desk = Desk::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let forward = |listen: &str, target: &str| format!("[[forward]]\nlisten = \"{listen}\"\ntarget = \"{target}\"\n");
    let at = taken.local_addr().expect("bound").to_string();
    for (text, effect) in [
        (forward("127.0.0.1:1234", "127.0.0.1:1234"), "a connection would go round"),
        (forward(&at, "127.0.0.1:1"), "the service retries"),
    ] {
        let file = desk.put("pfwd.toml", &text);
        let (_, said) = desk.says(PFWD, &["check", file.to_str().expect("plain")]);
        assert!(said.contains(effect) && !said.contains("the others are"), "{said}");
    }
    desk.put("units/qrexec-connect-x.socket", &three("127.0.0.1:1234", "no-label"));
    let (_, said) = desk.says(CONNECT, &["check"]);
    assert!(said.contains("keeps its last label"), "{said}");
    let (_, said) = desk.says(CONNECT, &["check", "nothing"]);
    assert!(said.contains("there is no unit that systemd could start"), "{said}");
}
