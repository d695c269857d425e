//! The library's statistics, for figures that a test or a benchmark is sure to have.

pub use reuseport_user::measure::{
    Estimate, Goal, Rng, Standing, Ticks, differences, exponential, quantile, ratios,
};

/// Of at least one figure.
pub fn estimate(figures: &[f64], rng: &mut Rng) -> Estimate {
    Estimate::of(figures, rng).expect("nothing was measured, or what is no number")
}
