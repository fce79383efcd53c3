//! A tree to boot: this machine's root or that of `SYSTEMD_ROOT`, with our programs installed in it, and with what
//! one test has written into it.
//!
//! ```ignore
//! #[test]
//! fn a_port_survives_a_reboot() {
//!     let Some(tree) = tree!() else { return };
//!     tree.boot("enable", As::Tester, || { shell("systemctl --user enable --now …"); });
//!     tree.boot("again", As::Tester, || { /* the same tree, booted again */ });
//! }
//! ```
//! The test function runs several times: once outside, where `boot` starts `tests/with-systemd`, and once inside each
//! boot, where only the closure of that boot runs. So nothing may pass from one closure to another but by files.

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use crate::support::{FakeQrexec, Process, example, run, skip, tell};

/// How long one boot with everything that a test does in it may take; the whole length of a storm takes longer.
const BOOT_PATIENCE: Duration = Duration::from_secs(240);
const LONG_PATIENCE: Duration = Duration::from_secs(1800);

/// Set inside a boot: `TEST/BOOT`.
pub(crate) const INSIDE: &str = "FORWARDER_TEST_BOOT";

/// Where the tests' own programs lie inside, laid out as in cargo's target directory.
pub(crate) const PROGRAMS: &str = "usr/lib/forwarder-tests";

/// Where the fake `qrexec-client-vm`, its journal and its gates lie inside, writable for all;
/// `/usr/bin/qrexec-client-vm` leads there.
const FAKE: &str = "srv/fake-qrexec";

/// Whom a boot's closure runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum As {
    Root,
    /// The unprivileged user `tester`, who has a user manager.
    Tester,
}

/// The tree of the test that this is written in; None when there is nothing (more) to do: see [`Tree::of`].
macro_rules! tree {
    () => {{
        fn here() {}
        $crate::tree::Tree::of(std::any::type_name_of_val(&here))
    }};
}

/// See the module.
pub(crate) struct Tree {
    test: String,
    prepare: Vec<String>,
    side: Side,
}

enum Side {
    Outside { upper: tempfile::TempDir },
    Inside { boot: String },
}

impl Tree {
    /// A separate tree for the test with the path `here` (from `tree!`). None, after a loud word, where nothing can
    /// be booted.
    ///
    /// # Panics
    /// In that case, under `CI=true`.
    pub(crate) fn of(here: &str) -> Option<Self> {
        let test = here.split_once("::").and_then(|(_, path)| path.strip_suffix("::here"));
        let test = test.expect("tree!() stands in the test function itself").to_owned();
        let side = match env::var(INSIDE) {
            Ok(place) => {
                let (inside, boot) = place.rsplit_once('/').expect("TEST/BOOT");
                assert_eq!(inside, test);
                Side::Inside { boot: boot.to_owned() }
            }
            Err(_) => {
                if let Err(why) = able() {
                    skip(&format!("nothing can be booted here: {why}"));
                    return None;
                }
                let upper = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("cargo made the directory");
                Side::Outside { upper }
            }
        };
        Some(Self { test, prepare: Vec::new(), side })
    }

    /// Is this the run of the test that starts the boots?
    pub(crate) fn is_outside(&self) -> bool {
        matches!(self.side, Side::Outside { .. })
    }

    /// Outside: puts a file into the tree of all boots; inside, nothing.
    pub(crate) fn put(&self, from: &Path, to: &str) {
        if let Side::Outside { upper } = &self.side {
            let to = upper.path().join("upper").join(to);
            fs::create_dir_all(to.parent().expect("a file in a directory")).expect("the tree is ours");
            fs::copy(from, &to).unwrap_or_else(|e| panic!("{} -> {}: {e}", from.display(), to.display()));
        }
    }

    /// Shell text that is run as root in each boot, before anything enabled is started.
    pub(crate) fn prepare(mut self, script: &str) -> Self {
        self.prepare.push(script.to_owned());
        self
    }

