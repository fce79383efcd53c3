//! What is executed: program, environment, directory and user, as the policy and the request have them.

use std::{
    ffi::{CString, OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::unistd::{Gid, User, getgrouplist};

use super::{execute::Launch, state::Vm};
use crate::{
    proto::remote::{Request, flags},
    remote::policy::{PATH, Policy, Ruling},
    sys::Identity,
};

/// The longest that a command of the original's clients may run, as the original has it.
const V1_TIMEOUT: Duration = Duration::from_secs(300);

/// A program's absolute path: a bare name is looked for in dom0's own PATH, a relative path is none.
pub(super) fn resolve(program: &[u8]) -> Option<Vec<u8>> {
    let name = Path::new(OsStr::from_bytes(program));
    if name.is_absolute() {
        return Some(program.to_vec());
    }
    if program.contains(&b'/') {
        return None;
    }
    let candidates = PATH.iter().map(|dir| Path::new(dir).join(name));
    candidates.filter(|p| p.is_file()).map(|p| p.into_os_string().into_vec()).next()
}

/// Makes a launch. `words` are the program and its arguments, or `script` is a text for bash.
pub(super) fn launch(
    vm: &Vm,
    policy: &Policy,
    decision: &Ruling<'_>,
    id: &str,
    request: Option<&Request>,
    (words, script): (Vec<Vec<u8>>, Option<Vec<u8>>),
) -> Result<Launch, String> {
    let options = &decision.options;
    let name = options.user.as_deref().unwrap_or("root");
    let account = User::from_name(name).ok().flatten().ok_or_else(|| format!("user {name} is unknown"))?;
    // without the option it is the daemon's own user
    let identity = options.user.is_some().then(|| identity(name, &account)).transpose()?;
    let tty = request.is_some_and(|r| r.has(flags::TTY));
    let mut env = environment(vm, id, name, account);
    for (key, value) in request.map(|r| r.env.as_slice()).unwrap_or_default() {
        let harmless = |b: &u8| b.is_ascii_alphanumeric() || b"-+._".contains(b);
        let terminal = tty && key == b"TERM" && value.iter().all(harmless);
        if terminal || options.env.iter().any(|name| name.as_bytes() == key) {
            env.retain(|(name, _)| name.as_bytes() != key);
            env.push((OsString::from_vec(key.clone()), OsString::from_vec(value.clone())));
        }
    }
    let (words, script) = match &policy.force {
        Some(force) => {
            let asked = script.unwrap_or_else(|| words.join(&b' '));
            let asked = asked.strip_suffix(b"\n").unwrap_or(&asked).to_vec();
            env.push(("QVM_REMOTE_ORIGINAL_COMMAND".into(), OsString::from_vec(asked)));
            (Vec::new(), Some(force.clone().into_bytes()))
        }
        None => (words, script),
    };
    let asked =
        request.map_or(Some(V1_TIMEOUT), |r| (r.timeout_ms > 0).then(|| Duration::from_millis(r.timeout_ms.into())));
    Ok(Launch {
        words: words.into_iter().map(OsString::from_vec).collect(),
        script,
        env,
        cwd: directory(options.cwd.as_deref(), request),
        identity,
        stdin: request.is_some_and(|r| r.has(flags::STDIN)),
        tty,
        timeout: [asked, options.timeout].into_iter().flatten().min(),
        max_output: options.max_output,
    })
}

fn identity(name: &str, account: &User) -> Result<Identity, String> {
    let c_name = CString::new(name).map_err(|e| e.to_string())?;
    let groups = getgrouplist(&c_name, account.gid).map_err(|e| e.to_string())?;
    let groups = groups.into_iter().map(Gid::as_raw).collect();
    Ok(Identity { uid: account.uid.as_raw(), gid: account.gid.as_raw(), groups })
}

/// The environment before the request's own variables.
fn environment(vm: &Vm, id: &str, name: &str, account: User) -> Vec<(OsString, OsString)> {
    vec![
        ("PATH".into(), PATH.join(":").into()),
        ("HOME".into(), account.dir.into_os_string()),
        ("USER".into(), name.into()),
        ("LOGNAME".into(), name.into()),
        ("SHELL".into(), "/bin/bash".into()),
        ("LANG".into(), "C.UTF-8".into()),
        ("QVM_REMOTE_VM".into(), vm.name.clone().into()),
        ("QVM_REMOTE_ID".into(), id.into()),
    ]
}

fn directory(policy: Option<&str>, request: Option<&Request>) -> PathBuf {
    match policy {
        Some("client") => PathBuf::from(OsString::from_vec(request.map_or_else(|| b"/".to_vec(), |r| r.cwd.clone()))),
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from("/"),
    }
}
