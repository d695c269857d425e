//! Known samples, and what holds for all.

use std::collections::BTreeSet;

use proptest::prelude::*;

// Not the trait of that name in proptest's prelude.
use super::Rng;
use super::*;

fn close(left: f64, right: f64) -> bool {
    (left - right).abs() < 1e-9
}

/// Standard normal (Box-Muller).
fn normal(rng: &mut Rng) -> f64 {
    (2.0 * exponential(rng)).sqrt() * (std::f64::consts::TAU * rng.f64()).cos()
}

/// Figures around 1000 that drift over the rounds, both modes alike; the other one's times `effect`.
fn experiment(rounds: usize, noise: f64, effect: f64, rng: &mut Rng) -> (Vec<f64>, Vec<f64>) {
    let mut figure = |round: usize, effect: f64| {
        1000.0 * (1.0 + round as f64 / 50.0) * effect * (noise * normal(rng)).exp()
    };
    (0..rounds).map(|round| (figure(round, 1.0), figure(round, effect))).unzip()
}

fn compare(baseline: &[f64], values: &[f64]) -> Comparison {
    Comparison::of(baseline, values, Better::More, &mut Rng::with_seed(1)).unwrap()
}

/// The same baseline throughout.
fn of_ratios(ratios: &[f64]) -> Comparison {
    compare(&vec![1.0; ratios.len()], ratios)
}

#[test]
fn spread_of_known_samples() {
    let eleven: Vec<f64> = (1..=11).rev().map(f64::from).collect();
    assert_eq!(Spread::of(&eleven), Some(Spread { p10: 2.0, median: 6.0, p90: 10.0 }));
    let two = Spread::of(&[3.0, 1.0]).unwrap();
    assert!(close(two.p10, 1.2) && close(two.median, 2.0) && close(two.p90, 2.8), "{two:?}");
    assert_eq!(Spread::of(&[7.0]), Some(Spread { p10: 7.0, median: 7.0, p90: 7.0 }));
    assert_eq!(Spread::of(&[]), None);
    assert_eq!(Spread::of(&[1.0, f64::NAN]), None);
}

#[test]
fn quantiles_are_interpolated() {
    let figures = [1.0, 2.0, 3.0, 4.0];
    for (fraction, quantile_is) in [(0.0, 1.0), (0.5, 2.5), (1.0, 4.0)] {
        assert!(close(quantile(&figures, fraction), quantile_is));
    }
    assert!(close(quantile(&[7.0], 0.9), 7.0));
}

