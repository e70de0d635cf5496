//! `/metrics`: one table of what there is, and its OpenMetrics text.
//!
//! All series of an entry in one answer come from one report, so the sums in it hold. Absent by
//! design: paths, topics and causes; `entry` is the only label without a bound.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::filter::ErrorKind;
use crate::model::ShadowTally;
use crate::status::{
    AgentFigures, Board, EntryReport, FILTER_SECONDS_BUCKETS, Figures, FilterStats, FilterStatus,
    LINE_SECONDS_BUCKETS,
};

/// The media type of what [`Metrics::text`] returns.
pub(super) const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The kinds of `weir_filter_errors_total`. Known values are shown before they first occur, or a
/// scraper would miss the step from nothing to 1.
const FILTER_ERRORS: [&str; 6] = ["deadline", "error", "memory", "output", "size", "trap"];
/// The results of [`Figures::module_swaps`].
const MODULE_SWAPS: [&str; 3] = ["applied", "failed", "rolled-back"];
/// The reasons of [`Figures::lost_bytes`].
const LOST_BYTES: [&str; 4] = ["damaged", "deleted", "held_limit", "truncated"];

/// The reasons of [`Figures::rewinds`].
const REWINDS: [&str; 3] = ["breakdown", "state_lost", "truncated"];
/// The causes of [`AgentFigures::producer_rebuilds`].
const REBUILDS: [&str; 2] = ["fatal", "orphans"];
/// The kinds of [`AgentFigures::state_errors`].
const STATE_ERRORS: [&str; 5] = ["corrupt", "missing", "open", "read", "write"];

/// A metric family.
struct Metric {
    /// As it stands in queries.
    name: &'static str,
    /// What it counts, and in which unit; no full stop.
    help: &'static str,
    /// Where its values come from, and so its type and labels.
    values: Values,
}

