//! What dom0 knows of qubes: whether they exist and run, their features, and what their service says.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;

use super::{
    declared::{Declared, FEATURE, QubeName, feature},
    order::ToolOrder,
};
use crate::report::{Code, Fatal};

/// How long a question may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a qube may take to answer.
const QUBE: Duration = Duration::from_secs(10);

/// Whether there is a qube of this name.
pub(super) fn exists(qube: &QubeName) -> bool {
    ToolOrder::new(["qvm-check".to_owned(), "--quiet".into(), "--".into(), qube.to_string()]).holds()
}

/// The order that sets the feature of a forward.
pub(super) fn set(forward: &Declared) -> ToolOrder {
    ToolOrder::new(["qvm-features".to_owned(), forward.source.to_string(), forward.feature(), forward.value()])
}

/// The order that unsets the feature of a port.
pub(super) fn unset(source: &QubeName, port: u16) -> ToolOrder {
    ToolOrder::new(["qvm-features".to_owned(), "--unset".into(), source.to_string(), feature(port)])
}

/// The features of a qube that declare forwards: port and value.
pub(super) fn features(source: &QubeName) -> Result<Vec<(u16, String)>, Fatal> {
    let order = ToolOrder::new(["qvm-features".to_owned(), source.to_string()]);
    let answer = order.ask(PATIENCE)?;
    if !answer.status.success() {
        return Err(Fatal::new(Code::Failure, format!("'{order}' failed: {}", answer.status)));
    }
    Ok(ports(&answer.text))
}

/// A table of two columns, the name and the value.
fn ports(table: &str) -> Vec<(u16, String)> {
    let row = |line: &str| {
        let (name, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let port = name.strip_prefix(FEATURE)?.parse().ok().filter(|port| *port != 0)?;
        Some((port, value.trim().to_owned()))
    };
    table.lines().filter_map(row).collect()
}

/// What a listening qube makes of a forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum QubeService {
    /// The qube says that it listens at the address.
    Serving,
    /// It does not listen there, and says why where it says so.
    NotServing(Option<String>),
    /// It has not answered: no package, or no service.
    Silent,
    /// The qube does not run.
    Halted,
}

/// Asks a qube that runs which of these addresses its service listens on. Whatever it answers is its own claim.
pub(super) fn service(source: &QubeName) -> Answerer {
    let name = source.to_string();
    if !ToolOrder::new(["qvm-check", "--quiet", "--running", "--", &name]).holds() {
        return Answerer(Err(QubeService::Halted));
    }
    let command = "qrexec-connect status --system --json";
    let order = ["qvm-run", "--pass-io", "--no-gui", "--no-autostart", "--quiet", "--user=root", "--", &name, command];
    let answer = ToolOrder::new(order).ask_quietly(QUBE);
    let listeners = answer.ok().and_then(|answer| serde_json::from_str::<Value>(&answer.text).ok());
    Answerer(
        listeners
            .and_then(|mut answer| match answer["listeners"].take() {
                Value::Array(listeners) => Some(listeners),
                _ => None,
            })
            .ok_or(QubeService::Silent),
    )
}

/// The listeners of one qube, or why there are none.
pub(super) struct Answerer(Result<Vec<Value>, QubeService>);

impl Answerer {
    /// What the qube says of one address.
    pub(super) fn of(&self, listen: SocketAddr) -> QubeService {
        match &self.0 {
            Err(service) => service.clone(),
            Ok(listeners) => {
                let address = listen.to_string();
                let found = listeners.iter().find(|one| one["address"].as_str() == Some(&address));
                match found {
                    Some(one) if matches!(one["state"].as_str(), Some("serving" | "ready")) => QubeService::Serving,
                    Some(one) => {
                        QubeService::NotServing(one["reason"].as_str().or(one["state"].as_str()).map(str::to_owned))
                    }
                    None => QubeService::NotServing(None),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_features_with_a_port_declare_a_forward() {
        let table = "net.fake-ip                     10.0.0.1\n\
                     vm-config.qrexec-connect-8443   0.0.0.0:8443 @default qubes.ConnectTCP+443\n\
                     vm-config.qrexec-connect-x      0.0.0.0:1 @default qubes.ConnectTCP+1\n\
                     vm-config.qrexec-connect-0      0.0.0.0:1 @default qubes.ConnectTCP+1\n\
                     vm-config.qrexec-connect-70000\n";
        assert_eq!(ports(table), [(8443, "0.0.0.0:8443 @default qubes.ConnectTCP+443".to_owned())]);
    }

    #[test]
    fn a_qube_that_lies_about_its_listeners_changes_nothing_but_the_table() {
        let listen = "0.0.0.0:8443".parse().expect("an address");
        let of = |text: &str| Answerer(Ok(serde_json::from_str(text).expect("JSON"))).of(listen);
        assert_eq!(of(r#"[{"address":"0.0.0.0:8443","state":"serving"}]"#), QubeService::Serving);
        assert_eq!(of(r#"[{"address":"0.0.0.0:8443","state":7}]"#), QubeService::NotServing(None));
        assert_eq!(of(r#"[7, null, {"address":[]}]"#), QubeService::NotServing(None));
        assert_eq!(
            of(r#"[{"address":"0.0.0.0:8443","state":"failed","reason":"in use"}]"#),
            QubeService::NotServing(Some("in use".to_owned()))
        );
    }
}
