//! What the name of a unit's socket means, and what systemd puts in the place of specifiers.

use std::{cell::Cell, env};

use crate::{
    cli::units::{FoundUnit, Scope},
    control::{METRICS, METRICS_UPSTREAM},
    spec::{
        Config, Faults, Forward, SocketKind, fdname,
        unit::{ListenKind, ReadListening, expand, rejected, repair},
        unnamed,
    },
};

/// Where a listener of the unit leads, as the service would say it.
///
/// # Errors
/// What is wrong with its name.
pub(in crate::cli) fn leads_to(
    found: &FoundUnit,
    kind: SocketKind,
    config: &Config,
    scope: Scope,
) -> Result<Option<String>, Faults> {
    match meaning(found, kind, config, scope) {
        Ok(forward) => Ok(Some(forward.legs.front().upstream.to_string())),
        Err(_) if is_for_metrics(found, kind) => Ok(Some(METRICS_UPSTREAM.to_owned())),
        Err(faults) => Err(faults),
    }
}

/// Whether a unit's listener is there for metrics, when its name means nothing else.
pub(super) fn is_for_metrics(found: &FoundUnit, kind: SocketKind) -> bool {
    kind != SocketKind::Udp && found.unit.fd_name().is_some_and(|name| name.value == METRICS)
}

/// Whether the name of a unit's sockets is the label of a forward.
pub(super) fn is_label(found: &FoundUnit, scope: Scope) -> bool {
    matches!(fdname::parse(&passed_name(found, scope)), Ok(fdname::Name::Label(_)))
}

/// The name that systemd passes: that of the unit where it has none, or none that systemd takes.
pub(super) fn passed_name(found: &FoundUnit, scope: Scope) -> String {
    let Some(written) = found.unit.fd_name() else { return found.name.clone() };
    let repaired = repair(&written.value);
    if repaired.is_none() && !rejected(&written.value).0.is_empty() {
        return found.name.clone();
    }
    expanded(repaired.as_deref().unwrap_or(&written.value), &found.name, scope)
}

/// What a listener of the unit leads to.
pub(super) fn meaning(found: &FoundUnit, kind: SocketKind, config: &Config, scope: Scope) -> Result<Forward, Faults> {
    let Some(written) = found.unit.fd_name() else {
        // systemd passes the unit's name, which may be that of a label.
        let name = fdname::parse(&found.name)?;
        return if name.entry(config).is_some() {
            name.resolve(kind, config)
        } else {
            Err(unnamed(&found.name, None).into())
        };
    };
    let cited = |faults: Faults| faults.cited(&written.cite());
    if repair(&written.value).is_none() {
        let dropped = rejected(&written.value);
        if !dropped.0.is_empty() {
            return Err(cited(dropped));
        }
    }
    fdname::parse(&passed_name(found, scope)).and_then(|name| name.resolve(kind, config)).map_err(cited)
}

/// A value with what systemd puts in the place of its specifiers, as far as that can be told.
pub(super) fn expanded(text: &str, unit: &str, scope: Scope) -> String {
    expand(text, |specifier| specifier_value(specifier, unit, scope)).unwrap_or_else(|_| text.to_owned())
}

/// Whether a value has a specifier that systemd knows, and whose value is not known here.
pub(super) fn is_vague(text: &str, unit: &str, scope: Scope) -> bool {
    let vague = Cell::new(false);
    let value = |specifier| {
        let value = specifier_value(specifier, unit, scope);
        vague.set(vague.get() || value.is_none());
        value
    };
    expand(text, value).is_ok() && vague.get()
}

/// The kind of the socket that a line makes; where its address has a specifier that is not known here, by its look.
pub(super) fn kind_of(read: &ReadListening<'_>, unit: &str, scope: Scope) -> Option<SocketKind> {
    let text = &read.listening.setting.value;
    if !is_vague(text, unit, scope) {
        return read.kind();
    }
    match read.listening.kind {
        ListenKind::Stream if text.starts_with(['/', '@', '%']) => Some(SocketKind::Unix),
        ListenKind::Stream => Some(SocketKind::Tcp),
        ListenKind::Datagram => Some(SocketKind::Udp),
        _ => None,
    }
}

/// What systemd puts in a specifier's place (systemd.unit(5) "Specifiers"), as far as socket units have a use for it.
fn specifier_value(specifier: char, unit: &str, scope: Scope) -> Option<String> {
    let stem = unit.strip_suffix(".socket").unwrap_or(unit);
    let (prefix, instance) = stem.split_once('@').unwrap_or((stem, ""));
    let system = scope == Scope::System;
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let home = || if system { Some("/root".to_owned()) } else { variable("HOME") };
    let host = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    match specifier {
        'n' => Some(unit.to_owned()),
        'N' => Some(stem.to_owned()),
        'p' => Some(prefix.to_owned()),
        'P' => unescaped(prefix),
        'i' => Some(instance.to_owned()),
        'I' => unescaped(instance),
        'j' => prefix.rsplit('-').next().map(str::to_owned),
        'J' => prefix.rsplit('-').next().and_then(unescaped),
        't' if system => Some("/run".to_owned()),
        't' => variable("XDG_RUNTIME_DIR"),
        'h' => home(),
        'u' if system => Some("root".to_owned()),
        'u' => variable("USER"),
        'U' if system => Some("0".to_owned()),
        'U' => Some(nix::unistd::getuid().to_string()),
        'H' => host(),
        'l' => host().map(|name| name.split('.').next().unwrap_or_default().to_owned()),
        'T' => Some(variable("TMPDIR").unwrap_or_else(|| "/tmp".to_owned())),
        'E' if system => Some("/etc".to_owned()),
        'E' => variable("XDG_CONFIG_HOME").or_else(|| home().map(|home| format!("{home}/.config"))),
        _ => None,
    }
}

/// The text that systemd-escape(1) has made a part of a unit's name: `-` for `/`, `\xNN` for other bytes.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'-' => b'/',
            b'\\' => {
                let code: Vec<u8> = rest.by_ref().take(3).collect();
                let digits = std::str::from_utf8(code.strip_prefix(b"x")?).ok()?;
                u8::from_str_radix(digits, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifiers_of_an_instance_stand_for_its_parts() {
        let unit = "qrexec-connect-port@run-a\\x2db.socket";
        for (text, expected) in [
            ("127.0.0.1:%i", "127.0.0.1:run-a\\x2db"),
            ("/%I", "/run/a-b"),
            ("%p", "qrexec-connect-port"),
            ("%j", "port"),
            ("%N", "qrexec-connect-port@run-a\\x2db"),
            ("%%i", "%i"),
            ("%t/x", "/run/x"),
            ("%u%U", "root0"),
        ] {
            assert_eq!(expanded(text, unit, Scope::System), expected, "{text}");
        }
    }
}
