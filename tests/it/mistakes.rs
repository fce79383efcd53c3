//! What users write by mistake, and what becomes of it: what `check` says, what a first start and a reload serve, what
//! `status` says, the exit codes. One table, and one test that holds every row of it against the real programs.
//!
//! | column | it says |
//! |---|---|
//! | `what` | what somebody did |
//! | `wrote` | in which file which text of the good one (`MAIN`, `DROP_IN`, `UNIT`) became which other |
//! | `check` | the place that `check` names (exit 78), and a part of what it says |
//! | `start` | how many of the four (two forwards, two sockets) a first start serves; `status` exits 1 |
//! | `reload` | how many a reload of the service serves that ran with the good text; it fails with exit 1 |
//! | `by_hand` | the exit code of the program without a service manager and without sockets; 0 is none of its own |
//!
//! To add a mistake, add a row.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use proptest::prelude::*;

use crate::support::{Activated, Activation, bare, eventually, program, run};

const MAIN: &str = "\
[defaults]
max_connections = 7

[[forward]]
label = \"one\"
uds = \"/DIR/one.sock\"
target = \"127.0.0.1:9\"

[[forward]]
label = \"ssh\"
target = \"127.0.0.1:9\"
";
const DROP_IN: &str = "\
[[forward]]
label = \"two\"
uds = \"/DIR/two.sock\"
target = \"127.0.0.1:9\"
";
const UNIT: &str = "[Socket]\nListenStream=/DIR/ssh.socket\nFileDescriptorName=ssh\n";
const OTHER: &str = "[Socket]\nListenStream=/DIR/other.socket\nFileDescriptorName=target=127.0.0.1+9\n";

/// The file of a mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Main,
    DropIn,
    /// One more drop-in file, with the text of `DROP_IN` changed.
    Another,
    /// The unit whose `FileDescriptorName=` is `ssh`; what is written there is the name that systemd passes.
    Unit,
}

struct Mistake {
    what: &'static str,
    wrote: (At, &'static str, &'static str),
    check: (&'static str, &'static str),
    start: usize,
    reload: usize,
    by_hand: i32,
}

const fn row(
    what: &'static str,
    wrote: (At, &'static str, &'static str),
    check: (&'static str, &'static str),
    (start, reload, by_hand): (usize, usize, i32),
) -> Mistake {
    Mistake { what, wrote, check, start, reload, by_hand }
}

const ONE: &str = "uds = \"/DIR/one.sock\"\n";
const TARGET: &str = "uds = \"/DIR/one.sock\"\ntarget = \"127.0.0.1:9\"\n";
const SSH: &str = "label = \"ssh\"\n";
const TWO: &str = "label = \"two\"\n";

