//! `qvm-remote-dom0 check`: what is wrong with the configuration, the keys and the policies, where, and how to mend it.

use std::{
    collections::BTreeSet,
    fmt, fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{
    cli::wrap,
    log::{counted, escape},
    remote::{
        config::{Paths, RemoteConfig},
        dom0::question,
        keys::Store,
        policy::{Policy, PolicyFault, remarks},
        policy_file::{self, PolicyFileError},
        program::{self, PathFault},
        walk,
    },
    report::{Code, Fatal},
};

/// Something that the owner should know.
#[derive(Debug)]
struct PolicyFinding {
    /// A file, with the number of a line where there is one.
    place: String,
    /// Something does not work at all.
    fault: bool,
    what: String,
    fix: String,
}

impl fmt::Display for PolicyFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.fault { "error" } else { "remark" };
        let [place, what, fix] = [&self.place, &self.what, &self.fix].map(|text| escape(text.as_bytes()));
        write!(f, "{place}:\n  {kind}: {what}\n  write: {fix}")
    }
}

/// Runs the command: one policy, or everything in its place.
pub(super) fn run(paths: &Paths, store: &Store, file: Option<&Path>) -> Result<ExitCode, Fatal> {
    let (mut findings, mut fine) = (Vec::new(), Vec::new());
    match file {
        Some(path) => {
            let read = policy_file::read(path).map(|(policy, _)| policy);
            policy(path, read, &mut findings, &mut fine);
        }
        None => everything(paths, store, &mut findings, &mut fine),
    }
    fine.iter().for_each(|path| println!("{}: fine", escape(path.as_os_str().as_bytes())));
    let columns = wrap::columns();
    findings.iter().for_each(|finding| println!("{}", wrap::wrapped(&finding.to_string(), columns)));
    if file.is_none() && question::status(&paths.run).is_ok_and(|status| status.restart_pending_since.is_some()) {
        let text = "A restart is pending: until then an earlier version may run, and it allows nothing by a policy with words \
                    that it does not know; to restart: qvm-remote-dom0 restart";
        println!("{}", wrap::wrapped(text, columns));
    }
    let faults = findings.iter().filter(|finding| finding.fault).count();
    if faults == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Fatal::new(
        Code::Config,
        format!("{} found: dom0 does not use the files and rules that have one", counted(faults, "error")),
    ))
}

fn everything(paths: &Paths, store: &Store, findings: &mut Vec<PolicyFinding>, fine: &mut Vec<PathBuf>) {
    let mut vms: BTreeSet<String> = store.list().into_iter().collect();
    let place = paths.conf.display().to_string();
    let mut finding = |place: String, fault: bool, what: String, fix: String| {
        findings.push(PolicyFinding { place, fault, what, fix });
    };
    match RemoteConfig::load(&paths.conf) {
        Ok(config) => {
            for bad in &config.bad {
                let what = format!("no qube can have this name: {}", escape(bad.as_bytes()));
                finding(place.clone(), true, what, "the name of a qube, or nothing".into());
            }
            if config.vms.is_empty() {
                finding(place, true, "no qube is listed".into(), "QVM_REMOTE_VMS=\"QUBE...\"".into());
            } else if config.bad.is_empty() {
                fine.push(paths.conf.clone());
            }
            for vm in vms.iter().filter(|vm| !config.vms.contains(vm)) {
                let what = format!("{vm} has a key and is not listed, so it is not served");
                let fix = format!("{vm} in QVM_REMOTE_VMS, or qvm-remote-dom0 revoke {vm}");
                finding(paths.conf.display().to_string(), false, what, fix);
            }
            vms.extend(config.vms);
        }
        Err(e) => {
            let fix = "a file that root owns and others may not write".to_owned();
            finding(place, true, format!("it cannot be used: {e}"), fix);
        }
    }
    if let Err(fault @ (PathFault::Changeable(_) | PathFault::InProc(_) | PathFault::Io(..))) =
        walk::closed(&paths.keys)
    {
        findings.push(PolicyFinding {
            place: paths.keys.display().to_string(),
            fault: true,
            what: format!("no key and no policy in it is used: {fault}"),
            fix: "a directory that root owns and others may not write, and so those above it".into(),
        });
        return;
    }
    let files = fs::read_dir(&paths.keys).into_iter().flatten().flatten();
    let policies = files.filter_map(|e| Some(e.file_name().to_str()?.strip_suffix(".policy")?.to_owned()));
    vms.extend(policies.filter(|vm| store.path(vm, "policy").is_ok()));
    for vm in &vms {
        let Ok(path) = store.path(vm, "key") else { continue };
        match store.read(vm) {
            Ok(_) => fine.push(path),
            Err(e) => findings.push(PolicyFinding {
                place: path.display().to_string(),
                fault: true,
                what: format!("{vm} has no usable key: {e}"),
                fix: format!("qvm-remote-dom0 authorize {vm} KEY"),
            }),
        }
        if let Ok(path) = store.path(vm, "policy") {
            policy(&path, policy_file::read_installed(&path), findings, fine);
        }
    }
}

