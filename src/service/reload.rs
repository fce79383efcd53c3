//! The configuration is read again, and whoever waits for that hears how it went.
//!
//! # Theory
//! What ExecReload= starts has to end when the new configuration is in force (systemd.service(5)). A signal alone gives
//! no answer, and kill(1) has often ended, and the manager closed the job, before this process gets to say RELOADING=1.
//! So [`ask`] binds a datagram socket in the unit's runtime directory, which no one else may write to, sends SIGHUP and
//! waits there; the service, done with a reload, writes to that socket if it is there: nothing, or why the new
//! configuration is not used.

use std::{
    fs, io,
    os::{fd::AsFd as _, unix::net::UnixDatagram},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sd_notify::NotifyState;

use super::{
    Service,
    listener::Listening,
    own::{self, Wanted},
    route::Route,
};
use crate::{
    log::{Kind, say},
    spec::Forward,
    sys,
    systemd::notify,
};

/// Where an answer is waited for, in the runtime directory.
const ANSWER: &str = "reload";
/// How long the service may take; less than TimeoutStartSec=, by which the manager measures it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer, in bytes: a datagram of this size fits wherever it is sent.
const LONGEST: usize = 16 << 10;

/// The runtime directory that the manager made for this unit: the first of systemd.exec(5)'s RUNTIME_DIRECTORY.
fn directory() -> Option<PathBuf> {
    let all = std::env::var_os("RUNTIME_DIRECTORY")?;
    std::env::split_paths(&all).find(|path| path.is_absolute())
}

/// Has the process `pid`, a service of ours, read its configuration again, and waits until it has.
///
/// # Errors
/// Why the new configuration is not used; or why that is not known.
pub fn ask(pid: u32) -> Result<(), String> {
    let directory =
        directory().ok_or("RUNTIME_DIRECTORY is not set: this is for ExecReload= of a unit that has one")?;
    let path = directory.join(ANSWER);
    let failed = |doing: &str, e: io::Error| format!("cannot {doing}: {e}");
    let process = sys::pidfd_open(pid).map_err(|e| failed(&format!("find process {pid}"), e))?;
    let _ = fs::remove_file(&path); // of one that was killed
    let answer = UnixDatagram::bind(&path).map_err(|e| failed(&format!("wait at {}", path.display()), e))?;
    let asked = sys::pidfd_send_signal(process.as_fd(), libc::SIGHUP)
        .map_err(|e| failed(&format!("send SIGHUP to process {pid}"), e));
    let answered = asked.and_then(|()| {
        let mut fds = [PollFd::new(answer.as_fd(), PollFlags::POLLIN), PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
        poll(&mut fds, timeout).map_err(|e| failed("wait for the answer", e.into()))?;
        if fds[0].any() != Some(true) {
            let ended = fds[1].any() == Some(true);
            return Err(if ended { "the service has ended meanwhile".to_owned() } else { "no answer".to_owned() });
        }
        let mut bytes = vec![0; LONGEST];
        let len = answer.recv(&mut bytes).map_err(|e| failed("read the answer", e))?;
        match String::from_utf8_lossy(&bytes[..len]) {
            why if why.is_empty() => Ok(()),
            why => Err(why.into_owned()),
        }
    });
    let _ = fs::remove_file(&path);
    answered
}

/// Tells whoever waits in `directory`, if anybody does, how a reload went.
fn answer(directory: &Path, result: Result<(), &str>) {
    let text = result.err().unwrap_or_default().as_bytes();
    let sent = UnixDatagram::unbound().and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.send_to(&text[..text.len().min(LONGEST)], directory.join(ANSWER))
    });
    let _ = sent; // nobody waits: the signal came by hand
}

/// What a configuration means for the listeners there are.
struct Meant {
    /// For the inherited ones, in their order.
    routes: Vec<Route>,
    /// What lies behind those and is ours to bind.
    behind: Vec<Wanted>,
    /// What is asked for beside them.
    forwards: Vec<Forward>,
}

impl Service {
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
                let held = self.own.let_go();
                let own = self.reconcile(&meant.forwards, held).await;
                self.accept_own();
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
        if let Some(directory) = directory() {
            answer(&directory, result.as_ref().map(|_| ()).map_err(String::as_str));
        }
    }

    /// What the configuration says now.
    fn resolve_all(&self) -> Result<Meant, String> {
        let rules = (self.load)()?;
        let mut behind = Vec::new();
        let route = |l: &Arc<Listening>| {
            let old = l.route();
            let forward = (rules.resolve)(&old.name, l.kind())?;
            behind.extend(own::wanted(&forward, None));
            let leg = forward.legs.front().clone();
            Route::new(old.name.clone(), &old.listener, leg, forward.options, &self.shared)
        };
        let routes = self.listening.iter().map(route).collect::<Result<_, _>>()?;
        let forwards = (rules.forwards)(&self.names)?;
        Ok(Meant { routes, behind, forwards })
    }
}
