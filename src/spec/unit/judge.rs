//! What systemd makes of a socket unit that somebody wrote, where that is not what is written.

use super::{
    address::ListenAddress,
    name::{single_zone_percents, with_double_zone_percents},
    parsed::{ListenKind, Listening, Setting, Unit},
};
use crate::spec::{
    error::{Flaw, Origin, Place, Source, SpecFault},
    nearest::nearest,
    plan::SocketKind,
};

/// The sections of a socket unit (systemd.unit(5), systemd.socket(5)); those that begin with `X-` are free.
const SECTIONS: [&str; 3] = ["Unit", "Socket", "Install"];
/// Keys of a socket unit that matter to whoever writes three lines, for a word that is none of systemd's.
const KEYS: [&str; 12] = [
    "ListenStream",
    "ListenDatagram",
    "FileDescriptorName",
    "Accept",
    "Service",
    "Backlog",
    "SocketMode",
    "SocketUser",
    "SocketGroup",
    "DirectoryMode",
    "BindIPv6Only",
    "NetworkNamespacePath",
];

/// Keys whose value may hold a link-local address.
const ZONED: [&str; 3] = ["ListenStream", "ListenDatagram", "FileDescriptorName"];

/// What follows from a fault of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// systemd reads on without the line.
    LeftOut,
    /// systemd reads on without a drop-in of the unit.
    DropInLeftOut,
    /// systemd does not load the unit.
    Refused,
    /// systemd finds no unit of that name.
    Unknown,
    /// systemd cannot listen there.
    CannotListen,
    /// systemd deletes what is in the place of a socket file.
    Deletes,
    /// The service cannot open the listener of a forward, and retries.
    Retried,
    /// The service does not serve the listener.
    NotServed,
    /// The service knows no forward of that label.
    LabelGone,
    /// The listener is served, and each connection makes another one.
    Circle,
    /// Connections go to another place than is written.
    Misled,
    /// Two services start one unit, and each may stop it while clients of the other one use it.
    SharedUnit,
    /// It is served; something else is to be known.
    Served,
}

/// Something about a unit, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitFault {
    /// Where, what, what to do.
    pub fault: SpecFault,
    /// What systemd or the service makes of it.
    pub consequence: Consequence,
}

impl Setting {
    /// A fault of the whole value, with what to do.
    pub fn fault(&self, what: impl Into<String>, hint: impl Into<String>) -> SpecFault {
        self.flawed(Flaw::new(0..self.value.len(), what).note(hint))
    }

    /// The fault of a flaw of the value.
    pub fn flawed(&self, flaw: Flaw) -> SpecFault {
        let source = Source::new(Origin::Name(None), &self.value);
        let fault = SpecFault::at(&Place::new(&source, flaw.at), flaw.what);
        let fault = match (flaw.fix, flaw.note) {
            (Some(fix), _) => fault.hint(format!("write: {}={fix}", self.key)),
            (None, Some(note)) => fault.hint(note),
            (None, None) => fault,
        };
        fault.cited(&self.cite())
    }

    /// Whether systemd reads the value as yes (`parse_boolean` in its parse-util.c).
    pub fn is_yes(&self) -> bool {
        ["1", "yes", "y", "true", "t", "on"].iter().any(|yes| self.value.eq_ignore_ascii_case(yes))
    }
}

/// A listener of a unit: its line, and its address or why systemd leaves the line out.
#[derive(Clone, Debug)]
pub struct ReadListening<'a> {
    /// The line.
    pub listening: Listening<'a>,
    /// The address, specifiers expanded.
    pub address: Result<ListenAddress, Box<SpecFault>>,
}

impl ReadListening<'_> {
    /// The kind of socket that the service is passed; `None` for one that is not forwarded.
    pub fn kind(&self) -> Option<SocketKind> {
        match (&self.address, self.listening.kind) {
            (Ok(ListenAddress::Ip { .. }), ListenKind::Stream) => Some(SocketKind::Tcp),
            (Ok(ListenAddress::Ip { .. }), ListenKind::Datagram) => Some(SocketKind::Udp),
            (Ok(ListenAddress::Path(_) | ListenAddress::Abstract(_)), ListenKind::Stream) => Some(SocketKind::Unix),
            _ => None,
        }
    }
}

