//! What the owner of dom0 does beside running the daemon: keys, policies, the service, approvals.

use std::{
    fs,
    io::{self, BufRead as _, Read as _},
    path::Path,
    process::{Command as Process, ExitCode, Stdio},
    time::{Duration, SystemTime},
};

use zeroize::Zeroizing;

use super::{
    approve,
    arguments::Dom0Command,
    check,
    failure::{fail, write},
    logs,
    record::{append, record},
    service, status,
    tables::{self, KeyRow, KeyShown},
    test_policy, text,
};
use crate::{
    cli::table::{LookOptions, Style},
    log::{counted, escape},
    proto::{
        mac::{Key, hex},
        qube::valid_vm,
    },
    remote::{
        config::{Paths, RemoteConfig},
        dom0::{end_without_daemon, question},
        files,
        key_records::KeyRecords,
        keys::Store,
        policy::{EVERYTHING, NOTHING, Policy},
    },
    report::{Code, Fatal},
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
        Dom0Command::Keys { look } => keys(paths, &store, look),
        #[cfg(feature = "v1")]
        Dom0Command::V1 { vm, state } => super::v1::set(paths, &store, &vm, state == "on"),
        Dom0Command::Enable => service::enable(),
        Dom0Command::Disable => service::disable(),
        Dom0Command::Start { r#for } => service::start(&r#for),
        Dom0Command::Restart { when_idle: true, .. } => service::restart_when_idle(&paths.run),
        Dom0Command::Restart { yes, .. } => service::restart(&paths.run, yes),
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
    let before = store.read(vm).unwrap_or_default();
    let path = store.write(vm, &key, keep_old).map_err(|e| fail(format!("{}: {e}", paths.keys.display())))?;
    remember(paths, store, vm, &before);
    record(paths, vm, "AUTHORIZE", &format!("vm={vm} kid={} keep_old={keep_old}", hex(&key.id())));
    println!("Authorized VM '{vm}'. Key stored in {}\n", path.display());
    println!("{}", listing(paths, vm));
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

/// What the owner has to do so that this qube is served, beside those that are listed already.
fn listing(paths: &Paths, vm: &str) -> String {
    const RELOAD: &str = "systemctl reload qvm-remote-dom0";
    let conf = paths.conf.display();
    match RemoteConfig::load(&paths.conf) {
        Ok(config) if config.vms.iter().any(|listed| listed == vm) => {
            format!("{vm} is in the list of {conf}. If the list was changed after the service started: {RELOAD}")
        }
        Ok(config) => {
            let vms = config.vms.iter().map(String::as_str).chain([vm]).collect::<Vec<_>>().join(" ");
            format!(
                "Ensure VM is listed in {conf}, and have a service that runs read that:\n  QVM_REMOTE_VMS=\"{vms}\"\n  {RELOAD}"
            )
        }
        Err(e) => format!(
            "Ensure VM is listed in {conf} (which cannot be read: {e}): QVM_REMOTE_VMS=\"... {vm}\"\n  {RELOAD}"
        ),
    }
}

/// The qube that gives this one a network, when that can be told.
fn network(vm: &str) -> Option<String> {
    let output = Process::new("qvm-prefs").args(["--get", "--", vm, "netvm"]).stdin(Stdio::null()).output().ok()?;
    let name = escape(String::from_utf8_lossy(&output.stdout).trim().as_bytes());
    (output.status.success() && !name.is_empty() && name != "None").then_some(name)
}

fn revoke(paths: &Paths, store: &Store, vm: &str, kill: bool) -> Result<ExitCode, Fatal> {
    let before = store.read(vm).unwrap_or_default();
    // first, so that what waits is ended and counted; a request without a key is refused at once
    let ended = if kill && valid_vm(vm) { question::kill(&paths.run, vm).unwrap_or(0) } else { 0 };
    let removed = store.remove(vm).map_err(|e| fail(format!("'{}': {e}", escape(vm.as_bytes()))))?;
    if removed {
        remember(paths, store, vm, &before);
        record(paths, vm, "REVOKE", &format!("vm={vm} kill={kill}"));
        println!("Revoked VM '{vm}'.");
    } else if !kill {
        return Err(fail(format!("VM '{vm}' has no key")));
    } else {
        println!("VM '{vm}' has no key.");
    }
    if kill {
        end_commands(paths, vm, ended)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Remembers which keys came and went. A failure is printed, and changes nothing.
fn remember(paths: &Paths, store: &Store, vm: &str, before: &[Key]) {
    let now = store.read(vm).unwrap_or_default();
    if let Err(e) = KeyRecords::new(&paths.state).changed(vm, before, &now) {
        eprintln!("qvm-remote-dom0: the age of the keys is not kept: {}: {e}", paths.state.display());
    }
}

/// Ends every command of a qube that is left or has come after `ended` were ended, by the daemon; where no daemon runs,
/// what commands have left in the background.
fn end_commands(paths: &Paths, vm: &str, ended: usize) -> Result<(), Fatal> {
    match question::kill(&paths.run, vm) {
        Ok(count) => println!("Ended {}, those that waited included.", counted(ended + count, "command")),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            let count = end_without_daemon(vm).map_err(|e| {
                fail(format!("no daemon is running, and what {vm} has left in the background could not be ended: {e}"))
            })?;
            let commands = counted(count, "command");
            println!("No daemon is running. Ended what {commands} had left in the background.");
            if count > 0 {
                let text = format!("vm={vm} what {commands} had left in the background, while no daemon ran");
                append(paths, "CANCEL", &text);
            }
        }
        Err(e) => return Err(fail(format!("its running commands could not be ended: {e}"))),
    }
    Ok(())
}

fn keys(paths: &Paths, store: &Store, look: LookOptions) -> Result<ExitCode, Fatal> {
    let vms = store.list();
    if vms.is_empty() {
        println!("No VMs authorized.");
        return Ok(ExitCode::SUCCESS);
    }
    let (records, now) = (KeyRecords::new(&paths.state), SystemTime::now());
    let shown = |key: &Key| {
        let record = records.read(key.id());
        let added = record.added.map(|added| SystemTime::UNIX_EPOCH + Duration::from_secs(added));
        let since = |time: Option<SystemTime>| time.map(|time| now.duration_since(time).unwrap_or_default().as_secs());
        KeyShown { id: hex(&key.id()), age: since(added), unused: since(record.used) }
    };
    let row = |vm: String| {
        let policy = store.path(&vm, "policy").ok().and_then(|p| fs::read_to_string(p).ok());
        let v1 = policy.is_some_and(|text| Policy::parse(&text).is_ok_and(|p| p.v1));
        let keys = store.read(&vm).map_err(|e| e.to_string());
        KeyRow { keys: keys.map(|keys| keys.iter().map(shown).collect()), v1, vm }
    };
    let rows: Vec<_> = vms.into_iter().map(row).collect();
    print!("{}", tables::keys(Style::stdout(look), &rows));
    Ok(ExitCode::SUCCESS)
}
