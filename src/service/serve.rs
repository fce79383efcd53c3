//! The service's own task: it serves until an order comes.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use sd_notify::NotifyState;
use tokio::{
    io::unix::AsyncFd,
    sync::watch,
    task::{AbortHandle, JoinSet, yield_now},
    time::sleep,
};

use super::{last, setup::Ended, state::RunningService};
use crate::{
    control::asked,
    crash::RegionMode,
    handover,
    log::{Kind, say},
    session::{Sessions, after_crowds},
    sys::or_never,
    systemd::{
        notify,
        signals::{Order, Signals},
        sockets::{self, Moved},
    },
};

/// Serves until an order comes. `told` is the number of sessions that the manager knows of, `nothing_asked` what to say
/// when there is nothing to serve.
pub(super) async fn until_stopped(
    mut service: RunningService,
    signals: &mut Signals,
    exit_idle: Option<Duration>,
    told: usize,
    nothing_asked: &str,
) -> Ended {
    let mut keep = JoinSet::new();
    keep.spawn(notify::watchdog());
    keep.spawn(after_crowds(service.sessions.watch()));
    let mut status = tell_status(&service, &mut keep, Some(told));
    let at_most = loop {
        // What nobody passed, nobody would start again. And with its end the last good texts would be gone.
        let exit_idle = exit_idle.filter(|_| service.posts.is_empty() && service.faults.is_empty());
        // While the configuration has faults, there is a reload to wait for.
        let nothing = service.passed == 0 && service.posts.is_empty() && service.faults.is_empty();
        let changed = tokio::select! {
            order = signals.next() => match order {
                Order::Reload => {
                    // It would tell the line of before.
                    status.abort();
                    while !status.is_finished() {
                        yield_now().await;
                    }
                    service.reload().await;
                    true
                }
                Order::Park if notify::managed() => return service.hand_over(Ended::HandedOver).await,
                // Nobody would keep what is parked.
                Order::Park => break None,
                Order::Drain { at_most } => break at_most,
            },
            () = ended(service.shadow.as_ref()) => {
                service.shadow = None;
                if notify::managed() {
                    let text = "the process that shares the descriptors was killed: restarting with all sessions";
                    say(Kind::CallsUnowned, text);
                    return service.hand_over(Ended::Broken).await;
                }
                false
            }
            () = service.accepting.panicked() => {
                say(Kind::ServiceStopped, "a listener's task panicked: restarting with all sessions");
                if !notify::managed() {
                    service.drain(signals, None).await;
                    return Ended::Broken;
                }
                return service.hand_over(Ended::Broken).await;
            }
            ask = asked(&mut service.control) => {
                service.answer(ask);
                false
            }
            due = service.posts.due() => {
                let RunningService { posts, sessions, routes, accepting, .. } = &mut service;
                posts.follow(due, sessions, routes, accepting).await
            }
            moved = service.units.moved() => match moved {
                Moved::FileGone => false, // status tells of it
                Moved::Stopped => {
                    say(Kind::ListenerRemoved, "a socket without a file was stopped: restarting to close it");
                    sockets::restart();
                    false
                }
            },
            () = nothing_left(&service.sessions, service.routes.backends().busy(), nothing, exit_idle) => {
                service.accepting.stop().await;
                if service.sessions.count() == 0 {
                    service.routes.backends().leave().await;
                    handover::set_mode(RegionMode::Ended);
                    last::remove();
                    let why = if nothing { nothing_asked } else { "ending until the next connection" };
                    let text = format!("nothing to do: {why}");
                    notify::tell(&[NotifyState::Status(&text), NotifyState::Stopping]);
                    say(Kind::ServiceStopped, text);
                    return Ended::Done;
                }
                service.accept(); // one came in at the last moment
                false
            }
        };
        if changed {
            service.share_limits();
            status.abort();
            status = tell_status(&service, &mut keep, None);
        }
    };
    status.abort();
    service.drain(signals, at_most).await
}

/// How long the ends of calls may take to be understood that were killed together with the shadow: they live in one
/// unit.
const CALLS_END: Duration = Duration::from_millis(250);

/// Waits until the shadow has ended: it was killed.
///
/// # Cancel safety
/// Safe.
async fn ended(shadow: Option<&AsyncFd<OwnedFd>>) {
    let _ = or_never(shadow.map(AsyncFd::readable)).await;
    sleep(CALLS_END).await;
}

/// Keeps the manager's status up to date with what is served now. `told` is the number of sessions that the manager
/// knows of; without one the message comes at once.
fn tell_status(service: &RunningService, keep: &mut JoinSet<()>, told: Option<usize>) -> AbortHandle {
    while keep.try_join_next().is_some() {} // those of before
    keep.spawn(notify::status(service.sessions.watch(), told, service.status_line()))
}

/// Waits until the service has nothing to do: it was passed no listeners and has no sessions, or it had no session for
/// the time after which it is to end. A unit that only this service would stop is something to do. One whose listeners
/// were all refused stays: whoever waits in their backlogs would have systemd start it again at once, until that gives
/// the sockets up.
async fn nothing_left(
    sessions: &Arc<Sessions>,
    mut units: watch::Receiver<usize>,
    no_listeners: bool,
    exit_idle: Option<Duration>,
) {
    let patience = match exit_idle {
        _ if no_listeners => Duration::ZERO,
        Some(patience) => patience,
        None => return std::future::pending().await,
    };
    let mut count = sessions.watch();
    loop {
        let busy = *count.borrow_and_update() > 0 || *units.borrow_and_update() > 0;
        tokio::select! {
            changed = count.changed() => if changed.is_err() { return },
            changed = units.changed() => if changed.is_err() { return },
            () = sleep(patience), if !busy => return,
        }
    }
}
