//! What is left to chance, and can be had again from a seed.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use super::Rng;

/// A seed that nobody chose, for a run that was given none. Print it.
///
/// Below 2^53, so that a JSON reader that knows only floats keeps it whole.
pub fn draw_seed() -> u64 {
    RandomState::new().build_hasher().finish() >> 11
}

/// For each of `rounds`, all of `arms` in an order of its own: what drifts over minutes meets all of
/// them alike, and so does what one leaves to the next.
pub fn orders<T: Clone>(arms: &[T], rounds: usize, rng: &mut Rng) -> Vec<Vec<T>> {
    let mut order = || {
        let mut order = arms.to_vec();
        rng.shuffle(&mut order);
        order
    };
    (0..rounds).map(|_| order()).collect()
}

/// A number from the exponential distribution of mean 1: what lies between events that come at
/// random.
pub fn exponential(rng: &mut Rng) -> f64 {
    // `f64` is in [0, 1): its complement has a logarithm.
    -(1.0 - rng.f64()).ln()
}