#[rustfmt::skip]
const MISTAKES: &[Mistake] = &[
    // inside one [[forward]] of the main file: a first start serves the others
    row("a misspelt key", (At::Main, TARGET, "uds = \"/DIR/one.sock\"\ntaget = \"127.0.0.1:9\"\n"),
        (":7:1", "did you mean \"target\"?"), (3, 4, 78)),
    row("a word of another program", (At::Main, TARGET, "uds = \"/DIR/one.sock\"\nupstream = \"127.0.0.1:9\"\n"),
        (":7:1", "did you mean \"target\"?"), (3, 4, 78)),
    row("no destination", (At::Main, TARGET, "listen = \"127.0.0.1:1\"\n"),
        (":4:1", "nothing says where connections go"), (3, 4, 78)),
    row("no port", (At::Main, TARGET, "uds = \"/DIR/one.sock\"\ntarget = \"127.0.0.1\"\n"), (":7:", "port"), (3, 4, 78)),
    row("a port that is none", (At::Main, TARGET, "uds = \"/DIR/one.sock\"\ntarget = \"127.0.0.1:70000\"\n"),
        (":7:", "port"), (3, 4, 78)),
    row("a number for a text", (At::Main, ONE, "uds = 7\n"), (":6:", "uds"), (3, 4, 78)),
    row("a decimal mode", (At::Main, ONE, "uds = \"/DIR/one.sock\"\nmode = 600\n"), (":7:8", "0600"), (3, 4, 78)),
    row("a limit of words", (At::Main, ONE, "uds = \"/DIR/one.sock\"\nmax_connections = \"many\"\n"),
        (":7:", "max_connections"), (3, 4, 78)),
    row("an address list for a socket of users", (At::Main, ONE, "uds = \"/DIR/one.sock\"\nallow_from = \"10.0.0.0/8\"\n"),
        (":7:1", "allow_from"), (3, 4, 78)),
    row("an access list that cannot be read", (At::Main, ONE, "uds = \"/DIR/one.sock\"\nallow_uid = [\"a b\"]\n"),
        (":7:", "allow_uid"), (3, 4, 78)),
    row("a user who does not exist", (At::Main, ONE, "uds = \"/DIR/one.sock\"\nallow_uid = \"nobody-of-that-name\"\n"),
        (":7:", "there is no user nobody-of-that-name"), (3, 4, 78)),
    row("two places to go", (At::Main, ONE, "uds = \"/DIR/one.sock\"\nqrexec = \"work svc\"\n"),
        (":7:1", "keep one"), (3, 4, 78)),
    row("a namespace without a target", (At::Main, TARGET, "uds = \"/DIR/one.sock\"\nnamespace = \"n\"\n"),
        (":7:1", "needs a target"), (3, 4, 78)),
    row("a call of one word", (At::Main, "label = \"ssh\"\ntarget = \"127.0.0.1:9\"\n", "label = \"ssh\"\nqrexec = \"work\"\n"),
        (":11:", "qrexec"), (3, 4, 78)),
    row("a listening side beside a socket unit", (At::Main, SSH, "label = \"ssh\"\nlisten = \"127.0.0.1:0\"\n"),
        (":11:1", "beside an inherited socket"), (3, 4, 0)),
    row("datagrams beside a stream socket", (At::Main, "label = \"ssh\"\ntarget", "label = \"ssh\"\nudp_target"),
        (":11:1", "carries no datagrams"), (3, 4, 0)),
    row("a default inside a forward", (At::Main, SSH, "label = \"ssh\"\nuds_dir = \"/x\"\n"),
        (":11:1", "belongs in [defaults]"), (3, 4, 78)),
    row("a port as a number", (At::Main, ONE, "listen = 7001\n"), (":6:10", "write: listen = \"127.0.0.1:7001\""), (3, 4, 78)),
    row("several addresses in one", (At::Main, ONE, "listen = \"127.0.0.1:1 127.0.0.1:2\"\n"),
        (":6:11", "write a forward for each"), (3, 4, 78)),
    row("several targets in an array", (At::Main, TARGET, "uds = \"/DIR/one.sock\"\ntarget = [\"a:1\", \"b:1\"]\n"),
        (":7:10", "write a [[forward]] for each"), (3, 4, 78)),
    row("a call for a target", (At::Main, TARGET, "uds = \"/DIR/one.sock\"\ntarget = \"work qubes.ConnectTCP+22\"\n"),
        (":7:11", "the key for a call to a qube is qrexec"), (3, 4, 78)),
    row("the form of ssh -L", (At::Main, TARGET, "uds = \"/DIR/one.sock\"\ntarget = \"8080:host:80\"\n"),
        (":7:11", "with the target host:80"), (3, 4, 78)),
    row("a path for a target", (At::Main, TARGET, "uds = \"/DIR/one.sock\"\ntarget = \"/run/x.sock\"\n"),
        (":7:11", "the key for a UNIX socket is uds"), (3, 4, 78)),
    row("a host of numbers", (At::Main, TARGET, "uds = \"/DIR/one.sock\"\ntarget = \"10.0.0.256:1\"\n"),
        (":7:11", "neither an address nor a host's name"), (3, 4, 78)),
    row("neither true nor false", (At::Main, ONE, "uds = \"/DIR/one.sock\"\nkeepalive = \"maybe\"\n"),
        (":7:", "expected true, false or IDLE"), (3, 4, 78)),
    row("a time below nothing", (At::Main, ONE, "uds = \"/DIR/one.sock\"\nconnect_timeout = -1\n"),
        (":7:", "connect_timeout"), (3, 4, 78)),
    row("a table of another program", (At::Main, "[defaults]", "[server]"), (":1:2", "there are [defaults] and [[forward]]"), (2, 4, 78)),
    // what only one can have
    row("a label for two", (At::Main, "label = \"one\"", "label = \"ssh\""), (":10:9", "given to two forwards"), (3, 4, 78)),
    row("a path for two", (At::Main, SSH, "label = \"ssh\"\n[[forward]]\nuds = \"/DIR/one.sock\"\n"),
        (":12:1", "two forwards serve"), (3, 4, 78)),
    row("a label that another file has", (At::DropIn, TWO, "label = \"ssh\"\n"),
        (".d/50.toml:2:9", "given to two forwards"), (3, 4, 78)),
    row("the label of a drop-in file", (At::Main, "label = \"one\"", "label = \"two\""),
        (".d/50.toml:2:9", "given to two forwards"), (3, 4, 78)),
    row("the path of a drop-in file", (At::Main, ONE, "uds = \"/DIR/two.sock\"\n"),
        (".d/50.toml:3:1", "two forwards serve"), (3, 4, 78)),
    row("a path that another file has", (At::Another, TWO, "label = \"three\"\n"),
        (".d/60.toml:3:1", "two forwards serve"), (4, 4, 78)),
    // outside of all forwards: a first start serves the other files, and sockets that need none
    row("a quote too few", (At::Main, "label = \"one\"", "label = \"one"), (":5:", ""), (2, 4, 78)),
    row("no quotes", (At::Main, "\"127.0.0.1:9\"\n\n", "127.0.0.1:9\n\n"), (":7:", ""), (2, 4, 78)),
    row("a merge conflict", (At::Main, "[defaults]", "<<<<<<< HEAD\n[defaults]"), (":1:", ""), (2, 4, 78)),
    row("the plural", (At::Main, "[[forward]]\nlabel = \"one\"", "[[forwards]]\nlabel = \"one\""),
        (":4:3", "did you mean [[forward]]?"), (2, 4, 78)),
    row("a single table", (At::Main, "[[forward]]\nlabel = \"one\"\nuds = \"/DIR/one.sock\"\ntarget = \"127.0.0.1:9\"\n\n[[forward]]", "[forward]"),
        (":4:", "[[forward]]"), (2, 4, 78)),
    row("a key above all tables", (At::Main, "[defaults]", "label = \"x\"\n[defaults]"), (":1:1", "[[forward]]"), (2, 4, 78)),
    row("an emptied file", (At::Main, MAIN, ""), ("qrexec-connect.toml", "it is empty"), (2, 4, 78)),
    row("a file of blanks", (At::Main, MAIN, " \n\n"), ("qrexec-connect.toml", "it is empty"), (2, 4, 78)),
    row("a default that is none", (At::Main, "max_connections = 7", "listen = \"127.0.0.1:1\""),
        (":2:1", "it belongs in a [[forward]]"), (2, 4, 78)),
    row("a default that cannot be read", (At::Main, "max_connections = 7", "max_connections = -7"), (":2:", "max_connections"), (2, 4, 78)),
    row("a level that is none", (At::Main, "max_connections = 7", "log_level = \"loud\""), (":2:", "log_level"), (2, 4, 78)),
    // whom the defaults keep out, no first start lets in
    row("an access list of all that cannot be read", (At::Main, "max_connections = 7", "allow_uid = \"a b\""),
        (":2:", "allow_uid"), (0, 4, 78)),
    // in a drop-in file: it serves nothing, the others everything
    row("a misspelt key in a drop-in file", (At::DropIn, "target", "taget"), (".d/50.toml:4:1", "target"), (3, 4, 78)),
    row("defaults in a drop-in file", (At::DropIn, TWO, "label = \"two\"\n[defaults]\n"), (".d/50.toml:3:2", "only [[forward]]"), (3, 4, 78)),
    row("a syntax error in a drop-in file", (At::DropIn, TWO, "label = \n"), (".d/50.toml:2:", ""), (3, 4, 78)),
    row("an emptied drop-in file", (At::DropIn, DROP_IN, ""), (".d/50.toml", "it is empty"), (3, 4, 78)),
    row("a faulty drop-in file more", (At::Another, TWO, "lable = \"three\"\n"), (".d/60.toml:2:1", "label"), (4, 4, 78)),
    // the label of a socket: nothing is wrong with the file, and the socket is not served
    row("a misspelt label", (At::Main, "\"ssh\"", "\"shh\""), ("ssh.socket:3:", "no [[forward]] has the label \"ssh\""), (3, 4, 0)),
    row("a forward that is gone", (At::Main, "[[forward]]\nlabel = \"ssh\"\ntarget = \"127.0.0.1:9\"\n", ""),
        ("ssh.socket:3:", "no [[forward]] has the label \"ssh\""), (3, 4, 0)),
    // the name of a socket: no reload changes it
    row("a name of nobody", (At::Unit, "ssh", "shh"), ("ssh.socket:3:", "no [[forward]] has the label \"shh\""), (3, 3, 0)),
    row("a label with a slip", (At::Unit, "ssh", "shs"), ("ssh.socket:3:", "did you mean the label \"ssh\"?"), (3, 3, 0)),
    row("a name in quotes", (At::Unit, "ssh", "\"work qubes.ConnectTCP+22\""),
        ("ssh.socket:3:", "without the quotes: work qubes.ConnectTCP+22"), (3, 3, 0)),
    row("a name with a comment", (At::Unit, "ssh", "work qubes.ConnectTCP+22 # web"), ("ssh.socket:3:", "no comment behind a value"), (3, 3, 0)),
    row("a service without its qube", (At::Unit, "ssh", "qubes.ConnectTCP+22"), ("ssh.socket:3:", "@default qubes.ConnectTCP+22"), (3, 3, 0)),
    row("a path for a name", (At::Unit, "ssh", "/run/x"), ("ssh.socket:3:", "uds=/run/x"), (3, 3, 0)),
    row("a blank for a plus", (At::Unit, "ssh", "work qubes.ConnectTCP 22"), ("ssh.socket:3:", "work qubes.ConnectTCP+22"), (3, 3, 0)),
    row("an option that cannot be read", (At::Unit, "ssh", "work svc max_connections=none"), ("ssh.socket:3:", "max_connections"), (3, 3, 0)),
    row("a list with blanks", (At::Unit, "ssh", "target=127.0.0.1+9 connect_timeout=1"), ("ssh.socket:3:", "commas"), (3, 3, 0)),
    row("a relative path", (At::Unit, "ssh", "uds=x.sock"), ("ssh.socket:3:", "absolute"), (3, 3, 0)),
];

