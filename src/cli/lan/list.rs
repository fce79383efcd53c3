//! `list` and `check`: what is declared, what dom0 allows, what the qubes make of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
};

use serde_json::{Value, json};

use super::{
    arguments::{ListOptions, PROGRAM},
    declared::{Declared, FEATURE, Moment, QubeName},
    policy::{self, Earlier},
    qubes::{self, QubeService},
    record::{fail, load},
};
use crate::{
    cli::table::{self, Cell, Colour, Column, Style},
    log::escape,
    report::Fatal,
};

/// Something that is wrong with a forward, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ForwardTrouble {
    NoQube(QubeName),
    /// The feature is not set, or is another.
    Feature {
        value: Option<String>,
    },
    Overruled(Earlier),
    Over,
}

impl ForwardTrouble {
    fn text(&self, one: &Declared) -> (String, String) {
        let port = one.listen.port();
        let again = || format!("remove it and add it again: {PROGRAM} remove {} {port}", one.source);
        match self {
            Self::NoQube(qube) => (
                format!("there is no qube named {qube} any more"),
                format!("{PROGRAM} remove {} {port}, and add it with the new name", one.source),
            ),
            Self::Feature { value: None } => {
                (format!("the feature {} of {} is not set", one.feature(), one.source), again())
            }
            Self::Feature { value: Some(value) } => {
                let value = escape(value.as_bytes());
                (format!("the feature {} of {} was changed to '{value}'", one.feature(), one.source), again())
            }
            Self::Overruled(line) => (
                format!("another policy line may decide first: {line}"),
                "move the line below ours, into a file that begins with 31, or remove it".to_owned(),
            ),
            Self::Over => ("its time is over".to_owned(), format!("{PROGRAM} expire")),
        }
    }
}

/// What dom0 has, beside the declared forwards.
struct Dom0 {
    /// The features of each listening qube; None: there is no such qube, or it cannot be asked.
    features: BTreeMap<QubeName, Option<Vec<(u16, String)>>>,
    existing: BTreeSet<QubeName>,
    earlier: Vec<Earlier>,
}

impl Dom0 {
    fn ask(forwards: &[Declared]) -> Result<Self, Fatal> {
        let names: BTreeSet<_> = forwards.iter().flat_map(|one| [&one.source, &one.target.qube]).cloned().collect();
        let existing: BTreeSet<_> = names.into_iter().filter(qubes::exists).collect();
        let sources: BTreeSet<_> = forwards.iter().map(|one| one.source.clone()).collect();
        let features = sources.into_iter().map(|source| {
            let features = existing.contains(&source).then(|| qubes::features(&source).ok()).flatten();
            (source, features)
        });
        let earlier = policy::earlier().map_err(|e| fail(format!("the policy cannot be read: {e}")))?;
        Ok(Self { features: features.collect(), existing, earlier })
    }

    fn troubles(&self, one: &Declared, now: Moment) -> Vec<ForwardTrouble> {
        let mut troubles = Vec::new();
        for qube in [&one.source, &one.target.qube] {
            if !self.existing.contains(qube) {
                troubles.push(ForwardTrouble::NoQube(qube.clone()));
            }
        }
        if let Some(Some(features)) = self.features.get(&one.source) {
            let value = features.iter().find(|(port, _)| *port == one.listen.port()).map(|(_, value)| value.clone());
            if value.as_ref() != Some(&one.value()) {
                troubles.push(ForwardTrouble::Feature { value });
            }
        }
        if one.is_over(now) {
            troubles.push(ForwardTrouble::Over);
        }
        troubles.extend(policy::overruled(one, &self.earlier).cloned().map(ForwardTrouble::Overruled));
        troubles
    }

    /// Features that no forward declares.
    fn strays<'a>(&'a self, forwards: &'a [Declared]) -> impl Iterator<Item = (&'a QubeName, u16)> {
        let declared = |source: &QubeName, port: u16| {
            forwards.iter().any(|one| one.source == *source && one.listen.port() == port)
        };
        let each = self
            .features
            .iter()
            .flat_map(|(source, features)| features.iter().flatten().map(move |(port, _)| (source, *port)));
        each.filter(move |(source, port)| !declared(source, *port))
    }
}

