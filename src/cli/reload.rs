//! `reload`: the running service reads its configuration again.

use std::process::ExitCode;

use super::{
    control::{Program, socket_path},
    systemctl,
    units::Scope,
};
use crate::{
    control::{
        api::{self, State},
        client::ControlConnection,
    },
    report::{Code, Fatal},
    systemd::{
        notify::started_by_the_manager,
        reload::{self, ReloadFailure},
    },
};

/// Has the running service read its configuration again, and waits for how that goes. ExecReload= gives its process id
/// in `MAINPID`; somebody at a shell means the service of the manager of `scope`.
///
/// # Errors
/// The new configuration is not used, or not all of it is served; or that is not known; or the service does not run.
pub(super) fn run(program: Program, scope: Scope) -> Result<ExitCode, Fatal> {
    if let Some(pid) = std::env::var("MAINPID").ok().and_then(|text| text.parse().ok()) {
        return match reload::ask(pid) {
            Ok(()) => Ok(ExitCode::SUCCESS),
            // The service has logged the answer. The journal also takes what ExecReload= prints: a second entry.
            Err(ReloadFailure::Answered(_)) if started_by_the_manager() => Ok(Code::Failure.into()),
            Err(ReloadFailure::Answered(why) | ReloadFailure::Unknown(why)) => Err(Fatal::new(Code::Failure, why)),
        };
    }
    let (name, flag) = (program.name, scope.flag());
    let unit = format!("{name}.service");
    let shown = systemctl::show(scope, &["ActiveState"], std::slice::from_ref(&unit));
    let Some(state) = shown.and_then(|shown| shown.first()?.last("ActiveState")) else {
        let what = format!("systemd does not answer, so {unit} cannot be reloaded");
        return Err(
            Fatal::new(Code::Failure, what).hint("a service that runs without systemd reads its file at SIGHUP")
        );
    };
    if matches!(state.as_str(), "inactive" | "failed") {
        let what = format!("{unit} does not run: it reads the configuration when it starts");
        return Err(Fatal::new(Code::Failure, what).hint(format!("to try the configuration: {name} check")));
    }
    systemctl::order(scope, &["reload", &unit]).map_err(|failed| {
        not_served(program, scope).iter().for_each(|line| eprintln!("{name}: {line}"));
        failed.hint(format!("`{name} check` names what is wrong; more: journalctl {flag}-u {unit}"))
    })?;
    println!("{unit} has read its configuration again");
    Ok(ExitCode::SUCCESS)
}

/// What the service says after a reload that failed: faults of the configuration, and listeners without service.
fn not_served(program: Program, scope: Scope) -> Vec<String> {
    let asked = ControlConnection::connect(&socket_path(program, scope))
        .and_then(|mut service| service.call::<api::Status>("Status", &serde_json::json!({})));
    let Ok(status) = asked else { return Vec::new() };
    let faults = status.faults.into_iter().map(|fault| format!("{}: {}", fault.place, fault.message));
    let refused = status.listeners.into_iter().filter(|listener| listener.state == State::Refused);
    let refused = refused.map(|listener| {
        format!("{} is not served: {}", listener.address, listener.reason.as_deref().unwrap_or_default())
    });
    faults.chain(refused).collect()
}
