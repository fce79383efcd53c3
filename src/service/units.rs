//! Whether the units that forwards start can be started for clients, as the service manager says.

use crate::{
    spec::{Config, Options, SocketKind, StartUnit, UnitFlaw, UnitUse, fdname},
    systemd::{startable::StartableUnits, systemctl::Scope},
};

/// For each use of a unit, why the unit cannot be used so, if it cannot.
pub fn unit_flaws(known: &StartableUnits, uses: &[UnitUse<'_>]) -> Vec<Option<UnitFlaw>> {
    known.ask(uses.iter().map(|one| one.unit.as_str()));
    let flaw = |one: &UnitUse<'_>| {
        let obstacle = known.obstacle(one.unit.as_str(), one.stops)?;
        Some(UnitFlaw { what: format!("{} {obstacle}", one.unit), hint: obstacle.hint().to_owned() })
    };
    uses.iter().map(flaw).collect()
}

/// What this process's manager says of the units that the names of these sockets start.
pub(super) fn of_names(names: impl IntoIterator<Item = (String, SocketKind)>, config: &Config) -> StartableUnits {
    let unit = |(name, kind): (String, SocketKind)| fdname::resolve(&name, kind, config).ok()?.options.start_unit;
    let units: Vec<StartUnit> = names.into_iter().filter_map(unit).collect();
    let known = StartableUnits::of(Scope::own());
    known.ask(units.iter().map(StartUnit::as_str));
    known
}

/// Whether the unit of a forward can be used as its options say.
///
/// # Errors
/// Why not, and what to do.
pub fn usable(known: &StartableUnits, options: &Options) -> Result<(), String> {
    let Some(one) = options.unit_use() else { return Ok(()) };
    match unit_flaws(known, &[one]).into_iter().flatten().next() {
        None => Ok(()),
        Some(UnitFlaw { what, hint }) => Err(format!("start_unit: {what} ({hint})")),
    }
}
