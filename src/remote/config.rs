//! `/etc/qubes/remote.conf` in dom0: which VMs are served. The original's file, with its older variable names.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use super::{audit::OnLogFailure, files};
use crate::proto::qube::valid_vm;

/// The names under which the list of VMs is looked for, in the environment first and then in the file.
const VMS: &[&str] = &["QVM_REMOTE_VMS", "QUBES_REMOTE_VMS", "QVM_REMOTE_VM", "QUBES_REMOTE_VM"];
/// Bytes of the file at most.
const MAX_FILE: usize = 64 << 10;

/// Where everything lies in dom0.
#[derive(Clone, Debug)]
pub struct Paths {
    /// `/etc/qubes/remote.conf`
    pub conf: PathBuf,
    /// `/etc/qubes/remote.d`: keys and policies.
    pub keys: PathBuf,
    /// `/run/qvm-remote`: lock, control socket.
    pub run: PathBuf,
    /// `/var/lib/qvm-remote`: the ledger of what was executed.
    pub state: PathBuf,
    /// `/var/log/qubes/qvm-remote.log`
    pub log: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            conf: "/etc/qubes/remote.conf".into(),
            keys: "/etc/qubes/remote.d".into(),
            run: "/run/qvm-remote".into(),
            state: "/var/lib/qvm-remote".into(),
            log: "/var/log/qubes/qvm-remote.log".into(),
        }
    }
}

/// What is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteConfig {
    /// The VMs to serve, in their order, each once.
    pub vms: Vec<String>,
    /// Names in the list that no qube can have.
    pub bad: Vec<String>,
    /// The user whose files a VM without an agent is served from.
    pub user: String,
    /// Bytes that the log may have before it is rotated.
    pub log_size: u64,
    /// What is done with commands while the log cannot be written.
    pub on_log_failure: OnLogFailure,
}

impl RemoteConfig {
    /// Reads the file and the environment, which wins.
    ///
    /// # Errors
    /// What the file system says; `PermissionDenied` when others may write the file or its directory. A missing file is no error.
    pub fn load(path: &Path) -> io::Result<Self> {
        let text = match files::read_closed(path, MAX_FILE) {
            Ok(text) => String::from_utf8_lossy(&text).into_owned(),
            Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e),
        };
        Ok(Self::parse(&text, |name| std::env::var(name).ok()))
    }

    /// Reads the text of the file; `environment` wins over it.
    pub fn parse(text: &str, environment: impl Fn(&str) -> Option<String>) -> Self {
        let file = variables(text);
        let first = |names: &[&str]| {
            let from_environment = names.iter().find_map(|name| environment(name).filter(|v| !v.trim().is_empty()));
            from_environment.or_else(|| names.iter().find_map(|n| file.get(*n).filter(|v| !v.is_empty()).cloned()))
        };
        let mut config = Self { user: "user".into(), log_size: 10 << 20, ..Self::default() };
        for vm in first(VMS).unwrap_or_default().split_whitespace() {
            let list = if valid_vm(vm) { &mut config.vms } else { &mut config.bad };
            if !list.iter().any(|known| known == vm) {
                list.push(vm.to_owned());
            }
        }
        // anything but the very word is the safe answer
        let run = file.get("on_log_failure").is_some_and(|value| value == "run");
        config.on_log_failure = if run { OnLogFailure::Run } else { OnLogFailure::Refuse };
        let user = first(&["QVM_REMOTE_VM_USER"]);
        if let Some(user) = user.filter(|u| u.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))) {
            config.user = user;
        }
        config
    }
}

/// Lines `NAME=value`: split at the first `=`, both sides stripped, quotes around the value taken off, the last one
/// wins, as the original reads it.
fn variables(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| {
            let value = value.trim().trim_matches('"').trim_matches('\'');
            (name.trim().to_owned(), value.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vms(text: &str) -> Vec<String> {
        RemoteConfig::parse(text, |_| None).vms
    }

    #[test]
    fn the_list_is_read_as_the_original_reads_it() {
        assert_eq!(vms("# no\nQVM_REMOTE_VMS=\"visyble dev-vm\"\n"), ["visyble", "dev-vm"]);
        assert_eq!(vms(" QVM_REMOTE_VMS = 'a  b a' "), ["a", "b"]);
        assert_eq!(vms("QVM_REMOTE_VMS=a\nQVM_REMOTE_VMS=b"), ["b"]);
        assert_eq!(vms("QUBES_REMOTE_VMS=old\nQVM_REMOTE_VM=single"), ["old"]);
        assert_eq!(vms("QUBES_REMOTE_VM=oldest"), ["oldest"]);
        assert_eq!(vms("export QVM_REMOTE_VMS=a"), Vec::<String>::new());
    }

    #[test]
    fn the_environment_wins_and_bad_names_are_told() {
        let config = RemoteConfig::parse("QVM_REMOTE_VMS=a", |n| (n == "QUBES_REMOTE_VM").then(|| "b ../x".into()));
        assert_eq!((config.vms, config.bad), (vec!["b".to_owned()], vec!["../x".to_owned()]));
        assert_eq!(config.user, "user");
    }

    #[test]
    fn commands_run_without_an_entry_only_where_the_owner_says_so() {
        let of = |text: &str| RemoteConfig::parse(text, |_| Some("run".into())).on_log_failure;
        assert_eq!(of("on_log_failure = \"run\"\n"), OnLogFailure::Run);
        for text in ["", "on_log_failure=refuse", "on_log_failure=Run", "QVM_REMOTE_VMS=run"] {
            assert_eq!(of(text), OnLogFailure::Refuse, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_configuration(text: String) {
            prop_assert!(RemoteConfig::parse(&text, |_| None).vms.iter().all(|vm| valid_vm(vm)));
        }
    }
}
