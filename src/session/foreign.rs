//! Finds out whether somebody who is no session of ours is connected to the upstream of a unit.
//!
//! It is asked when no session uses the unit: whoever is connected then is somebody else.

use std::{
    ffi::{OsStr, OsString},
    io,
    net::{SocketAddr, ToSocketAddrs as _},
    os::unix::ffi::OsStrExt as _,
    sync::{Arc, mpsc},
    time::Duration,
};

use crate::{
    dial::netns,
    ondemand::WatchedTarget,
    spec::{Host, HostPort, Netns, UnixAddr, Upstream},
    sys::proc,
};

/// How long the look into another namespace may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The upstream of a forward that names a unit.
#[derive(Debug)]
enum Upstreams {
    Unix(UnixAddr),
    Inet { addr: HostPort, netns: Option<Netns>, datagrams: bool },
}

/// Who watches that upstream; `None` where it is a qrexec call.
pub(super) fn target(upstream: &Upstream) -> Option<Arc<dyn WatchedTarget>> {
    let inet = |addr: &HostPort, netns: &Option<Netns>, datagrams| Upstreams::Inet {
        addr: addr.clone(),
        netns: netns.clone(),
        datagrams,
    };
    Some(Arc::new(match upstream {
        Upstream::Unix(addr) => Upstreams::Unix(addr.clone()),
        Upstream::Tcp { addr, netns } => inet(addr, netns, false),
        Upstream::Udp { addr, netns } => inet(addr, netns, true),
        Upstream::Qrexec(_) => return None,
    }))
}

impl WatchedTarget for Upstreams {
    fn foreign(&self) -> io::Result<Option<String>> {
        match self {
            Self::Unix(addr) => {
                let path = match addr {
                    UnixAddr::Path(path) => path.clone().into_os_string(),
                    UnixAddr::Abstract(name) => {
                        let mut path = OsString::from("@");
                        path.push(OsStr::from_bytes(name));
                        path
                    }
                };
                Ok(proc::is_connected_unix(&path)?.then(|| addr.to_string()))
            }
            Self::Inet { addr, netns, datagrams } => {
                let places: Vec<SocketAddr> = match &addr.host {
                    Host::Name(name) => (name.as_str(), addr.port).to_socket_addrs()?.collect(),
                    Host::Ip(ip) => vec![(*ip, addr.port).into()],
                    Host::LinkLocal(..) => return Ok(None), // another machine
                };
                let (send, receive) = mpsc::channel();
                let datagrams = *datagrams;
                let look = move || {
                    let mut found = places.iter().map(|place| proc::is_connected(*place, datagrams));
                    let found = found.find(|found| !matches!(found, Ok(false))).unwrap_or(Ok(false));
                    let _ = send.send(found);
                };
                match netns {
                    Some(netns) => netns::spawn_inside(Some(netns), look),
                    None => look(),
                }
                // Nothing comes where the namespace cannot be entered.
                let found = receive.recv_timeout(PATIENCE).map_err(io::Error::other)??;
                Ok(found.then(|| addr.to_string()))
            }
        }
    }
}
