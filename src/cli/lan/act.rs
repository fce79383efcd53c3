//! `add` and `remove`: what they change, in which order, and what they print.

use std::process::ExitCode;

use super::{
    arguments::{AddForward, PROGRAM, RemoveForward},
    declared::{Declared, FEATURE, LONGEST_VALUE, LanDecision, Moment, Named},
    expiry,
    order::ToolOrder,
    policy::{self, Conflict, Declarations, MOST},
    qubes,
    record::{alone, fail, load, save, withdraw},
};
use crate::report::{Code, Fatal};

/// Ports below this one belong to root; a qube's service takes them only where its template allows that.
const UNPRIVILEGED: u16 = 1024;

/// `add`: everything is checked before anything is changed.
pub(super) fn add(options: &AddForward) -> Result<ExitCode, Fatal> {
    let _alone = if options.dry_run { None } else { Some(alone()?) };
    let mut declarations = load()?;
    let asked = asked(options)?;
    for qube in [&asked.source, &asked.target.qube] {
        if !qubes::exists(qube) {
            return Err(
                fail(format!("there is no qube named {qube}")).hint("nothing was changed; qvm-ls lists the qubes")
            );
        }
    }
    // What an interrupted `add` has left is put right by the same `add`.
    let again = declarations.iter().find(|one| one.is_again(&asked)).cloned();
    if let Some(again) = &again {
        declarations.take(|one| one == again);
    }
    let forward = declarations.add(asked).map_err(|found| conflict(*found))?.clone();
    if forward.value().len() > LONGEST_VALUE {
        return Err(fail(format!("{} networks are more than fit into QubesDB", forward.from.len())));
    }
    if again.is_none() {
        no_other_feature(&forward)?;
    }
    let (at_boot, timer) = (forward.ends.map(|_| expiry::at_boot()), forward.ends.map(expiry::timer));
    if options.dry_run {
        dry_run(&declarations, &[Some(qubes::set(&forward)), at_boot, timer]);
        return Ok(ExitCode::SUCCESS);
    }
    save(&declarations)?;
    let failed = qubes::set(&forward).carry_out().err();
    if let Some(failed) = failed {
        declarations.take(|one| one == &forward);
        again.into_iter().for_each(|again| declarations.restore(again));
        save(&declarations)?;
        return Err(failed.hint(format!("the forward was not added; {} is as it was", policy::path().display())));
    }
    at_boot.map_or(Ok(()), |order| order.carry_out())?;
    expiry::arm(&declarations)?;
    println!("policy    {}: {}", policy::NAME, forward.rule());
    println!("qube      {}: listens on {} (feature {})", forward.source, forward.listen, forward.feature());
    if !forward.listen.ip().is_loopback() {
        let port = forward.listen.port();
        println!(
            "firewall  {}: its service accepts tcp dport {port} in custom-input (Qubes OS 4.2 and later)",
            forward.source
        );
    }
    forward.ends.iter().for_each(|ends| println!("until     {ends}: dom0 removes it"));
    advise(&forward)?;
    Ok(ExitCode::SUCCESS)
}

/// What was typed, as a forward.
fn asked(options: &AddForward) -> Result<Declared, Fatal> {
    if options.source == options.target.qube {
        return Err(Fatal::new(Code::Usage, "the qube that listens and the target are the same qube")
            .hint("a forward leads to another qube"));
    }
    Ok(Declared {
        source: options.source.clone(),
        listen: options.listen,
        target: options.target.clone(),
        from: options.from.clone(),
        ends: options.r#for.map(|span| Moment::now().after(span)),
        named: Named::ByPolicy,
        decision: if options.ask { LanDecision::Ask } else { LanDecision::Allow },
    })
}

fn conflict(conflict: Conflict) -> Fatal {
    match conflict {
        Conflict::Port(other) => {
            let port = other.listen.port();
            fail(format!("{} listens on port {port} already, for {}", other.source, other.target))
                .hint(format!("nothing was changed; first: {PROGRAM} remove {} {port}", other.source))
        }
        Conflict::Decision(other) => {
            let (source, decision) = (&other.source, other.decision);
            fail(format!("calls from {source} to {} are declared with '{decision}' already", other.target)).hint(format!(
                "nothing was changed; one call has one decision: add this forward with the same, or first: {PROGRAM} remove {source} {}",
                other.listen.port()
            ))
        }
        Conflict::Full => fail(format!("a qube has at most {MOST} forwards")).hint("nothing was changed"),
    }
}

/// A feature of this name that is not declared belongs to somebody else.
fn no_other_feature(forward: &Declared) -> Result<(), Fatal> {
    let features = qubes::features(&forward.source)?;
    match features.iter().find(|(port, _)| *port == forward.listen.port()) {
        Some((port, value)) if *value != forward.value() => Err(fail(format!(
            "{} has the feature {FEATURE}{port} already, and no declared forward set it",
            forward.source
        ))
        .hint(format!("nothing was changed; if nobody needs it: {}", qubes::unset(&forward.source, *port)))),
        _ => Ok(()),
    }
}

fn advise(forward: &Declared) -> Result<(), Fatal> {
    let earlier = policy::earlier().map_err(|e| fail(format!("the policy cannot be read: {e}")))?;
    if let Some(line) = policy::overruled(forward, &earlier) {
        eprintln!("{PROGRAM}: warning: another line may decide first: {line}");
    }
    if forward.listen.port() < UNPRIVILEGED {
        let (source, port) = (&forward.source, forward.listen.port());
        eprintln!(
            "{PROGRAM}: warning: {source} takes port {port} only if its template allows ports below {UNPRIVILEGED}: see lan.md"
        );
    }
    Ok(())
}

/// Prints the file and the commands of a change that is not made.
fn dry_run(declarations: &Declarations, orders: &[Option<ToolOrder>]) {
    println!("would write {}:\n{declarations}", policy::path().display());
    orders.iter().flatten().for_each(|order| println!("would run: {order}"));
}

/// `remove`: dom0 allows nothing of it from the first step on.
pub(super) fn remove(options: &RemoveForward) -> Result<ExitCode, Fatal> {
    let _alone = if options.dry_run { None } else { Some(alone()?) };
    let mut declarations = load()?;
    let (source, port) = (&options.source, options.port);
    let taken = declarations.take(|one| one.source == *source && one.listen.port() == port);
    let feature = || qubes::features(source).is_ok_and(|features| features.iter().any(|(one, _)| *one == port));
    if taken.is_empty() && !feature() {
        return Err(fail(format!("{source} has no forward on port {port}")).hint(format!("{PROGRAM} list shows all")));
    }
    let unset = qubes::unset(source, port);
    if options.dry_run {
        dry_run(&declarations, &[Some(unset)]);
        return Ok(ExitCode::SUCCESS);
    }
    save(&declarations)?;
    withdraw(source, &unset)?;
    expiry::arm(&declarations)?;
    taken.iter().for_each(|one| println!("removed: {one}"));
    if taken.is_empty() {
        println!("unset: a feature of {source} for port {port}, which no policy line belonged to");
    }
    Ok(ExitCode::SUCCESS)
}
