//! The service reads its configuration again.

use std::sync::Arc;

use sd_notify::NotifyState;

use super::{
    last,
    setup::{identity, load, resolve},
    state::RunningService,
    units,
};
use crate::{
    control::api,
    listener::{RefusedListener, refusal, refuse, wanted},
    log::{Event, Kind, counted, emit, say},
    session::ListenerIdentity,
    spec::{Config, FaultEffect, Loaded},
    systemd::{headroom::Headroom, notify, reload::answer, startable::StartableUnits},
};

/// How much of a fault the status line has, in characters; `status` has all.
const BRIEF: usize = 200;

impl RunningService {
    /// Reads the configuration again. A file with a fault keeps the text that is in force.
    pub(super) async fn reload(&mut self) {
        let now = NotifyState::monotonic_usec_now();
        let _ = now.map(|now| notify::tell(&[NotifyState::Reloading, now]));
        let texts = {
            let _headroom = Headroom::take(); // sessions may have every other descriptor
            (self.read)()
        };
        let loaded = load(&texts, &self.texts, &self.sockets);
        let not_served = self.put_in_force(loaded).await;
        last::write(&self.texts);
        let told: Vec<String> = self.tell_faults().into_iter().chain(not_served).collect();
        // Before the answer, which ends the reload for the manager: then nobody reads a status of before.
        let status = self.status_line()(self.sessions.count());
        notify::tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
        let why = told.join("\n");
        answer(if why.is_empty() { Ok(()) } else { Err(&why) });
    }

    /// Gives the listeners what the configuration says now. What is not served then, or goes on as it was, and why.
    async fn put_in_force(&mut self, loaded: Loaded) -> Vec<String> {
        let Loaded { config, faults, texts } = loaded;
        let forwards = config.plan().forwards;
        (self.config, self.faults, self.texts) = (Arc::new(config), faults, texts);
        let config = self.config.clone();
        let names = self.listening.iter().map(|listening| (listening.route().name.clone(), listening.kind()));
        let refused =
            self.refused.iter().map(|refused| (refused.listener.name.clone(), refused.listener.socket.kind()));
        let units = units::of_names(names.chain(refused), &config);
        let (mut changed, mut unchanged) = (0, Vec::new());
        for index in 0..self.listening.len() {
            match self.lead_anew(index, &config, &units) {
                Ok(true) => changed += 1,
                Ok(false) => {}
                Err(why) => unchanged.push(why),
            }
        }
        let served = self.serve_refused(&config, &units).await;
        let held = self.posts.let_go();
        let wanted = (self.sockets.len(), &*self.behind, &*forwards);
        let own = self.posts.reconcile(wanted, held, &self.sessions, &self.routes).await;
        self.posts.settle(own.unwanted, self.refuses_forwards());
        self.share_limits(); // in force before a session begins, and before the log and the answer say so
        self.posts.accept(&self.sessions, &mut self.accepting);
        let mut text = format!("configuration reloaded: {} changed", counted(changed + own.changed, "listener"));
        if served > 0 {
            text += &format!(", {served} served that had been refused");
        }
        if own.opened + own.gone > 0 {
            text += &format!(", {} opened, {} closed", own.opened, own.gone);
        }
        if !own.closed.is_empty() {
            text += &format!(": {}", own.closed.join(", "));
        }
        let nothing = changed + own.changed + own.opened + own.gone + served == 0;
        if !nothing || self.faults.is_empty() {
            say(Kind::ConfigurationReloaded, text);
        }
        if own.opened > 0 {
            self.warn_of_descriptors();
        }
        unchanged.iter().for_each(|why| say(Kind::ListenerRefused, why.as_str()));
        for listener in &self.strange {
            emit(Event::on(listener.address.as_str(), Kind::ListenerRefused, not_served(listener)));
        }
        unchanged.into_iter().chain(self.not_served()).collect()
    }

