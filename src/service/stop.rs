//! The two ways to stop: hand everything over, or drain.

use std::{collections::BTreeSet, time::Duration};

use sd_notify::NotifyState;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{last, setup::Ended, state::RunningService};
use crate::{
    control::Control,
    crash::RegionMode,
    handover,
    listener::Handed,
    log::{End, Kind, say},
    relay::Why,
    session::{SessionEnding, tell_end},
    systemd::{
        notify::{self, sessions as n_sessions},
        signals::Signals,
        unit::leave,
    },
};

/// How long all sessions together may take to be parked. Each needs one poll of its task.
const PARKING: Duration = Duration::from_secs(5);
/// How long sessions may take to end after they were told to: two seconds for a child to obey SIGTERM, and a margin.
const ENDING: Duration = Duration::from_secs(5);

impl RunningService {
    /// Parks all sessions and gives them to the service manager.
    pub async fn hand_over(mut self, ended: Ended) -> Ended {
        self.shadow = None;
        self.routes.backends().end().await;
        let state = self.control.take().map(Control::close);
        self.accepting.stop().await;
        let began = Instant::now();
        let sessions = &self.sessions;
        let wanted = sessions.interrupt(Why::Park, |_| true);
        let all = timeout(PARKING, sessions.ended()).await.is_ok();
        let mut parked = Vec::with_capacity(wanted);
        while let Ok(session) = self.parking.try_recv() {
            parked.push(session);
        }
        if !all {
            let text = format!("{} could not be parked in time: cut", n_sessions(sessions.count()));
            say(Kind::HandoverLost, text);
        }
        state.into_iter().for_each(|state| state.hand_over(&self.routes));
        let listeners = self.posts.park();
        if parked.is_empty() && listeners.is_empty() {
            handover::set_mode(RegionMode::Handed);
            let _ = leave(None);
            say(Kind::ServiceStopped, "stopped for a restart; there was no session to hand over");
            return ended;
        }
        let infos: Vec<_> = parked.iter().map(|p| p.info.clone()).collect();
        let count = parked.len();
        handover::set_handing();
        match handover::give(parked, &listeners) {
            Ok(descriptors) => {
                handover::set_mode(RegionMode::Handed);
                // Not before: killed until here, the process has them still.
                drop(descriptors);
                listeners.into_iter().for_each(Handed::release);
                let ms = began.elapsed().as_millis();
                say(Kind::HandoverParked, format!("{} parked for the next process in {ms} ms", n_sessions(count)));
                return ended;
            }
            Err(e) => say(Kind::HandoverLost, format!("{} could not be handed over: {e}", n_sessions(count))),
        }
        // They have ended, and are reported here.
        handover::set_mode(RegionMode::Handed);
        for info in infos {
            tell_end(&self.sessions, &info, SessionEnding::new(End::Drained, "it could not be handed over"));
        }
        Ended::Broken
    }

    /// Accepts no more, closes the listeners of our own, and lets the sessions end: each within its own `drain_timeout`,
    /// and within `at_most`.
    pub async fn drain(mut self, signals: &mut Signals, at_most: Option<Duration>) -> Ended {
        // From here on a crash keeps nothing: a stop ends every session.
        handover::set_mode(RegionMode::Stopping);
        self.routes.backends().drain(at_most.is_some());
        self.control.iter_mut().for_each(Control::deafen);
        self.accepting.stop().await;
        self.posts.close();
        let sessions = &self.sessions;
        // A flow has no end that could be waited for.
        let flows = sessions.interrupt(Why::Drained, |info| info.route.is_datagram());
        let count = sessions.count().saturating_sub(flows);
        let allowed = |own: Duration| at_most.map_or(own, |most| own.min(most));
        let mut deadlines: BTreeSet<Duration> = BTreeSet::new();
        sessions.for_each(|info| {
            if !info.route.is_datagram() {
                deadlines.insert(allowed(info.route.options.drain_timeout));
            }
        });
        let longest = deadlines.last().copied().unwrap_or(Duration::ZERO);
        if count > 0 {
            let text = format!("stopping: up to {} s for {} to end", longest.as_secs_f32(), n_sessions(count));
            say(Kind::ServiceDraining, text);
        }
        // sd-notify's own variant ends at u32::MAX, after 71 minutes.
        let more = format!("EXTEND_TIMEOUT_USEC={}", (longest + ENDING + ENDING).as_micros());
        let status = notify::stopping(count);
        notify::tell(&[NotifyState::Stopping, NotifyState::Custom(&more), NotifyState::Status(&status)]);
        let mut keep = JoinSet::new();
        keep.spawn(notify::status(sessions.watch(), Some(count), notify::stopping));
        let began = Instant::now();
        let (mut hurry, mut cut) = (false, 0);
        for deadline in deadlines {
            let ended = tokio::select! {
                () = sessions.ended() => true,
                () = sleep_until(began + deadline), if !hurry => false,
                () = signals.impatient(), if !hurry => {
                    hurry = true;
                    false
                }
            };
            if ended {
                break;
            }
            cut += sessions.interrupt(Why::Drained, |info| {
                let due = hurry || allowed(info.route.options.drain_timeout) <= deadline;
                due && info.interrupt.requested().is_none()
            });
            if hurry {
                break;
            }
        }
        if timeout(ENDING, sessions.ended()).await.is_err() {
            say(Kind::ServiceStopped, format!("{} not ending; left behind", n_sessions(sessions.count())));
        }
        if self.sessions.count() == 0 {
            handover::set_mode(RegionMode::Ended);
        }
        self.routes.backends().leave().await;
        last::remove();
        say(
            Kind::ServiceStopped,
            match (count, cut.min(count)) {
                (0, _) => "stopped: no session was open".to_owned(),
                (1, 0) => "stopped: 1 session was open; it finished".to_owned(),
                (1, _) => "stopped: 1 session was open; it was cut".to_owned(),
                (n, cut) => format!("stopped: {n} sessions were open; {} finished, {cut} cut", n - cut),
            },
        );
        Ended::Done
    }
}
