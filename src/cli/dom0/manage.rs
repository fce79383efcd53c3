//! What the owner of dom0 does beside running the daemon: keys, policies, the service, approvals.

use std::{
    fs,
    io::{self, BufRead as _, Read as _, Write as _},
    path::Path,
    process::{Command as Process, ExitCode, Stdio},
};

use zeroize::Zeroizing;

use super::{
    approve,
    arguments::Dom0Command,
    check,
    failure::{fail, write},
    logs,
    record::{append, record},
    status,
    tables::{self, KeyRow},
    test_policy, text,
};
use crate::{
    cli::table::{LookOptions, Style},
    log::escape,
    proto::mac::{Key, hex},
    remote::{
        config::Paths,
        dom0::{end_without_daemon, question},
        files,
        keys::Store,
        policy::{EVERYTHING, NOTHING, Policy},
    },
    report::{Code, Fatal},
    systemd::systemctl::Scope,
};

/// Where systemd keeps the credentials of the service while it runs (systemd.exec(5)).
const CREDENTIALS: &str = "/run/credentials/qvm-remote-dom0.service";

/// Runs one of the commands.
pub(super) fn run(paths: &Paths, command: Dom0Command) -> Result<ExitCode, Fatal> {
    if !nix::unistd::geteuid().is_root() {
        return Err(fail("must run as root"));
    }
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    crate::sys::end_with_the_reader();
    let store = Store::new(&paths.keys, Some(CREDENTIALS.into()));
    match command {
        Dom0Command::Authorize { vm, key, policy, deny, keep_old } => {
            let policy = match policy {
                Some(path) => Some(read_policy(&path)?),
                None => deny.then(|| NOTHING.to_owned()),
            };
            authorize(paths, &store, &vm, key, policy, keep_old)
        }
        Dom0Command::Revoke { vm, kill } => revoke(paths, &store, &vm, kill),
        Dom0Command::Keys { look } => keys(&store, look),
        #[cfg(feature = "v1")]
        Dom0Command::V1 { vm, state } => super::v1::set(paths, &store, &vm, state == "on"),
        Dom0Command::Enable => enable(),
        Dom0Command::Disable => {
            systemctl(&["disable", "qvm-remote-dom0"])?;
            systemctl(&["stop", "qvm-remote-dom0"])?;
            println!("Disabled and stopped.");
            Ok(ExitCode::SUCCESS)
        }
        Dom0Command::Start { r#for } => start(&r#for),
        Dom0Command::Approve { id, deny, yes, look } => approve::run(&paths.run, id.as_deref(), deny, yes, look),
        Dom0Command::Status { json, look } => status::show(&paths.run, json, look),
        Dom0Command::Check { file } => check::run(paths, &store, file.as_deref()),
        Dom0Command::Test(asked) => test_policy::run(paths, &store, &asked),
        Dom0Command::Kill { id, qube } => status::kill(&paths.run, &id, qube.as_deref()),
        Dom0Command::Log { vm, verify, against } => logs::run(paths, vm.as_deref(), verify, against.as_deref()),
        Dom0Command::Internal(_) => Err(fail("not here")),
    }
}

fn read_policy(path: &Path) -> Result<String, Fatal> {
    let text = files::read(path, 256 << 10).map_err(|e| fail(format!("{}: {e}", path.display())))?;
    let text = String::from_utf8(text).map_err(|_| fail(format!("{}: it is no text", path.display())))?;
    match Policy::parse(&text) {
        Ok(_) => Ok(text),
        Err(faults) => {
            let faults: Vec<_> = faults.iter().map(|f| escape(format!("{}:{f}", path.display()).as_bytes())).collect();
            Err(Fatal::new(Code::Config, faults.join("\n")))
        }
    }
}

fn authorize(
    paths: &Paths,
    store: &Store,
    vm: &str,
    key: Option<String>,
    policy: Option<String>,
    keep_old: bool,
) -> Result<ExitCode, Fatal> {
    let policy_path = store.path(vm, "policy").map_err(|e| fail(format!("'{}': {e}", escape(vm.as_bytes()))))?;
    let key = Zeroizing::new(match key {
        Some(key) => key,
        None => {
            eprint!("Enter 256-bit hex key for '{vm}': ");
            let mut line = String::new();
            io::stdin().lock().take(256).read_line(&mut line).map_err(fail)?;
            line
        }
    });
    let key = Key::from_hex(key.as_bytes()).ok_or_else(|| fail("invalid key (expected 64 hex characters)"))?;
    // the policy first: a key without one allows nothing
    if let Some(text) = &policy {
        write(&policy_path, text)?;
    } else if !policy_path.exists() {
        write(&policy_path, EVERYTHING)?;
    }
    let path = store.write(vm, &key, keep_old).map_err(|e| fail(format!("{}: {e}", paths.keys.display())))?;
    record(paths, vm, "AUTHORIZE", &format!("vm={vm} kid={} keep_old={keep_old}", hex(&key.id())));
    println!("Authorized VM '{vm}'. Key stored in {}\n", path.display());
    println!("Ensure VM is listed in {}:\n  QVM_REMOTE_VMS=\"{vm}\"", paths.conf.display());
    let text = fs::read_to_string(&policy_path).unwrap_or_default();
    println!("\nWhat it may do ({}):", policy_path.display());
    for line in text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#')) {
        println!("  {}", escape(line.as_bytes()));
    }
    if text.contains("allow shell *") {
        println!("\n{}", text::WARNING.trim_end());
    }
    if let Some(network) = network(vm) {
        println!("\nWARNING: '{vm}' is connected to the network (netvm: {network}). Use a qube without one.");
    }
    Ok(ExitCode::SUCCESS)
}

