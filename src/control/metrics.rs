//! What was counted, as text for Prometheus and its kin: made when somebody asks, from the tallies and the sessions
//! that live.
//!
//! Labels are what a listener is called, which the configuration bounds, and words of ours; nothing that a peer
//! chooses.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, NoLabelSet, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

use super::{
    api::{ActiveState, Format, StartedUnit},
    ask::Subject,
};
use crate::{
    crash,
    session::{Counted, DIAL_BOUNDS_MS, Reason, Tally, TallyKey, TallyLabels, WaitsFor, descriptor_limit},
    sys::proc::Process,
};

/// The metrics of this service, or the series of some listeners `only`. Names begin with that of the program.
pub async fn text(subject: &Subject, format: Format, only: Option<HashSet<TallyKey>>) -> String {
    let units = if only.is_some() { Vec::new() } else { subject.start_units().await };
    let mut registry = Registry::with_prefix(subject.program.replace('-', "_"));
    registry.register_collector(Box::new(Scrape { subject: subject.clone(), only, units }));
    let mut out = String::new();
    let encoded = text::encode(&mut out, &registry);
    debug_assert!(encoded.is_ok(), "a String takes everything");
    match format {
        Format::OpenMetrics => out,
        Format::Prometheus => older(&out),
    }
}

/// OpenMetrics as the older format. The two differ here in comments only: that one names counters as their samples are
/// named, and knows neither units nor an end.
fn older(text: &str) -> String {
    let counters: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut out = String::with_capacity(text.len() + 256);
    for line in text.lines().filter(|line| !line.starts_with("# UNIT ") && *line != "# EOF") {
        let renamed = ["# HELP ", "# TYPE "].iter().find_map(|start| {
            let (name, rest) = line.strip_prefix(start)?.split_once(' ')?;
            counters.contains(&name).then(|| format!("{start}{name}_total {rest}"))
        });
        out.push_str(renamed.as_deref().unwrap_or(line));
        out.push('\n');
    }
    out
}

#[derive(Debug)]
struct Scrape {
    subject: Subject,
    /// The listeners that are asked for; `None`: all of them, and what is counted for the whole service.
    only: Option<HashSet<TallyKey>>,
    /// The units that are started for sessions.
    units: Vec<StartedUnit>,
}

/// A listener and what belongs to it.
struct Row {
    at: TallyKey,
    labels: TallyLabels,
    counted: Counted,
    /// Sessions that live.
    sessions: u64,
    /// Of these, those that wait for a call of their qube.
    queued: u64,
    /// Of these, those that wait for dom0's decision about their call or about earlier ones.
    undecided: u64,
    /// Their bytes so far: up, down.
    bytes: (u64, u64),
    paused: bool,
}

type MetricLabel<'a> = (&'static str, &'a str);

impl Row {
    /// The labels of the listener; those that have no value are left out, which means the same to whoever reads them.
    fn labels(&self) -> impl Iterator<Item = MetricLabel<'_>> {
        let TallyLabels { label, netns, listen_netns } = &self.labels;
        let own = [("label", label), ("netns", netns), ("listen_netns", listen_netns)];
        let own = own.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        [("listener", &*self.at.0), ("transport", self.at.1.word())].into_iter().chain(own)
    }
}

impl Scrape {
    fn rows(&self) -> Vec<Row> {
        let mut live: HashMap<TallyKey, (u64, u64, u64, u64, u64)> = HashMap::new();
        self.subject.sessions.for_each(|info| {
            let listener = &info.route.listener;
            let at = (listener.address.clone(), listener.transport);
            let (n, queued, undecided, up, down) = live.entry(at).or_default();
            *n += 1;
            match info.waits_for() {
                Some(WaitsFor::Call) => *queued += 1,
                Some(WaitsFor::Dom0 | WaitsFor::Turn) => *undecided += 1,
                None => {}
            }
            *up += info.counters.up();
            *down += info.counters.down();
        });
        let row = |(at, tally): (TallyKey, Arc<Tally>)| {
            let (sessions, queued, undecided, up, down) = live.get(&at).copied().unwrap_or_default();
            let (counted, labels) = (tally.counted(), tally.labels());
            Row { at, labels, counted, sessions, queued, undecided, bytes: (up, down), paused: tally.paused() }
        };
        let all = self.subject.routes.tallies().all().into_iter();
        all.filter(|(at, _)| self.only.as_ref().is_none_or(|only| only.contains(at))).map(row).collect()
    }
}

/// What a metric is called, what it is, in which unit, and its kind.
struct About(&'static str, &'static str, Option<Unit>, MetricType);

