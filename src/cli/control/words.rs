//! What a word means while the service does not know its units yet: it asks its manager for them a moment after it has
//! started.

use super::service::AskedService;
use crate::{
    cli::systemctl,
    control::select::{self, KnownListener, Selection, select},
    spec::SocketKind,
};

/// The listeners that a word means; where the service gives them no unit of that name, systemd is asked for the addresses
/// of the unit.
pub(super) fn select_or_ask(service: &AskedService, word: &str, known: &[KnownListener<'_>]) -> Selection {
    let Selection::Nothing = select(word, known) else { return select(word, known) };
    let of_unit = listeners_of_unit(service, word);
    let mut all: Vec<usize> = of_unit.iter().flat_map(|listener| select(listener, known).all().to_vec()).collect();
    all.retain(|index| known[*index].unit.is_empty()); // the service knows that it belongs to another unit
    all.sort_unstable();
    all.dedup();
    if all.is_empty() { Selection::Nothing } else { Selection::One(all) }
}

/// The listeners of the socket unit that is called so, as words that mean each alone.
pub(super) fn listeners_of_unit(service: &AskedService, word: &str) -> Vec<String> {
    if word.contains(['*', '?', '[']) {
        return Vec::new(); // systemctl(1) takes patterns
    }
    let unit =
        if word.ends_with(".socket") { word.to_owned() } else { format!("{}{word}.socket", service.program.prefix) };
    let spelled = |(address, kind): (String, String)| {
        let transport = if kind == "Datagram" { SocketKind::Udp } else { SocketKind::Tcp };
        let transport = Some(transport).filter(|_| !address.starts_with(['/', '@']));
        select::spelling(&KnownListener { address: &address, transport, ..KnownListener::default() })
    };
    systemctl::listens(service.scope, &unit).into_iter().map(spelled).collect()
}
