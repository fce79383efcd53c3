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

/// Whether a unit runs, or is about to: a service that starts is one that somebody has started.
fn runs(unit: &str) -> bool {
    Scope::System
        .ask(&["show", "--property=ActiveState", "--value", unit], PATIENCE)
        .is_ok_and(|answer| !matches!(answer.text.trim(), "" | "inactive" | "failed" | "deactivating"))
}

/// Whether systemd reads this as a span of time; where that cannot be asked, systemd-run says so.
fn is_span(span: &str) -> bool {
    let mut analyze = Process::new("systemd-analyze");
    analyze.args(["timespan", span]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    analyze.status().map_or(true, |status| status.success())
}

/// Ends the time of an earlier `start`, where there is one.
fn forget_the_end() -> Result<(), Fatal> {
    for unit in [format!("{STOP}.timer"), format!("{STOP}.service")] {
        if runs(&unit) {
            systemctl(&["stop", unit.as_str()])?;
        }
    }
    Ok(())
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
    forget_the_end()?;
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
    if span.is_empty() || !span.bytes().all(fine) || !is_span(span) {
        return Err(Fatal::new(Code::Usage, "write a span of time, such as 30min or 2h"));
    }
    let ran = runs(SERVICE);
    if ran && !runs(&format!("{STOP}.timer")) {
        return Err(fail(format!("{SERVICE} runs already, and 'start --for' did not start it, so nothing stops it"))
            .hint(format!("systemctl stop {SERVICE}, and start it again with --for")));
    }
    forget_the_end()?;
    systemctl(&["start", SERVICE])?;
    let status = Process::new("systemd-run")
        .args(["--quiet", "--collect", "--unit", STOP, "--on-active", span, "--timer-property=AccuracySec=1s"])
        // without a wait for the drain: this unit is gone when the next time is set
        .args(["systemctl", "--no-block", "stop", "qvm-remote-dom0.service"])
        .stdin(Stdio::null())
        .status()
        .map_err(|e| fail(format!("systemd-run: {e}")))?;
    if !status.success() {
        if ran {
            return Err(fail(format!("systemd-run failed, so {SERVICE} runs without an end"))
                .hint(format!("systemctl stop {SERVICE}")));
        }
        systemctl(&["stop", SERVICE])?;
        return Err(fail("systemd-run failed, so the service was stopped again"));
    }
    println!("Started for {span}; then it is stopped. Another 'start --for' sets another time.");
    Ok(ExitCode::SUCCESS)
}

/// Whether this error of connect(2) means that no daemon listens at the socket.
fn nobody(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// `restart --when-idle`.
pub(super) fn restart_when_idle(run: &Path) -> Result<ExitCode, Fatal> {
    match question::restart_when_idle(run) {
        Ok(true) => println!("The service is restarted when no command runs or waits: qvm-remote-dom0 status"),
        Ok(false) => println!("The daemon is being stopped already, so there is nothing to restart."),
        Err(e) if nobody(&e) && runs(SERVICE) => {
            return Err(fail(format!("{SERVICE} starts, and its daemon does not listen yet, so it was not asked"))
                .hint(format!("systemctl try-restart {SERVICE}")));
        }
        Err(e) if nobody(&e) => println!("No daemon is running, so there is nothing to restart."),
        Err(e) => return Err(fail(e)),
    }
    Ok(ExitCode::SUCCESS)
}

/// What a restart cuts; empty when nothing.
fn cut_by_restart(run: &Path) -> Result<String, Fatal> {
    let status = match question::status(run) {
        Err(e) if !nobody(&e) || runs(SERVICE) => {
            return Ok(format!("The daemon does not answer ({e}), so what the restart would cut is not known.\n"));
        }
        status => answered(status)?,
    };
    let requests = tables::requests(Style::stdout(LookOptions::default()), &status.without_background());
    if requests.is_empty() {
        return Ok(requests);
    }
    Ok(format!("Commands that wait are refused; those that run have 60 s to end, and are cut then:\n\n{requests}"))
}

/// `restart`: what it would cut, and the question.
pub(super) fn restart(run: &Path, yes: bool) -> Result<ExitCode, Fatal> {
    const WHEN_IDLE: &str = "when none runs: qvm-remote-dom0 restart --when-idle";
    if std::env::var_os("QVM_REMOTE_ID").is_some() {
        return Err(fail("this is a command of a qube, which the restart would end").hint(WHEN_IDLE));
    }
    let cut = cut_by_restart(run)?;
    if !cut.is_empty() && !yes {
        print!("{cut}");
        if !io::stdin().is_terminal() {
            return Err(fail("no terminal to ask on; without one use --yes").hint(WHEN_IDLE));
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