impl Unit {
    /// The listeners with their addresses; `expand` puts values in the place of specifiers.
    pub fn addresses(&self, expand: impl Fn(&str) -> String) -> Vec<ReadListening<'_>> {
        let read = |listening: Listening<'_>| {
            let setting = listening.setting;
            let expanded = expand(&setting.value);
            if listening.kind == ListenKind::Other {
                // A FIFO, a netlink family, a queue: none is an address, and none is forwarded.
                return Ok(ListenAddress::Vsock);
            }
            ListenAddress::read(&expanded).map_err(|flaw| {
                let moved = expanded != setting.value;
                let flaw = if moved { Flaw { at: 0..setting.value.len(), ..flaw } } else { flaw };
                Box::new(setting.flawed(flaw))
            })
        };
        let listens = self.listens().into_iter();
        listens.map(|listening| ReadListening { listening, address: read(listening) }).collect()
    }

    /// Lines that systemd leaves out or reads otherwise than they look, apart from those of [`Unit::addresses`].
    pub fn judge(&self) -> Vec<UnitFault> {
        let mut faults = Vec::new();
        let mut put = |fault, consequence| faults.push(UnitFault { fault, consequence });
        self.dropped().iter().for_each(|fault| put(fault.clone(), Consequence::LeftOut));
        let mut sections: Vec<&str> = Vec::new();
        for setting in &self.settings {
            let section = setting.section.as_str();
            if !SECTIONS.contains(&section) && !section.starts_with("X-") {
                if !sections.contains(&section) {
                    let hint = match nearest(section, SECTIONS) {
                        Some(meant) => format!("did you mean [{meant}]?"),
                        None => "a socket unit has [Unit], [Socket] and [Install]".to_owned(),
                    };
                    let what = format!("systemd leaves out all of the unknown section [{section}]");
                    put(setting.fault(what, hint), Consequence::LeftOut);
                    sections.push(section);
                }
            } else if let Some(meant) = misspelt(section, &setting.key) {
                let what = format!("systemd does not know the key \"{}\"", setting.key);
                put(setting.fault(what, format!("did you mean {meant}= in [Socket]?")), Consequence::LeftOut);
            }
        }
        for setting in self.settings.iter().filter(|setting| ZONED.contains(&setting.key.as_str())) {
            if let Some(doubled) = with_double_zone_percents(&setting.value) {
                let at = single_zone_percents(&setting.value)[0];
                let what = "systemd expands what follows a single %, and the interface is lost";
                put(setting.flawed(Flaw::new(at..at + 1, what).fix(doubled)), Consequence::Misled);
            }
        }
        if let Some(accept) = self.last("Socket", "Accept").filter(|accept| accept.is_yes()) {
            let what = "with Accept=yes systemd needs a service for each connection, and this unit names one for all";
            put(accept.fault(what, "leave the line out"), Consequence::Refused);
        }
        let names: Vec<&Setting> = self.all("Socket", "FileDescriptorName").collect();
        for pair in names.windows(2) {
            let [first, second] = pair else { continue };
            // A drop-in may well replace the name of its unit.
            if first.file == second.file && !first.value.is_empty() && !second.value.is_empty() {
                let what = format!("a unit has one name, and this one replaces that of line {}", first.line);
                let hint = "all sockets of the unit lead to the last one: write a unit for each name";
                put(second.fault(what, hint), Consequence::Misled);
            }
        }
        faults
    }
}

/// The key of a socket that was probably meant by a word that is near it and is none.
fn misspelt(section: &str, key: &str) -> Option<&'static str> {
    if KEYS.contains(&key) {
        // Right, but in the wrong section.
        return KEYS.into_iter().find(|known| *known == key && section != "Socket" && !section.starts_with("X-"));
    }
    let compare = key.to_ascii_lowercase();
    // A plural of systemd's own would be near too, so only near words that differ in letters of these count.
    let near = |known: &&&str| strsim::osa_distance(&compare, &known.to_ascii_lowercase()) <= 2;
    KEYS.iter().filter(|_| section == "Socket" && key.len() > 5).find(near).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<(usize, String, Consequence)> {
        let unit = Unit::parse("x.socket", text);
        let judged = unit.judge();
        judged.into_iter().map(|f| (f.fault.line(), f.fault.what().to_owned(), f.consequence)).collect()
    }

    #[test]
    fn what_systemd_reads_otherwise_than_it_looks_is_found() {
        for (text, line, what, consequence) in [
            ("[Socket]\nAccept=yes\n", 2, "Accept=yes", Consequence::Refused),
            ("[Socket]\nAccept=on\n", 2, "Accept=yes", Consequence::Refused),
            ("[Socket]\nListenSteam=1\n", 2, "does not know the key", Consequence::LeftOut),
            ("[Socket]\nFileDescriptorname=x y\n", 2, "does not know the key", Consequence::LeftOut),
            ("[Unit]\nListenStream=1\n", 2, "does not know the key", Consequence::LeftOut),
            ("[Sockets]\nListenStream=1\nBacklog=1\n", 2, "unknown section", Consequence::LeftOut),
            ("[Service]\nExecStart=1\n", 2, "unknown section", Consequence::LeftOut),
            ("ListenStream=1\n", 1, "no section", Consequence::LeftOut),
            ("[Socket]\nListenStream=[fe80::1]:22%tap0\n", 2, "a single %", Consequence::Misled),
            (
                "[Socket]\nListenStream=1\nFileDescriptorName=target=[fe80\\x3a\\x3a1%tap0]+22\n",
                3,
                "a single %",
                Consequence::Misled,
            ),
            (
                "[Socket]\nListenStream=1\nFileDescriptorName=a\nListenStream=2\nFileDescriptorName=b\n",
                5,
                "replaces that of line 3",
                Consequence::Misled,
            ),
        ] {
            let found = faults(text);
            let [(at, said, follows)] = &found[..] else { panic!("{text}: {found:?}") };
            assert!((*at, *follows) == (line, consequence) && said.contains(what), "{text}: {found:?}");
        }
        let fine = "[Unit]\nDescription=x\n[Socket]\nListenStream=1\nListenStream=[fe80::1]:22%%tap0\nListenStream=%t/[x\nAccept=no\nReusePort=yes\nFileDescriptorName=\n\
                    FileDescriptorName=x\nMaxConnections=3\nTriggerLimitBurst=2\n[X-Mine]\na=b\n[Install]\nWantedBy=x\n";
        assert_eq!(faults(fine), []);
        let mut unit = Unit::parse("x.socket", "[Socket]\nFileDescriptorName=a\n");
        unit.overlay("x.conf", "[Socket]\nFileDescriptorName=b\n");
        assert_eq!(unit.judge(), [], "a drop-in may replace a name");
    }
}