/// Where the values of a metric come from.
enum Values {
    /// A counter an entry.
    Counter(fn(&EntryReport) -> u64),
    /// A counter an entry and value of the label.
    Counters(&'static str, fn(&EntryReport) -> Vec<(&str, u64)>),
    /// A gauge an entry.
    Gauge(fn(&EntryReport) -> f64),
    /// A counter an entry with a filter.
    FilterCounter(fn(&EntryReport) -> u64),
    /// A gauge an entry with a filter.
    FilterGauge(fn(&FilterStatus) -> f64),
    /// CPU time of batches, for entries with a filter.
    FilterSeconds,
    /// CPU time of lines, for entries with a filter.
    LineSeconds,
    /// The module of each entry that has one running.
    Module,
    /// A counter of the agent for each value of the label.
    Agent(&'static str, fn(&AgentFigures) -> Vec<(&str, u64)>),
    /// A gauge of the agent.
    AgentGauge(fn(&AgentFigures) -> u64),
    /// Of the agent.
    Revision,
    /// Of the agent.
    Build,
}

use Values::{
    Agent, AgentGauge, Build, Counter, Counters, FilterCounter, FilterGauge, FilterSeconds, Gauge,
    LineSeconds, Module, Revision,
};

/// All there are, in the order in which they are shown.
const METRICS: &[Metric] = &[
    Metric {
        name: "weir_lines_read_total",
        help: "Lines cut from the files; the entry's other lines add up to it",
        values: Counter(|entry| entry.status.lines.read),
    },
    Metric {
        name: "weir_lines_delivered_total",
        help: "Lines acknowledged by Kafka, dead-lettered ones too",
        values: Counter(|entry| entry.status.lines.delivered),
    },
    Metric {
        name: "weir_lines_filtered_total",
        help: "Lines dropped by the filter",
        values: Counter(|entry| entry.status.lines.filtered),
    },
    Metric {
        name: "weir_lines_skipped_total",
        help: "Empty lines left out",
        values: Counter(|entry| entry.status.lines.skipped),
    },
    Metric {
        name: "weir_lines_quarantined_total",
        help: "Lines set aside on the host, refused by the filter or by Kafka",
        values: Counter(|entry| entry.status.lines.quarantined),
    },
    Metric {
        name: "weir_lines_discarded_total",
        help: "Lines thrown away: runs of NUL, on_error drop, parts of lines that are too long",
        values: Counter(|entry| entry.status.lines.discarded),
    },
    Metric {
        name: "weir_lines_in_flight",
        help: "Lines read and not yet acknowledged, dropped or set aside",
        values: Gauge(|entry| entry.status.lines.in_flight as f64),
    },
    Metric {
        name: "weir_bytes_read_total",
        help: "Bytes cut into lines",
        values: Counter(|entry| entry.figures.bytes_read),
    },
    Metric {
        name: "weir_lag_bytes",
        help: "Bytes in the files that are not yet acknowledged, dropped or set aside",
        values: Gauge(|entry| entry.status.lag_bytes as f64),
    },
    Metric {
        name: "weir_lag_seconds",
        help: "Seconds since the oldest line that is not finished was read, or since unread bytes wait",
        values: Gauge(|entry| entry.status.lag_seconds),
    },
    Metric {
        name: "weir_files",
        help: "Files the entry knows of",
        values: Gauge(|entry| entry.status.files as f64),
    },
    Metric {
        name: "weir_held_bytes",
        help: "Bytes of deleted or rotated files that are kept open until they are delivered",
        values: Gauge(|entry| entry.figures.held_bytes as f64),
    },
    Metric {
        name: "weir_filter_seconds",
        help: "CPU seconds of the filter for one batch of lines",
        values: FilterSeconds,
    },
    Metric {
        name: "weir_filter_errors_total",
        help: "Lines on which the filter failed, by kind",
        values: Counters("kind", |entry| {
            let known = if entry.status.filter.is_some() { &FILTER_ERRORS[..] } else { &[] };
            let refused = entry.figures.filter.refused.iter();
            let failed = refused.filter(|(kind, _)| *kind != ErrorKind::SetAside.as_str());
            from_zero(known, &failed.map(|(kind, lines)| (kind.as_str(), *lines)).collect())
        }),
    },
    Metric {
        name: "weir_filter_lines_total",
        help: "Lines that went through the filter, by what it made of them: `kept`, `dropped`, `replaced`, \
            `set_aside` on purpose, or `failed`; a replayed line counts too",
        values: Counters("result", |entry| {
            if entry.status.filter.is_none() {
                return Vec::new();
            }
            let stats = &entry.figures.filter;
            let aside = stats.refused.get(ErrorKind::SetAside.as_str()).copied().unwrap_or_default();
            let failed = stats.refused_lines() - aside;
            let (kept, dropped, replaced) = (stats.kept, stats.dropped, stats.replaced);
            let lines = [kept, dropped, replaced, aside, failed];
            ["kept", "dropped", "replaced", "set_aside", "failed"].into_iter().zip(lines).collect()
        }),
    },
    Metric {
        name: "weir_filter_line_seconds",
        help: "CPU seconds of the filter for a line: that of its batch in equal parts",
        values: LineSeconds,
    },
    Metric {
        name: "weir_filter_memory_bytes",
        help: "The most memory that an instance of the module that runs had",
        values: FilterGauge(|filter| filter.stats.memory_max as f64),
    },
    Metric {
        name: "weir_filter_restarts_total",
        help: "Instances of modules made anew after a failure",
        values: FilterCounter(|entry| entry.figures.filter.restarts),
    },
    Metric {
        name: "weir_module_ignored_total",
        help: "What modules said beyond what they may: `log`, messages that were not logged; `count`, times that \
            they counted under a name they may not have",
        values: Counters("what", |entry| {
            let FilterStats { unlogged, uncounted, .. } = entry.figures.filter;
            let ignored = [("count", uncounted), ("log", unlogged)];
            if entry.status.filter.is_some() { ignored.into() } else { Vec::new() }
        }),
    },
    Metric {
        name: "weir_shadow_lines_total",
        help: "Lines of entries whose filter has a shadow, by what the shadow makes of them: the `same` as the \
            filter, something else (`differing`), or `error`; `skipped` ones it was not shown",
        values: Counters("result", |entry| {
            let Some(shadow) = entry.figures.shadow else { return Vec::new() };
            let ShadowTally { same, differing, errors, skipped, .. } = shadow;
            vec![("same", same), ("differing", differing), ("error", errors), ("skipped", skipped)]
        }),
    },
    Metric { name: "weir_module_info", help: "The module that filters the entry's lines", values: Module },
    Metric {
        name: "weir_module_swaps_total",
        help: "Changes of the filter, its first one included, by result",
        values: Counters("result", |entry| {
            let known = if entry.status.filter.is_some() { &MODULE_SWAPS[..] } else { &[] };
            from_zero(known, &entry.figures.module_swaps)
        }),
    },
    Metric {
        name: "weir_module_count_total",
        help: "What the module counts itself, by the name it gives",
        values: Counters("name", |entry| by_name(&entry.figures.module_counts)),
    },
    Metric {
        name: "weir_delivery_errors_total",
        help: "Records that Kafka did not acknowledge, by librdkafka's name of the error",
        values: Counters("kind", |entry| by_name(&entry.figures.delivery_errors)),
    },
    Metric {
        name: "weir_resends_total",
        help: "Records sent again",
        values: Counter(|entry| entry.figures.resends),
    },
    Metric {
        name: "weir_replayed_lines_total",
        help: "Lines that left the quarantine by `weir quarantine replay`: acknowledged by Kafka, or dropped by \
            the filter as it is now; they stay counted as quarantined, and this is no part of the sums",
        values: Counter(|entry| entry.figures.replayed),
    },
    Metric {
        name: "weir_rewinds_total",
        help: "Places that reading went back to, by reason: `truncated`, a file whose content is not what was \
            read, to its beginning; `state_lost`, a file whose offset was lost, to its beginning; `breakdown`, \
            an entry whose thread broke down, to its offsets",
        values: Counters("reason", |entry| from_zero(&REWINDS, &entry.figures.rewinds)),
    },
    Metric {
        name: "weir_nul_runs_total",
        help: "Runs of 16 NUL bytes or more that were skipped; each counts as a discarded line",
        values: Counter(|entry| entry.figures.nul_runs),
    },
    Metric {
        name: "weir_malformed_sequences_total",
        help: "Sequences of bytes that mean no character in the entry's `encoding`; each was sent as U+FFFD",
        values: Counter(|entry| entry.figures.malformed),
    },
    Metric {
        name: "weir_lost_bytes_total",
        help: "Bytes that could not be saved, measured or estimated, by reason",
        values: Counters("reason", |entry| from_zero(&LOST_BYTES, &entry.figures.lost_bytes)),
    },
    Metric {
        name: "weir_producer_rebuilds_total",
        help: "Kafka producers made anew, by cause: `fatal`, an error after which one can send nothing; \
            `orphans`, closed entries left too much under way",
        values: Agent("cause", |agent| from_zero(&REBUILDS, &agent.producer_rebuilds)),
    },
    Metric {
        name: "weir_state_errors_total",
        help: "What went wrong with the stored offsets, by kind: `corrupt`, damaged and moved aside; \
            `missing`, gone from a used directory; `open`, not writable at the start; `read` and `write`, \
            attempts that failed since",
        values: Agent("kind", |agent| from_zero(&STATE_ERRORS, &agent.state_errors)),
    },
    Metric {
        name: "weir_quarantine_bytes",
        help: "Bytes that lines set aside take on the disk; when `weir_quarantine_limit_bytes` is reached, entries hold",
        values: AgentGauge(|agent| agent.quarantine.unwrap_or_default().used),
    },
    Metric {
        name: "weir_quarantine_limit_bytes",
        help: "Bytes that they may take: `[limits] quarantine`",
        values: AgentGauge(|agent| agent.quarantine.unwrap_or_default().limit),
    },
    Metric {
        name: "weir_list_revision",
        help: "Revision of the collect list that is applied; of a file, the number of its change",
        values: Revision,
    },
    Metric { name: "weir_build_info", help: "The version of weir that runs", values: Build },
];

fn by_name(counts: &BTreeMap<String, u64>) -> Vec<(&str, u64)> {
    counts.iter().map(|(name, count)| (name.as_str(), *count)).collect()
}

/// The counts, and a zero for each known value that has none.
fn from_zero<'a>(known: &[&'a str], counts: &BTreeMap<&'a str, u64>) -> Vec<(&'a str, u64)> {
    let zeros = known.iter().filter(|value| !counts.contains_key(*value)).map(|value| (*value, 0));
    zeros.chain(counts.iter().map(|(value, count)| (*value, *count))).collect()
}

