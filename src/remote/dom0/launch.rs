//! What is executed: program, environment, directory and user, as the policy and the request have them.

use std::{
    ffi::{CString, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::PathBuf,
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

/// What is executed.
pub(super) enum What {
    /// A text for bash.
    Script(Vec<u8>),
    /// The path to execute, `None` where there is no such program, and the words as asked.
    Argv(Option<PathBuf>, Vec<Vec<u8>>),
}

/// Makes a launch.
pub(super) fn launch(
    vm: &Vm,
    policy: &Policy,
    decision: &Ruling<'_>,
    id: &str,
    request: Option<&Request>,
    what: What,
) -> Result<Launch, String> {
    let options = &decision.options;
    let name = options.user.as_deref().unwrap_or("root");
    let account = User::from_name(name).ok().flatten().ok_or_else(|| format!("user {name} is unknown"))?;
    // without the option it is the daemon's own user
    let identity = options.user.is_some().then(|| identity(name, &account)).transpose()?;
    let tty = request.is_some_and(|r| r.has(flags::TTY));
    let cwd = directory(options.cwd.as_deref(), request, &account);
    let mut env = environment(vm, id, name, account);
    for (key, value) in request.map(|r| r.env.as_slice()).unwrap_or_default() {
        let harmless = |b: &u8| b.is_ascii_alphanumeric() || b"-+._".contains(b);
        let terminal = tty && key == b"TERM" && value.iter().all(harmless);
        if terminal || options.env.iter().any(|name| name.as_bytes() == key) {
            env.retain(|(name, _)| name.as_bytes() != key);
            env.push((OsString::from_vec(key.clone()), OsString::from_vec(value.clone())));
        }
    }
    let what = match &policy.force {
        Some(force) => {
            let asked = match what {
                What::Script(text) => text,
                What::Argv(program, mut words) => {
                    if let (Some(program), Some(name)) = (program, words.first_mut()) {
                        *name = program.into_os_string().into_vec();
                    }
                    words.join(&b' ')
                }
            };
            let asked = asked.strip_suffix(b"\n").unwrap_or(&asked).to_vec();
            env.push(("QVM_REMOTE_ORIGINAL_COMMAND".into(), OsString::from_vec(asked)));
            What::Script(force.clone().into_bytes())
        }
        None => what,
    };
    let (program, words, script) = match what {
        What::Script(text) => (None, Vec::new(), Some(text)),
        What::Argv(program, words) => (program, words, None),
    };
    let asked =
        request.map_or(Some(V1_TIMEOUT), |r| (r.timeout_ms > 0).then(|| Duration::from_millis(r.timeout_ms.into())));
    Ok(Launch {
        program,
        words: words.into_iter().map(OsString::from_vec).collect(),
        script,
        env,
        cwd,
        cwd_optional: options.cwd.is_none(),
        umask: options.umask,
        identity,
        stdin: request.is_some_and(|r| r.has(flags::STDIN)),
        tty,
        timeout: [asked, options.timeout].into_iter().flatten().min(),
        timeout_by_policy: options.timeout.is_some_and(|policy| asked.is_none_or(|asked| policy < asked)),
        max_output: options.max_output,
    })
}

/// Variables that dom0 itself sets, the same for every command of a qube and a user.
const FIXED: &[&str] = &["PATH", "HOME", "USER", "LOGNAME", "SHELL", "QVM_REMOTE_VM", "QVM_REMOTE_ID"];
/// The value of LANG when the qube sets none.
const LANG: &str = "C.UTF-8";

/// The variables of a launch that are not the same for every command.
pub(super) fn variables(launch: &Launch) -> impl Iterator<Item = &(OsString, OsString)> {
    let usual =
        |name: &OsString, value: &OsString| FIXED.iter().any(|fixed| name == fixed) || name == "LANG" && value == LANG;
    launch.env.iter().filter(move |(name, value)| !usual(name, value))
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
        ("LANG".into(), LANG.into()),
        ("QVM_REMOTE_VM".into(), vm.name.clone().into()),
        ("QVM_REMOTE_ID".into(), id.into()),
    ]
}

fn directory(policy: Option<&str>, request: Option<&Request>, account: &User) -> PathBuf {
    match policy {
        Some("client") => PathBuf::from(OsString::from_vec(request.map_or_else(|| b"/".to_vec(), |r| r.cwd.clone()))),
        Some(dir) => PathBuf::from(dir),
        None => account.dir.clone(),
    }
}
