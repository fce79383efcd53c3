//! `tests/with-systemd` and [`crate::tree`] do what they promise: real managers, reboots, nothing left behind.

use std::{
    fs,
    io::{Read, Write},
    path::Path,
    process::Command,
};

use nix::sys::signal::Signal;

use crate::{
    support::{Process, Wire, eventually, run},
    tree::{As, attempt, installed_fake, shell, user_unit, with_systemd},
};

/// A socket unit whose connections are echoed, by nothing but systemd and cat.
fn write_echo_units() {
    user_unit("echo.socket", "[Socket]\nListenStream=%t/echo\nAccept=yes\n[Install]\nWantedBy=sockets.target\n");
    user_unit("echo@.service", "[Service]\nExecStart=/bin/cat\nStandardInput=socket\nStandardOutput=socket\n");
}

fn echoes() {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").expect("with-systemd sets it");
    let mut wire = Wire::unix(&Path::new(&runtime).join("echo"));
    wire.write_all(b"hello").expect("the connection stands");
    wire.expect(b"hello");
    wire.half_close();
    wire.expect_end();
}

#[test]
fn an_enabled_user_socket_serves_again_after_a_reboot() {
    let Some(tree) = tree!() else { return };
    tree.boot("enable", As::Tester, || {
        write_echo_units();
        shell("systemctl --user daemon-reload; systemctl --user enable --now echo.socket");
        echoes();
        shell("echo first >~/kept; echo first >$XDG_RUNTIME_DIR/lost; logger -t reboot-test before");
        shell("cp /proc/sys/kernel/random/boot_id ~/boot; ! systemctl --user is-active --quiet nothing.service");
        eventually("the journal has it", || shell("journalctl --user -q -o cat -t reboot-test") == "before");
    });
    tree.boot("after the reboot", As::Tester, || {
        assert_eq!(shell("systemctl --user is-enabled echo.socket"), "enabled");
        echoes();
        assert_eq!(shell("cat ~/kept; ls $XDG_RUNTIME_DIR"), "first\nbus\necho\nsystemd");
        assert_eq!(shell("journalctl --user -q -o cat -t reboot-test"), "before");
    });
    tree.boot("without it", As::Tester, || {
        shell("systemctl --user disable --now echo.socket");
        assert_eq!(attempt("systemctl --user is-active echo.socket").1, "inactive");
    });
    tree.boot("at last", As::Tester, || {
        assert_eq!(attempt("systemctl --user is-active echo.socket").1, "inactive");
    });
}

#[test]
fn an_enabled_system_service_is_started_at_the_next_boot() {
    let Some(tree) = tree!() else { return };
    tree.boot("enable", As::Root, || {
        let unit = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n";
        fs::write("/etc/systemd/system/once.service", unit).expect("root's own tree");
        shell("systemctl daemon-reload; systemctl enable once.service");
        assert_eq!(attempt("systemctl is-active once.service").1, "inactive");
    });
    tree.boot("after the reboot", As::Root, || {
        assert_eq!(shell("systemctl is-active once.service"), "active");
        assert_eq!(shell("systemctl list-jobs --no-legend"), "");
        assert_eq!(shell("systemctl --failed --no-legend --plain"), "");
    });
}

#[test]
fn root_and_tester_are_who_they_should_be() {
    let Some(tree) = tree!() else { return };
    let tree = tree.prepare("id -u >/etc/prepared-by");
    tree.boot("root", As::Root, || {
        assert_eq!(shell("id -un; cat /etc/prepared-by; systemctl is-active 'user@*.service'"), "root\n0\nactive");
        assert_eq!(shell("systemctl list-units --plain --no-legend 'user@*.service' | wc -l"), "1");
    });
    tree.boot("tester", As::Tester, || {
        assert_eq!(
            shell("id -un; echo $HOME; grep CapBnd /proc/self/status"),
            "tester\n/home/tester\nCapBnd:\t0000000000000000"
        );
        shell("systemctl --user is-system-running --wait; systemctl --user show-environment >/dev/null");
        assert_eq!(shell("cat /proc/net/dev | sed 1,2d | cut -d: -f1 | tr -d ' '"), "lo");
        let (code, ..) = attempt("touch /etc/forbidden");
        assert_eq!(code, Some(1));
    });
}

