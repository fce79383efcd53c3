//! `qrexec-connect add` and `remove`: a socket unit of three lines (four, for a path), written or taken away.
//!
//! What `add` writes is checked first as `check` does, also what the machine says about the place; it never overwrites.
//! `remove` deletes only a file that still is what `add` wrote: an edited one is its author's.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;

use super::config;
use crate::{
    cli::{
        check::{self, Weight},
        control::Program,
        systemctl,
        units::Scope,
    },
    log::escape,
    report::{Code, Fatal},
    service,
    spec::{
        Beside, Faults, Forward, ListenAddr, SocketKind, Upstream,
        fdname::{self, Name},
        policy_line,
        unit::{Unit, rejected, repair, with_double_zone_percents},
    },
    sys::file::create,
    systemd::startable::StartableUnits,
};

const PREFIX: &str = "qrexec-connect-";

/// Options of `add`.
#[derive(Clone, Debug, Args)]
pub(super) struct Add {
    /// The name of the unit: `gitweb` makes qrexec-connect-gitweb.socket
    name: String,
    /// Where to listen: a port (on 127.0.0.1), ADDRESS:PORT, /PATH (%t is $XDG_RUNTIME_DIR) or @ABSTRACT
    listen: String,
    /// Where each connection goes: "@default qubes.ConnectTCP+1234", uds=/PATH, target=ADDRESS+PORT, or a label of the
    /// configuration
    fd_name: String,
    /// Enable and start it at once
    #[arg(long)]
    now: bool,
    /// Make it a system unit (needs root)
    #[arg(long)]
    system: bool,
    /// Print the unit instead of writing it
    #[arg(long, conflicts_with = "now")]
    dry_run: bool,
}

/// Options of `remove`.
#[derive(Clone, Debug, Args)]
pub(super) struct Remove {
    /// The name that was given to `add`
    name: String,
    /// The unit is a system unit
    #[arg(long)]
    system: bool,
}

