//! One slot, poll by poll.

use proptest::prelude::*;

use super::*;

const BACKLOG: u32 = 511;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn reading(queued: u32, selections: u64) -> Reading {
    Reading { queued, backlog: BACKLOG, selections }
}

/// Polls every 10 ms from `start` with these queues and selections; what turned, and when.
fn run(slot: &mut Slot, start: u64, polls: &[(u32, u64)]) -> Vec<(u64, Turn)> {
    let mut turns = Vec::new();
    for (at, &(queued, selections)) in (start..).step_by(10).zip(polls) {
        slot.observe(ms(at), reading(queued, selections));
        turns.extend(slot.turn(ms(at), Room::Lasting).map(|turn| (at, turn)));
    }
    turns
}

fn evicted_at(polls: &[(u32, u64)]) -> Option<(u64, Cause)> {
    let turns = run(&mut Slot::default(), 0, polls);
    turns.iter().find_map(|(at, turn)| match turn {
        Turn::Evicted { cause, .. } => Some((*at, *cause)),
        Turn::Restored { .. } => None,
    })
}

#[test]
fn a_stall_shows_after_three_polls_and_30_ms() {
    // All that is selected waits.
    assert_eq!(evicted_at(&[(0, 0), (5, 105), (15, 115), (25, 125)]), None);
    let found = evicted_at(&[(0, 0), (5, 105), (15, 115), (25, 125), (35, 135)]);
    assert_eq!(found, Some((40, Cause::Stalled)));
}

#[test]
fn one_connection_that_nobody_accepts_is_enough() {
    assert_eq!(evicted_at(&[(1, 1), (1, 1), (1, 1), (1, 1)]), Some((30, Cause::Stalled)));
}

#[test]
fn a_queue_that_never_shrinks_while_connections_flow_is_no_stall() {
    // Found with as many or more in it every time, but hundreds were accepted in between.
    let polls: Vec<_> = (0..100).map(|poll| (5 + poll / 10, u64::from(poll) * 200)).collect();
    assert_eq!(evicted_at(&polls), None);
}

#[test]
fn what_was_accepted_before_a_stall_does_not_hide_it() {
    let flowing = (0..50).map(|poll| (5, poll * 20));
    let stalled = (1..5).map(|poll| (5 + poll as u32 * 20, (49 + poll) * 20));
    let polls: Vec<_> = flowing.chain(stalled).collect();
    // The last that was accepted was before the poll at 490 ms.
    assert_eq!(evicted_at(&polls), Some((520, Cause::Stalled)));
}

#[test]
fn a_full_queue_counts_although_dropped_syns_look_like_progress() {
    let polls: Vec<_> = (0..10).map(|poll| (BACKLOG + 1, 1000 + poll * 300)).collect();
    assert_eq!(evicted_at(&polls), Some((10, Cause::Full)));
}

#[test]
fn one_burst_is_no_full_queue() {
    assert_eq!(
        evicted_at(&[(0, 0), (500, 500), (200, 500), (0, 500), (500, 1000), (0, 1000)]),
        None
    );
}

#[test]
fn nobody_is_evicted_where_nobody_else_has_room() {
    let mut slot = Slot::default();
    for at in (0..500).step_by(10) {
        slot.observe(ms(at), reading(BACKLOG, at));
        assert_eq!(slot.turn(ms(at), Room::None), None);
    }
    assert_eq!(slot.room(ms(500)), Room::None);
}

#[test]
fn momentary_room_is_room_from_a_stall_but_not_from_a_full_queue() {
    let (mut full, mut stalled) = (Slot::default(), Slot::default());
    for at in (0..500).step_by(10) {
        full.observe(ms(at), reading(BACKLOG, at * 10));
        assert_eq!(full.turn(ms(at), Room::Now), None);
        stalled.observe(ms(at), reading(1, 1));
        stalled.turn(ms(at), Room::Now);
    }
    assert_eq!(stalled.evicted().map(|(cause, _)| cause), Some(Cause::Stalled));
    assert!(full.turn(ms(500), Room::Lasting).is_some());
}

#[test]
fn room_lasts_only_in_service() {
    let mut slot = Slot::default();
    run(&mut slot, 0, &[(0, 0)]);
    assert_eq!((slot.room(ms(990)), slot.room(ms(1000))), (Room::Now, Room::Lasting));
    run(&mut slot, 1000, &[(1, 1), (1, 1), (1, 1), (1, 1), (0, 1)]);
    assert_eq!(slot.room(ms(1040)), Room::None, "evicted");
    let back = run(&mut slot, 1050, &[(0, 1); 20])[0].0;
    run(&mut slot, back + 10, &[(0, 1)]);
    assert_eq!(
        (slot.room(ms(back + 1000)), slot.room(ms(back + 1010))),
        (Room::Now, Room::Lasting)
    );
}