/// The qube that gives this one a network, when that can be told.
fn network(vm: &str) -> Option<String> {
    let output = Process::new("qvm-prefs").args(["--get", "--", vm, "netvm"]).stdin(Stdio::null()).output().ok()?;
    let name = escape(String::from_utf8_lossy(&output.stdout).trim().as_bytes());
    (output.status.success() && !name.is_empty() && name != "None").then_some(name)
}

fn revoke(paths: &Paths, store: &Store, vm: &str, kill: bool) -> Result<ExitCode, Fatal> {
    let removed = store.remove(vm).map_err(|e| fail(format!("'{}': {e}", escape(vm.as_bytes()))))?;
    if removed {
        record(paths, vm, "REVOKE", &format!("vm={vm} kill={kill}"));
        println!("Revoked VM '{vm}'.");
    } else if !kill {
        return Err(fail(format!("VM '{vm}' has no key")));
    } else {
        println!("VM '{vm}' has no key.");
    }
    if kill {
        end_commands(paths, vm)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends every command of a qube, by the daemon; where no daemon runs, what commands have left in the background.
fn end_commands(paths: &Paths, vm: &str) -> Result<(), Fatal> {
    match question::kill(&paths.run, vm) {
        Ok(count) => println!("Ended {count} command(s), those that waited included."),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            let count = end_without_daemon(vm).map_err(|e| {
                fail(format!("no daemon is running, and what {vm} has left in the background could not be ended: {e}"))
            })?;
            println!("No daemon is running. Ended what {count} command(s) had left in the background.");
            if count > 0 {
                let text = format!("vm={vm} what {count} command(s) had left in the background, while no daemon ran");
                append(paths, "CANCEL", &text);
            }
        }
        Err(e) => return Err(fail(format!("its running commands could not be ended: {e}"))),
    }
    Ok(())
}

fn keys(store: &Store, look: LookOptions) -> Result<ExitCode, Fatal> {
    let vms = store.list();
    if vms.is_empty() {
        println!("No VMs authorized.");
        return Ok(ExitCode::SUCCESS);
    }
    let row = |vm: String| {
        let policy = store.path(&vm, "policy").ok().and_then(|p| fs::read_to_string(p).ok());
        let v1 = policy.is_some_and(|text| Policy::parse(&text).is_ok_and(|p| p.v1));
        let keys = store.read(&vm).map_err(|e| e.to_string());
        KeyRow { keys: keys.map(|keys| keys.iter().map(|key| hex(&key.id())).collect()), v1, vm }
    };
    let rows: Vec<_> = vms.into_iter().map(row).collect();
    print!("{}", tables::keys(Style::stdout(look), &rows));
    Ok(ExitCode::SUCCESS)
}

fn systemctl(words: &[&str]) -> Result<(), Fatal> {
    let status = Scope::System.order(words).map_err(|e| fail(format!("systemctl: {e}")))?;
    if status.success() { Ok(()) } else { Err(fail(format!("systemctl {} failed", words.join(" ")))) }
}

fn enable() -> Result<ExitCode, Fatal> {
    eprint!("{}\nType 'yes' to accept this risk and enable: ", text::WARNING);
    let _ = io::stderr().flush();
    let mut line = String::new();
    io::stdin().lock().take(64).read_line(&mut line).map_err(fail)?;
    if line.trim_end_matches('\n') != "yes" {
        println!("Aborted.");
        return Ok(ExitCode::FAILURE);
    }
    systemctl(&["enable", "qvm-remote-dom0"])?;
    systemctl(&["start", "qvm-remote-dom0"])?;
    println!("Enabled and started. Disable with: qvm-remote-dom0 disable");
    Ok(ExitCode::SUCCESS)
}

fn start(span: &str) -> Result<ExitCode, Fatal> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b" .".contains(&b);
    if span.is_empty() || !span.bytes().all(fine) {
        return Err(Fatal::new(Code::Usage, "a span of time is wanted, such as 30min or 2h"));
    }
    systemctl(&["start", "qvm-remote-dom0"])?;
    let status = Process::new("systemd-run")
        .args(["--quiet", "--collect", "--on-active", span, "systemctl", "stop", "qvm-remote-dom0.service"])
        .status()
        .map_err(|e| fail(format!("systemd-run: {e}")))?;
    if !status.success() {
        systemctl(&["stop", "qvm-remote-dom0"])?;
        return Err(fail("systemd-run failed, so the service was stopped again"));
    }
    println!("Started for {span}.");
    Ok(ExitCode::SUCCESS)
}