/// Writes a socket unit and says what else is to be done.
///
/// # Errors
/// A name, address or fd name that is not valid; a unit of that name; what the file system or systemctl says.
pub(super) fn add(options: &Add, program: Program) -> Result<ExitCode, Fatal> {
    let scope = scope(options.system);
    let unit = unit_name(&options.name)?;
    let (listen, kind, warning) = listen(&options.listen)?;
    let written = with_double_zone_percents(&options.fd_name).unwrap_or_else(|| options.fd_name.clone());
    let fd_name = repair(&written).unwrap_or(written);
    let forward = meaning(&fd_name, kind, scope)?;
    let text = text(&listen, &fd_name);
    for finding in check::of_places(&unit, &text, program, scope) {
        if finding.weight == Weight::Fault {
            return Err(Fatal::new(Code::Config, finding));
        }
        eprintln!("{finding}");
    }
    if options.dry_run {
        print!("{text}");
        return Ok(ExitCode::SUCCESS);
    }
    let dir = home(scope)?;
    let file = dir.join(&unit);
    write_new(&dir, &file, &text)?;
    println!("wrote {}", file.display());
    if let Some(warning) = warning {
        eprintln!("warning: {warning}");
    }
    advise(&forward);
    let flag = scope.flag();
    if options.now {
        systemctl::order(scope, &["daemon-reload"])?;
        systemctl::order(scope, &["enable", "--now", &unit])?;
        println!("{unit} listens on {listen}; follow it with: journalctl {flag}-t qrexec-connect -f");
    } else {
        println!("now run: systemctl {flag}daemon-reload && systemctl {flag}enable --now {unit}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Stops, disables and deletes a unit that [`add`] wrote.
///
/// # Errors
/// There is none, it was edited, or systemctl fails.
pub(super) fn remove(options: &Remove) -> Result<ExitCode, Fatal> {
    let scope = scope(options.system);
    let unit = unit_name(&options.name)?;
    let file = home(scope)?.join(&unit);
    let written = fs::read_to_string(&file)
        .map_err(|e| Fatal::new(Code::Failure, format!("{}: {e}", file.display())).hint("nothing was removed"))?;
    if !is_ours(&written) {
        let flag = scope.flag();
        let what = format!("{} is not as `add` wrote it, so it is yours to delete", file.display());
        return Err(Fatal::new(Code::Failure, what)
            .hint(format!("run: systemctl {flag}disable --now {unit} && rm {}", file.display())));
    }
    systemctl::order(scope, &["disable", "--now", &unit])?;
    fs::remove_file(&file).map_err(|e| Fatal::new(Code::Failure, format!("{}: {e}", file.display())))?;
    systemctl::order(scope, &["daemon-reload"])?;
    println!("removed {}; open sessions continue", file.display());
    Ok(ExitCode::SUCCESS)
}

fn scope(system: bool) -> Scope {
    if system { Scope::System } else { Scope::User }
}

fn home(scope: Scope) -> Result<PathBuf, Fatal> {
    scope.home().ok_or_else(|| Fatal::new(Code::Failure, "HOME is not set, so there is no place for a user's unit"))
}

fn usage(what: impl std::fmt::Display) -> Fatal {
    Fatal::new(Code::Usage, what)
}

/// The unit's whole name, for `gitweb`, `qrexec-connect-gitweb` and `qrexec-connect-gitweb.socket` alike.
fn unit_name(name: &str) -> Result<String, Fatal> {
    let stem = name.strip_suffix(".socket").unwrap_or(name);
    let stem = stem.strip_prefix(PREFIX).unwrap_or(stem);
    // systemd.unit(5): these characters, and 255 in all. A leading dash would look like an option to systemctl.
    let good = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if stem.is_empty() || !stem.chars().all(good) || stem.starts_with(['-', '.']) || stem.len() > 200 {
        let what = format!("\"{}\" cannot be part of a unit's name", escape(name.as_bytes()));
        return Err(usage(what).hint("use letters, digits, _ . and -, for example: gitweb"));
    }
    Ok(format!("{PREFIX}{stem}.socket"))
}

/// The value of `ListenStream=`, the kind of socket, and what its owner should know about it.
fn listen(text: &str) -> Result<(String, SocketKind, Option<String>), Fatal> {
    if text.starts_with(['/', '@', '%']) && text.len() > 1 && !text.chars().any(|c| c.is_control() || c == ' ') {
        return Ok((text.to_owned(), SocketKind::Unix, None));
    }
    if let Ok(port) = text.parse::<u16>() {
        if port > 0 {
            return Ok((format!("127.0.0.1:{port}"), SocketKind::Tcp, None));
        }
    }
    if let Some(address) = text.parse::<ListenAddr>().ok().filter(|address| address.zone().is_some()) {
        return Ok((address.in_unit(), SocketKind::Tcp, None));
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() > 0 => {
            let wide = match address.ip() {
                IpAddr::V4(ip) => ip.is_unspecified(),
                IpAddr::V6(ip) => ip.is_unspecified(),
            };
            let warning =
                wide.then(|| format!("{address} is open to every host that reaches this machine; 127.0.0.1 is not"));
            Ok((address.to_string(), SocketKind::Tcp, warning))
        }
        _ => Err(usage(format!("cannot listen on \"{}\"", escape(text.as_bytes()))).hint(
            "write a port (1234), an address and a port (127.0.0.1:1234, [::1]:1234), a path (/run/x.sock) or @name",
        )),
    }
}

/// Where a name leads; one that means nothing, or that systemd would drop, is an error.
fn meaning(fd_name: &str, kind: SocketKind, scope: Scope) -> Result<Forward, Fatal> {
    let refused = |faults: Faults| Fatal::new(Code::Config, faults);
    let dropped = rejected(fd_name);
    if !dropped.0.is_empty() {
        return Err(refused(dropped));
    }
    let name = fdname::parse(&fd_name.replace("%%", "%")).map_err(refused)?;
    let units = StartableUnits::of(scope);
    let loaded = config::sources(None, scope).load(&Beside::NOTHING, &units);
    let resolved = name.resolve(kind, &loaded.config);
    let faults: Vec<_> = loaded.faults.into_iter().map(|found| found.fault).collect();
    if resolved.is_err() && matches!(name, Name::Label(_)) && !faults.is_empty() {
        // The label may be that of a forward with a fault.
        return Err(refused(Faults(faults)));
    }
    for fault in faults {
        eprintln!("warning: {fault}");
    }
    let forward = resolved.map_err(refused)?;
    service::usable(&units, &forward.options).map_err(|why| Fatal::new(Code::Config, why))?;
    Ok(forward)
}

/// The unit. Whoever can connect to a path is served as its owner is, so that is its owner alone.
fn text(listen: &str, fd_name: &str) -> String {
    let mode = if listen.starts_with(['/', '%']) { "SocketMode=0600\n" } else { "" };
    format!("[Socket]\nListenStream={listen}\n{mode}FileDescriptorName={fd_name}\n")
}

/// As [`text`] was before it set a mode.
fn text_without_mode(listen: &str, fd_name: &str) -> String {
    format!("[Socket]\nListenStream={listen}\nFileDescriptorName={fd_name}\n")
}

/// Whether a unit's text is what [`text`] makes of what it says, or made of it.
fn is_ours(written: &str) -> bool {
    let unit = Unit::parse("", written);
    let listen = unit.last("Socket", "ListenStream").map(|s| s.value.as_str()).unwrap_or_default();
    unit.fd_name().is_some_and(|name| [text, text_without_mode].iter().any(|text| text(listen, &name.value) == written))
}

/// Writes a file that is not there yet, whole or not at all.
fn write_new(dir: &Path, file: &Path, text: &str) -> Result<(), Fatal> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::AlreadyExists => Fatal::new(Code::Failure, format!("{} is there already", file.display()))
            .hint("choose another name, or remove it first; nothing was changed"),
        io::ErrorKind::PermissionDenied => Fatal::new(Code::Permission, format!("{}: {e}", file.display()))
            .hint("a system unit is root's to write; without --system it is yours"),
        _ => Fatal::new(Code::Failure, format!("{}: {e}", file.display())),
    };
    fs::create_dir_all(dir).and_then(|()| create(file, 0o644, text.as_bytes())).map_err(failed)
}

/// What else it needs, and what to beware of.
fn advise(forward: &Forward) {
    if let Upstream::Qrexec(call) = &forward.legs.front().upstream {
        if call.target.as_str().starts_with("@dispvm") {
            eprintln!("warning: {} starts a disposable qube for each connection and ends it with that", call.target);
        }
        println!("dom0 needs a policy line, in /etc/qubes/policy.d/30-user.policy:");
        println!("    {}", policy_line(call, None));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_port_listens_on_the_loopback_address_only() {
        assert_eq!(listen("1234").unwrap(), ("127.0.0.1:1234".to_owned(), SocketKind::Tcp, None));
        assert_eq!(listen("[::1]:80").unwrap().0, "[::1]:80");
        assert_eq!(listen("%t/agent.sock").unwrap().1, SocketKind::Unix);
        assert_eq!(listen("[fe80::1%tap0]:22").unwrap().0, "[fe80::1]:22%%tap0");
        assert_eq!(listen("@name").unwrap().1, SocketKind::Unix);
        assert!(listen("0.0.0.0:80").unwrap().2.is_some(), "a warning");
        for bad in ["", "0", "65536", "localhost", "127.0.0.1", "127.0.0.1:0", "@", "/", "/a b", "x/y"] {
            assert!(listen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_unit_is_named_the_same_however_much_of_it_is_given() {
        for name in ["gitweb", "qrexec-connect-gitweb", "qrexec-connect-gitweb.socket", "gitweb.socket"] {
            assert_eq!(unit_name(name).unwrap(), "qrexec-connect-gitweb.socket");
        }
        for bad in ["", "-x", "a/b", "../x", "a b", "a\n", "qrexec-connect-", "x@y", ".hidden"] {
            assert!(unit_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_a_unit_that_was_not_edited_is_removed() {
        let written = text("127.0.0.1:1234", "@default qubes.ConnectTCP+1234");
        assert!(is_ours(&written));
        let path = text("%t/x.sock", "work qubes.SshAgent");
        assert!(path.contains("\nSocketMode=0600\n") && !written.contains("SocketMode"));
        assert!(is_ours(&path) && is_ours(&path.replace("SocketMode=0600\n", "")), "also one of before");
        assert!(!is_ours(&path.replace("0600", "0666")));
        assert!(!is_ours(&format!("{written}Backlog=7\n")));
        assert!(!is_ours(&format!("# mine\n{written}")));
        assert!(!is_ours(""));
    }
}