/// Writes `/metrics`.
#[derive(Debug)]
pub(super) struct Metrics(Registry);

impl Metrics {
    /// Of what stands on `board`.
    pub(super) fn new(board: Board) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Scrape(board)));
        Self(registry)
    }

    /// The text at this moment.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.0).expect("writing to a String cannot fail");
        text
    }
}

#[derive(Debug)]
struct Scrape(Board);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let revision = self.0.status().list.revision;
        let (agent, reports) = (self.0.figures(), self.0.reports());
        for metric in METRICS {
            let (family, kind) = metric.family();
            let family = encoder.encode_descriptor(family, metric.help, None, kind)?;
            metric.values.encode(&reports, &agent, revision, family)?;
        }
        Ok(())
    }
}

impl Metric {
    /// The name without the suffix that the encoder adds for the type, and the type.
    fn family(&self) -> (&'static str, MetricType) {
        let (suffix, kind) = match self.values {
            Counter(_) | Counters(..) | FilterCounter(_) | Agent(..) => ("_total", MetricType::Counter),
            Gauge(_) | AgentGauge(_) | FilterGauge(_) | Revision => ("", MetricType::Gauge),
            FilterSeconds | LineSeconds => ("", MetricType::Histogram),
            Module | Build => ("_info", MetricType::Info),
        };
        (self.name.strip_suffix(suffix).expect("a name ends as its type asks for"), kind)
    }
}