impl Mistake {
    /// Writes all files below `dir`, the good ones or with the mistake.
    fn write(&self, dir: &Path, mistaken: bool) {
        let (place, from, to) = self.wrote;
        let changed = |file: At, text: &str| {
            let text = if mistaken && file == place { text.replacen(from, to, 1) } else { text.to_owned() };
            text.replace("/DIR", &dir.to_string_lossy())
        };
        let base = match place {
            At::Main => MAIN,
            At::DropIn | At::Another => DROP_IN,
            At::Unit => UNIT,
        };
        assert!(base.contains(from), "{}: {from:?} is not in the good text", self.what);
        let config = dir.join("config");
        let put = |name: &str, text: String| {
            let path = config.join(name);
            fs::create_dir_all(path.parent().expect("a file in a directory")).expect("ours");
            fs::write(path, text).expect("ours");
        };
        put("qrexec-connect.toml", changed(At::Main, MAIN));
        put("qrexec-connect.toml.d/50.toml", changed(At::DropIn, DROP_IN));
        if place == At::Another && mistaken {
            put("qrexec-connect.toml.d/60.toml", changed(At::Another, DROP_IN));
        } else {
            let _ = fs::remove_file(config.join("qrexec-connect.toml.d/60.toml"));
        }
        // The first "ssh" of the unit is in its address.
        let (_, _, to) = self.wrote;
        let name = if place == At::Unit { UNIT.replace("Name=ssh", &format!("Name={to}")) } else { UNIT.to_owned() };
        put("systemd/user/qrexec-connect-ssh.socket", name.replace("/DIR", &dir.to_string_lossy()));
        put("systemd/user/qrexec-connect-other.socket", OTHER.replace("/DIR", &dir.to_string_lossy()));
    }

