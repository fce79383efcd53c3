//! The stages of a session whose upstream is a qrexec call: set-up, relay through the child, the child's end.

use std::{future::pending, sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};

use super::{
    checkpoint, event,
    info::{AtGate, SessionInfo},
    keepalive,
    parked::ParkedStage,
    stage::{NextStage, SettingUp, Stage},
    story::{DialledAt, Story},
    stream::{close, delivered, new_relay},
};
use crate::{
    dial::{
        self, Failure,
        qrexec::{Decision, Exit, Helper, LiveCall, Parts, UNDECIDED, gate::Ticket},
    },
    log::{self, End, Kind},
    proto::qrexec::{LOST, SetUp},
    relay::{self, Relay, RelayOutcome, Side, Why},
    stream::Stream,
};

/// How long a child may take to end by itself after both its pipes have ended: what it still does is to wait for the
/// service's exit code.
const EXIT_GRACE: Duration = Duration::from_secs(10);

/// A set-up that takes longer may have started the qube, whose servers may need a moment more.
const SLOW: Duration = Duration::from_secs(2);

/// How long the end of a service's output is kept from the peer, for the exit code that says what it means. It comes
/// 1 to 2 ms after the output's end (qrexec 4.1 and 4.2, with a shell and two pipes behind the service: up to 30 ms),
/// and later only when the service ended nothing but its output.
const VERDICT: Duration = Duration::from_millis(100);

/// Waits until dom0 and the other qube have decided about the call.
pub(super) async fn set_up(story: &mut Story, setting_up: Box<SettingUp>) -> NextStage {
    let SettingUp { peer, mut call, ticket } = *setting_up;
    let mut decision = decided(&story.info, &peer, &mut call, &ticket).await;
    let mut ticket = Some(ticket);
    let slow = call.taken() > SLOW;
    if let Ok(Decision::Connected) = decision {
        ticket.take().into_iter().for_each(Ticket::allowed);
        if slow || story.info.redials.starting() {
            decision = settled(&story.info, &peer, &mut call).await;
        }
    }
    match decision {
        Ok(Decision::Connected) => connected(story, peer, call.into_parts()).await,
        Ok(Decision::Lost) => {
            log::emit(event::call_lost(&story.info));
            story.info.redials.lost();
            again(story, peer, call).await
        }
        Ok(Decision::Failed(failure)) => {
            match ticket {
                Some(ticket) if event::is_refusal(&failure) => ticket.refused(),
                ticket => drop(ticket),
            }
            let not_served = matches!(failure, Failure::Call(Some(SetUp::Qrexec)));
            if let Some(pause) = not_served.then(|| story.info.redials.not_served(slow)).flatten() {
                log::emit(event::server_starts(&story.info, pause));
                return again(story, peer, call).await;
            }
            peer.reset();
            let next = story.failed(&failure);
            end_call(story, call.into_parts()).await;
            next
        }
        Err(Why::Park) => {
            let (helper, call) = call.park();
            let passed = ticket.as_ref().map(Ticket::passed).unwrap_or_default();
            let told = ticket.as_ref().is_some_and(Ticket::told);
            story.park_with(ParkedStage::SettingUp { peer: peer.into(), helper, call, passed, told }, ticket)
        }
        Err(why) => {
            peer.reset();
            let next = story.interrupted(why);
            end_call(story, call.into_parts()).await;
            next
        }
    }
}

/// The decision, unless the session is interrupted first.
async fn decided(
    info: &Arc<SessionInfo>,
    peer: &Stream,
    call: &mut LiveCall,
    ticket: &Ticket,
) -> Result<Decision, Why> {
    let taken = call.taken();
    let _waits = info.waits(AtGate::Decision, taken);
    let tells = tell_of_wait(info, ticket, taken);
    let allowed = info.route.options.setup_timeout;
    // From accept on: the wait at the gate counts.
    let deadline = info.setup_deadline(allowed);
    tokio::select! {
        biased;
        why = info.interrupt.requested_async() => return Err(why),
        decision = call.decided(peer, (deadline, allowed), |line| event::stderr(info, line)) => return Ok(decision),
        () = ticket.lost(), if !info.redials.has_lost() => {}
        () = tells => unreachable!("it waits for ever"),
    }
    // Its answer may have come at this very moment.
    Ok(if call.connected() { Decision::Connected } else { Decision::Lost })
}

/// Logs, once for each time of waiting at a gate, that connections wait for dom0; waits for ever after that.
async fn tell_of_wait(info: &SessionInfo, ticket: &Ticket, taken: Duration) {
    sleep(UNDECIDED.saturating_sub(taken)).await;
    if let Some(connections) = ticket.news() {
        log::emit(event::call_undecided(info, connections));
    }
    pending().await
}

/// Whether a call that is connected stays so, unless the session is interrupted first. The peer is not read meanwhile.
async fn settled(info: &SessionInfo, peer: &Stream, call: &mut LiveCall) -> Result<Decision, Why> {
    tokio::select! {
        biased;
        why = info.interrupt.requested_async() => Err(why),
        decision = call.settled(peer, |line| event::stderr(info, line)) => Ok(decision),
    }
}

/// Ends a call that failed; the session makes another.
async fn again(story: &mut Story, peer: Stream, call: LiveCall) -> NextStage {
    checkpoint::waiting(&story.info, &peer);
    end_call(story, call.into_parts()).await;
    story.release_call();
    Some(Stage::Waiting(peer))
}