impl Values {
    fn encode(
        &self,
        reports: &[EntryReport],
        agent: &AgentFigures,
        revision: i64,
        mut family: MetricEncoder<'_>,
    ) -> fmt::Result {
        match self {
            Agent(label, values) => {
                return values(agent).iter().try_for_each(|(value, count)| {
                    let labels = [(*label, *value)];
                    family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(count, None)
                });
            }
            AgentGauge(value) => return family.encode_gauge(&value(agent)),
            Revision => return family.encode_gauge(&revision),
            Build => return family.encode_info(&[("version", env!("CARGO_PKG_VERSION"))]),
            _ => {}
        }
        for report in reports {
            self.encode_entry(report, &mut family)?;
        }
        Ok(())
    }

    fn encode_entry(&self, report: &EntryReport, family: &mut MetricEncoder<'_>) -> fmt::Result {
        let entry = [("entry", report.status.name.as_str())];
        match self {
            Counter(value) => {
                family.encode_family(&entry)?.encode_counter::<NoLabelSet, _, u64>(&value(report), None)
            }
            Gauge(value) => family.encode_family(&entry)?.encode_gauge(&value(report)),
            Counters(label, values) => values(report).iter().try_for_each(|(value, count)| {
                let labels = [entry[0], (*label, *value)];
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(count, None)
            }),
            FilterSeconds if report.status.filter.is_some() => {
                let Figures { filter_seconds, filter_seconds_sum, .. } = &report.figures;
                encode_seconds(
                    &FILTER_SECONDS_BUCKETS,
                    filter_seconds,
                    *filter_seconds_sum,
                    family.encode_family(&entry)?,
                )
            }
            LineSeconds if report.status.filter.is_some() => {
                let stats = &report.figures.filter;
                let (lines, sum) = (&stats.line_seconds, stats.cpu_seconds);
                encode_seconds(&LINE_SECONDS_BUCKETS, lines, sum, family.encode_family(&entry)?)
            }
            FilterCounter(value) if report.status.filter.is_some() => {
                family.encode_family(&entry)?.encode_counter::<NoLabelSet, _, u64>(&value(report), None)
            }
            FilterGauge(value) => match &report.status.filter {
                Some(filter) => family.encode_family(&entry)?.encode_gauge(&value(filter)),
                None => Ok(()),
            },
            Module => match &report.status.filter {
                Some(filter) if !filter.digest.is_empty() => family.encode_info(&[
                    entry[0],
                    ("tag", filter.module.as_str()),
                    ("digest", filter.digest.as_str()),
                ]),
                _ => Ok(()),
            },
            FilterSeconds | LineSeconds | FilterCounter(_) | Agent(..) | AgentGauge(_) | Revision | Build => {
                Ok(())
            }
        }
    }
}