    /// Holds the row against the programs.
    fn prove(&self) {
        let what = self.what;
        let name = if self.wrote.0 == At::Unit { self.wrote.2 } else { "ssh" };
        let activation = Activation::qrexec_connect().unix(name).unix("target=127.0.0.1+9");
        let dir = activation.dir().to_owned();
        self.write(&dir, true);
        let ours = |arguments: &[&str]| {
            let mut command = Command::new(program("qrexec-connect"));
            bare(&mut command).args(arguments).env("PATH", "/usr/bin:/bin").env("HOME", &dir);
            command.env("XDG_CONFIG_HOME", dir.join("config")).env("XDG_RUNTIME_DIR", dir.join("run"));
            command
        };
        let said = |command: Command| {
            let output = run(command);
            (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
        };

        let (code, text) = said(ours(&["check"]));
        let (place, part) = self.check;
        assert!(code == Some(78) && text.contains(place) && text.contains(part), "{what}: check: {code:?}\n{text}");

        let by_hand = if self.by_hand == 0 { None } else { Some(self.by_hand) };
        if by_hand.is_some() {
            let (code, text) = said(ours(&["serve"]));
            assert!(code == by_hand && text.contains(place), "{what}: by hand: {code:?}\n{text}");
        }

        let run_dir = dir.join("run");
        let service = activation.env("RUNTIME_DIRECTORY", &run_dir).start().ready();
        self.assert_served(&service, "a first start", self.start);
        let control = run_dir.join("control");
        let status = || said(ours(&["status", "--control", control.to_str().expect("UTF-8")]));
        let (code, text) = status();
        assert_eq!(code, Some(1), "{what}: status\n{text}");
        if self.wrote.0 == At::Unit {
            return drop(service.stop());
        }
        let reload = || {
            let mut command = ours(&["reload"]);
            command.env("RUNTIME_DIRECTORY", &run_dir).env("MAINPID", service.process.pid().to_string());
            said(command)
        };
        self.write(&dir, false);
        let (code, text) = reload();
        assert_eq!(code, Some(0), "{what}: mended\n{text}");
        self.assert_served(&service, "mended", 4);
        assert_eq!(status().0, Some(0), "{what}: status of the mended\n{}", status().1);
        self.write(&dir, true);
        let (code, text) = reload();
        assert_eq!(code, Some(1), "{what}: reload\n{text}");
        self.assert_served(&service, "a reload", self.reload);
        let (code, text) = status();
        assert!(code == Some(1) && text.contains("qrexec-connect.toml"), "{what}: status {code:?}\n{text}");
        service.stop();
    }

    #[track_caller]
    fn assert_served(&self, service: &Activated, when: &str, expected: usize) {
        // What is wrong with a socket's name is no fault of the configuration.
        let faulty =
            self.wrote.0 != At::Unit && when != "mended" && !(self.by_hand == 0 && self.check.0.contains(".socket"));
        let faulty = faulty || when == "a reload";
        eventually(&format!("{}: {when} serves {expected}", self.what), || {
            let status = service.notifications.status().unwrap_or_default();
            served(&status) == expected && (!faulty || status.starts_with("CONFIG ERROR: "))
        });
    }
}

/// How many listeners and forwards a status line says are served.
fn served(status: &str) -> usize {
    let count = status.rsplit("; ").next().unwrap_or_default().split(' ').next().unwrap_or_default();
    count.parse().unwrap_or_else(|_| panic!("{status}"))
}

#[test]
fn each_mistake_has_its_place_and_takes_down_no_more_than_it_must() {
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(mistake) = MISTAKES.get(next.fetch_add(1, Relaxed)) {
                    // Each row that fails has said so on stderr.
                    failed.fetch_add(usize::from(std::panic::catch_unwind(|| mistake.prove()).is_err()), Relaxed);
                }
            });
        }
    });
    assert_eq!(failed.into_inner(), 0, "rows failed, see above");
    assert!(MISTAKES.len() >= 60);
}

