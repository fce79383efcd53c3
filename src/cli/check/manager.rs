//! What the service manager says about units, where one answers.

use std::{collections::HashMap, ffi::OsString, time::Duration};

use super::finding::Finding;
use crate::{
    cli::{
        systemctl::{self, ShownUnit},
        units::{FoundUnit, Scope},
    },
    spec::{ListenPlace, unit::Consequence},
};

/// How long systemd-analyze may take: it reads every unit that those of the socket name.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is asked about a unit.
const PROPERTIES: [&str; 6] = ["Id", "LoadState", "LoadError", "ActiveState", "UnitFileState", "NeedDaemonReload"];

/// The answers of a service manager about units.
#[derive(Debug, Default)]
pub(super) struct ManagerWord {
    units: HashMap<String, ShownUnit>,
    /// The lines of `systemd-analyze verify`.
    verified: String,
}

impl ManagerWord {
    /// Asks about the units; nothing where no manager answers.
    pub(super) fn ask(scope: Scope, found: &[FoundUnit]) -> Option<Self> {
        // A template is nothing that can be loaded.
        let units: Vec<&FoundUnit> = found.iter().filter(|unit| !unit.name.contains("@.")).collect();
        let names: Vec<String> = units.iter().map(|unit| unit.name.clone()).collect();
        if names.is_empty() {
            return None;
        }
        let shown = systemctl::show(scope, &PROPERTIES, &names)?;
        let files: Vec<OsString> = units.iter().map(|unit| unit.path.with_file_name(&unit.name).into()).collect();
        let verified = scope.verify(&files, PATIENCE).unwrap_or_default();
        Some(Self { units: names.into_iter().zip(shown).collect(), verified })
    }

    /// Whether systemd listens for the unit now.
    pub(super) fn is_active(&self, unit: &str) -> bool {
        let state = self.units.get(unit).and_then(|shown| shown.last("ActiveState"));
        state.is_some_and(|state| !matches!(state.as_str(), "inactive" | "failed"))
    }

    /// What is wrong with a unit, apart from lines and faults that were `told`.
    pub(super) fn findings(&self, unit: &FoundUnit, told: &[Finding], scope: Scope) -> Vec<Finding> {
        let mut found = Vec::new();
        let Some(shown) = self.units.get(&unit.name) else { return found };
        let (flag, name) = (scope.flag(), &unit.name);
        let state = shown.last("LoadState").unwrap_or_default();
        let refused = told.iter().any(|finding| finding.weight == super::finding::Weight::Fault);
        match state.as_str() {
            "not-found" => {
                let what = format!("systemd does not know {name} yet");
                let hint = format!("run: systemctl {flag}daemon-reload");
                found.push(Finding::plain(what, hint, Consequence::Served));
            }
            "bad-setting" | "error" if !refused => {
                let why = shown.last("LoadError").unwrap_or_default();
                let why = why.split_once('"').map_or(why.as_str(), |(_, text)| text.trim_end_matches('"'));
                let what = format!("systemd does not load {name}: {why}");
                let hint = format!("see: systemctl {flag}status {name}");
                found.push(Finding::plain(what, hint, Consequence::Refused));
            }
            _ => {}
        }
        if shown.last("NeedDaemonReload").as_deref() == Some("yes") {
            let what = format!("{name} has changed since systemd read it");
            let hint = format!("run: systemctl {flag}daemon-reload, then restart the socket");
            found.push(Finding::plain(what, hint, Consequence::Served));
        }
        let known: Vec<_> = told.iter().filter_map(Finding::line).collect();
        // The generator writes a name with a colon as systemd takes it, so that line is no fault.
        let repaired = unit.unit.fd_name().map(|name| (name.file.to_string(), name.line));
        let known = |file: &str, line: usize| {
            known.iter().chain(&repaired).any(|(known, at)| *at == line && known.as_str() == file)
        };
        for line in self.verified.lines() {
            let files = unit.unit.files();
            let cited = files.iter().find_map(|file| {
                let (number, text) = line.strip_prefix(file)?.strip_prefix(':')?.split_once(": ")?;
                Some((file.clone(), number.parse::<usize>().ok()?, text))
            });
            let of_unit = line.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix(": "));
            match (cited, of_unit) {
                (Some((file, number, text)), _) if !known(&file, number) => {
                    let what = format!("{file}:{number}: systemd says: {text}");
                    found.push(Finding::plain(what, "correct the line", Consequence::LeftOut));
                }
                (None, Some(text)) if !refused && found.is_empty() => {
                    let what = format!("systemd says of {name}: {text}");
                    let hint = format!("see: systemd-analyze {flag}verify {name}");
                    found.push(Finding::plain(what, hint, Consequence::Refused));
                }
                _ => {}
            }
        }
        found
    }
}

/// The limit of descriptors that a manager gives the service; `None` where it does not answer, or sets none.
pub(super) fn descriptor_limit(scope: Scope, program: &str) -> Option<u64> {
    let unit = format!("{program}.service");
    let shown = systemctl::show(scope, &["LoadState", "LimitNOFILE"], &[unit])?.into_iter().next()?;
    let loaded = shown.last("LoadState").as_deref() == Some("loaded");
    shown.last("LimitNOFILE").filter(|_| loaded)?.parse().ok()
}

/// How many calls into one qube the unit of the service allows where a listener does not say (`--calls-per-qube`); `None`
/// where the unit does not say so either, or no manager answers.
pub(super) fn calls_per_qube(scope: Scope, program: &str) -> Option<u32> {
    let unit = format!("{program}.service");
    let shown = systemctl::show(scope, &["ExecStart"], &[unit])?.into_iter().next()?;
    calls_per_qube_in(&shown.last("ExecStart")?)
}

/// The number behind `--calls-per-qube` in what systemd shows of `ExecStart=`: `{ path=… ; argv[]=PROGRAM … ; … }`.
fn calls_per_qube_in(start: &str) -> Option<u32> {
    let (_, words) = start.split_once("argv[]=")?;
    let mut words = words.split(" ; ").next()?.split(' ');
    let word = words.find(|word| word.starts_with("--calls-per-qube"))?;
    let number = word.split_once('=').map_or_else(|| words.next(), |(_, number)| Some(number))?;
    number.parse().ok()
}

/// The socket units that listen now, of both managers, as far as they answer.
pub(in crate::cli) fn listening() -> Vec<(String, ListenPlace)> {
    let units = [Scope::User, Scope::System].into_iter().flat_map(systemctl::listening_sockets);
    let places = units.flat_map(|unit| {
        let name = unit.last("Id").unwrap_or_default();
        unit.listens().into_iter().filter_map(move |(address, kind)| {
            let datagrams = kind == "Datagram";
            let place = match address.parse() {
                Ok(addr) => ListenPlace::Port { addr, zone: None, datagrams, netns: None, only_v6: false },
                Err(_) => ListenPlace::Unix(address.parse().ok()?),
            };
            Some((name.clone(), place))
        })
    });
    places.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_calls_stands_in_the_command_of_the_unit() {
        let shown = |words: &str| {
            format!(
                "{{ path=/usr/bin/qrexec-connect ; argv[]=/usr/bin/qrexec-connect {words} ; ignore_errors=no ; pid=0 }}"
            )
        };
        for (words, expected) in [
            ("serve", None),
            ("serve --calls-per-qube 9", Some(9)),
            ("--calls-per-qube=120 serve", Some(120)),
            ("serve --calls-per-qube", None),
        ] {
            assert_eq!(calls_per_qube_in(&shown(words)), expected, "{words}");
        }
        assert_eq!(calls_per_qube_in(""), None);
    }
}