    /// Boots the tree and runs `body` inside. What earlier boots have written is still there, but for /run, /tmp and
    /// /dev. At the end of `body` the plug is pulled.
    #[track_caller]
    pub(crate) fn boot(&self, name: &str, who: As, body: impl FnOnce()) {
        match &self.side {
            Side::Inside { boot } if boot == name => body(),
            Side::Inside { .. } => {}
            Side::Outside { upper } => {
                let mut command = self.with_systemd(upper.path(), who);
                command.arg("env").arg(format!("{INSIDE}={}/{name}", self.test)).arg("RUST_BACKTRACE=1");
                command.args(env::var("LONG").map(|long| format!("LONG={long}")));
                command.arg(format!("/{PROGRAMS}/deps/systemd"));
                command.args(["--exact", &self.test, "--nocapture", "--test-threads=1"]);
                let mut process = Process::start(command);
                let patience = if env::var_os("LONG").is_some() { LONG_PATIENCE } else { BOOT_PATIENCE };
                let status = process.wait_within(patience);
                let said = [process.stdout.to_the_end(), process.stderr.to_the_end()].concat().join("\n");
                assert!(status.success(), "boot {name:?}: {status}\n{said}");
                assert!(said.contains("1 passed"), "boot {name:?} ran no test\n{said}");
                let skipped = said.lines().filter_map(|line| line.strip_prefix("SKIPPED ")?.split_once(": "));
                skipped.for_each(|(_, why)| skip(why));
                said.lines().filter(|line| line.starts_with("SAMPLE ")).for_each(tell);
            }
        }
    }

    /// What the boots have written to a file; inside, nothing.
    #[track_caller]
    pub(crate) fn kept(&self, path: &str) -> String {
        match &self.side {
            Side::Inside { .. } => String::new(),
            Side::Outside { upper } => {
                let path = upper.path().join("upper").join(path);
                fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
            }
        }
    }

    /// `tests/with-systemd` with everything but the command to run.
    fn with_systemd(&self, upper: &Path, who: As) -> Command {
        let mut command = with_systemd();
        command.arg("--layer").arg(layer()).arg("--upper").arg(upper);
        if let Some(root) = env::var_os("SYSTEMD_ROOT") {
            command.arg("--root").arg(root);
        }
        for script in &self.prepare {
            command.arg("--prepare").arg(script);
        }
        command.arg(if who == As::Root { "--system" } else { "--user" }).arg("--");
        command
    }
}

/// The project's own harness, started in a directory that everybody may enter.
pub(crate) fn with_systemd() -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/with-systemd"));
    command.current_dir("/").stdin(Stdio::null());
    command
}

/// Why nothing can be booted on this machine.
fn able() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("that needs root".to_owned());
    }
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(|e| format!("/proc/self/mounts: {e}"))?;
    if !mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2")) {
        return Err("no cgroup2 is mounted".to_owned());
    }
    let root = env::var_os("SYSTEMD_ROOT").map_or_else(|| PathBuf::from("/"), PathBuf::from);
    for program in ["usr/lib/systemd/systemd", "usr/bin/systemctl"] {
        if !root.join(program).exists() {
            return Err(format!("{} is missing", root.join(program).display()));
        }
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--net", "--cgroup", "--fork", "true"]).stdin(Stdio::null());
    match unshare.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("unshare: {status}")),
        Err(e) => Err(format!("unshare (package util-linux): {e}")),
    }
}

