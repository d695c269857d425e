//! Measuring like a sceptic: interleaved in random order, compared in pairs, never without the
//! spread, and no verdict that chance could have given.
//!
//! Shared by `demo`, `experiment` and `bench`. Pure, but for [`Ticks`], which reads `/proc/stat`.
//! What is random follows from a seed that is printed:
//!
//! ```
//! use reuseport_user::measure::{Better, Comparison, Rng, Verdict, orders};
//!
//! let mut rng = Rng::with_seed(7);
//! // Two modes, eight rounds, each round both of them in random order.
//! let (mut hash, mut cpu) = (Vec::new(), Vec::new());
//! for order in orders(&["hash", "cpu"], 8, &mut rng) {
//!     for mode in order {
//!         let noise = 1.0 + 0.01 * rng.f64();
//!         if mode == "cpu" { cpu.push(1.1 * noise) } else { hash.push(noise) }
//!     }
//! }
//! let compared = Comparison::of(&hash, &cpu, Better::More, &mut rng)?;
//! assert_eq!(compared.verdict, Verdict::Helps);
//! # Ok::<(), reuseport_user::measure::NoFigures>(())
//! ```

mod compare;
mod goal;
mod random;
mod spread;
#[cfg(test)]
mod tests;
mod ticks;

pub use self::compare::{
    Better, Comparison, FEWEST_PAIRS, MATTERS, NoFigures, Verdict, differences, ratios, sign_test,
};
pub use self::goal::{Goal, Standing};
pub use self::random::{draw_seed, exponential, orders};
pub use self::spread::{Estimate, Interval, Spread, quantile};
pub use self::ticks::Ticks;

/// The generator that everything random here takes; `Rng::with_seed` starts it.
pub use fastrand::Rng;
