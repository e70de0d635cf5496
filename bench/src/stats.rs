//! What a few numbers say together.

use serde_json::{Value, json};

/// The figures of some rounds of the same thing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        Self(figures)
    }

    /// The middle one; of an even number, the mean of the two in the middle.
    pub(crate) fn median(&self) -> f64 {
        match self.0.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => self.0[n / 2],
            n => f64::midpoint(self.0[n / 2 - 1], self.0[n / 2]),
        }
    }

    /// The smallest figure that is not smaller than `part` of them.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        let at = (part * self.0.len() as f64).ceil() as usize;
        self.0.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    /// `median (smallest-largest)`, or what there is of that.
    pub(crate) fn cell(&self, decimals: usize) -> String {
        match self.0.as_slice() {
            [] => "-".into(),
            [one] => number(*one, decimals),
            all => format!(
                "{} ({}-{})",
                number(self.median(), decimals),
                number(all[0], decimals),
                number(all[all.len() - 1], decimals)
            ),
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({"median": self.median(), "all": self.0})
    }
}

/// With a comma at each thousand.
pub(crate) fn number(figure: f64, decimals: usize) -> String {
    let text = format!("{figure:.decimals$}");
    let whole = text.find('.').unwrap_or(text.len());
    let (digits, rest) = text.split_at(whole);
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) && digits.as_bytes()[i - 1].is_ascii_digit() {
            out.push(',');
        }
        out.push(digit);
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quantiles_are_figures_of_the_sample() {
        let sample = Sample::of([3.0, 1.0, 2.0]);
        assert_eq!((sample.median(), sample.quantile(0.99), sample.quantile(0.5)), (2.0, 3.0, 2.0));
        assert_eq!(Sample::of([4.0, 1.0]).median(), 2.5);
        assert_eq!((sample.cell(1), Sample::of([]).cell(1)), ("2.0 (1.0-3.0)".into(), "-".into()));
    }

    #[test]
    fn a_large_number_has_commas() {
        let text = |figure, decimals| number(figure, decimals);
        assert_eq!((text(1_234_567.0, 0), text(123.45, 1)), ("1,234,567".into(), "123.5".into()));
        assert_eq!((text(-1234.0, 0), text(999.0, 0)), ("-1,234".into(), "999".into()));
    }
}
