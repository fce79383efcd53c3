//! A session's task: one stage after another.

use std::sync::Arc;

use super::{
    call, flow, info::SessionInfo, permits::Permits, sessions::Sessions, stage::Stage, story::Story, stream,
    watch::Happened,
};

/// Begins a session that was accepted just now.
pub fn begin(sessions: &Arc<Sessions>, info: Arc<SessionInfo>, stage: Stage, permits: Permits) {
    info.route.tally.session_began();
    sessions.tell(Happened::Began, &info);
    resume(sessions, info, stage, permits);
}

/// Starts the task of a session, new or taken up from the previous process.
pub fn resume(sessions: &Arc<Sessions>, info: Arc<SessionInfo>, stage: Stage, permits: Permits) {
    sessions.add(info.clone());
    sessions.spawn(run(Story::new(sessions.clone(), info, permits), stage));
}

/// Runs stages until there is none left. Short and rare stages are boxed, so that the future stays small for the common
/// stage, the plain relay. (An `async fn` would keep its arguments twice.)
#[allow(clippy::manual_async_fn)]
pub(super) fn run(mut story: Story, mut stage: Stage) -> impl Future<Output = ()> {
    async move {
        loop {
            let next = match stage {
                Stage::Waiting(peer) => Box::pin(stream::wait(&mut story, peer)).await,
                Stage::SettingUp(call) => Box::pin(call::set_up(&mut story, call)).await,
                Stage::Relaying(relay, None) => stream::relay(&mut story, relay).await,
                Stage::Relaying(relay, Some(helper)) => Box::pin(call::relay_call(&mut story, relay, helper)).await,
                Stage::Flow(flow) => Box::pin(flow::live(&mut story, &flow)).await,
            };
            match next {
                Some(next) => stage = next,
                None => return,
            }
        }
    }
}