    /// The listeners that a good configuration leaves without service, each with the reason.
    fn not_served(&self) -> Vec<String> {
        let refused = self.refused.iter().map(|refused| refusal(&refused.listener, &refused.why()));
        refused.chain(self.strange.iter().map(not_served)).chain(self.posts.failed()).collect()
    }

    /// Serves the inherited listeners that were refused and whose name has a meaning now; their number.
    async fn serve_refused(&mut self, config: &Config, units: &StartableUnits) -> usize {
        let mut served = 0;
        for refused in std::mem::take(&mut self.refused) {
            match self.route_of(&refused.listener, config, units) {
                Ok((route, behind)) => {
                    let (to, was) = (route.upstream_text.clone(), refused.why());
                    let text = format!("{} leads to {to}; before, it was not served: {was}", route.listener);
                    let event = route.event(Kind::ListenerServing, text);
                    let (listener, held) = refused.release().await;
                    match self.serve(listener, route, behind) {
                        Ok(listening) => {
                            emit(event);
                            self.share_limits();
                            self.accepting.start(&listening, &self.sessions);
                            held.serve(&listening, &self.sessions);
                            served += 1;
                        }
                        Err((listener, why)) => self.refused.push(RefusedListener::again(listener, why, held)),
                    }
                }
                Err(why) => {
                    refused.set_why(&why);
                    refuse(&identity(&refused.listener, None), Some(&refused.listener.name), &why);
                    self.refused.push(refused);
                }
            }
        }
        for refused in &mut self.refused {
            refused.hold(&mut self.accepting); // where there was no descriptor for it before
        }
        served
    }

    /// Gives an inherited listener its new route; whether that changes anything.
    fn lead_anew(&mut self, index: usize, config: &Config, units: &StartableUnits) -> Result<bool, String> {
        let listening = &self.listening[index];
        let old = listening.route();
        let made = resolve(config, &old.name, listening.kind()).and_then(|forward| {
            units::usable(units, &forward.options)?;
            let (leg, options) = (forward.legs.front().clone(), forward.front_options());
            let label = forward.label.as_ref().map(|label| label.as_str().into());
            let identity = ListenerIdentity { label, ..old.listener.clone() };
            let route = self.routes.make(old.name.clone(), identity, leg, options)?;
            Ok((route, wanted(&forward, None)))
        });
        let (route, behind) = made.map_err(|why| format!("{} keeps its old configuration: {why}", old.listener))?;
        self.behind[index] = behind;
        let changes = !old.leads_as(&route);
        if changes {
            listening.set_route(Arc::new(route));
        }
        Ok(changes)
    }

    /// Tells what is wrong with the configuration, wherever that is asked for; the lines of it.
    pub(super) fn tell_faults(&self) -> Option<String> {
        self.told_faults.set(&self.faults);
        if self.faults.is_empty() {
            return None;
        }
        let lines: Vec<String> = self.faults.iter().map(ToString::to_string).collect();
        let kept = self.faults.iter().all(|fault| fault.effect == FaultEffect::Kept);
        let what = if kept { "the new configuration is not used" } else { "the configuration has errors" };
        let text = format!("{what}: {}", lines.join("\n"));
        say(Kind::ConfigurationRejected, text.as_str());
        Some(text)
    }

    /// What makes the status line for a number of sessions.
    pub(super) fn status_line(&self) -> impl Fn(usize) -> String + Send + Sync + use<> {
        let count = self.count();
        self.standing.set(count.served, count.all);
        let fault = self.faults.first().map(|fault| {
            let more = match self.faults.len() {
                1 => String::new(),
                n => format!(" (and {} more)", n - 1),
            };
            let text: String = fault.to_string().chars().take(BRIEF).collect();
            format!("CONFIG ERROR: {}{more}; ", text.replace('\n', " "))
        });
        move |sessions| format!("{}{}", fault.as_deref().unwrap_or_default(), notify::line(count, sessions))
    }
}

/// The sentence about an inherited descriptor that is no listener.
fn not_served(listener: &api::Listener) -> String {
    format!("{} is not served: {}", listener.address, listener.reason.as_deref().unwrap_or_default())
}