#[test]
fn an_estimate_encloses_its_median_and_is_reproducible() {
    let mut rng = Rng::with_seed(1);
    let figures: Vec<f64> = (0..101).map(|_| 100.0 + rng.usize(..21) as f64).collect();
    let estimate = Estimate::of(&figures, &mut Rng::with_seed(2)).unwrap();
    let Spread { p10, median, p90 } = estimate.spread;
    assert!(p10 < estimate.ci95.low && estimate.ci95.contains(median), "{estimate}");
    assert!(estimate.ci95.high < p90, "{estimate}");
    assert_eq!(Some(estimate), Estimate::of(&figures, &mut Rng::with_seed(2)));
    for (goal, standing) in [
        (Goal::AtMost(115.0), Standing::Met),
        (Goal::AtMost(105.0), Standing::Missed),
        (Goal::AtLeast(105.0), Standing::Met),
        (Goal::AtLeast(115.0), Standing::Missed),
        (Goal::Between(105.0, 115.0), Standing::Met),
        (Goal::Between(111.0, 115.0), Standing::Open),
        (Goal::Between(115.0, 116.0), Standing::Missed),
    ] {
        assert_eq!(goal.judge(estimate.ci95), standing, "{goal}: {estimate}");
    }
    let wide = Estimate::of(&[1.0, 9.0], &mut Rng::with_seed(3)).unwrap();
    for goal in [Goal::AtMost(5.0), Goal::AtLeast(5.0)] {
        assert_eq!(goal.judge(wide.ci95), Standing::Open);
    }
    let text = serde_json::to_string(&wide).unwrap();
    assert_eq!(text, r#"{"n":2,"p10":1.8,"median":5.0,"p90":8.2,"ci95":[1.0,9.0]}"#);
    assert_eq!(serde_json::from_str::<Estimate>(&text).unwrap(), wide);
}

#[test]
fn sign_test_agrees_with_the_tables() {
    for (above, below, chance) in
        [(6, 0, 0.03125), (0, 6, 0.03125), (5, 0, 0.0625), (9, 1, 22.0 / 1024.0), (5, 5, 1.0)]
    {
        let ratios = [vec![1.1; above], vec![0.9; below]].concat();
        assert!(close(sign_test(&ratios, 1.0), chance), "{above} of {}", above + below);
    }
    assert!(close(sign_test(&[], 1.0), 1.0));
    assert!(close(sign_test(&[1.0; 50], 1.0), 1.0), "ties say nothing");
    let many = [vec![1.1; 3000], vec![0.9; 2000]].concat();
    assert!(sign_test(&many, 1.0) < 1e-6 && sign_test(&many, 1.0) >= 0.0);
}

#[test]
fn pairs_stay_pairs() {
    assert_eq!(ratios(&[2.0, 9.0], &[1.0, 3.0]), [2.0, 3.0]);
    assert_eq!(differences(&[2.0, 9.0], &[1.0, 3.0]), [1.0, 6.0]);
}

#[test]
fn a_verdict_needs_one_side_and_enough_pairs() {
    let verdict = |ratios: &[f64]| of_ratios(ratios).verdict;
    assert_eq!(verdict(&[1.08; 10]), Verdict::Helps);
    assert_eq!(verdict(&[0.9; FEWEST_PAIRS]), Verdict::Hurts);
    assert_eq!(verdict(&[1.5; FEWEST_PAIRS - 1]), Verdict::CannotTell, "too few");
    assert_eq!(of_ratios(&[1.5; FEWEST_PAIRS - 1]).more_rounds, Some(1));
    assert_eq!(verdict(&[1.0; 10]), Verdict::CannotTell);
    let noisy = [1.3, 0.9, 1.2, 0.95, 1.1, 0.8, 1.05, 0.99, 1.2, 1.01];
    assert_eq!(verdict(&noisy), Verdict::CannotTell);
    let one_outlier = [vec![1.1; 19], vec![0.5]].concat();
    assert_eq!(verdict(&one_outlier), Verdict::Helps);
}

#[test]
fn less_can_be_better() {
    let of = |better| {
        let compared = Comparison::of(&[100.0; 8], &[90.0; 8], better, &mut Rng::with_seed(1));
        compared.unwrap()
    };
    assert_eq!(of(Better::Less).verdict, Verdict::Helps);
    assert_eq!(of(Better::Less).in_words(), "helps: 10.0 to 10.0 % less");
    assert_eq!(of(Better::More).verdict, Verdict::Hurts);
    assert_eq!(of(Better::More).in_words(), "hurts: 10.0 to 10.0 % less");
}

#[test]
fn where_there_is_nothing_to_divide_by_differences_decide() {
    let compared = compare(&[0.0; 8], &[2.0; 8]);
    assert_eq!((compared.ratio, compared.verdict), (None, Verdict::Helps));
    assert_eq!(compared.in_words(), "helps: 2.0 to 2.0 more");
    let same = compare(&[0.0; 8], &[0.0; 8]);
    assert_eq!((same.verdict, same.more_rounds), (Verdict::CannotTell, Some(0)));
    let either = compare(&[0.0; 8], &[1.0, -1.0, 2.0, -2.0, 1.0, -1.0, 0.5, -0.5]);
    assert_eq!((either.verdict, either.more_rounds), (Verdict::CannotTell, None));
}

#[test]
fn what_is_no_figure_is_refused() {
    let mut rng = Rng::with_seed(1);
    for (baseline, values) in
        [(&[][..], &[][..]), (&[1.0], &[]), (&[1.0], &[f64::NAN]), (&[f64::INFINITY], &[1.0])]
    {
        let compared = Comparison::of(baseline, values, Better::More, &mut rng);
        assert_eq!(compared, Err(NoFigures), "{baseline:?} {values:?}");
    }
}

#[test]
fn a_hindrance_takes_the_verdict_back() {
    let compared = of_ratios(&[1.25; 10]).inconclusive("the load failed");
    assert_eq!((compared.verdict, compared.more_rounds), (Verdict::Inconclusive, None));
    assert_eq!(compared.in_words(), "inconclusive: the load failed");
    let text = serde_json::to_string(&compared).unwrap();
    assert_eq!(serde_json::from_str::<Comparison>(&text).unwrap(), compared);
}

#[test]
fn a_bound_settles_too() {
    let tiny = of_ratios(&[1.001, 0.999, 1.002, 0.998, 1.001, 0.999, 1.0, 1.0]);
    assert_eq!((tiny.verdict, tiny.more_rounds), (Verdict::CannotTell, Some(0)));
    assert!(tiny.in_words().contains("below 1 %"), "{}", tiny.in_words());
}

/// 95 of 100 intervals hold the truth, and fewer than 5 of 100 such runs see what is not there.
#[test]
fn a_against_a_is_not_told_apart() {
    const RUNS: usize = 300;
    let mut rng = Rng::with_seed(42);
    for rounds in [10, 20] {
        let (mut covered, mut wrong) = (0, 0);
        for _ in 0..RUNS {
            let (baseline, values) = experiment(rounds, 0.05, 1.0, &mut rng);
            let compared = Comparison::of(&baseline, &values, Better::More, &mut rng).unwrap();
            covered += usize::from(compared.ratio.unwrap().ci95.contains(1.0));
            wrong += usize::from(compared.verdict != Verdict::CannotTell);
        }
        let [covered, wrong] = [covered, wrong].map(|it| 100 * it / RUNS);
        assert!((91..=99).contains(&covered), "{rounds} rounds: {covered} % hold the truth");
        assert!(wrong <= 5, "{rounds} rounds: {wrong} % false alarms");
    }
}

#[test]
fn a_real_tenth_is_found_and_put_in_figures() {
    const RUNS: usize = 100;
    let mut rng = Rng::with_seed(43);
    let (mut found, mut covered) = (0, 0);
    for _ in 0..RUNS {
        let (baseline, values) = experiment(20, 0.05, 1.1, &mut rng);
        let compared = Comparison::of(&baseline, &values, Better::More, &mut rng).unwrap();
        found += usize::from(compared.verdict == Verdict::Helps);
        covered += usize::from(compared.ratio.unwrap().ci95.contains(1.1));
    }
    assert!(found >= 98, "{found} of {RUNS} found");
    assert!(covered >= 90, "{covered} of {RUNS} intervals hold 1.1");
}

/// As many more rounds like those that were as are forecast give an answer.
#[test]
fn the_forecast_of_rounds_settles_it() {
    let noisy = [1.3, 0.9, 1.2, 0.95, 1.1, 0.8, 1.05, 0.99, 1.2, 1.01];
    let slower = noisy.map(|ratio| 1.0 / ratio);
    let nothing = [1.03, 0.97, 1.02, 0.98, 1.01, 0.99, 1.0, 1.0];
    for (ratios, verdict) in [
        (&noisy[..], Verdict::Helps),
        (&slower[..], Verdict::Hurts),
        (&nothing[..], Verdict::CannotTell),
    ] {
        let open = of_ratios(ratios);
        assert_eq!(open.verdict, Verdict::CannotTell);
        let more = open.more_rounds.unwrap() as usize;
        assert!((1..1000).contains(&more), "{more} more rounds");
        let all: Vec<f64> = ratios.iter().copied().cycle().take(ratios.len() + more).collect();
        let then = of_ratios(&all);
        assert_eq!(then.verdict, verdict, "after {more} more");
        assert!(then.more_rounds <= Some(more as u32 / 10), "after {more} more: {then:?}");
    }
}

/// The interval alone makes no difference, and the words say what stands against it.
#[test]
fn what_only_the_signs_leave_open_is_said() {
    let ratios = [3.2, 2.5, 2.0, 1.8, 1.5, 1.3, 1.2, 0.8];
    let open = of_ratios(&ratios);
    assert_eq!((open.verdict, open.agreeing), (Verdict::CannotTell, 7));
    assert!(open.ratio.as_ref().unwrap().ci95.low > 1.0, "{open:?}");
    let words = open.in_words();
    let found =
        "% more in the median, but 7 of 8 pairs agree on which way, as they do by chance in 7 % of";
    assert!(words.contains(found), "{words}");
    let more = open.more_rounds.unwrap() as usize;
    assert!(words.ends_with(&format!("about {more} more rounds would settle it")), "{words}");
    let all: Vec<f64> = ratios.iter().copied().cycle().take(ratios.len() + more).collect();
    assert_eq!(of_ratios(&all).verdict, Verdict::Helps, "after {more} more");
}

#[test]
fn every_order_comes_up_and_a_seed_repeats_it() {
    let all = orders(&[0, 1, 2], 200, &mut Rng::with_seed(4));
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 6);
    assert_eq!(all, orders(&[0, 1, 2], 200, &mut Rng::with_seed(4)));
    assert_ne!(all, orders(&[0, 1, 2], 200, &mut Rng::with_seed(5)));
    assert!(draw_seed() < 1 << 53);
}

