//! What `check` says: a place, what is wrong there, what to do, and what a start makes of it.

use std::{env, fmt, io, io::IsTerminal as _};

use crate::{
    log::escape,
    spec::{
        ConfigFault, Faults, SpecFault,
        unit::{Consequence, UnitFault},
    },
};

/// How much it weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Weight {
    /// Something is not served, or not as it is written.
    Fault,
    /// It is served; somebody should know about it.
    Warning,
}

/// Where and what.
#[derive(Clone, Debug)]
enum Said {
    /// In a line of a file.
    Cited(Box<SpecFault>),
    /// About a file, a unit, or several.
    Plain { what: String, hint: String },
}

/// A fault or a warning.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Finding {
    /// How much it weighs.
    pub(in crate::cli) weight: Weight,
    said: Said,
    /// What a start and a reload do.
    effect: String,
}

impl Finding {
    /// A fault of a line.
    pub(super) fn cited(fault: SpecFault, consequence: Consequence) -> Self {
        let weight = if consequence == Consequence::Served { Weight::Warning } else { Weight::Fault };
        Self { weight, said: Said::Cited(Box::new(fault)), effect: effect(consequence).to_owned() }
    }

    /// A fault of no single line. `what` holds text from outside only escaped.
    pub(super) fn plain(what: impl Into<String>, hint: impl Into<String>, consequence: Consequence) -> Self {
        let weight = if consequence == Consequence::Served { Weight::Warning } else { Weight::Fault };
        Self {
            weight,
            said: Said::Plain { what: what.into(), hint: hint.into() },
            effect: effect(consequence).to_owned(),
        }
    }

    /// A fault of the configuration.
    pub(super) fn configured(found: ConfigFault) -> Self {
        let ConfigFault { fault, at_start, at_reload, .. } = found;
        let effect = format!("{at_start}; a reload or a restart: {at_reload}");
        Self { weight: Weight::Fault, said: Said::Cited(Box::new(fault)), effect }
    }

    /// The file and line it is about, where there is one.
    pub(super) fn line(&self) -> Option<(String, usize)> {
        match &self.said {
            Said::Cited(fault) => Some((fault.origin().to_string(), fault.line())),
            Said::Plain { .. } => None,
        }
    }

    /// With its line underlined, for people.
    pub(super) fn render(&self) -> String {
        let colour = io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none();
        let mut text = match (&self.said, self.weight) {
            (Said::Cited(fault), Weight::Fault) => Faults::from((**fault).clone()).render(colour),
            (Said::Cited(fault), Weight::Warning) => fault.render_warning(colour),
            (Said::Plain { .. }, _) => format!("{self}\n"),
        };
        if !self.effect.is_empty() {
            text += &format!("   a start: {}\n", self.effect);
        }
        text
    }
}

/// A finding in one line.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weight = match self.weight {
            Weight::Fault => "error",
            Weight::Warning => "warning",
        };
        match &self.said {
            Said::Cited(fault) => write!(f, "{weight}: {fault}"),
            Said::Plain { what, hint } if hint.is_empty() => write!(f, "{weight}: {}", escape(what.as_bytes())),
            Said::Plain { what, hint } => {
                write!(f, "{weight}: {} ({})", escape(what.as_bytes()), escape(hint.as_bytes()))
            }
        }
    }
}

impl From<UnitFault> for Finding {
    fn from(found: UnitFault) -> Self {
        Self::cited(found.fault, found.consequence)
    }
}

/// What a start and a reload do, in words.
fn effect(consequence: Consequence) -> &'static str {
    match consequence {
        Consequence::LeftOut => "systemd ignores the line, and only the journal says so",
        Consequence::DropInLeftOut => "systemd ignores the file, and only the journal says so",
        Consequence::Refused => "systemd does not load the unit, so nothing listens",
        Consequence::Unknown => "there is no unit that systemd could start",
        Consequence::Deletes => "systemd deletes it, and listens there",
        Consequence::Retried => "not served until this is corrected; the service retries",
        Consequence::LabelGone => "not served; a reload: a socket that was served keeps its last label",
        Consequence::Circle => {
            "it is served, and the service resets a connection that comes back; through two services a connection would go round without end"
        }
        Consequence::CannotListen => "systemd cannot listen there, and the socket unit fails",
        Consequence::NotServed => "the listener is not served, nor after a reload",
        Consequence::Misled => "it is served, and connections go to another place than is written",
        Consequence::SharedUnit => {
            "both forwards are served; when one service stops the unit, the sessions of the other service end"
        }
        Consequence::Served => "",
    }
}
