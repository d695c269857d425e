//! What interleaved rounds say: paired ratios, their spread, and a verdict that does not overclaim.
//!
//! Pure. Ratios have no unit; a ratio of a pair is (with steering) / (without), both measured
//! within seconds of each other, so that what drifts over minutes cancels.

use serde::Serialize;

/// Median and the range that holds the middle 80 % of the samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// 10th percentile.
    pub p10: f64,
    /// 50th percentile.
    pub median: f64,
    /// 90th percentile.
    pub p90: f64,
}

impl Spread {
    /// `None` without samples, or when one is not a number.
    pub fn of(samples: &[f64]) -> Option<Self> {
        if samples.is_empty() || samples.iter().any(|sample| sample.is_nan()) {
            return None;
        }
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let [p10, median, p90] = [0.1, 0.5, 0.9].map(|fraction| quantile(&sorted, fraction));
        Some(Self { p10, median, p90 })
    }
}

/// Linear interpolation between the closest ranks; `sorted` is not empty.
fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let rank = fraction * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    low + (high - low) * rank.fract()
}

/// What the pairs say about a figure of which more is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// More with steering.
    Helps,
    /// Less with steering.
    Hurts,
    /// The rounds differ among themselves as much as the two modes do.
    CannotTell,
}

/// Chance, beyond which a one-sided row of pairs is not called a difference.
const SIGNIFICANCE: f64 = 0.05;

impl Verdict {
    /// A difference is called one only when both hold: p10..p90 of the ratios lies on one side of
    /// 1, and so many pairs on one side would come by chance in fewer than 1 of 20 such runs. With
    /// fewer than 6 pairs the second never holds.
    pub fn of(ratios: &[f64]) -> Self {
        let Some(spread) = Spread::of(ratios) else {
            return Self::CannotTell;
        };
        if sign_test(ratios) >= SIGNIFICANCE {
            Self::CannotTell
        } else if spread.p10 > 1.0 {
            Self::Helps
        } else if spread.p90 < 1.0 {
            Self::Hurts
        } else {
            Self::CannotTell
        }
    }
}

/// Two-sided sign test: the chance of a split at least this uneven when either side is as likely.
/// Ratios of exactly 1 say nothing and are left out.
pub fn sign_test(ratios: &[f64]) -> f64 {
    let above = ratios.iter().filter(|ratio| **ratio > 1.0).count();
    let below = ratios.iter().filter(|ratio| **ratio < 1.0).count();
    let (pairs, rarer) = (above + below, above.min(below));
    // Binomial terms C(pairs, k) / 2^pairs, each from the one before; scaled at the end in log
    // space so that thousands of pairs do not overflow.
    let mut log_term = -(pairs as f64) * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for k in 0..=rarer {
        tail += log_term.exp();
        log_term += ((pairs - k) as f64).ln() - ((k + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(left: f64, right: f64) -> bool {
        (left - right).abs() < 1e-9
    }

    #[test]
    fn spread_of_known_samples() {
        let ten: Vec<f64> = (1..=11).rev().map(f64::from).collect();
        assert_eq!(Spread::of(&ten), Some(Spread { p10: 2.0, median: 6.0, p90: 10.0 }));
        let two = Spread::of(&[3.0, 1.0]).unwrap();
        assert!(close(two.p10, 1.2) && close(two.median, 2.0) && close(two.p90, 2.8), "{two:?}");
        assert_eq!(Spread::of(&[7.0]), Some(Spread { p10: 7.0, median: 7.0, p90: 7.0 }));
    }

    #[test]
    fn no_samples_have_no_spread() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[1.0, f64::NAN]), None);
        assert_eq!(Verdict::of(&[]), Verdict::CannotTell);
    }

    #[test]
    fn sign_test_agrees_with_the_tables() {
        for (above, below, chance) in
            [(6, 0, 0.03125), (0, 6, 0.03125), (5, 0, 0.0625), (9, 1, 22.0 / 1024.0), (5, 5, 1.0)]
        {
            let mut ratios = vec![1.1; above];
            ratios.extend(vec![0.9; below]);
            assert!(
                close(sign_test(&ratios), chance),
                "{above} of {}: {}",
                above + below,
                sign_test(&ratios)
            );
        }
        assert!(close(sign_test(&[]), 1.0));
        assert!(close(sign_test(&[1.0; 50]), 1.0), "ties say nothing");
        let many = [vec![1.1; 3000], vec![0.9; 2000]].concat();
        assert!(sign_test(&many) < 1e-6 && sign_test(&many) >= 0.0);
    }

    #[test]
    fn verdict_needs_one_side_and_enough_pairs() {
        assert_eq!(Verdict::of(&[1.08; 10]), Verdict::Helps);
        assert_eq!(Verdict::of(&[0.9; 10]), Verdict::Hurts);
        assert_eq!(Verdict::of(&[1.5; 5]), Verdict::CannotTell, "five pairs are too few");
        assert_eq!(Verdict::of(&[1.0; 10]), Verdict::CannotTell);
        let noisy = [1.3, 0.9, 1.2, 0.95, 1.1, 0.8, 1.05, 0.99, 1.2, 1.01];
        assert_eq!(Verdict::of(&noisy), Verdict::CannotTell);
    }

    #[test]
    fn one_outlier_in_ten_does_not_hide_a_difference() {
        let mut ratios = vec![1.1; 19];
        ratios.push(0.5);
        assert_eq!(Verdict::of(&ratios), Verdict::Helps);
    }
}