/// The call is connected: the relay begins.
async fn connected(story: &mut Story, peer: Stream, call: Parts) -> NextStage {
    let route = story.info.route.clone();
    if let Some(version) = route.via.proxy_protocol {
        story.info.counters.checkpoint().moving(); // whoever comes after a crash must not do it again
        if let Err(failure) = dial::proxy::introduce(&peer, &call.to, version) {
            peer.reset();
            let next = story.failed(&failure);
            end_call(story, call).await;
            return next;
        }
    }
    let upstream = relay::RelayEnd::pipes(call.from, call.to);
    let relay = new_relay(relay::RelayEnd::Socket(peer), upstream, &route);
    let stage = Stage::Relaying(Box::new(relay), Some(Box::new(call.helper)));
    story.connected(&DialledAt::default(), &stage);
    drop(call.probe);
    Some(stage)
}

/// Closes the pipes of a call that is not to go on, and ends its child.
async fn end_call(story: &mut Story, Parts { helper, from, to, probe }: Parts) {
    drop((from, to, probe));
    end_child(story, helper).await;
}

/// How the relay of a call came to its end.
enum Came {
    /// The relay has stopped by itself.
    To(RelayOutcome),
    /// The call was lost in the middle: its exit says so.
    Lost(Exit),
    /// The service never began, although the call had looked connected.
    NeverBegan(SetUp),
}

/// Relays between the peer and the child's pipes.
pub(super) async fn relay_call(story: &mut Story, mut relay: Box<Relay>, mut helper: Box<Helper>) -> NextStage {
    let info = story.info.clone();
    relay.hold_end();
    let (mut outcome, lost) = match until_end(&info, &mut relay, &mut helper).await {
        Came::To(outcome) => (outcome, None),
        Came::Lost(exit) => (RelayOutcome::Reset { by: Side::Upstream, error: None }, Some(exit)),
        Came::NeverBegan(what) => {
            story.ending(End::DialFailed);
            let (peer, upstream) = relay.into_ends();
            peer.reset();
            upstream.reset();
            let next = story.failed(&Failure::Call(Some(what)));
            end_child(story, *helper).await;
            return next;
        }
    };
    if lost.is_some() {
        if let Err(why) = delivered(&relay, Side::Peer, &info).await {
            outcome = RelayOutcome::Interrupted(why);
        }
    }
    if matches!(outcome, RelayOutcome::Eof { .. }) {
        if let Err(Why::Park) = grace(&info, &mut helper).await {
            outcome = RelayOutcome::Interrupted(Why::Park);
        }
    }
    if let RelayOutcome::Interrupted(Why::Park) = outcome {
        let relay = relay.park(&info.counters);
        return story.park(ParkedStage::Relaying { relay, helper: Some(*helper) });
    }
    let next = close(story, *relay, outcome);
    if let Some(exit) = lost {
        story.noted(event::lost(exit));
    }
    end_child(story, *helper).await;
    next
}

/// Relays until the end is known: what the end of the child's output means, its exit code says.
async fn until_end(info: &SessionInfo, relay: &mut Relay, helper: &mut Helper) -> Came {
    let Helper { child, stderr } = helper;
    loop {
        let outcome = tokio::select! {
            biased;
            outcome = keepalive::run(relay, info) => outcome,
            () = stderr.drain(|line| event::stderr(info, line)) => unreachable!("it is drained for ever"),
        };
        if !matches!(outcome, RelayOutcome::UpstreamEnded) {
            return Came::To(outcome);
        }
        let exit = tokio::select! {
            biased;
            exit = timeout(VERDICT, child.exited()) => exit.unwrap_or(Exit::Unknown),
            () = stderr.drain(|line| event::stderr(info, line)) => unreachable!("it is drained for ever"),
            _ = info.interrupt.requested_async() => Exit::Unknown,
        };
        match exit {
            Exit::Code(code) if info.counters.down() == 0 && SetUp::from_exit(code).never_began() => {
                return Came::NeverBegan(SetUp::from_exit(code));
            }
            Exit::Code(LOST) | Exit::Signal(_) => return Came::Lost(exit),
            Exit::Code(_) | Exit::Unknown => relay.pass_end(),
        }
    }
}

/// Lets the child end by itself; an interruption comes first.
async fn grace(info: &SessionInfo, Helper { child, stderr }: &mut Helper) -> Result<(), Why> {
    tokio::select! {
        biased;
        _ = timeout(EXIT_GRACE, child.exited()) => Ok(()),
        () = stderr.drain(|line| event::stderr(info, line)) => unreachable!("it is drained for ever"),
        why = info.interrupt.requested_async() => Err(why),
    }
}

/// Makes sure that the child has ended, and notes its exit code when it ended by itself.
async fn end_child(story: &mut Story, Helper { mut child, mut stderr }: Helper) {
    let info = story.info.clone();
    let by_itself = timeout(Duration::ZERO, child.exited()).await;
    let exit = match by_itself {
        Ok(exit) => exit,
        Err(_) => {
            let (_, killed) = child.end().await;
            if killed {
                let text = format!("process {} ignored SIGTERM and was killed", child.pid());
                log::emit(event::about(&info, Kind::CallKilled, text));
            }
            Exit::Unknown
        }
    };
    stderr.finish(|line| event::stderr(&info, line));
    story.exited(exit.code());
}
