//! Addresses to listen on.

use std::{
    fmt,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    str::FromStr,
};

use super::{
    host::host_and_port,
    zone::{Zone, needs_zone, zoned},
};
use crate::spec::{error::Flaw, meant::several};

/// An IP address and a port to listen on. Port 0 lets the kernel choose; the log tells which.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ListenAddr {
    addr: SocketAddr,
    zone: Option<Zone>,
}

impl ListenAddr {
    /// The address; without the interface where that has a name.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The same address with another port.
    pub(super) fn on_port(&self, port: u16) -> Self {
        let mut other = self.clone();
        other.addr.set_port(port);
        other
    }

    /// The interface of a link-local address, by its name.
    pub fn zone(&self) -> Option<&Zone> {
        self.zone.as_ref()
    }

    /// The address as `ListenStream=` and `ListenDatagram=` take it: the interface stands behind the port, and `%` is
    /// written twice.
    pub fn in_unit(&self) -> String {
        let plain = |addr: &SocketAddr| SocketAddr::new(addr.ip(), addr.port());
        let number = match self.addr {
            SocketAddr::V6(v6) if v6.scope_id() > 0 => Some(v6.scope_id().to_string()),
            _ => None,
        };
        match self.zone.as_ref().map(Zone::to_string).or(number) {
            Some(zone) => format!("{}%%{zone}", plain(&self.addr)),
            None => self.addr.to_string(),
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.zone {
            Some(zone) => write!(f, "[{}%{zone}]:{}", self.addr.ip(), self.addr.port()),
            None => self.addr.fmt(f),
        }
    }
}

impl FromStr for ListenAddr {
    type Err = Flaw;

    fn from_str(text: &str) -> Result<Self, Flaw> {
        let whole = 0..text.len();
        if text.starts_with('/') || text.starts_with('@') {
            let what = format!("\"{text}\" is a UNIX socket, and listen takes an IP address and a port");
            return Err(Flaw::new(whole, what).note("a UNIX socket is served with uds and target"));
        }
        if let Some(flaw) = several(text, "write a forward for each") {
            return Err(flaw);
        }
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            let what = format!("\"{text}\" has no address to listen on");
            return Err(Flaw::new(whole, what).fix_address(format!("127.0.0.1:{text}")));
        }
        let (host, port, _) = host_and_port(text, "127.0.0.1:2222")?;
        if let Ok(ip) = host.parse::<IpAddr>() {
            if needs_zone(ip) {
                let what = format!("{ip} is a link-local address, and needs its interface");
                return Err(Flaw::new(whole, what).example("such as ", format!("[{ip}%eth0]:{port}")));
            }
            return Ok(Self { addr: SocketAddr::new(ip, port), zone: None });
        }
        if let Some((ip, zone)) = host.split_once('%') {
            let (ip, zone) = zoned(host, ip, zone).map_err(|flaw| flaw.shifted(1))?;
            let number =
                zone.as_str().parse::<u32>().ok().filter(|_| zone.as_str().bytes().all(|b| b.is_ascii_digit()));
            return Ok(match number {
                Some(number) => Self { addr: SocketAddrV6::new(ip, port, 0, number).into(), zone: None },
                None => Self { addr: SocketAddr::new(ip.into(), port), zone: Some(zone) },
            });
        }
        let flaw = Flaw::new(whole, format!("\"{host}\" is not an address to listen on"));
        Err(match host {
            "" | "*" => flaw.fix_address(format!("[::]:{port}")),
            "localhost" => flaw.fix_address(format!("127.0.0.1:{port}")),
            _ => flaw.note("an IP address of this host, 127.0.0.1, or 0.0.0.0 for all of them"),
        })
    }
}