/// `list`.
pub(super) fn list(options: &ListOptions) -> Result<ExitCode, Fatal> {
    let forwards: Vec<Declared> = load()?.iter().cloned().collect();
    let (dom0, now) = (Dom0::ask(&forwards)?, Moment::now());
    let sources: BTreeSet<&QubeName> = forwards.iter().map(|one| &one.source).collect();
    let answers: BTreeMap<_, _> = sources
        .into_iter()
        .filter(|source| dom0.existing.contains(source))
        .map(|source| (source, qubes::service(source)))
        .collect();
    let served = |one: &Declared| answers.get(&one.source).map(|answers| answers.of(one.listen));
    if options.json {
        let rows = forwards.iter().map(|one| {
            let (state, reason) = words(served(one).as_ref());
            let mut row = as_json(one);
            row["policy"] = json!(decision(one, &dom0, now).0);
            row["service"] = json!(state);
            row["reason"] = json!(reason);
            row
        });
        println!("{:#}", json!({ "forwards": rows.collect::<Vec<_>>() }));
        return Ok(ExitCode::SUCCESS);
    }
    if forwards.is_empty() {
        println!("No forward is declared.");
        return Ok(ExitCode::SUCCESS);
    }
    const COLUMNS: [Column; 6] = [
        Column::long("QUBE", 8),
        Column::whole("LISTENS"),
        Column::long("TARGET", 8),
        Column::whole("POLICY"),
        Column::whole("SERVICE"),
        Column::whole("UNTIL"),
    ];
    let rows: Vec<[Cell; 6]> = forwards
        .iter()
        .map(|one| {
            let (policy, colour) = decision(one, &dom0, now);
            let service = served(one);
            let (state, _) = words(service.as_ref());
            let fine = if service == Some(QubeService::Serving) { Colour::Green } else { Colour::Yellow };
            let until = one.ends.map_or_else(String::new, |ends| ends.to_string());
            [
                Cell::from(one.source.to_string()),
                Cell::from(one.listen.to_string()),
                Cell::from(one.target.to_string()),
                Cell::from(policy).painted(colour),
                Cell::from(state).painted(fine),
                Cell::from(until),
            ]
        })
        .collect();
    print!("{}", table::render(Style::stdout(options.look), &COLUMNS, &rows));
    if forwards.iter().any(|one| !dom0.troubles(one, now).is_empty()) {
        println!("Something is wrong: {PROGRAM} check says what.");
    }
    Ok(ExitCode::SUCCESS)
}

/// What dom0 does at a call of this forward, as far as its lines tell.
fn decision(one: &Declared, dom0: &Dom0, now: Moment) -> (String, Colour) {
    match policy::overruled(one, &dom0.earlier) {
        Some(_) => ("unsure".to_owned(), Colour::Yellow),
        None if one.is_over(now) => ("over".to_owned(), Colour::Red),
        None => (one.decision.to_string(), Colour::Green),
    }
}

/// The state in one word, and the qube's reason.
fn words(service: Option<&QubeService>) -> (&'static str, Option<String>) {
    match service {
        None => ("no qube", None),
        Some(QubeService::Serving) => ("serving", None),
        Some(QubeService::NotServing(reason)) => ("not served", reason.as_deref().map(|text| escape(text.as_bytes()))),
        Some(QubeService::Silent) => ("no answer", None),
        Some(QubeService::Halted) => ("halted", None),
    }
}

fn as_json(one: &Declared) -> Value {
    json!({
        "source": one.source.to_string(),
        "listen": one.listen.to_string(),
        "target": one.target.to_string(),
        "from": one.from.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "until": one.ends.map(|ends| ends.to_string()),
        "rule": one.rule(),
        "feature": one.feature(),
        "value": one.value(),
    })
}

/// `check`: 1 where something is wrong.
pub(super) fn check(as_json: bool) -> Result<ExitCode, Fatal> {
    let forwards: Vec<Declared> = load()?.iter().cloned().collect();
    let (dom0, now) = (Dom0::ask(&forwards)?, Moment::now());
    let mut errors: Vec<(String, String, String)> = Vec::new();
    for one in &forwards {
        for trouble in dom0.troubles(one, now) {
            let (what, hint) = trouble.text(one);
            errors.push((one.to_string(), what, hint));
        }
    }
    for (source, port) in dom0.strays(&forwards) {
        let what = format!("the feature {FEATURE}{port} is set, and no forward is declared");
        errors.push((format!("{source} port {port}"), what, qubes::unset(source, port).to_string()));
    }
    if as_json {
        let rows =
            errors.iter().map(|(forward, what, hint)| json!({ "forward": forward, "error": what, "hint": hint }));
        println!("{:#}", json!({ "checked": forwards.len(), "errors": rows.collect::<Vec<_>>() }));
    } else {
        errors.iter().for_each(|(forward, what, hint)| println!("{forward}:\n  error: {what}\n  to do: {hint}"));
        let plural = |n: usize, word: &str| if n == 1 { format!("1 {word}") } else { format!("{n} {word}s") };
        println!("{} found (checked: {})", plural(errors.len(), "error"), plural(forwards.len(), "forward"));
    }
    Ok(if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
