//! A session's task: one stage after another.

use std::sync::Arc;

use super::{
    call, checkpoint, flow, info::SessionInfo, permits::Permits, sessions::Sessions, stage::Stage, story::Story,
    stream, watch::Happened,
};
use crate::crash::Working;

/// Begins a session that was accepted just now.
pub fn begin(sessions: &Arc<Sessions>, info: Arc<SessionInfo>, stage: Stage, permits: Permits) {
    info.route.tally.session_began();
    sessions.tell(Happened::Began, &info);
    resume(sessions, info, stage, permits);
}

/// Starts the task of a session, new or taken up from the previous process.
pub fn resume(sessions: &Arc<Sessions>, info: Arc<SessionInfo>, stage: Stage, permits: Permits) {
    checkpoint::save(&info, &stage);
    sessions.add(info.clone());
    sessions.spawn(run(Story::new(sessions.clone(), info, permits), stage));
}

/// Runs stages until there is none left. Short and rare stages are boxed, so that the future stays small for the common
/// stage, the plain relay. (An `async fn` would keep its arguments twice.) While one of them is polled, its thread
/// works on the session; the relay says so itself.
#[allow(clippy::manual_async_fn)]
pub(super) fn run(mut story: Story, mut stage: Stage) -> impl Future<Output = ()> {
    async move {
        loop {
            // Asked again each time, so that the future need not keep it.
            let slot = story.info.counters.checkpoint().number();
            let next = match stage {
                Stage::Waiting(peer) => Working { slot, task: Box::pin(stream::wait(&mut story, peer)) }.await,
                Stage::SettingUp(call) => Working { slot, task: Box::pin(call::set_up(&mut story, call)) }.await,
                Stage::Relaying(relay, None) => stream::relay(&mut story, relay).await,
                Stage::Relaying(relay, Some(helper)) => {
                    Working { slot, task: Box::pin(call::relay_call(&mut story, relay, helper)) }.await
                }
                Stage::Flow(flow) => Working { slot, task: Box::pin(flow::live(&mut story, &flow)) }.await,
            };
            match next {
                Some(next) => {
                    // A relay was saved when the session was connected.
                    if !matches!(next, Stage::Relaying(..)) {
                        checkpoint::save(&story.info, &next);
                    }
                    stage = next;
                }
                None => return,
            }
        }
    }
}
