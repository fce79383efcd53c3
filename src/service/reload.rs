//! The service reads its configuration again.

use std::sync::Arc;

use sd_notify::NotifyState;

use super::{
    setup::{forwards, resolve},
    state::RunningService,
};
use crate::{
    listener::{ServedListener, Wanted, wanted},
    log::{Kind, say},
    session::Route,
    spec::Forward,
    systemd::{notify, reload::answer},
};

/// What a configuration means for the listeners there are.
struct Meant {
    /// For the inherited ones, in their order.
    routes: Vec<Route>,
    /// What lies behind those and is ours to bind.
    behind: Vec<Wanted>,
    /// What is asked for beside them.
    forwards: Vec<Forward>,
}

impl RunningService {
    /// Reads the configuration again; what is wrong with it changes nothing.
    pub(super) async fn reload(&mut self) {
        let now = NotifyState::monotonic_usec_now();
        let _ = now.map(|now| notify::tell(&[NotifyState::Reloading, now]));
        let result = match self.resolve_all() {
            Ok(meant) => {
                let mut changed = 0;
                for (listening, route) in self.listening.iter().zip(meant.routes) {
                    if !listening.route().leads_as(&route) {
                        listening.set_route(Arc::new(route));
                        changed += 1;
                    }
                }
                self.behind = meant.behind;
                let held = self.posts.let_go();
                let wanted = (&*self.behind, &*meant.forwards);
                let own = self.posts.reconcile(wanted, held, &self.sessions, &self.routes).await;
                self.posts.accept(&self.sessions, &mut self.accepting);
                let mut text = format!(
                    "configuration read again: {} listeners lead elsewhere or otherwise",
                    changed + own.changed
                );
                if own.opened + own.closed > 0 {
                    text += &format!(", {} opened, {} closed", own.opened, own.closed);
                }
                say(Kind::ConfigurationReloaded, text);
                Ok(())
            }
            Err(why) => {
                let text = format!("the new configuration is not used: {why}");
                say(Kind::ConfigurationRejected, text.as_str());
                Err(text)
            }
        };
        notify::tell(&[NotifyState::Ready]);
        answer(result.as_ref().map(|_| ()).map_err(String::as_str));
    }

    /// What the configuration says now.
    fn resolve_all(&self) -> Result<Meant, String> {
        let config = (self.load)()?;
        let mut behind = Vec::new();
        let route = |l: &Arc<ServedListener>| {
            let old = l.route();
            let forward = resolve(&config, &old.name, l.kind())?;
            behind.extend(wanted(&forward, None));
            let leg = forward.legs.front().clone();
            self.routes.make(old.name.clone(), &old.listener, leg, forward.options)
        };
        let routes = self.listening.iter().map(route).collect::<Result<_, _>>()?;
        let forwards = forwards(&config, &self.names)?;
        Ok(Meant { routes, behind, forwards })
    }
}
