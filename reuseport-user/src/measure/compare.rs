//! Two modes, pair by pair: what both did within seconds of each other, so that what drifts over
//! minutes cancels.

use serde::{Deserialize, Serialize};

use super::{Estimate, Interval, Rng, Spread};

/// `numerator / denominator`, pair by pair.
pub fn ratios(numerators: &[f64], denominators: &[f64]) -> Vec<f64> {
    numerators.iter().zip(denominators).map(|(a, b)| a / b).collect()
}

/// `a - b`, pair by pair.
pub fn differences(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// Two-sided sign test: the chance of a split around `neutral` at least this uneven when either side
/// is as likely. What is exactly neutral says nothing and is left out.
pub fn sign_test(samples: &[f64], neutral: f64) -> f64 {
    let (above, below) = sides(samples, neutral);
    let (pairs, rarer) = (above + below, above.min(below));
    // Binomial terms C(pairs, k) / 2^pairs, each from the one before; in log space so that thousands
    // of pairs do not overflow.
    let mut log_term = -(pairs as f64) * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for k in 0..=rarer {
        tail += log_term.exp();
        log_term += ((pairs - k) as f64).ln() - ((k + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}

/// How many samples are above and below `neutral`.
fn sides(samples: &[f64], neutral: f64) -> (usize, usize) {
    let count = |is: fn(&f64, &f64) -> bool| samples.iter().filter(|it| is(it, &neutral)).count();
    (count(f64::gt), count(f64::lt))
}

/// Which way a figure should go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Connections per second.
    More,
    /// Latency.
    Less,
}

/// What the pairs say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Better than the baseline.
    Helps,
    /// Worse.
    Hurts,
    /// The rounds differ among themselves as much as the two modes do, or there are too few.
    CannotTell,
    /// Something stood in the way, and the figures say nothing.
    Inconclusive,
}

/// Fewer pairs than this never make a difference, however clear: one side is hit by chance too often.
pub const FEWEST_PAIRS: usize = 6;

/// A difference smaller than this share does not matter: to know that there is none bigger settles a
/// question too.
pub const MATTERS: f64 = 0.01;

/// Chance, beyond which a one-sided row of pairs is not called a difference.
const SIGNIFICANCE: f64 = 0.05;

/// How far beyond half the confidence interval an effect must be for 4 of 5 such runs to show it:
/// (1.96 + 0.84) / 1.96, normal quantiles of 97.5 and 80 %.
const POWER: f64 = 1.43;

/// More rounds than this are not worth a forecast.
const MOST_ROUNDS: f64 = 100_000.0;

/// There is nothing to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are no pairs of figures, or one of them is not a finite number")]
pub struct NoFigures;

/// A mode beside the baseline, for one figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The baseline's figures, in the figure's own unit.
    pub baseline: Spread,
    /// The mode's.
    pub value: Spread,
    /// Of each pair, mode / baseline. `None` where a figure is zero or below: ratios then mislead.
    pub ratio: Option<Estimate>,
    /// Of each pair, mode - baseline, in the figure's own unit.
    pub difference: Estimate,
    /// [`sign_test`] of the pairs.
    pub chance: f64,
    /// Pairs on the side where most are.
    #[serde(default)]
    pub agreeing: usize,
    /// What they say.
    pub verdict: Verdict,
    /// What stood in the way, where the verdict is [`Verdict::Inconclusive`].
    pub because: Option<String>,
    /// About how many more rounds would settle it, if all goes on like this: 0 where it is settled, by
    /// a verdict or because no difference as big as [`MATTERS`] is left; `None` where no number of
    /// rounds promises to.
    pub more_rounds: Option<u32>,
}

impl Comparison {
    /// Of figures of the same rounds, in the same order. A difference is called one only when both
    /// hold: the confidence interval of the median lies on one side, and so many pairs on one side
    /// come by chance in fewer than 1 of 20 such runs.
    pub fn of(
        baseline: &[f64],
        values: &[f64],
        better: Better,
        rng: &mut Rng,
    ) -> Result<Self, NoFigures> {
        let all = || baseline.iter().chain(values);
        if baseline.len() != values.len() || all().any(|it| !it.is_finite()) {
            return Err(NoFigures);
        }
        let of_differences = differences(values, baseline);
        let difference = Estimate::of(&of_differences, rng).ok_or(NoFigures)?;
        let [baseline_spread, value] = [baseline, values].map(Spread::of);
        let (baseline_spread, value) = baseline_spread.zip(value).ok_or(NoFigures)?;
        let positive = all().all(|&it| it > 0.0);
        let of_ratios = if positive { ratios(values, baseline) } else { Vec::new() };
        let ratio = Estimate::of(&of_ratios, rng);
        // Where there are ratios, on their logarithms: half and double are then equally far from 1.
        let (median, ci, margin) = if let Some(it) = &ratio {
            (it.median().ln(), it.ci95.map(f64::ln), MATTERS.ln_1p())
        } else {
            let margin = MATTERS * baseline_spread.median.abs();
            (difference.median(), difference.ci95, margin)
        };
        // A ratio is above 1 where the difference is above 0.
        let chance = sign_test(&of_differences, 0.0);
        let (above, below) = sides(&of_differences, 0.0);
        let agreeing = above.max(below);
        let verdict = if chance >= SIGNIFICANCE || ci.contains(0.0) {
            Verdict::CannotTell
        } else if (ci.low > 0.0) == (better == Better::More) {
            Verdict::Helps
        } else {
            Verdict::Hurts
        };
        let more_rounds = match verdict {
            Verdict::CannotTell if ci.contains(0.0) => {
                more_rounds(baseline.len(), median, ci, margin)
            }
            Verdict::CannotTell => more_signs(baseline.len(), agreeing),
            _ => Some(0),
        };
        Ok(Self {
            baseline: baseline_spread,
            value,
            ratio,
            difference,
            chance,
            agreeing,
            verdict,
            because: None,
            more_rounds,
        })
    }

    /// The same figures, which say nothing because of this.
    #[must_use]
    pub fn inconclusive(self, because: impl Into<String>) -> Self {
        let because = Some(because.into());
        Self { verdict: Verdict::Inconclusive, because, more_rounds: None, ..self }
    }

    /// In words that follow the mode's name: `helps: 5.1 % to 9.3 % more`.
    pub fn in_words(&self) -> String {
        let effect = match &self.ratio {
            Some(ratio) => Effect { ci: ratio.ci95.map(|it| (it - 1.0) * 100.0), unit: " %" },
            None => Effect { ci: self.difference.ci95, unit: "" },
        };
        match self.verdict {
            Verdict::Helps => format!("helps: {}", effect.one_sided()),
            Verdict::Hurts => format!("hurts: {}", effect.one_sided()),
            Verdict::CannotTell => {
                let outlook = match self.more_rounds {
                    Some(0) => format!(
                        "if there is a difference, it is below {} %, and more rounds are not worth it",
                        MATTERS * 100.0
                    ),
                    Some(1) => "about 1 more round would settle it".to_owned(),
                    Some(more) => format!("about {more} more rounds would settle it"),
                    None => "no number of rounds promises to settle it".to_owned(),
                };
                let found = if effect.ci.contains(0.0) {
                    effect.two_sided()
                } else {
                    format!(
                        "{} in the median, but {} of {} pairs agree on which way, as they do by chance \
                         in {:.0} % of such runs (sign test)",
                        effect.one_sided(),
                        self.agreeing,
                        self.difference.n,
                        self.chance * 100.0
                    )
                };
                format!("cannot be told apart: {found}; {outlook}")
            }
            Verdict::Inconclusive => {
                format!("inconclusive: {}", self.because.as_deref().unwrap_or("no reason is known"))
            }
        }
    }
}

/// An interval around no effect, for people.
struct Effect {
    ci: Interval,
    unit: &'static str,
}

impl Effect {
    /// `5.1 % to 9.3 % more`; for an interval on one side of 0.
    fn one_sided(&self) -> String {
        let Self { ci: Interval { low, high }, unit } = self;
        if *low > 0.0 {
            format!("{} to {}{unit} more", short(*low), short(*high))
        } else {
            format!("{} to {}{unit} less", short(-high), short(-low))
        }
    }

    /// `-2.1 to +3.3 %`.
    fn two_sided(&self) -> String {
        let Self { ci: Interval { low, high }, unit } = self;
        let signed = |it: f64| format!("{}{}", if it < 0.0 { "-" } else { "+" }, short(it.abs()));
        format!("{} to {}{unit}", signed(*low), signed(*high))
    }
}

/// As many digits as say something.
fn short(figure: f64) -> String {
    match figure {
        100.0.. => format!("{figure:.0}"),
        0.1.. | 0.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

/// The interval shrinks with the root of the number of rounds, if all goes on like this: how many it
/// takes until it leaves out 0, or until it is within the margin of it.
fn more_rounds(n: usize, median: f64, ci: Interval, margin: f64) -> Option<u32> {
    let half = (ci.high - ci.low) / 2.0;
    let within = -margin <= ci.low && ci.high <= margin;
    let fewest = FEWEST_PAIRS.saturating_sub(n);
    if within && fewest == 0 {
        return Some(0);
    }
    // The effect must exceed half the interval, or both together stay within the margin.
    let room = median.abs().max(margin - median.abs());
    let rounds = n as f64 * (POWER * half / room).powi(2);
    let more = (rounds - n as f64).ceil().max(1.0);
    (rounds <= MOST_ROUNDS).then(|| (more as u32).max(fewest as u32))
}

/// How many it takes until so many pairs on one side are no chance in 4 of 5 such runs, if all goes on
/// like this: the lead of that side grows with the number of rounds, its spread with the root of that.
fn more_signs(n: usize, agreeing: usize) -> Option<u32> {
    /// Normal quantiles of 97.5 and 80 %.
    const QUANTILES: [f64; 2] = [1.96, 0.84];
    let lead = 2.0 * agreeing as f64 / n as f64 - 1.0;
    let spread = (1.0 - lead * lead).sqrt();
    let rounds = ((QUANTILES[0] + QUANTILES[1] * spread) / lead).powi(2);
    let more = (rounds - n as f64).ceil().max(1.0);
    let fewest = FEWEST_PAIRS.saturating_sub(n) as u32;
    (rounds <= MOST_ROUNDS).then(|| (more as u32).max(fewest))
}