/// Parts of a file, good and faulty ones. `PORT1` and `PORT2` stand for free ports, `TAKEN` for one that is not.
fn part() -> impl Strategy<Value = String> {
    let label = prop_oneof![Just("a"), Just("b"), Just("c")];
    let good = (label, 0..4).prop_map(|(label, n)| match n {
        0 => format!("[[forward]]\nlabel = \"{label}\"\ntarget = \"127.0.0.1:9\"\n"),
        n => format!("[[forward]]\nuds = \"/DIR/{label}{n}.sock\"\ntarget = \"127.0.0.1:9\"\n"),
    });
    let host = prop_oneof![4 => Just("127.0.0.1"), 1 => Just("0.0.0.0"), 1 => Just("[::1]"), 1 => Just("192.0.2.9")];
    let port = prop_oneof![4 => Just("PORT1"), 4 => Just("PORT2"), 1 => Just("TAKEN")];
    let udp = proptest::bool::weighted(0.2);
    let place = prop_oneof![
        6 => Just(""),
        1 => Just("listen_namespace = \"no-such-one\"\n"),
        1 => Just("namespace = \"no-such-one\"\n"),
        1 => Just("setns_path = \"/nowhere/net\"\n"),
    ];
    let port = (host, port, udp, place).prop_map(|(host, port, udp, place)| {
        let udp = if udp { "udp_" } else { "" };
        format!("[[forward]]\n{udp}listen = \"{host}:{port}\"\n{udp}target = \"127.0.0.1:9\"\n{place}")
    });
    prop_oneof![
        6 => good,
        6 => port,
        1 => Just("[[forward]]\nlabel = \"c\"\ntaget = 1\n".to_owned()),
        1 => Just("[[forward]]\nuds = \"/DIR/x.sock\"\n".to_owned()),
        1 => Just("[[forward]]\nuds = \"/DIR/main\"\ntarget = \"127.0.0.1:9\"\n".to_owned()),
        1 => Just("[[forward]]\nlabel = \"a\"\nlisten = \"127.0.0.1:0\"\ntarget = \"127.0.0.1:9\"\n".to_owned()),
        1 => Just("[[forwards]]\n".to_owned()),
        1 => Just("= 1\n".to_owned()),
    ]
}

