//! What commands leave in the background when they end: it goes on, as under ssh, takes no place, is listed, and ends
//! when the time of its command is over or somebody in dom0 ends it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    groups::{CommandGroup, Left},
    request::{Registration, RequestState},
    state::Shared,
};

/// Between two looks whether anybody is left, from the first to the last.
const LOOK: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Takes up what earlier daemons have left; what nobody answers for is ended.
pub(super) fn take_up(shared: &Arc<Shared>) {
    let Some(groups) = &shared.groups else { return };
    groups.unfinished().iter().for_each(CommandGroup::kill);
    let now = SystemTime::now();
    for Left { vm, id, until, group } in groups.left() {
        let registration = shared.requests.register(&vm, &id);
        let time = until.map(|until| until.duration_since(now).unwrap_or_default());
        watch(shared.clone(), vm, registration, group, time.map(|time| Instant::now() + time));
    }
}

/// Watches a group whose command has ended, until nobody is in it.
pub(super) fn watch(
    shared: Arc<Shared>,
    vm: String,
    registration: Registration,
    group: CommandGroup,
    deadline: Option<Instant>,
) {
    registration.enter(RequestState::Background);
    tokio::spawn(async move {
        let over = async {
            let mut look = LOOK.0;
            while group.populated() {
                sleep(look).await;
                look = (look * 2).min(LOOK.1);
            }
        };
        let why = tokio::select! {
            biased;
            () = over => None,
            () = registration.ended() => Some("CANCEL"),
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Some("TIMEOUT"),
        };
        if let Some(category) = why {
            group.kill();
            shared.audit.write(category, &format!("vm={vm} id={} what it left in the background", registration.id()));
        }
        while !group.remove() {
            sleep(LOOK.0).await; // a killed process takes a moment
        }
    });
}
