//! What systemd says of our units, and what it is told to do with them.

use std::{ffi::OsStr, time::Duration};

use super::units::Scope;
use crate::report::{Code, Fatal};

/// How long systemd may take to answer; systemctl itself waits 25 s for each reply (sd_bus_set_method_call_timeout(3)).
const PATIENCE: Duration = Duration::from_secs(30);

/// The properties of one unit, in systemd's order; some come several times.
#[derive(Clone, Debug, Default)]
pub(super) struct ShownUnit(Vec<(String, String)>);

impl ShownUnit {
    /// A property's only or last value, when it is not empty.
    pub(super) fn last(&self, key: &str) -> Option<String> {
        self.all(key).last().filter(|value| !value.is_empty()).map(str::to_owned)
    }

    /// All values of a property.
    pub(super) fn all(&self, key: &str) -> impl DoubleEndedIterator<Item = &str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// What a socket unit listens on, as the kernel has it: address, and whether for streams or datagrams.
    pub(super) fn listens(&self) -> Vec<(String, String)> {
        let listen = |value: &str| {
            let (address, kind) = value.strip_suffix(')')?.rsplit_once(" (")?;
            Some((address.to_owned(), kind.to_owned()))
        };
        self.all("Listen").filter_map(listen).collect()
    }
}

/// These properties of these units, in the same order; `None` where systemd does not answer.
pub(super) fn show(scope: Scope, properties: &[&str], units: &[String]) -> Option<Vec<ShownUnit>> {
    if units.is_empty() {
        return Some(Vec::new());
    }
    let properties = format!("--property={}", properties.join(","));
    let mut arguments = vec!["show", &properties, "--"];
    arguments.extend(units.iter().map(String::as_str));
    let text = ask(scope, &arguments)?;
    let shown: Vec<_> = text.trim_end_matches('\n').split("\n\n").map(read).collect();
    (shown.len() == units.len()).then_some(shown)
}

fn read(text: &str) -> ShownUnit {
    let lines = text.lines().filter_map(|line| line.split_once('='));
    ShownUnit(lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

/// The socket units with this prefix that systemd has loaded; instances of templates are among them.
pub(super) fn loaded(scope: Scope, prefix: &str) -> Vec<String> {
    let pattern = format!("{prefix}*.socket");
    let arguments = ["list-units", "--all", "--plain", "--no-legend", "--type=socket", &pattern];
    let text = ask(scope, &arguments).unwrap_or_default();
    text.lines().filter_map(|line| line.split_ascii_whitespace().next()).map(str::to_owned).collect()
}

/// The socket units that listen, with their addresses.
pub(super) fn listening_sockets(scope: Scope) -> Vec<ShownUnit> {
    let text = ask(scope, &["show", "--property=Id,ActiveState,Listen", "--", "*.socket"]).unwrap_or_default();
    let shown = text.split("\n\n").map(read);
    shown.filter(|unit| unit.last("ActiveState").as_deref() == Some("active")).collect()
}

/// The addresses of one socket unit.
pub(super) fn listens(scope: Scope, unit: &str) -> Vec<String> {
    let shown = show(scope, &["Listen"], &[unit.to_owned()]).and_then(|units| units.into_iter().next());
    shown.map_or_else(Vec::new, |unit| unit.listens().into_iter().map(|(address, _)| address).collect())
}

/// Has systemctl do something; what it says goes to the terminal.
///
/// # Errors
/// What to tell the user.
pub(super) fn order(scope: Scope, arguments: &[&str]) -> Result<(), Fatal> {
    let command = format!("systemctl {}{}", scope.flag(), arguments.join(" "));
    match scope.manager().order(arguments) {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Fatal::new(Code::Failure, format!("`{command}` failed: {status}"))),
        Err(e) => Err(Fatal::new(Code::Failure, format!("cannot run `{command}`: {e}"))),
    }
}

fn ask<S: AsRef<OsStr>>(scope: Scope, arguments: &[S]) -> Option<String> {
    let answer = scope.manager().ask(arguments, PATIENCE).ok()?;
    answer.status.success().then_some(answer.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_systemd_shows_them() {
        let shown =
            read("Id=x.socket\nListen=127.0.0.1:1234 (Stream)\nListen=/run/a b (c).sock (Stream)\nListen=\nEmpty=");
        let listens = shown.listens();
        assert_eq!(listens[0], ("127.0.0.1:1234".into(), "Stream".into()));
        assert_eq!(listens[1], ("/run/a b (c).sock".into(), "Stream".into()));
        assert_eq!(listens.len(), 2);
        assert_eq!(
            (shown.last("Id").as_deref(), shown.last("Empty"), shown.last("None")),
            (Some("x.socket"), None, None)
        );
    }
}