#[test]
fn the_installed_fake_is_called_and_keeps_its_journal() {
    let Some(tree) = tree!() else { return };
    tree.boot("call", As::Tester, || {
        let fake = installed_fake();
        assert_eq!(shell("systemd-run --user --wait -q -p StandardOutput=journal qrexec-client-vm a test.Exit+0"), "");
        assert_eq!(shell("echo hello | qrexec-client-vm -- a test.Echo"), "hello");
        assert_eq!((fake.started(), fake.ended()), (2, 2));
    });
    tree.boot("again", As::Root, || assert_eq!(installed_fake().started(), 2));
}

#[test]
fn what_a_package_installs_is_there() {
    let Some(tree) = tree!() else { return };
    tree.boot("look", As::Tester, || {
        for program in ["qrexec-connect", "pfwd", "qvm-remote", "qvm-remote-dom0"] {
            shell(&format!("test -x /usr/bin/{program}"));
        }
        shell("systemctl --user cat qrexec-connect.service; test -e /usr/lib/systemd/system/qrexec-connect.service");
        shell("test -x /usr/lib/systemd/user-generators/qrexec-connect-generator");
    });
}

#[test]
fn a_failure_inside_is_a_failure_outside() {
    let Some(tree) = tree!() else { return };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        tree.boot("fails", As::Tester, || assert_eq!(shell("echo one"), "two"));
    }));
    let inside = std::env::var_os("FORWARDER_TEST_BOOT").is_some();
    match outcome {
        Ok(()) => assert!(inside, "outside the boot should have failed"),
        Err(fault) if inside => std::panic::resume_unwind(fault),
        Err(fault) => {
            let text = fault.downcast::<String>().expect("a message");
            assert!(text.contains("left: \"one\""), "{text}");
        }
    }
}

#[test]
fn exit_codes_pass_through() {
    if tree!().is_none() {
        return;
    }
    for (args, code) in [
        (&["--system", "--", "sh", "-c", "exit 7"][..], 7),
        (&["--user", "false"], 1),
        (&["--prepare", "exit 3", "true"], 125),
        (&["--root", "/proc", "true"], 125),
        (&["--wrong"], 125),
        (&[], 125),
    ] {
        let mut command = with_systemd();
        command.args(args);
        assert_eq!(run(command).status.code(), Some(code), "{args:?}");
    }
}

/// The cgroup of a run of with-systemd.
fn cgroups_of(process: &Process) -> usize {
    let mut find = Command::new("find");
    find.args(["/sys/fs/cgroup", "-maxdepth", "6", "-type", "d", "-name"]);
    find.arg(format!("with-systemd.{}", process.pid()));
    String::from_utf8_lossy(&run(find).stdout).lines().count()
}

#[test]
fn a_killed_run_leaves_nothing_behind() {
    if tree!().is_none() {
        return;
    }
    for (signal, code) in [(Signal::SIGTERM, Some(143)), (Signal::SIGINT, Some(130)), (Signal::SIGKILL, None)] {
        // Whoever started us may ignore SIGINT (a shell does so for what it runs in the background), and what is ignored
        // cannot be trapped.
        let (plain, mut command) = (with_systemd(), Command::new("env"));
        command.arg("--default-signal=INT").arg(plain.get_program()).args(plain.get_args());
        command.args(["--system", "--", "sh", "-c", "echo inside; sleep 1000"]);
        let mut process = Process::start(command);
        process.stdout.wait_for("inside");
        assert_eq!(cgroups_of(&process), 1);
        process.signal(signal);
        assert_eq!(process.wait().code(), code, "{signal}");
        // those inside have an environment of their own: what they hold is their end of our pipe
        process.stdout.to_the_end();
        process.assert_nobody_left();
        if signal == Signal::SIGKILL {
            let mut next = with_systemd();
            next.arg("true");
            assert!(run(next).status.success());
        }
        assert_eq!(cgroups_of(&process), 0, "{signal}");
    }
}

#[test]
fn one_tree_is_booted_by_one_manager_at_a_time() {
    if tree!().is_none() {
        return;
    }
    let upper = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("cargo made the directory");
    let mut command = with_systemd();
    command.arg("--upper").arg(upper.path()).args(["--system", "--", "sh", "-c", "echo inside; read line"]);
    let mut first = Process::piped(command);
    let stdin = first.stdin();
    let mut said = [0; 7];
    first.stdout_pipe().read_exact(&mut said).expect("it says so");
    assert_eq!(&said, b"inside\n");
    let mut command = with_systemd();
    command.arg("--upper").arg(upper.path()).arg("true");
    let second = run(command);
    assert_eq!(second.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use"));
    drop(stdin);
    first.wait();
}