fn encode_seconds(bounds: &[f64], counts: &[u64], sum: f64, mut family: MetricEncoder<'_>) -> fmt::Result {
    let bounds = bounds.iter().copied().chain([f64::INFINITY]);
    let buckets: Vec<_> = bounds.zip(counts.iter().copied()).collect();
    family.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::super::tests::{board, report};
    use super::*;
    use crate::model::{EntryName, Lines};
    use crate::status::{FilterState, ListStatus, Room};

    /// One sample line: name, labels, value.
    pub(in crate::admin) type Sample = (String, BTreeMap<String, String>, f64);

    /// Reads OpenMetrics text as a scraper does; fails on what it would refuse.
    pub(in crate::admin) fn parse(text: &str) -> Vec<Sample> {
        let body = text.strip_suffix("# EOF\n").expect("it ends with # EOF");
        let (mut families, mut samples, mut seen) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
        for line in body.split_terminator('\n') {
            if let Some(family) = line.strip_prefix("# TYPE ") {
                let (name, kind) = family.split_once(' ').unwrap();
                assert_eq!(families.insert(name.to_string(), kind.to_string()), None, "{name} stands twice");
            } else if !line.starts_with("# HELP ") {
                let (series, value) = line.rsplit_once(' ').unwrap();
                assert!(seen.insert(series), "{series} stands twice");
                let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
                assert!(
                    families.iter().any(|(family, kind)| belongs(name, family, kind)),
                    "{name} has no type"
                );
                samples.push((name.into(), self::labels(labels), value.parse().unwrap()));
            }
        }
        samples
    }

    fn belongs(name: &str, family: &str, kind: &str) -> bool {
        let suffixes: &[&str] = match kind {
            "counter" => &["_total"],
            "info" => &["_info"],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        name.strip_prefix(family).is_some_and(|suffix| suffixes.contains(&suffix))
    }

    /// Reads `name="value",…}` with its escapes.
    fn labels(mut text: &str) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        while let Some((name, rest)) = text.split_once("=\"") {
            let (mut value, mut chars) = (String::new(), rest.char_indices());
            text = loop {
                match chars.next().expect("a value ends with a quote") {
                    (at, '"') => break rest[at + 1..].trim_start_matches(','),
                    (_, '\\') => value.push(match chars.next().unwrap().1 {
                        'n' => '\n',
                        other => other,
                    }),
                    (_, other) => value.push(other),
                }
            };
            labels.insert(name.to_string(), value);
        }
        assert_eq!(text, "}");
        labels
    }

    fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted: BTreeMap<_, _> =
            labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        samples.iter().find(|sample| sample.0 == name && sample.1 == wanted).map(|sample| sample.2)
    }

    fn scrape(board: &Board) -> Vec<Sample> {
        parse(&Metrics::new(board.clone()).text())
    }

    #[test]
    fn every_name_is_written_as_the_table_has_it() {
        let mut app = report("app");
        app.status.filter = Some(FilterStatus {
            module: "redact".into(),
            digest: "sha256:3f".into(),
            state: FilterState::Applied,
            stats: FilterStats { memory_max: 7, ..FilterStats::default() },
            ..FilterStatus::default()
        });
        app.figures.filter = FilterStats {
            lines: 10,
            kept: 4,
            dropped: 3,
            replaced: 1,
            refused: [("set-aside".to_string(), 1), ("size".to_string(), 1)].into(),
            line_seconds: [10, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ..FilterStats::default()
        };
        app.figures.shadow = Some(ShadowTally { same: 1, ..ShadowTally::default() });
        app.figures.module_counts = [("masked".to_string(), 3)].into();
        app.figures.delivery_errors = [("MSG_SIZE_TOO_LARGE".to_string(), 4)].into();
        let samples = scrape(&board(&[app]));
        for metric in METRICS {
            let written =
                |suffix| samples.iter().any(|sample| sample.0 == format!("{}{suffix}", metric.name));
            assert!(
                written("") || (written("_bucket") && written("_sum") && written("_count")),
                "{}",
                metric.name
            );
        }
        let one = |name, labels: &[(&str, &str)]| value(&samples, name, labels);
        let module = [("entry", "app"), ("tag", "redact"), ("digest", "sha256:3f")];
        assert_eq!(one("weir_module_info", &module), Some(1.0));
        assert_eq!(one("weir_module_count_total", &[("entry", "app"), ("name", "masked")]), Some(3.0));
        assert_eq!(one("weir_filter_errors_total", &[("entry", "app"), ("kind", "trap")]), Some(0.0));
        assert_eq!(one("weir_filter_errors_total", &[("entry", "app"), ("kind", "size")]), Some(1.0));
        assert_eq!(one("weir_filter_errors_total", &[("entry", "app"), ("kind", "set-aside")]), None);
        let lines = |result| one("weir_filter_lines_total", &[("entry", "app"), ("result", result)]);
        let results = ["kept", "dropped", "replaced", "set_aside", "failed"];
        assert_eq!(results.map(lines), [4.0, 3.0, 1.0, 1.0, 1.0].map(Some));
        assert_eq!(one("weir_filter_memory_bytes", &[("entry", "app")]), Some(7.0));
        assert_eq!(one("weir_filter_line_seconds_count", &[("entry", "app")]), Some(10.0));
        assert_eq!(one("weir_lost_bytes_total", &[("entry", "app"), ("reason", "truncated")]), Some(0.0));
        let errors = [("entry", "app"), ("kind", "MSG_SIZE_TOO_LARGE")];
        assert_eq!(one("weir_delivery_errors_total", &errors), Some(4.0));
        assert_eq!(one("weir_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), Some(1.0));
    }

    #[test]
    fn buckets_of_the_histogram_are_cumulative() {
        let mut app = report("app");
        app.status.filter = Some(FilterStatus::default());
        app.figures.filter_seconds[0] = 5;
        app.figures.filter_seconds[2] = 3;
        app.figures.filter_seconds[FILTER_SECONDS_BUCKETS.len()] = 1;
        app.figures.filter_seconds_sum = 4.5;
        let samples = scrape(&board(&[app]));
        let bucket = |le| value(&samples, "weir_filter_seconds_bucket", &[("entry", "app"), ("le", le)]);
        assert_eq!([bucket("0.0001"), bucket("0.0003"), bucket("0.001")], [Some(5.0), Some(5.0), Some(8.0)]);
        assert_eq!([bucket("1.0"), bucket("+Inf")], [Some(8.0), Some(9.0)]);
        assert_eq!(value(&samples, "weir_filter_seconds_count", &[("entry", "app")]), Some(9.0));
        assert_eq!(value(&samples, "weir_filter_seconds_sum", &[("entry", "app")]), Some(4.5));
    }

    #[test]
    fn what_the_agent_recovered_from_is_counted_by_cause() {
        let board = board(&[report("app")]);
        board.set_figures(|| AgentFigures {
            producer_rebuilds: [("fatal", 2)].into(),
            state_errors: [("write", 3)].into(),
            quarantine: Some(Room { used: 5, limit: 9 }),
            ..AgentFigures::default()
        });
        board.count_breakdown(&EntryName("app".into()));
        board.count_breakdown(&EntryName("gone".into()));
        let samples = scrape(&board);
        let one = |name, labels: &[(&str, &str)]| value(&samples, name, labels);
        assert_eq!(one("weir_producer_rebuilds_total", &[("cause", "fatal")]), Some(2.0));
        assert_eq!(one("weir_producer_rebuilds_total", &[("cause", "orphans")]), Some(0.0));
        assert_eq!(one("weir_state_errors_total", &[("kind", "write")]), Some(3.0));
        assert_eq!(one("weir_rewinds_total", &[("entry", "app"), ("reason", "breakdown")]), Some(1.0));
        assert_eq!(one("weir_quarantine_bytes", &[]), Some(5.0));
        assert_eq!(one("weir_quarantine_limit_bytes", &[]), Some(9.0));
    }

    #[test]
    fn an_entry_without_a_filter_has_no_series_of_filters() {
        let text = Metrics::new(board(&[report("app")])).text();
        assert!(
            !text.contains("weir_filter_seconds_bucket") && !text.contains("weir_module_swaps_total{"),
            "{text}"
        );
    }

    #[test]
    fn the_revision_of_the_list_is_shown_before_and_after_one_is_applied() {
        let board = Board::new("web1");
        assert_eq!(value(&scrape(&board), "weir_list_revision", &[]), Some(0.0));
        board.set_list(ListStatus { revision: 42, ..ListStatus::default() }, vec![], vec![]);
        assert_eq!(value(&scrape(&board), "weir_list_revision", &[]), Some(42.0));
    }

    /// Whether the sums of the entry hold, and how many lines were read.
    pub(in crate::admin) fn sums(samples: &[Sample], entry: &str) -> (bool, f64) {
        let of = |name: &str| value(samples, &format!("weir_lines_{name}"), &[("entry", entry)]).unwrap();
        let ends =
            ["delivered_total", "filtered_total", "skipped_total", "quarantined_total", "discarded_total"];
        let sum: f64 = ends.into_iter().chain(["in_flight"]).map(of).sum();
        (of("read_total") == sum, of("read_total"))
    }

    #[test]
    fn the_sums_hold_in_every_scrape_while_lines_flow() {
        let board = board(&[report("app")]);
        let slot: Arc<Mutex<EntryReport>> = board.entry(&EntryName("app".into()), || report("app"));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 1.. {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let lines =
                        Lines { read: 7 * n, delivered: 2 * n, filtered: n, skipped: n, ..Lines::default() };
                    slot.lock().unwrap().status.lines =
                        Lines { quarantined: n, discarded: n, in_flight: n, ..lines };
                }
            });
            // Enough scrapes with lines flowing between them. The writer must end before this fails.
            let (mut last, mut steps) = (0.0, 0);
            let held = loop {
                let (hold, read) = sums(&scrape(&board), "app");
                steps += u32::from(read > last);
                if !hold || read < last || steps > 100 {
                    break hold && read >= last;
                }
                last = read;
            };
            done.store(true, Ordering::Relaxed);
            assert!(held);
        });
    }

    proptest! {
        #[test]
        fn any_name_and_count_comes_back_as_it_was(
            name in "[\\PC\\\\\"\n\r{},=]{1,40}",
            count in 0..=1_u64 << 53,
        ) {
            let mut report = report(&name);
            report.status.lines = Lines { read: count, delivered: count, ..Lines::default() };
            let samples = scrape(&board(&[report]));
            let read = value(&samples, "weir_lines_read_total", &[("entry", &name)]);
            prop_assert_eq!(read, Some(count as f64));
        }
    }

    #[test]
    fn the_reference_in_docs_is_what_the_table_says() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        if std::env::var_os("WEIR_WRITE_DOCS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, reference()).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(written == reference(), "docs/metrics.md is old: run this test with WEIR_WRITE_DOCS=1");
    }

    fn reference() -> String {
        let mut page = "# Metrics\n\n\
            What `weir` shows at `/metrics`, in the OpenMetrics text format. Counters begin at 0 when the agent\n\
            starts. `entry` is the only label without a bound. All series of an entry in one answer come from one\n\
            moment between two chunks, so that\n\n\
            ```\nread = delivered + filtered + skipped + quarantined + discarded + in flight\n```\n\n\
            holds in each of them. A test compares this page with the code; with `WEIR_WRITE_DOCS=1` it writes\n\
            the page.\n\n\
            | metric | type | labels | meaning |\n|---|---|---|---|\n"
            .to_string();
        for metric in METRICS {
            let labels =
                metric.labels().iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
            let kind = metric.family().1.as_str().to_string();
            page += &format!("| `{}` | {kind} | {labels} | {} |\n", metric.name, metric.help);
        }
        page
    }

    impl Metric {
        fn labels(&self) -> Vec<&'static str> {
            match self.values {
                Counter(_) | Gauge(_) | FilterCounter(_) | FilterGauge(_) | FilterSeconds | LineSeconds => {
                    vec!["entry"]
                }
                Counters(label, _) => vec!["entry", label],
                Module => vec!["entry", "tag", "digest"],
                Agent(label, _) => vec![label],
                AgentGauge(_) | Revision => vec![],
                Build => vec!["version"],
            }
        }
    }
}
