//! The service, as its owner starts, restarts and stops it.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _},
    path::Path,
    process::{Command as Process, ExitCode, Stdio},
    time::Duration,
};

use super::{
    failure::{answered, fail},
    tables, text,
};
use crate::{
    cli::table::{LookOptions, Style},
    remote::dom0::question,
    report::{Code, Fatal},
    systemd::systemctl::Scope,
};

/// The service, as systemctl takes it.
const SERVICE: &str = "qvm-remote-dom0";
/// The timer that stops the service at the end of the time of `start`.
const STOP: &str = "qvm-remote-dom0-stop";
/// How long systemd may take to say what it knows of a unit.
const PATIENCE: Duration = Duration::from_secs(10);

fn systemctl(words: &[&str]) -> Result<(), Fatal> {
    let status = Scope::System.order(words).map_err(|e| fail(format!("systemctl: {e}")))?;
    if status.success() { Ok(()) } else { Err(fail(format!("systemctl {} failed", words.join(" ")))) }
}

/// Whether a unit is active.
fn active(unit: &str) -> bool {
    Scope::System
        .ask(&["show", "--property=ActiveState", "--value", unit], PATIENCE)
        .is_ok_and(|answer| answer.text.trim() == "active")
}

/// The first line of standard input is this; `question` is asked before.
fn answered_by(question: &str, yes: &[&str]) -> Result<bool, Fatal> {
    eprint!("{question}");
    let _ = io::stderr().flush();
    let mut line = String::new();
    io::stdin().lock().take(64).read_line(&mut line).map_err(fail)?;
    Ok(yes.contains(&line.trim_end_matches('\n')))
}

/// `enable`.
pub(super) fn enable() -> Result<ExitCode, Fatal> {
    let question = format!("{}\nType 'yes' to accept this risk and enable: ", text::WARNING);
    if !answered_by(&question, &["yes"])? {
        println!("Aborted.");
        return Ok(ExitCode::FAILURE);
    }
    systemctl(&["enable", SERVICE])?;
    systemctl(&["start", SERVICE])?;
    println!("Enabled and started. Disable with: qvm-remote-dom0 disable");
    Ok(ExitCode::SUCCESS)
}

/// `disable`.
pub(super) fn disable() -> Result<ExitCode, Fatal> {
    systemctl(&["disable", SERVICE])?;
    systemctl(&["stop", SERVICE])?;
    println!("Disabled and stopped.");
    Ok(ExitCode::SUCCESS)
}

/// `start --for SPAN`: a timer stops the service, unless somebody else has started it. There is one timer.
pub(super) fn start(span: &str) -> Result<ExitCode, Fatal> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b" .".contains(&b);
    if span.is_empty() || !span.bytes().all(fine) {
        return Err(Fatal::new(Code::Usage, "a span of time is wanted, such as 30min or 2h"));
    }
    let timer = format!("{STOP}.timer");
    let timed = active(&timer);
    if active(SERVICE) && !timed {
        println!("It runs already, and was not started by 'start': it goes on without an end. To stop it:");
        println!("  systemctl stop {SERVICE}");
        return Ok(ExitCode::SUCCESS);
    }
    if timed {
        systemctl(&["stop", &timer])?;
    }
    systemctl(&["start", SERVICE])?;
    let status = Process::new("systemd-run")
        .args(["--quiet", "--collect", "--unit", STOP, "--on-active", span, "--timer-property=AccuracySec=1s"])
        .args(["systemctl", "stop", "qvm-remote-dom0.service"])
        .stdin(Stdio::null())
        .status()
        .map_err(|e| fail(format!("systemd-run: {e}")))?;
    if !status.success() {
        systemctl(&["stop", SERVICE])?;
        return Err(fail("systemd-run failed, so the service was stopped again"));
    }
    println!("Started for {span}; then it is stopped. Another 'start --for' sets another time.");
    Ok(ExitCode::SUCCESS)
}

/// `restart --when-idle`.
pub(super) fn restart_when_idle(run: &Path) -> Result<ExitCode, Fatal> {
    match question::restart_when_idle(run) {
        Ok(()) => println!("The service is restarted when no command runs or waits: qvm-remote-dom0 status"),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            println!("No daemon is running, so there is nothing to restart.");
        }
        Err(e) => return Err(fail(e)),
    }
    Ok(ExitCode::SUCCESS)
}

/// `restart`: what it would cut, and the question.
pub(super) fn restart(run: &Path, yes: bool) -> Result<ExitCode, Fatal> {
    const WHEN_IDLE: &str = "when none runs: qvm-remote-dom0 restart --when-idle";
    if std::env::var_os("QVM_REMOTE_ID").is_some() {
        return Err(fail("a command of a qube would cut itself").hint(WHEN_IDLE));
    }
    let status = answered(question::status(run))?;
    let requests = tables::requests(Style::stdout(LookOptions::default()), &status.without_background());
    if !requests.is_empty() && !yes {
        println!("Commands that wait are refused; those that run have 60 s to end, and are cut then:\n\n{requests}");
        if !io::stdin().is_terminal() {
            return Err(fail("it is asked on a terminal; elsewhere: --yes").hint(WHEN_IDLE));
        }
        if !answered_by("Restart now? [y/N] ", &["y", "Y", "yes"])? {
            println!("Not restarted; {WHEN_IDLE}");
            return Ok(ExitCode::FAILURE);
        }
    }
    systemctl(&["restart", SERVICE])?;
    println!("Restarted.");
    Ok(ExitCode::SUCCESS)
}
