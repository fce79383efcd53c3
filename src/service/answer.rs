//! What the service's own task answers to the control room.

use std::collections::HashMap;

use super::state::RunningService;
use crate::{
    control::{
        self, Ask, METRICS, METRICS_UPSTREAM, WordMeaning, api,
        select::{KnownListener, Selection, listed, select},
    },
    listener::ServedListener,
    log::{Kind, emit, escape},
    spec::{LastText, SocketKind},
};

impl RunningService {
    /// Answers a question.
    pub(super) fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Listeners(answer) => drop(answer.send(self.view())),
            Ask::Configuration(answer) => drop(answer.send(self.made_of())),
            Ask::Pause { listener, paused, answer } => drop(answer.send(self.pause(&listener, paused))),
        }
    }

    /// All listeners, served or not.
    fn view(&self) -> Vec<api::Listener> {
        let sessions = control::sessions_by_listener(&self.sessions);
        let mut all: Vec<_> = self.listening.iter().map(|l| control::listener(l, &sessions)).collect();
        for listener in &mut all {
            let unit = self.units.without_file(&listener.address);
            listener.reason = unit.map(|unit| format!("the file of {unit} is gone; it closes when it is stopped"));
            listener.unit = self.unit_of(&listener.address, listener.kind);
        }
        all.extend(self.posts.each().map(|post| control::post(post, &sessions)));
        all.extend(self.metrics.iter().map(|listener| api::Listener {
            upstream: METRICS_UPSTREAM.to_owned(),
            reason: None,
            ..control::troubled(&listener.address, Some(listener.kind), METRICS, api::State::Serving, "")
        }));
        all.extend(self.strange.iter().cloned());
        all.extend(self.refused.iter().map(|refused| {
            let listener = control::refused(refused);
            api::Listener { unit: self.unit_of(&listener.address, listener.kind), ..listener }
        }));
        all.extend(self.refused_forwards().map(|entry| {
            let why = entry.refused().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
            let label = entry.label().map(|label| label.as_str()).unwrap_or_default();
            control::troubled(&escape(entry.address().as_bytes()), None, label, api::State::Refused, &why)
        }));
        all
    }

    /// What the service was made of.
    fn made_of(&self) -> api::Configuration {
        let file = |drop_in: bool| {
            move |last: &LastText| api::ConfigurationFile {
                path: last.name.clone(),
                drop_in,
                text: last.text.clone(),
                since: last.since,
                good: last.good,
            }
        };
        let served = self.listening.iter().map(|listening| {
            let route = listening.route();
            (route.listener.to_string(), route.name.clone(), listening.kind())
        });
        let refused = self.refused.iter().map(|refused| {
            let listener = &refused.listener;
            (listener.local.to_string(), listener.name.clone(), listener.socket.kind())
        });
        let socket = |(address, name, kind)| api::ConfigurationSocket { address, name, kind: Some(kind) };
        api::Configuration {
            arguments: std::env::args_os().map(|argument| escape(argument.as_encoded_bytes())).collect(),
            files: self.texts.main.iter().map(file(false)).chain(self.texts.drop_ins.iter().map(file(true))).collect(),
            forwards: self.forwards.clone(),
            sockets: served.chain(refused).map(socket).collect(),
        }
    }

    /// The socket unit that has a listener, where the manager has told.
    fn unit_of(&self, address: &str, kind: Option<SocketKind>) -> Option<String> {
        self.units.of(address, kind? == SocketKind::Udp).map(str::to_owned)
    }

    /// Pauses the listeners that a word means, or resumes them.
    fn pause(&self, word: &str, paused: bool) -> WordMeaning {
        let served = self.listening.iter().chain(self.posts.listening());
        let served: Vec<_> = served.map(|listening| (listening.route(), self.described(listening))).collect();
        let known: Vec<_> = served.iter().map(|(_, listener)| KnownListener::from(listener)).collect();
        let meant = match select(word, &known) {
            Selection::Nothing => return WordMeaning::Nothing,
            Selection::One(meant) => meant,
            Selection::Several(all) => {
                return WordMeaning::Several(all.into_iter().map(|index| listed(&known[index])).collect());
            }
        };
        for route in meant.iter().map(|index| &served[*index].0) {
            if route.tally.pause(paused) {
                let (kind, text) = if paused {
                    (Kind::ListenerPaused, format!("{} is paused: connections wait in the backlog", route.listener))
                } else {
                    (Kind::ListenerResumed, format!("{} is resumed", route.listener))
                };
                emit(route.event(kind, text));
            }
        }
        if let Some(control) = &self.control {
            control.save(self.routes.tallies());
        }
        WordMeaning::One(api::Addresses {
            listeners: meant.iter().map(|index| served[*index].1.address.clone()).collect(),
            called: meant.iter().map(|index| listed(&known[*index])).collect(),
        })
    }

    /// A listener that is served, with its unit.
    fn described(&self, listening: &ServedListener) -> api::Listener {
        let listener = control::listener(listening, &HashMap::new());
        api::Listener { unit: self.unit_of(&listener.address, listener.kind), ..listener }
    }
}