#[test]
fn comes_back_when_drained_for_the_hold_time_which_doubles_on_a_relapse() {
    let mut slot = Slot::default();
    let mut held = Vec::new();
    let mut at = 0;
    for _ in 0..10 {
        let evicted = run(&mut slot, at, &[(1, 1), (1, 1), (1, 1), (1, 1)]);
        assert_eq!(evicted.len(), 1, "{evicted:?}");
        at += 40;
        let back = run(&mut slot, at, &vec![(0, 1); 1200]);
        assert_eq!(back.len(), 1, "{back:?}");
        held.push(back[0].0 - at);
        at = back[0].0 + 10;
    }
    assert_eq!(held, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
    // Well for as long as the longest hold, and all is forgiven.
    assert_eq!(run(&mut slot, at, &vec![(0, 1); 1000]), []);
    at += 10_000;
    run(&mut slot, at, &[(1, 1), (1, 1), (1, 1), (1, 1)]);
    let back = run(&mut slot, at + 40, &vec![(0, 1); 1200]);
    assert_eq!(back[0].0 - at - 40, 100);
}

#[test]
fn what_a_relapse_adds_is_waived_where_nobody_else_has_room() {
    let mut slot = Slot::default();
    run(&mut slot, 0, &[(1, 1), (1, 1), (1, 1), (1, 1)]);
    run(&mut slot, 40, &[(0, 1); 20]);
    run(&mut slot, 240, &[(1, 1), (1, 1), (1, 1), (1, 1)]);
    let back = (280..).step_by(10).find(|&at| {
        slot.observe(ms(at), reading(0, 1));
        slot.turn(ms(at), Room::None).is_some()
    });
    assert_eq!(back, Some(380), "after the first hold time, not the doubled one");
}

#[test]
fn a_queue_that_fills_again_while_it_is_out_starts_the_hold_anew() {
    let mut slot = Slot::default();
    let stall: Vec<_> = (0..4).map(|poll| (100 + poll * 10, 100 + u64::from(poll) * 10)).collect();
    assert_eq!(run(&mut slot, 0, &stall).len(), 1);
    assert_eq!(run(&mut slot, 40, &[(32, 130); 9]), []);
    assert_eq!(run(&mut slot, 130, &[(33, 140)]), [], "more than a quarter of what it was");
    let back = run(&mut slot, 140, &[(32, 140); 20]);
    assert_eq!(back[0].0, 240);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever it reads, it turns as rarely as the hold times promise.
    #[test]
    fn never_flaps(
        polls in prop::collection::vec((0u32..520, 0u64..50, 1u64..60), 2000..6000),
    ) {
        let mut slot = Slot::default();
        let (mut now, mut selections, mut turns) = (0, 0, 0);
        for (queued, more, pause) in polls {
            now += pause;
            selections += more;
            slot.observe(ms(now), reading(queued, selections));
            turns += u64::from(slot.turn(ms(now), Room::Lasting).is_some());
        }
        // The hold time grows from 100 ms to 10 s in seven relapses; then one eviction in 10 s.
        let most = 2 * (8 + now / 10_000 + 1);
        prop_assert!(turns <= most, "{turns} turns in {now} ms");
    }

    /// A worker that accepts nothing is evicted at the fourth poll of it or before, whatever came
    /// before, unless nothing waits for it.
    #[test]
    fn a_stall_is_always_noticed(
        before in prop::collection::vec((0u32..300, 0u64..2000), 0..50),
        arrivals in prop::collection::vec(0u64..40, 4..20),
    ) {
        let mut slot = Slot::default();
        let (mut now, mut selections, mut queued) = (0, 0, 0);
        for (waiting, more) in before {
            now += 10;
            (selections, queued) = (selections + more + u64::from(waiting), waiting);
            slot.observe(ms(now), reading(queued, selections));
            slot.turn(ms(now), Room::Lasting);
        }
        let mut since = None;
        for more in arrivals {
            now += 10;
            selections += more;
            queued += more as u32;
            slot.observe(ms(now), reading(queued, selections));
            slot.turn(ms(now), Room::Lasting);
            since = since.or((queued > 0).then_some(now));
            if since.is_some_and(|since| now - since >= 30) {
                prop_assert!(slot.evicted().is_some(), "{now}: {slot:?}");
            }
        }
    }
}
