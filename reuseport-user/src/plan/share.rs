//! Whole entries for given weights.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Divides `entries` so that claim `i` gets as near to `entries * claims[i] / whole` as whole numbers
/// can be (largest remainder), and the claims that ask for anything at least one entry each.
///
/// `whole` must not be less than the sum of the claims; what they leave is left over. Where `entries`
/// times every claim is a multiple of `whole`, the result is exact. Otherwise each is off by less
/// than one, and by more only so far as it pays for others' one entry. There must be as many entries
/// as claims.
pub(super) fn apportion(claims: &[u64], whole: u64, entries: u32) -> Vec<u32> {
    debug_assert!(claims.len() <= entries as usize, "an entry for each");
    let (whole, all) = (i128::from(whole), i128::from(entries));
    let claimed: i128 = claims.iter().map(|claim| i128::from(*claim)).sum();
    // Their part together, rounded to the nearest.
    let total = ((2 * claimed * all + whole) / (2 * whole)).max(claims.len() as i128);
    let mut given: Vec<i128> =
        claims.iter().map(|claim| (i128::from(*claim) * all / whole).max(1)).collect();
    // By how much claim `i` has more than its due, in units of 1/whole entry.
    let excess = |i: usize, given: i128| given * whole - i128::from(claims[i]) * all;

    let sum: i128 = given.iter().sum();
    if sum < total {
        let mut heap: BinaryHeap<_> =
            given.iter().enumerate().map(|(i, n)| (Reverse(excess(i, *n)), Reverse(i))).collect();
        for _ in sum..total {
            let Some((_, Reverse(i))) = heap.pop() else {
                break;
            };
            given[i] += 1;
            heap.push((Reverse(excess(i, given[i])), Reverse(i)));
        }
    } else {
        let spare = |(i, n): (usize, &i128)| (*n > 1).then(|| (excess(i, *n), i));
        let mut heap: BinaryHeap<_> = given.iter().enumerate().filter_map(spare).collect();
        for _ in total..sum {
            let Some((_, i)) = heap.pop() else { break };
            given[i] -= 1;
            if given[i] > 1 {
                heap.push((excess(i, given[i]), i));
            }
        }
    }
    given.into_iter().map(|n| n as u32).collect()
}

/// The smallest number of entries that divides exactly by `claims`, each a part of `whole`.
pub(super) fn exact(claims: &[u64], whole: u64) -> u64 {
    whole / claims.iter().fold(whole, |divisor, claim| gcd(divisor, *claim))
}

pub(super) fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Least common multiple, as large as can be where it does not fit.
pub(super) fn lcm(a: u64, b: u64) -> u64 {
    (a / gcd(a, b)).saturating_mul(b)
}

/// Deals single entries to whoever has least for its weight.
#[derive(Clone, Debug, Default)]
pub(super) struct Dealer {
    heap: BinaryHeap<Reverse<(u64, usize)>>,
}

impl Dealer {
    /// Adds a player that has `given` entries already.
    pub(super) fn add(&mut self, player: usize, given: u64, weight: u64) {
        self.heap.push(Reverse((fill(given, weight), player)));
    }

    /// Who is next; `None` without players. The winner is out until it is [added](Self::add) again.
    pub(super) fn next(&mut self) -> Option<usize> {
        self.heap.pop().map(|Reverse((_, player))| player)
    }
}

/// How full a player of `weight` is with `given` entries, comparable between players.
pub(super) fn fill(given: u64, weight: u64) -> u64 {
    given.saturating_mul(1 << 24) / weight.max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn divides_by_weight() {
        for (claims, whole, entries, expected) in [
            (&[100][..], 100, 1, &[1][..]),
            (&[100, 100], 200, 2, &[1, 1]),
            (&[100, 100], 200, 3, &[2, 1]),
            (&[50], 100, 2, &[1]),
            (&[200, 100], 300, 6, &[4, 2]),
            (&[33], 100, 8, &[3]),
            (&[1, 1000], 1001, 2, &[1, 1]),
            (&[1, 1, 1, 97], 100, 8, &[1, 1, 1, 5]),
        ] {
            assert_eq!(apportion(claims, whole, entries), expected, "{claims:?} of {whole}");
        }
    }

    #[test]
    fn knows_the_exact_denominator() {
        assert_eq!(exact(&[100], 100), 1);
        assert_eq!(exact(&[50], 100), 2);
        assert_eq!(exact(&[100, 100, 100], 300), 3);
        assert_eq!(exact(&[200, 100], 300), 3);
        assert_eq!(exact(&[33], 100), 100);
    }

    proptest! {
        #[test]
        fn shares_are_whole_and_near(
            claims in prop::collection::vec(1u64..10_000, 1..40),
            rest in 0u64..1000,
            entries in 40u32..2000,
        ) {
            let whole = claims.iter().sum::<u64>() + rest;
            let given = apportion(&claims, whole, entries);
            prop_assert!(given.iter().all(|n| *n >= 1));
            prop_assert!(given.iter().sum::<u32>() <= entries);
            if rest == 0 {
                prop_assert_eq!(given.iter().sum::<u32>(), entries);
            }
            let due = |claim: u64| claim as f64 * f64::from(entries) / whole as f64;
            if claims.iter().all(|claim| due(*claim) >= 1.0) {
                for (claim, n) in claims.iter().zip(&given) {
                    prop_assert!((due(*claim) - f64::from(*n)).abs() < 1.0 + 1e-9);
                }
            }
        }

        #[test]
        fn exact_is_exact(claims in prop::collection::vec(1u64..300, 1..6)) {
            let whole = claims.iter().sum::<u64>().max(100);
            let entries = exact(&claims, whole);
            for (claim, n) in claims.iter().zip(apportion(&claims, whole, entries as u32)) {
                prop_assert_eq!(u64::from(n) * whole, claim * entries);
            }
        }
    }
}
