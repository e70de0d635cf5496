//! What `/metrics` says, as numbers.

use std::collections::BTreeMap;

/// One reading of `/metrics`: `name{labels}` as written, and the value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(pub BTreeMap<String, f64>);

impl Metrics {
    /// Reads the text form of Prometheus or OpenMetrics.
    pub fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let split = samples.filter_map(|line| {
            // A label's value may hold blanks; what follows the last brace may be `value timestamp`.
            let cut = line.rfind('}').map_or_else(|| line.find(' '), |brace| Some(brace + 1))?;
            let value = line[cut..].split_whitespace().next()?.parse().ok()?;
            Some((line[..cut].trim().to_owned(), value))
        });
        Self(split.collect())
    }

    /// The sum of all samples of `name` that carry each of `labels`, e.g. `[("entry", "app")]`.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect::<Vec<_>>();
        let of_name = self.0.iter().filter(|(key, _)| key.split('{').next() == Some(name));
        of_name
            .filter(|(key, _)| wanted.iter().all(|label| key.contains(label)))
            .map(|(_, value)| value)
            .sum()
    }

    /// Whether there is any sample of `name`.
    pub fn has(&self, name: &str) -> bool {
        self.0.keys().any(|key| key.split('{').next() == Some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_and_summed_by_label() {
        let text = "# TYPE a counter\na_total{entry=\"x y\",kind=\"p\"} 3\na_total{entry=\"x y\",kind=\"q\"} 4.5\n\
                    a_total{entry=\"z\"} 1 1700000000\nup 1\n# EOF\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.sum("a_total", &[("entry", "x y")]), 7.5);
        assert_eq!(metrics.sum("a_total", &[("entry", "x y"), ("kind", "q")]), 4.5);
        assert_eq!(metrics.sum("a_total", &[]), 8.5);
        assert!(metrics.has("up") && !metrics.has("a"));
    }
}
