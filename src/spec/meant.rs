//! What somebody may have meant who wrote several values for one, or a service with a slip.

use std::net::SocketAddr;

use strsim::osa_distance;

use super::{call::Service, error::Flaw};

/// Services that Qubes OS has, and that a forward may call.
const SERVICES: [&str; 8] = [
    "qubes.ConnectTCP",
    "qubes.ConnectUnix",
    "qubes.Filecopy",
    "qubes.Gpg",
    "qubes.OpenInVM",
    "qubes.OpenURL",
    "qubes.UpdatesProxy",
    "qubes.VMShell",
];

/// The flaw of a value that holds several addresses, with blanks or commas between them.
pub(super) fn several(text: &str, next: &str) -> Option<Flaw> {
    let mut parts = text.split([' ', '\t', ',', ';']).filter(|part| !part.is_empty());
    let is_address = |part: &str| {
        let first = match part.rsplit_once('-') {
            Some((first, last)) if last.parse::<u16>().is_ok() => first,
            _ => part,
        };
        first.parse::<SocketAddr>().is_ok() || first.parse::<u16>().is_ok()
    };
    let first = parts.next()?;
    let several = parts.clone().next().is_some() && is_address(first) && parts.all(is_address);
    let flaw = || Flaw::new(0..text.len(), "these are several addresses, and one socket has one");
    several.then(|| flaw().note(format!("{next}, the first: {first}")))
}

/// The service of Qubes OS that somebody probably meant by a service with a slip: one letter, upper and lower case, or
/// `qubes.` left out.
pub fn meant_service(service: &Service) -> Option<&'static str> {
    let name = service.split('+').next().unwrap_or_default();
    if SERVICES.contains(&name) {
        return None;
    }
    let lower = name.to_ascii_lowercase();
    let is_meant = |known: &&str| {
        let known = known.to_ascii_lowercase();
        osa_distance(&known, &lower) <= 1 || known.strip_prefix("qubes.") == Some(&lower)
    };
    SERVICES.into_iter().find(is_meant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_with_a_slip_is_known_and_others_are_left_alone() {
        for (written, meant) in [
            ("qubes.ConnectTPC+22", Some("qubes.ConnectTCP")),
            ("qubes.connecttcp+22", Some("qubes.ConnectTCP")),
            ("ConnectTCP+22", Some("qubes.ConnectTCP")),
            ("qubes.ConnecTCP", Some("qubes.ConnectTCP")),
            ("qubes.ConnectTCP+22", None),
            ("qubes.ConnectUDP+22", None),
            ("my.Service", None),
        ] {
            assert_eq!(meant_service(&written.parse().unwrap()), meant, "{written}");
        }
    }

    #[test]
    fn several_addresses_are_known_and_what_is_one_or_none_is_not() {
        for text in [
            "127.0.0.1:1 127.0.0.1:2",
            "127.0.0.1:1,127.0.0.1:2",
            "127.0.0.1:1, [::1]:1",
            "80 443",
            "[::1]:1-5,[::1]:7",
        ] {
            assert!(several(text, "a line for each").is_some(), "{text}");
        }
        for text in ["127.0.0.1:1", "127.0.0.1:1 # web", "127.0.0.1:1-5", "a b", "work qubes.X", "127.0.0.1:1,", ""] {
            assert!(several(text, "a line for each").is_none(), "{text}");
        }
    }
}
