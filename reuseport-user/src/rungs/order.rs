//! The order in which the kernel keeps a group's members, which a classic program's numbers mean.
//!
//! Who begins to listen is appended; when one leaves, the last moves into the gap. Both are certain,
//! but nobody can ask for the order, and one who looks only now and then does not see in which order
//! several changes happened, nor who came and left in between. So the order is kept for as long as
//! what is seen allows only one, and is unknown otherwise.

use super::Place;

/// Why the order is not known any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OrderError {
    /// Nobody ever noted one.
    #[error("nobody noted in which order the listeners began to listen")]
    NeverKnown,
    /// Several changes, whose order matters.
    #[error(
        "{left} left and {joined} joined since the order was noted, so that it is not known any more; \
         it is again after a restart of the whole group"
    )]
    Lost {
        /// Members that went away.
        left: usize,
        /// Members that came.
        joined: usize,
    },
}

/// The members in the kernel's order now, as indices into `places`, which is what each of them
/// remembers, in any order; newcomers remember nothing.
pub fn keep(places: &[Option<Place>]) -> Result<Vec<usize>, OrderError> {
    let known: Vec<(usize, Place)> =
        (0..).zip(places).filter_map(|(member, place)| Some((member, (*place)?))).collect();
    let Some(&(_, Place { of, .. })) = known.first() else { return Err(OrderError::NeverKnown) };
    let of = usize::from(of);
    let newcomers: Vec<usize> =
        (0..).zip(places).filter(|(_, place)| place.is_none()).map(|(member, _)| member).collect();
    let lost = OrderError::Lost { left: of.saturating_sub(known.len()), joined: newcomers.len() };
    let mut order = vec![None; of];
    for &(member, place) in &known {
        let seat = order.get_mut(usize::from(place.index)).filter(|seat| seat.is_none());
        // Two programs' places are mixed, or one is there twice: not what we left.
        let same = usize::from(place.of) == of;
        *seat.filter(|_| same).ok_or(lost)? = Some(member);
    }
    let gaps: Vec<usize> = (0..of).filter(|&index| order[index].is_none()).collect();
    match (&gaps[..], &newcomers[..]) {
        ([], []) => {}
        ([], &[newcomer]) => order.push(Some(newcomer)),
        (&[gap], []) => {
            order.swap_remove(gap);
        }
        // Whichever was first: the newcomer is where the last one was.
        (&[gap], &[newcomer]) if gap == of - 1 => order[gap] = Some(newcomer),
        _ => return Err(lost),
    }
    Ok(order.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn places(indices: &[Option<u16>], of: u16) -> Vec<Option<Place>> {
        indices.iter().map(|index| index.map(|index| Place { index, of })).collect()
    }

    #[test]
    fn follows_one_change_at_a_time() {
        for (indices, of, expected) in [
            // Nothing happened, whatever order they are listed in.
            (&[Some(0), Some(1), Some(2)][..], 3, Ok(vec![0, 1, 2])),
            (&[Some(2), Some(0), Some(1)], 3, Ok(vec![1, 2, 0])),
            // The first left: the last took its place.
            (&[Some(1), Some(2)], 3, Ok(vec![1, 0])),
            (&[Some(0), Some(1)], 3, Ok(vec![0, 1])),
            // A newcomer is appended; of several it is not certain who came first.
            (&[Some(0), None, Some(1)], 2, Ok(vec![0, 2, 1])),
            (&[Some(0), None, Some(1), None], 2, Err(OrderError::Lost { left: 0, joined: 2 })),
            // The last left and one came, in whichever order.
            (&[Some(0), Some(1), None], 3, Ok(vec![0, 1, 2])),
            (&[None, None], 2, Err(OrderError::NeverKnown)),
            (&[], 0, Err(OrderError::NeverKnown)),
            (&[Some(1), Some(2), None], 3, Err(OrderError::Lost { left: 1, joined: 1 })),
            (&[Some(2), Some(3)], 4, Err(OrderError::Lost { left: 2, joined: 0 })),
            (&[Some(0), Some(0)], 2, Err(OrderError::Lost { left: 0, joined: 0 })),
            (&[Some(0), Some(7)], 2, Err(OrderError::Lost { left: 0, joined: 0 })),
        ] {
            assert_eq!(keep(&places(indices, of)), expected, "{indices:?} of {of}");
        }
        let mixed = [Some(Place { index: 0, of: 2 }), Some(Place { index: 1, of: 3 })];
        assert!(keep(&mixed).is_err());
    }

    /// What the kernel does.
    #[derive(Clone, Debug)]
    enum Change {
        Join,
        Leave(prop::sample::Index),
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let leave = any::<prop::sample::Index>().prop_map(Change::Leave);
        prop::collection::vec(prop_oneof![Just(Change::Join), leave], 0..7)
    }

    proptest! {
        /// Whatever happened: what is said to be known is what the kernel has.
        #[test]
        fn never_claims_a_wrong_order(first in 1usize..6, changes in changes()) {
            // Members by number, in order of their `listen()`; the group's array holds numbers.
            let mut array: Vec<usize> = (0..first).collect();
            let mut next = first;
            for change in &changes {
                match change {
                    Change::Join => {
                        array.push(next);
                        next += 1;
                    }
                    Change::Leave(_) if array.is_empty() => {}
                    Change::Leave(which) => {
                        array.swap_remove(which.index(array.len()));
                    }
                }
            }
            let mut alive = array.clone();
            alive.sort_unstable();
            let noted = |&member: &usize| {
                (member < first).then_some(Place { index: member as u16, of: first as u16 })
            };
            let places: Vec<_> = alive.iter().map(noted).collect();
            if let Ok(order) = keep(&places) {
                let order: Vec<usize> = order.iter().map(|&member| alive[member]).collect();
                prop_assert_eq!(order, array, "{:?}", changes);
            } else if changes.len() <= 1 {
                prop_assert!(array.iter().all(|&member| member >= first), "lost: {:?}", changes);
            }
        }
    }
}