fn policy(
    path: &Path,
    read: Result<Policy, PolicyFileError>,
    findings: &mut Vec<PolicyFinding>,
    fine: &mut Vec<PathBuf>,
) {
    let place = path.display().to_string();
    let of_line = |fault: bool, found: PolicyFault| PolicyFinding {
        place: format!("{place}:{}", found.line),
        fault,
        what: found.what,
        fix: found.fix,
    };
    let whole = |what: String, fix: &str| PolicyFinding { place: place.clone(), fault: true, what, fix: fix.into() };
    match read {
        Ok(policy) => {
            fine.push(path.to_owned());
            findings.extend(
                remarks(&policy, trouble, program::behind_link).into_iter().map(|remark| of_line(false, remark)),
            );
        }
        Err(PolicyFileError::Faults(_, faults)) => {
            findings.extend(faults.into_iter().map(|fault| of_line(true, fault)));
        }
        Err(e @ PolicyFileError::Missing(_)) => {
            findings.push(whole(e.to_string(), "rules, or deny * and deny shell *"))
        }
        Err(e @ PolicyFileError::NoText(_)) => findings.push(whole(e.to_string(), "UTF-8")),
        Err(e @ PolicyFileError::Io(..)) => {
            findings.push(whole(e.to_string(), "a file that root owns and others may not write"));
        }
    }
}

/// What is wrong with a program that a rule names.
fn trouble(name: &[u8]) -> Option<String> {
    let fault = program::find(name).path.err()?;
    let name = escape(name);
    Some(match fault {
        PathFault::Missing => format!("{name}: there is no such program"),
        fault @ (PathFault::Changeable(_) | PathFault::InProc(_) | PathFault::Io(..)) => {
            format!("{name} is refused: {fault}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_lines_of_eighty_columns_and_a_pipe_each_message_in_one_line() {
        let finding = PolicyFinding {
            place: "/etc/qubes/remote.d/work.policy:3".into(),
            fault: false,
            what: "word ".repeat(40),
            fix: "allow /opt/** *".into(),
        };
        let text = wrap::wrapped(&finding.to_string(), Some(80));
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        assert!(
            text.starts_with("/etc/qubes/remote.d/work.policy:3:\n  remark: word")
                && text.ends_with("\n  write: allow /opt/** *")
        );
        assert_eq!(wrap::wrapped(&finding.to_string(), None).lines().count(), 3);
    }

    #[test]
    fn no_terminal_obeys_what_a_policy_holds() {
        let finding = PolicyFinding {
            place: "/root/\x1b[2J.policy:1".into(),
            fault: true,
            what: "\x1b]0;x\x07".into(),
            fix: "allow /opt/\x1b[2J/** *".into(),
        };
        let text = finding.to_string();
        assert!(!text.chars().any(|c| c.is_control() && c != '\n') && text.contains("/opt/\\x1b[2J/**"), "{text:?}");
    }

    #[test]
    fn faults_and_remarks_of_a_policy_are_found_with_their_lines() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.policy");
        let found = |text: &str| {
            fs::write(&path, text).expect("written");
            let (mut findings, mut fine) = (Vec::new(), Vec::new());
            policy(&path, policy_file::read(&path).map(|(policy, _)| policy), &mut findings, &mut fine);
            let place = format!("{}:", path.display());
            let lines = findings.iter().map(|f| (f.place.strip_prefix(&place).map(str::to_owned), f.fault));
            (lines.collect::<Vec<_>>(), fine.len())
        };
        let line = |n: usize| Some(n.to_string());
        assert_eq!(found("allow env *\n"), (vec![], 1));
        assert_eq!(found("allow /usr/*/x\nask env\n"), (vec![(line(1), false), (line(2), false)], 1));
        assert_eq!(found("alow x\n\nv1 = maybe\n"), (vec![(line(1), true), (line(3), true)], 0));
        assert_eq!(found("allow /nosuch/program\n"), (vec![(line(1), false)], 1));
    }
}