/// Writes the numbers of a metric: for each listener one, or one with each value of a second label.
fn each<N>(to: &mut DescriptorEncoder<'_>, about: &About, rows: &[Row], numbers: impl Fn(&Row) -> N) -> fmt::Result
where
    N: IntoIterator<Item = (Option<MetricLabel<'static>>, u64)>,
{
    let About(name, help, unit, kind) = about;
    let mut metric = to.encode_descriptor(name, help, unit.as_ref(), *kind)?;
    for row in rows {
        for (label, number) in numbers(row) {
            let labels: Vec<MetricLabel<'_>> = row.labels().chain(label).collect();
            let metric = metric.encode_family(&labels)?;
            match kind {
                MetricType::Gauge => ConstGauge::new(number).encode(metric)?,
                _ => ConstCounter::new(number).encode(metric)?,
            }
        }
    }
    Ok(())
}

/// Writes what there is to know about units.
fn units(to: &mut DescriptorEncoder<'_>, all: &[StartedUnit]) -> fmt::Result {
    if all.is_empty() {
        return Ok(()); // most services have none
    }
    let help = "Whether a unit that is started for sessions is in this state.";
    let mut metric = to.encode_descriptor("start_unit_state", help, None, MetricType::Gauge)?;
    for unit in all {
        for state in ActiveState::ALL {
            let labels: &[MetricLabel<'_>] = &[("unit", &unit.unit), ("state", state.as_str())];
            ConstGauge::new(u64::from(unit.state == state)).encode(metric.encode_family(&labels)?)?;
        }
    }
    type Number = fn(&StartedUnit) -> Option<f64>;
    let numbers: [(&str, &str, Option<Unit>, Number); 7] = [
        ("start_unit_changed", "When the unit came into its state, since 1970.", Some(Unit::Seconds), |unit| {
            unit.since.map(|at| at as f64)
        }),
        ("start_unit_sessions", "Sessions that use the unit.", None, |unit| Some(unit.sessions as f64)),
        ("start_unit_sessions_waiting", "Sessions that wait until the unit answers.", None, |unit| {
            Some(unit.waiting as f64)
        }),
        (
            "start_unit_stop",
            "When the unit will be stopped if no session comes, since 1970.",
            Some(Unit::Seconds),
            |unit| unit.stops_at.map(|at| at as f64),
        ),
        (
            "start_unit_last_start",
            "How long the last start took until the unit answered.",
            Some(Unit::Seconds),
            |unit| unit.last_start_ms.map(|ms| ms as f64 / 1000.0),
        ),
        ("start_unit_median_start", "The median of the last starts.", Some(Unit::Seconds), |unit| {
            unit.median_start_ms.map(|ms| ms as f64 / 1000.0)
        }),
        (
            "start_unit_memory_before_stop",
            "Memory that the unit had before its last stop.",
            Some(Unit::Bytes),
            |unit| unit.memory_before_stop.map(|bytes| bytes as f64),
        ),
    ];
    for (name, help, measured, number) in numbers {
        let mut metric = to.encode_descriptor(name, help, measured.as_ref(), MetricType::Gauge)?;
        for unit in all {
            let Some(number) = number(unit) else { continue };
            let labels: &[MetricLabel<'_>] = &[("unit", &unit.unit)];
            ConstGauge::new(number).encode(metric.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

impl Collector for Scrape {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        use MetricType::{Counter, Gauge, Histogram};
        let (rows, to) = (self.rows(), &mut to);

        let about = About("sessions", "Sessions that live now.", None, Gauge);
        each(to, &about, &rows, |row| [(None, row.sessions)])?;

        let about = About("sessions_queued", "Sessions that wait for a call of their qube.", None, Gauge);
        each(to, &about, &rows, |row| [(None, row.queued)])?;

        let about = About("sessions_undecided", "Sessions that wait for a decision of dom0.", None, Gauge);
        each(to, &about, &rows, |row| [(None, row.undecided)])?;

        let about = About("sessions_accepted", "Sessions that were accepted.", None, Counter);
        each(to, &about, &rows, |row| [(None, row.counted.began)])?;

        let about = About("sessions_ended", "Sessions that ended, by how (END in the journal).", None, Counter);
        each(to, &about, &rows, |row| {
            let ends = row.counted.ended().filter(|(_, n)| *n > 0);
            ends.map(|(end, n)| (Some(("end", end.as_str())), n))
        })?;

        let help = "Bytes delivered: up from peers to upstreams, down from upstreams to peers.";
        each(to, &About("delivered", help, Some(Unit::Bytes), Counter), &rows, |row| {
            let [up, down] = row.counted.bytes;
            [(Some(("direction", "up")), row.bytes.0 + up), (Some(("direction", "down")), row.bytes.1 + down)]
        })?;

        let about = About("dials", "Dials that were decided, one way or the other.", None, Counter);
        each(to, &about, &rows, |row| {
            let decided = row.counted.dials.iter().chain(&row.counted.failures).sum::<u64>();
            [(None, decided.saturating_sub(row.counted.late))]
        })?;

        let about = About("dial_failures", "Dials that failed, by why.", None, Counter);
        each(to, &about, &rows, |row| {
            let failures = Reason::ALL.iter().zip(row.counted.failures).filter(|(_, n)| *n > 0);
            failures.map(|(reason, n)| (Some(("reason", reason.as_str())), n))
        })?;

        let help = "Time from accept to connected.";
        let mut metric = to.encode_descriptor("dial_duration", help, Some(&Unit::Seconds), Histogram)?;
        for row in &rows {
            // in thousandths, which a float of 64 bits holds exactly for longer than anybody waits
            let seconds = |ms: u64| ms as f64 / 1000.0;
            let bounds = DIAL_BOUNDS_MS.iter().map(|ms| seconds(*ms)).chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(row.counted.dials).collect();
            let dials = row.counted.dials.iter().sum();
            let labels: Vec<MetricLabel<'_>> = row.labels().collect();
            let sum = seconds(row.counted.dials_ms);
            metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, dials, &buckets, None)?;
        }

        let help = "Connections and datagrams that were refused: by allow_from or allow_uid, or because they came back to the listener.";
        let about = About("peers_denied", help, None, Counter);
        each(to, &about, &rows, |row| [(None, row.counted.denied)])?;

        let about = About("listener_paused", "Whether a listener is paused.", None, Gauge);
        each(to, &about, &rows, |row| [(None, u64::from(row.paused))])?;

        if self.only.is_some() {
            return Ok(());
        }
        units(to, &self.units)?;
        let help = "Errors of the configuration, by place and by what each does.";
        let mut metric = to.encode_descriptor("configuration_fault", help, None, Gauge)?;
        for fault in self.subject.faults.all() {
            let labels: &[MetricLabel<'_>] = &[("place", &fault.place), ("effect", fault.effect.as_str())];
            ConstGauge::new(1u64).encode(metric.encode_family(&labels)?)?;
        }

        let (served, all) = self.subject.standing.get();
        for (name, help, number) in [
            ("listeners", "Listeners, served or not.", Some(all as u64)),
            ("listeners_served", "Listeners that are served.", Some(served as u64)),
            ("descriptors_open", "Descriptors that the service has open.", Process::own().open_descriptors()),
            ("descriptors_limit", "Descriptors that the service may have open (LimitNOFILE=).", descriptor_limit()),
        ] {
            let metric = to.encode_descriptor(name, help, None, Gauge)?;
            if let Some(number) = number {
                ConstGauge::new(number).encode(metric)?;
            }
        }

        let help = "Restarts of the service that handed over to the process that answers.";
        let metric = to.encode_descriptor("handovers", help, None, Counter)?;
        ConstCounter::new(self.subject.routes.tallies().handovers()).encode(metric)?;

        for (name, help, number) in [
            ("crashes", "Crashes of the service since its last stop or restart.", crash::counts().crashes),
            ("crash_sessions_resumed", "Sessions that continued after a crash.", crash::counts().resumed),
            ("crash_sessions_lost", "Sessions that a crash has ended.", crash::counts().lost),
        ] {
            let metric = to.encode_descriptor(name, help, None, Counter)?;
            ConstCounter::new(number).encode(metric)?;
        }

        let help = "When the counting began, since 1970: at the last stop or crash, not at a restart.";
        let metric = to.encode_descriptor("start_time", help, Some(&Unit::Seconds), Gauge)?;
        ConstGauge::new(self.subject.routes.tallies().since_ms() as f64 / 1000.0).encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use super::older;

    #[test]
    fn the_older_format_names_counters_as_their_samples() {
        let new = "# HELP a_b B.\n# TYPE a_b counter\n# UNIT a_b bytes\na_b_total{x=\"# EOF\"} 1\n# HELP a A.\n# TYPE a gauge\na 2\n# EOF\n";
        let old = "# HELP a_b_total B.\n# TYPE a_b_total counter\na_b_total{x=\"# EOF\"} 1\n# HELP a A.\n# TYPE a gauge\na 2\n";
        assert_eq!(older(new), old);
    }
}
