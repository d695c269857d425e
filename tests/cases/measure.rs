//! The benchmarks' statistics.

use reuseport_tests::measure::{Rng, Spread, Verdict, differences, quantile, ratios};

#[test]
fn quantiles_are_interpolated() {
    let figures = [1.0, 2.0, 3.0, 4.0];
    assert!((quantile(&figures, 0.0) - 1.0).abs() < 1e-12);
    assert!((quantile(&figures, 0.5) - 2.5).abs() < 1e-12);
    assert!((quantile(&figures, 1.0) - 4.0).abs() < 1e-12);
    assert!((quantile(&[7.0], 0.9) - 7.0).abs() < 1e-12);
}

#[test]
fn a_spread_encloses_its_median_and_is_reproducible() {
    let mut rng = Rng::new(1);
    let figures: Vec<f64> = (0..101).map(|_| 100.0 + rng.below(21) as f64).collect();
    let spread = Spread::of(&figures, &mut Rng::new(2));
    let (low, high) = spread.confidence;
    assert!(spread.p10 < low && low <= spread.median && spread.median <= high);
    assert!(high < spread.p90, "{spread}");
    assert_eq!(spread, Spread::of(&figures, &mut Rng::new(2)));
    assert_eq!(spread.below(115.0), Verdict::Met);
    assert_eq!(spread.below(105.0), Verdict::Missed);
    assert_eq!(spread.above(105.0), Verdict::Met);
    assert_eq!(spread.above(115.0), Verdict::Missed);
    let wide = Spread::of(&[1.0, 9.0], &mut Rng::new(3));
    assert_eq!((wide.below(5.0), wide.above(5.0)), (Verdict::Open, Verdict::Open));
}

#[test]
fn pairs_stay_pairs() {
    assert_eq!(ratios(&[2.0, 9.0], &[1.0, 3.0]), [2.0, 3.0]);
    assert_eq!(differences(&[2.0, 9.0], &[1.0, 3.0]), [1.0, 6.0]);
}

#[test]
fn every_order_comes_up() {
    let mut rng = Rng::new(4);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let mut items = [0, 1, 2];
        rng.shuffle(&mut items);
        seen.insert(items);
    }
    assert_eq!(seen.len(), 6);
}