#[test]
fn what_lies_between_random_events_has_the_mean_and_the_median_it_should() {
    let mut rng = Rng::with_seed(6);
    let mut gaps: Vec<f64> = (0..20_000).map(|_| exponential(&mut rng)).collect();
    gaps.sort_unstable_by(f64::total_cmp);
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    assert!((mean - 1.0).abs() < 0.03, "{mean}");
    assert!((quantile(&gaps, 0.5) - std::f64::consts::LN_2).abs() < 0.03);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whichever unit a figure is in, and whichever mode is called the baseline.
    #[test]
    fn a_verdict_depends_on_neither_unit_nor_side(
        seed: u64, rounds in 1usize..30, effect in 0.7f64..1.4, unit in 1e-6f64..1e6,
    ) {
        let (baseline, values) = experiment(rounds, 0.05, effect, &mut Rng::with_seed(seed));
        let of = |a: &[f64], b: &[f64]| {
            Comparison::of(a, b, Better::More, &mut Rng::with_seed(seed)).unwrap()
        };
        let it = of(&baseline, &values);
        let scale = |figures: &[f64]| figures.iter().map(|it| it * unit).collect::<Vec<_>>();
        prop_assert_eq!(of(&scale(&baseline), &scale(&values)).verdict, it.verdict);
        let ratio = it.ratio.unwrap();
        prop_assert!(ratio.ci95.contains(ratio.median()));
        prop_assert!(ratio.spread.p10 <= ratio.median() && ratio.median() <= ratio.spread.p90);
        let turned = match it.verdict {
            Verdict::Helps => Verdict::Hurts,
            Verdict::Hurts => Verdict::Helps,
            same => same,
        };
        // The resampling differs; only a clear case must turn.
        if (effect.ln() / 0.05).abs() > 2.0 && rounds >= 20 {
            prop_assert_eq!(of(&values, &baseline).verdict, turned);
        }
        prop_assert!(!it.in_words().is_empty());
        prop_assert_eq!(
            it.more_rounds == Some(0),
            it.verdict != Verdict::CannotTell || it.in_words().contains("not worth it")
        );
    }
}
