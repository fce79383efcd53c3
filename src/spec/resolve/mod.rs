//! From a name and the socket that bears it to the forward.
//!
//! A name that ends in `.socket` is what systemd hands over when the unit has no `FileDescriptorName=`, or one that it
//! does not take (a `:` is enough; it says so in a log that nobody reads). That unit's label may still be in the
//! configuration; if not, the listener is refused with what to write, rather than served with a guess.

use super::{
    call::{Service, Target},
    config::{Config, ConfigEntry},
    endpoint::{Host, HostPort, local_forward, plus},
    error::{Faults, Origin, Place, Source, SpecFault},
    fdname::{self, Name},
    nearest::nearest,
    plan::{Forward, SocketKind},
    role::{ListenSide, mean},
    text::escaped,
    unit,
    value::Label,
};

/// The prefixes of socket units that have drop-ins and generators.
pub const PREFIXES: [&str; 2] = ["qrexec-connect-", "pfwd-"];

impl Name {
    /// The forward that a socket of this name and kind has.
    ///
    /// # Errors
    /// All keys that contradict each other; that no forward has the label, or that its forward is refused.
    pub fn resolve(&self, socket: SocketKind, config: &Config) -> Result<Forward, Faults> {
        let side = ListenSide::Inherited(socket);
        if let Some(fault) = &config.access_lost {
            return Err(fault.clone().into()); // whom it keeps out would be let in
        }
        match self {
            Self::List(keys) => mean(keys, side, &config.defaults),
            Self::Call { call, keys } => mean(&keys.with_call(call), side, &config.defaults),
            Self::Label(label) => match self.entry(config) {
                Some(entry) if entry.refused.is_empty() => mean(&entry.keys, side, &config.defaults),
                Some(entry) => Err(Faults(entry.refused.clone())),
                None if !config.refused_files.is_empty() => Err(Faults(config.refused_files.clone())),
                None => Err(unlabelled(label, config).into()),
            },
        }
    }

    /// The forward of the configuration that this name takes, if it is a label: of that very label, or of the one in
    /// the unit's name (`ssh` for `qrexec-connect-ssh.socket`).
    pub fn entry<'a>(&self, config: &'a Config) -> Option<&'a ConfigEntry> {
        let Self::Label(label) = self else { return None };
        config.labelled(label.as_str()).or_else(|| config.labelled(of_unit(label.as_str())?))
    }
}

/// The label in the name of a socket unit.
fn of_unit(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(".socket")?;
    PREFIXES.iter().find_map(|prefix| stem.strip_prefix(prefix)).or(Some(stem)).filter(|label| !label.is_empty())
}

/// The fault of a unit whose `FileDescriptorName=` never arrived. `written` is what stands in the unit, when the
/// caller could read it: then the corrected text can be given.
pub fn unnamed(unit: &str, written: Option<&str>) -> SpecFault {
    let source = Source::new(Origin::Name(None), unit);
    let place = Place::new(&source, 0..unit.len());
    let label = of_unit(unit).unwrap_or(unit);
    match written {
        None => {
            let what =
                format!("{unit} has no FileDescriptorName=, or one that systemd rejected: nothing says where to go");
            let example =
                "FileDescriptorName=@default qubes.ConnectTCP+1234 (with + before a port: systemd takes no colon)";
            let label = format!("or a [[forward]] with label = \"{label}\" in the configuration");
            SpecFault::at(&place, what).hint(format!("write: {example}, {label}"))
        }
        Some(written) => {
            let fault = SpecFault::at(&place, format!("systemd rejected the name \"{written}\" of {unit}"));
            match unit::repair(written) {
                Some(name) => fault.hint(format!("write: FileDescriptorName={name}")),
                None => fault.hint("`qrexec-connect check` says why"),
            }
        }
    }
}

/// The fault of a label that no forward has.
fn unlabelled(label: &Label, config: &Config) -> SpecFault {
    let text = label.as_str();
    if text.ends_with(".socket") {
        return unnamed(text, None);
    }
    // A label with blanks stood in quotes; with them it reads as it was written.
    let written = match text.contains(' ') && !text.contains(['"', '\\']) && text.is_ascii() {
        true => format!("\"{text}\""),
        false => escaped(text.as_bytes()),
    };
    let source = Source::new(Origin::Name(None), &written);
    let fault =
        SpecFault::at(&Place::new(&source, 0..written.len()), format!("no [[forward]] has the label \"{text}\""));
    match meant(text, &written) {
        Some(meant) => fault.hint(meant),
        None => {
            let qube = text.parse::<Target>().is_ok();
            let label = format!("a [[forward]] with label = \"{text}\" is missing in the configuration");
            let known = config.entries().iter().filter_map(|entry| Some(entry.label()?.as_str()));
            let label = match nearest(text, known) {
                Some(meant) => format!("did you mean the label \"{meant}\"?"),
                None => label,
            };
            let call = format!("; for the qube {text} write: {text} qubes.ConnectTCP+PORT");
            fault.hint(if qube { label + &call } else { label })
        }
    }
}

/// What one word that is no label was perhaps meant to be: another form of a name, or what other programs take.
fn meant(text: &str, written: &str) -> Option<String> {
    // Quotes hold words together, and those of a call are two.
    if text.contains(char::is_whitespace) && fdname::parse(text).is_ok() {
        return Some(format!("without the quotes: {text}"));
    }
    if text.starts_with('/') {
        return Some(format!("write: uds={written}"));
    }
    if text.starts_with('@') {
        return Some(format!("write: {written} qubes.ConnectTCP+1234"));
    }
    if text.starts_with("qubes.") {
        return text.parse::<Service>().ok().map(|service| format!("write: @default {service}"));
    }
    // `work:22`, and `1234:work:22` as qvm-connect-tcp and `ssh -L` have it, the latter with an address before that.
    let (local, address) = match local_forward(text) {
        Some((local, address)) => (Some(local), address),
        None => (None, text.parse::<HostPort>().ok()?),
    };
    let target = format!("target={}", escaped(plus(&address).as_bytes()));
    let call = match &address.host {
        Host::Name(name) if name.parse::<Target>().is_ok() => {
            format!("{name} qubes.ConnectTCP+{} for a qube, or {target} for a host", address.port)
        }
        _ => target,
    };
    let listen = local.map(|local| format!("ListenStream={local}, and as the name: ")).unwrap_or_default();
    Some(format!("write: {listen}{call}"))
}

#[cfg(test)]
mod tests;
