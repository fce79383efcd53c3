//! What systemd says of our units, by `systemctl show`.

use std::process::{Command, Stdio};

use crate::cli::units::Scope;

/// The properties of one unit, in systemd's order; some come several times.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown(Vec<(String, String)>);

impl Shown {
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
pub(super) fn show(scope: Scope, properties: &[&str], units: &[String]) -> Option<Vec<Shown>> {
    if units.is_empty() {
        return Some(Vec::new());
    }
    let mut arguments =
        vec!["show".to_owned(), "--no-pager".to_owned(), format!("--property={}", properties.join(","))];
    arguments.push("--".to_owned());
    arguments.extend(units.iter().cloned());
    let text = systemctl(scope, &arguments)?;
    let shown: Vec<_> = text.trim_end_matches('\n').split("\n\n").map(read).collect();
    (shown.len() == units.len()).then_some(shown)
}

fn read(text: &str) -> Shown {
    let lines = text.lines().filter_map(|line| line.split_once('='));
    Shown(lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

/// The socket units with this prefix that systemd has loaded; instances of templates are among them.
pub(super) fn loaded(scope: Scope, prefix: &str) -> Vec<String> {
    let arguments = ["list-units", "--all", "--plain", "--no-legend", "--no-pager", "--type=socket"];
    let mut arguments: Vec<String> = arguments.map(str::to_owned).into();
    arguments.push(format!("{prefix}*.socket"));
    let text = systemctl(scope, &arguments).unwrap_or_default();
    text.lines().filter_map(|line| line.split_ascii_whitespace().next()).map(str::to_owned).collect()
}

/// The addresses of one socket unit.
pub(super) fn listens(scope: Scope, unit: &str) -> Vec<String> {
    let shown = show(scope, &["Listen"], &[unit.to_owned()]).and_then(|units| units.into_iter().next());
    shown.map_or_else(Vec::new, |unit| unit.listens().into_iter().map(|(address, _)| address).collect())
}

fn systemctl(scope: Scope, arguments: &[String]) -> Option<String> {
    let flag = scope.flag().trim();
    let mut command = Command::new("systemctl");
    command.args(Some(flag).filter(|f| !f.is_empty())).args(arguments);
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
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
