//! Upstreams towards which no local port is free.
//!
//! Each connection to one address and port takes a local port of its own, also for a minute after its end (TIME_WAIT), and
//! the kernel has about 28,000 of them. When all are taken, every further dial fails; the reason is reported once a
//! minute.

use std::net::SocketAddr;

use super::{event, info::SessionInfo};
use crate::{
    dial::{Failure, netns},
    log,
    spec::{Host, HostPort},
    sys::{lock, proc},
};

/// Reports that no local port is free, if that is why a dial of `addr` failed.
pub(super) fn look(info: &SessionInfo, addr: &HostPort, failure: &Failure) {
    let dialled = match addr.host {
        Host::Ip(ip) => Some(SocketAddr::new(ip, addr.port)),
        Host::LinkLocal(ip, _) => Some(SocketAddr::new(ip.into(), addr.port)),
        Host::Name(_) => None,
    };
    let Some(to) = failure.without_port(dialled) else { return };
    let Some(left_out) = lock(&info.route.no_port).due() else { return };
    let route = info.route.clone();
    // The kernel's list is long now: a thread that nobody waits for reads it.
    netns::spawn_inside(info.route.netns(), move || {
        let used = proc::sockets_towards(to);
        // Without any, there is no local address of that family.
        if used > 0 {
            log::emit(event::no_port_left(&route, to, used, proc::local_ports(), left_out));
        }
    });
}
