//! Rolling restarts.

use super::*;

fn tells(actions: &[Action], note: Note) -> bool {
    actions.contains(&Action::Tell(note))
}

/// Up to where the copy that replaces seat 0's listens and steering away from the old one is asked
/// for.
fn half_way() -> (World, Instance, Instance) {
    let mut world = World::up(2, rules());
    let (old, new) = (instance(0, 0), instance(0, 2));
    let actions = world.handle(Event::Roll);
    assert_eq!(actions, [Action::Tell(Note::Rolling), Action::Start(new, None)]);
    let actions = world.handle(Event::Listening(new));
    assert_eq!(actions, [Action::Tell(Note::Replacing(new)), away(&[old])]);
    (world, old, new)
}

#[test]
fn each_new_copy_is_steered_to_before_its_old_one_drains() {
    let (mut world, old, _) = half_way();
    assert_eq!(world.supervisor.retiring(), []);
    // Drained or not does not count before it is steered away from.
    assert_eq!(world.handle(Event::Drained(old)), []);
    assert_eq!(world.handle(Event::Steered(true)), []);
    assert_eq!(world.supervisor.retiring(), [old]);
    assert_eq!(world.handle(Event::Drained(old)), [term(old)]);
    // One after the other.
    let next = instance(1, 3);
    let actions = world.handle(Event::Ended(old, End::Exited(0)));
    assert!(actions.contains(&Action::Start(next, None)), "{actions:?}");
    let actions = world.handle(Event::Listening(next));
    assert!(tells(&actions, Note::Replacing(next)), "{actions:?}");
    world.handle(Event::Steered(true));
    let actions = world.handle(Event::Steered(true));
    assert_eq!(actions, []);
    assert_eq!(world.handle(Event::Drained(instance(1, 1))), [term(instance(1, 1))]);
    let actions = world.handle(Event::Ended(instance(1, 1), End::Exited(0)));
    assert!(tells(&actions, Note::Rolled), "{actions:?}");
}

#[test]
fn an_old_copy_that_does_not_drain_or_end_is_told_and_then_killed() {
    let (mut world, old, _) = half_way();
    world.handle(Event::Steered(true));
    assert_eq!(world.pass(DRAIN / 2), []);
    assert_eq!(world.pass(DRAIN / 2), [Action::Tell(Note::StillBusy(old)), term(old)]);
    assert_eq!(world.pass(STOP), [Action::Tell(Note::Killed(old)), Action::Kill(old)]);
    let actions = world.handle(Event::Ended(old, End::Signalled(9)));
    assert!(actions.contains(&Action::Start(instance(1, 3), None)), "{actions:?}");
}

#[test]
fn a_new_copy_that_dies_leaves_the_old_one_in_place() {
    let mut world = World::up(2, rules());
    world.handle(Event::Roll);
    let new = instance(0, 2);
    let actions = world.handle(Event::Ended(new, End::Exited(1)));
    assert!(tells(&actions, Note::RollGivenUp(new)), "{actions:?}");
    assert!(actions.iter().all(|it| !matches!(it, Action::Signal(..) | Action::Start(..))));
    // The next attempt begins with it again.
    world.handle(Event::Steered(true));
    assert!(world.handle(Event::Roll).contains(&Action::Start(instance(0, 3), None)));
    // Listening, and dead before the old one was told to end.
    world.handle(Event::Listening(instance(0, 3)));
    let actions = world.handle(Event::Ended(instance(0, 3), End::Exited(1)));
    assert!(tells(&actions, Note::RollGivenUp(instance(0, 3))), "{actions:?}");
    // What was asked for meanwhile is undone.
    assert_eq!(world.handle(Event::Steered(true)), [away(&[])]);
    assert_eq!(world.supervisor.retiring(), []);
}

#[test]
fn a_new_copy_that_does_not_listen_leaves_the_old_one_in_place() {
    let mut world = World::up(2, rules());
    world.handle(Event::Roll);
    let new = instance(0, 2);
    assert_eq!(world.skip(), [Action::Tell(Note::NeverListened(new)), term(new)]);
    let actions = world.handle(Event::Ended(new, End::Signalled(15)));
    assert!(tells(&actions, Note::RollGivenUp(new)), "{actions:?}");
}

#[test]
fn an_old_copy_that_dies_early_is_replaced_already() {
    let mut world = World::up(2, rules());
    world.handle(Event::Roll);
    let (old, new) = (instance(0, 0), instance(0, 2));
    let actions = world.handle(Event::Ended(old, End::Signalled(11)));
    assert!(tells(&actions, Note::EndedEarly(old, End::Signalled(11))), "{actions:?}");
    let actions = world.handle(Event::Listening(new));
    assert_eq!(actions, [away(&[])]);
    assert_eq!(world.handle(Event::Steered(true)), [Action::Start(instance(1, 3), None)]);
}

#[test]
fn both_copies_of_a_worker_may_die() {
    let (mut world, old, new) = half_way();
    world.handle(Event::Steered(true));
    world.handle(Event::Drained(old));
    let actions = world.handle(Event::Ended(new, End::Exited(3)));
    assert!(tells(&actions, Note::EndedEarly(new, End::Exited(3))), "{actions:?}");
    let actions = world.handle(Event::Ended(old, End::Exited(0)));
    let pause = Duration::from_millis(100);
    assert!(tells(&actions, Note::Restarting(old, End::Exited(0), pause)), "{actions:?}");
}

#[test]
fn asked_again_meanwhile_all_are_replaced_once_more() {
    let (mut world, old, new) = half_way();
    assert_eq!(world.handle(Event::Roll), []);
    world.handle(Event::Steered(true));
    world.handle(Event::Drained(old));
    let actions = world.handle(Event::Ended(old, End::Exited(0)));
    // The one just replaced first: it is older than the second request.
    assert!(actions.contains(&Action::Start(instance(0, 3), None)), "{actions:?}");
    assert!(world.supervisor.keeps(new));
}

#[test]
fn asked_for_while_starting_it_waits_until_all_are_up() {
    let mut world = World::new(1, rules());
    world.tick();
    world.handle(Event::Roll);
    let actions = world.handle(Event::Listening(instance(0, 0)));
    assert_eq!(actions, [Action::Tell(Note::Up)]);
    assert_eq!(world.tick(), [Action::Start(instance(0, 1), None)]);
    // A single worker is steered while there are two of it.
    let actions = world.handle(Event::Listening(instance(0, 1)));
    assert_eq!(actions.last(), Some(&away(&[instance(0, 0)])));
}

#[test]
fn without_steering_a_rolling_restart_is_given_up() {
    let (mut world, _, new) = half_way();
    let actions = world.handle(Event::Steered(false));
    assert_eq!(actions, [term(new), Action::Tell(Note::RollGivenUp(new))]);
    assert_eq!(world.handle(Event::Ended(new, End::Signalled(15))), []);
    assert_eq!(world.skip(), [away(&[])]);
}

#[test]
fn a_stop_ends_both_copies() {
    let (mut world, old, new) = half_way();
    let actions = world.handle(Event::Stop(libc::SIGTERM));
    for instance in [old, new, instance(1, 1)] {
        assert!(actions.contains(&term(instance)), "{actions:?}");
    }
    for instance in [old, new] {
        assert_eq!(world.handle(Event::Ended(instance, End::Exited(0))), []);
    }
    let actions = world.handle(Event::Ended(instance(1, 1), End::Exited(0)));
    assert_eq!(actions, [Action::Finish(Ok(()))]);
}
