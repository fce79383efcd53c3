//! The service behind `qrexec-connect serve` and `pfwd`: one and the same, but for where the configuration is.

use std::{
    io::IsTerminal as _,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::Args;

use super::{
    config::{self, Sources},
    table::When,
};
use crate::{
    activation,
    control::SOCKET,
    dial::qrexec::Group,
    handover::{self, CrashGuard},
    log,
    report::{Code, Fatal},
    service::{self, Ended, Setup, Stay},
    spec::{FaultEffect, Faults, LogLevel},
    sys,
    systemd::{
        headroom,
        signals::{Hangup, HeldSignals},
        unit,
    },
};

/// The exit code of a keeper whose service does not come back: its unit knows it as `RestartPreventExitStatus=`.
const DESERTED: u8 = 75;

/// Threads that move bytes: one for each processor, up to this many. `tests/bench/run` shows that each moves more than
/// 10 Gbit/s, so these are enough for any host; each costs 64 KiB of scratch buffer, a stack and an arena of malloc.
const WORKERS: usize = 16;

/// What a program wants of the service.
pub(super) struct ServeOptions {
    /// Name of the program, for messages and the journal.
    pub(super) program: &'static str,
    pub(super) sources: Sources,
    /// The program that makes qrexec calls.
    pub(super) qrexec_client: std::path::PathBuf,
    /// Calls into one qube at a time.
    pub(super) calls_per_qube: u16,
    /// Without a session for this long, the service ends.
    pub(super) exit_idle_time: Option<std::time::Duration>,
    /// Whether to end when a listener cannot be served.
    pub(super) strict: bool,
    /// Where the control socket is to be, if the arguments say so.
    pub(super) control: Option<std::path::PathBuf>,
    /// What is logged, if the arguments say so.
    pub(super) log_level: Option<LogLevel>,
    /// Whether lines of the log on stderr begin with the time.
    pub(super) timestamps: When,
    /// What to say when there is nothing to serve and nobody who would pass a socket.
    pub(super) lonely: fn() -> Fatal,
}

/// `--timestamps`, of both services.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct TimestampsOption {
    /// Start each line of the log on stderr with the time; `auto`: on a terminal
    #[arg(
        long = "timestamps",
        value_name = "WHEN",
        value_enum,
        default_value_t,
        default_missing_value = "always",
        num_args = 0..=1,
        require_equals = true
    )]
    pub(super) when: When,
}

/// Serves what was inherited and what the configuration asks for, until told to stop.
///
/// # Errors
/// Nothing to serve, a configuration that cannot be used, no runtime.
pub(super) fn run(options: ServeOptions) -> Result<ExitCode, Fatal> {
    // Before any thread: it changes the environment.
    let mut inherited = activation::receive(|name| name == handover::NAME || handover::is_of_crash(name))
        .map_err(|e| Fatal::new(Code::Config, e))?;
    let managed = std::env::var_os("NOTIFY_SOCKET").is_some();
    let nothing = inherited.listeners.is_empty() && inherited.refused.is_empty();
    let texts = options.sources.texts();
    if !managed {
        config::check_permission(&config::load_alone(&texts).config.plan())?;
    }
    let loaded = service::load(&texts, &service::last_texts(), &service::sockets(&inherited.listeners));
    let plan = loaded.config.plan();
    // By hand, somebody sees at once what is wrong. A service serves what it can.
    let refuses = loaded.faults.iter().any(|fault| fault.effect != FaultEffect::Kept);
    let strict = options.strict && refuses && inherited.stored.is_empty();
    if strict || (!managed && !loaded.faults.is_empty()) {
        let faults = Faults(loaded.faults.into_iter().map(|fault| fault.fault).collect());
        return Ok(config::tell(&faults, options.program, false));
    }
    if nothing && !managed && plan.is_idle() {
        return Err((options.lonely)());
    }
    headroom::keep();
    let (crashed, parked): (Vec<_>, Vec<_>) =
        std::mem::take(&mut inherited.stored).into_iter().partition(|(name, _)| handover::is_of_crash(name));
    let parked: Vec<_> = parked.into_iter().map(|(_, fd)| fd).collect();
    handover::make_room(&parked);
    // Before the first thread, too.
    let held = HeldSignals::hold();
    let calls = managed.then(Group::find).flatten();
    let guard = CrashGuard::begin(crashed, calls.as_ref().map(Group::path));
    let failed = |e: std::io::Error| Fatal::new(Code::Failure, format!("cannot start: {e}"));
    let level = options.log_level.or(plan.log_level).unwrap_or(LogLevel::Info);
    let stamps = options.timestamps.holds(|| std::io::stderr().is_terminal());
    let stamp = stamps.then_some(time_of_day as fn() -> String);
    let log_guard = log::start(options.program, log_level(level), stamp).map_err(failed)?;
    let unguarded = |e| {
        let text = format!("sessions will not outlive a crash of this process: {e}");
        log::say(log::Kind::CallsUnowned, text);
    };
    let mut guard = guard.unwrap_or_else(|e| {
        unguarded(e);
        None
    });
    guard.as_mut().and_then(CrashGuard::take_trouble).into_iter().for_each(unguarded);
    options.sources.warn_of_writable();
    let released = held.released();
    let setup = Setup {
        inherited,
        parked,
        guard,
        held,
        loaded,
        hangup: Hangup::meaning(options.sources.may_have_file()),
        nothing: options.sources.nothing(options.program),
        forwards: options.sources.forwards.clone(),
        read: options.sources.reader(),
        client: options.qrexec_client,
        calls_per_qube: options.calls_per_qube.into(),
        exit_idle: options.exit_idle_time,
        strict: options.strict,
        program: options.program,
        control: options.control.or_else(|| Some(unit::runtime_directory()?.join(SOCKET))),
    };
    // After what releases the signals is where it is dropped first: threads wait for that.
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(WORKERS));
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(workers).enable_all().on_thread_start(released).build().map_err(failed)?;
    let ended = runtime.block_on(service::run(setup));
    drop(log_guard);
    match ended {
        Ok(Ended::Done | Ended::HandedOver) => Ok(ExitCode::SUCCESS),
        Ok(Ended::Broken) => Ok(Code::Failure.into()),
        Err(what) => Err(Fatal::new(Code::Failure, what)),
    }
}

/// Keeps what the service leaves between two of its processes, for as long as another may come.
pub(super) fn keep(program: &'static str) -> Result<ExitCode, Fatal> {
    let failed = |e: std::io::Error| Fatal::new(Code::Failure, format!("cannot start: {e}"));
    headroom::keep();
    let guard = log::start(program, log::Level::Info, None).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let kept = runtime.block_on(service::keep());
    drop(guard);
    Ok(match kept.map_err(failed)? {
        Stay::Stopped => ExitCode::SUCCESS,
        Stay::Deserted => ExitCode::from(DESERTED),
    })
}

/// The time of day here, as a line of the log has it: `12:00:01.250`.
fn time_of_day() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let [.., hour, minute, second] = sys::local_time(i64::try_from(now.as_secs()).unwrap_or(0));
    format!("{hour:02}:{minute:02}:{second:02}.{:03}", now.subsec_millis())
}

fn log_level(level: LogLevel) -> log::Level {
    match level {
        LogLevel::Error => log::Level::Error,
        LogLevel::Warn => log::Level::Warning,
        LogLevel::Info => log::Level::Info,
        LogLevel::Debug | LogLevel::Trace => log::Level::Debug,
    }
}