/// What lies over the root in every boot: made once for each run of the tests.
fn layer() -> &'static Path {
    static LAYER: OnceLock<PathBuf> = OnceLock::new();
    LAYER.get_or_init(|| {
        let beside = Path::new(env!("CARGO_TARGET_TMPDIR"));
        // what earlier runs have left, their processes being gone
        for entry in fs::read_dir(beside).expect("cargo made the directory").flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|n| n.strip_prefix("systemd-layer."));
            if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                fs::remove_dir_all(entry.path()).expect("a directory of ours");
            }
        }
        let layer = beside.join(format!("systemd-layer.{}", std::process::id()));
        let _ = fs::remove_dir_all(&layer); // the pid came round again
        fs::create_dir(&layer).expect("cargo made the directory");
        fs::set_permissions(&layer, fs::Permissions::from_mode(0o755)).expect("ours");
        install_into(&layer);
        install_tests_into(&layer);
        let top: Vec<_> = fs::read_dir(&layer).expect("ours").flatten().map(|e| e.file_name()).collect();
        // /lib, /bin and /sbin are symbolic links in the root: a directory here would hide all that is behind them
        let fine = top.iter().all(|name| ["usr", "etc", "srv"].iter().any(|ok| name == ok));
        assert!(fine, "only /usr, /etc and /srv may be laid over a root: {top:?}");
        layer
    })
}

/// What a package would install: the programs that cargo has built for these tests, units, drop-ins, generators.
fn install_into(tree: &Path) {
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let binaries = Path::new(env!("CARGO_BIN_EXE_qrexec-connect")).parent().expect("a file in a directory");
    let mut make = Command::new("make");
    make.arg("-C").arg(&packaging).arg("install").stdin(Stdio::null());
    make.arg(format!("DESTDIR={}", tree.display())).arg(format!("BINARIES={}", binaries.display()));
    let output = run(make);
    assert!(output.status.success(), "make install: {}", String::from_utf8_lossy(&output.stderr));
}

/// This test binary, and the fake `qrexec-client-vm` under its real name.
fn install_tests_into(tree: &Path) {
    let put = |from: &Path, to: &str| {
        let to = tree.join(to);
        fs::create_dir_all(to.parent().expect("a file in a directory")).expect("the tree is ours");
        fs::copy(from, &to).unwrap_or_else(|e| panic!("{} -> {}: {e}", from.display(), to.display()));
    };
    put(&env::current_exe().expect("the test binary has a path"), &format!("{PROGRAMS}/deps/systemd"));
    put(&example("fake-qrexec-client-vm"), &format!("{FAKE}/qrexec-client-vm"));
    fs::write(tree.join(FAKE).join("calls.log"), "").expect("the tree is ours");
    fs::set_permissions(tree.join(FAKE), fs::Permissions::from_mode(0o777)).expect("ours");
    fs::set_permissions(tree.join(FAKE).join("calls.log"), fs::Permissions::from_mode(0o666)).expect("ours");
    fs::create_dir_all(tree.join("usr/bin")).expect("the tree is ours");
    symlink(format!("/{FAKE}/qrexec-client-vm"), tree.join("usr/bin/qrexec-client-vm")).expect("no package has it");
}

/// Inside: the fake that `/usr/bin/qrexec-client-vm` is.
pub(crate) fn installed_fake() -> FakeQrexec {
    FakeQrexec::installed_in(&Path::new("/").join(FAKE))
}

/// Inside: runs shell text, which must succeed; what it wrote on stdout, without the last newline.
#[track_caller]
pub(crate) fn shell(script: &str) -> String {
    let (code, stdout, stderr) = attempt(script);
    assert!(code == Some(0), "{script}\nended with {code:?} and said\n{stdout}\n{stderr}");
    stdout
}

/// Inside: runs shell text; its exit code, stdout and stderr, without their last newlines.
#[track_caller]
pub(crate) fn attempt(script: &str) -> (Option<i32>, String, String) {
    let mut command = Command::new("/bin/bash");
    command.args(["-euc", script]).stdin(Stdio::null());
    let output = run(command);
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Inside: writes a unit of the test user, as he would with an editor; the directories are made.
pub(crate) fn user_unit(name: &str, text: &str) {
    let home = env::var_os("HOME").expect("with-systemd sets it");
    let path = Path::new(&home).join(".config/systemd/user").join(name);
    fs::create_dir_all(path.parent().expect("a file in a directory")).expect("one's own home");
    fs::write(path, text).expect("one's own home");
}