/// What a file is in its directory.
#[derive(Clone, Copy, Debug)]
enum Kept {
    Plain,
    /// A link to a file elsewhere.
    Link,
    /// A link that leads nowhere.
    Dangling,
    Directory,
    Mode(u32),
}

impl Kept {
    fn any() -> impl Strategy<Value = Self> {
        prop_oneof![
            8 => Just(Self::Plain),
            2 => Just(Self::Link),
            1 => Just(Self::Dangling),
            1 => Just(Self::Directory),
            1 => proptest::sample::select(vec![0o600, 0o640, 0o646, 0o664, 0o000]).prop_map(Self::Mode),
        ]
    }

    fn put(self, path: &Path, text: &str, elsewhere: &Path) {
        match self {
            Self::Plain => fs::write(path, text).expect("ours"),
            Self::Link | Self::Dangling => {
                symlink(elsewhere, path).expect("ours");
                if let Self::Link = self {
                    fs::write(elsewhere, text).expect("ours");
                }
            }
            Self::Directory => fs::create_dir(path).expect("ours"),
            Self::Mode(mode) => {
                fs::write(path, text).expect("ours");
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
            }
        }
    }
}

type Written = (String, Kept);

/// A main file, a drop-in file, and names of sockets.
fn written() -> impl Strategy<Value = (Written, Option<Written>, Vec<&'static str>)> {
    let text = || proptest::collection::vec(part(), 0..4).prop_map(|parts| parts.concat());
    let defaults =
        prop_oneof![3 => Just(""), 1 => Just("[defaults]\nmode = 384\n"), 1 => Just("[defaults]\nmode = 0.5\n")];
    let names = ["a", "b", "target=127.0.0.1+9", "target=127.0.0.1", "work svc", "no label"];
    let main = (defaults, text()).prop_map(|(defaults, text)| format!("{defaults}{text}"));
    let drop_in = proptest::option::of((text(), Kept::any()));
    ((main, Kept::any()), drop_in, proptest::sample::subsequence(names.to_vec(), 1..3))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, max_shrink_iters: 8, ..ProptestConfig::default() })]

    #[test]
    fn check_never_contradicts_start_reload_or_status((main, drop_in, names) in written()) {
        let kept = tempfile::tempdir().expect("a directory for the test");
        let dir = kept.path();
        let (config, run_dir) = (dir.join("config"), dir.join("run"));
        fs::create_dir_all(config.join("systemd/user")).expect("ours");
        fs::create_dir(&run_dir).expect("ours");
        for (n, name) in names.iter().enumerate() {
            let unit = format!("[Socket]\nListenStream={}\nFileDescriptorName={name}\n", dir.join(format!("{n}.socket")).display());
            fs::write(config.join(format!("systemd/user/qrexec-connect-n{n}.socket")), unit).expect("ours");
        }
        let start = || {
            let activation = names.iter().fold(Activation::qrexec_connect(), |activation, name| activation.unix(name));
            activation.env("RUNTIME_DIRECTORY", &run_dir).env("XDG_CONFIG_HOME", &config).start().ready()
        };
        let service = start();
        let bound = || TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = |listener: &TcpListener| listener.local_addr().expect("bound").port().to_string();
        let (one, two, taken) = (bound(), bound(), bound());
        let taken_for_datagrams = UdpSocket::bind(taken.local_addr().expect("bound"));
        let here = |text: &str| {
            let text = text.replace("/DIR", &dir.to_string_lossy()).replace("PORT1", &port(&one));
            text.replace("PORT2", &port(&two)).replace("TAKEN", &port(&taken))
        };
        main.1.put(&config.join("qrexec-connect.toml"), &here(&main.0), &dir.join("main"));
        if let Some((text, kept)) = &drop_in {
            fs::create_dir(config.join("qrexec-connect.toml.d")).expect("ours");
            kept.put(&config.join("qrexec-connect.toml.d/1.toml"), &here(text), &dir.join("drop-in"));
        }
        drop((one, two));
        let pid = service.process.pid().to_string();
        let ours = |arguments: &[&str]| {
            let mut command = Command::new(program("qrexec-connect"));
            bare(&mut command).args(arguments).env("PATH", "/usr/bin:/bin").env("HOME", dir).env("MAINPID", &pid);
            command.env("XDG_CONFIG_HOME", &config).env("XDG_RUNTIME_DIR", &run_dir).env("RUNTIME_DIRECTORY", &run_dir);
            let output = run(command);
            (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
        };
        let control = run_dir.join("control");
        let status = || ours(&["status", "--control", control.to_str().expect("UTF-8")]);
        let line = |service: &Activated| service.notifications.status().unwrap_or_default();
        let (check, said) = ours(&["check"]);
        let all = format!("{main:?}\n---\n{drop_in:?}\n{names:?}\ncheck: {said}");

        // A listener that waits for its namespace is not served, and nothing is wrong with it.
        let waits = |told: &str| told.contains(" awaited ") && said.contains("until then the listener waits");
        let agrees = |code: Option<i32>, told: &str| (code == Some(0)) == (check == Some(0) && !waits(told));

        // A reload, where nothing was in force before.
        let (reload, why) = ours(&["reload"]);
        let (code, told) = status();
        prop_assert!(agrees(code, &told), "status: {}\n{}", told, &all);
        prop_assert_eq!(check == Some(0), reload == Some(0), "reload: {}\n{}", why, &all);
        let faulty = why.contains("the configuration has errors");
        let served_by_reload = told.matches("serving").count();
        service.stop();

        // A first start.
        let service = start();
        let first = line(&service);
        prop_assert_eq!(first.starts_with("CONFIG ERROR: "), faulty, "{}\n{}", first, &all);
        let (code, told) = status();
        prop_assert!(agrees(code, &told), "status: {}\n{}", told, &all);
        prop_assert_eq!(told.matches("serving").count(), served_by_reload, "{}\n{}", told, &all);
        service.stop();
        drop((taken, taken_for_datagrams));
    }
}
