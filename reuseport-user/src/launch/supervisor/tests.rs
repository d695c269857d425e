//! The supervisor without a kernel: what it asks for, step by step.

use std::time::{Duration, Instant};

use super::lifecycle::pause;
use super::{Action, End, Event, Fatal, Instance, Note, Rules, STABLE, Supervisor};

mod random;
mod replacing;

const LISTEN: Duration = Duration::from_secs(30);
const DRAIN: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(10);

/// A supervisor and a clock.
struct World {
    supervisor: Supervisor,
    now: Instant,
}

fn rules() -> Rules {
    Rules {
        listen_timeout: LISTEN,
        drain_timeout: DRAIN,
        stop_timeout: STOP,
        max_restarts: 3,
        keeps_listeners: false,
        jitter: || 0.5,
    }
}

fn instance(seat: usize, launch: u32) -> Instance {
    Instance { seat, launch }
}

fn term(instance: Instance) -> Action {
    Action::Signal(instance, libc::SIGTERM)
}

fn away(away: &[Instance]) -> Action {
    Action::Steer { away: away.to_vec() }
}

impl World {
    fn new(seats: usize, rules: Rules) -> Self {
        Self { supervisor: Supervisor::new(seats, rules), now: Instant::now() }
    }

    /// With that many workers up.
    fn up(seats: usize, rules: Rules) -> Self {
        let mut world = Self::new(seats, rules);
        world.tick();
        for seat in 0..seats {
            world.handle(Event::Listening(instance(seat, seat as u32)));
        }
        if seats > 1 || rules.keeps_listeners {
            world.handle(Event::Steered(true));
        }
        assert!(world.supervisor.is_up());
        world
    }

    fn handle(&mut self, event: Event) -> Vec<Action> {
        self.supervisor.handle(self.now, event)
    }

    fn tick(&mut self) -> Vec<Action> {
        self.supervisor.tick(self.now)
    }

    fn pass(&mut self, time: Duration) -> Vec<Action> {
        self.now += time;
        self.tick()
    }

    /// To the next time that something is due.
    fn skip(&mut self) -> Vec<Action> {
        self.now = self.supervisor.deadline().expect("nothing is due");
        self.tick()
    }
}

#[test]
fn the_first_copy_starts_alone_then_the_others_then_all_are_steered() {
    let mut world = World::new(3, rules());
    let [first, second, third] = [0, 1, 2].map(|seat| instance(seat, seat as u32));
    assert_eq!(world.tick(), [Action::Start(first, None)]);
    assert_eq!(world.tick(), []);
    assert_eq!(world.supervisor.starting(), [first]);
    let others = [Action::Start(second, None), Action::Start(third, None)];
    assert_eq!(world.handle(Event::Listening(first)), others);
    assert_eq!(world.handle(Event::Listening(third)), []);
    assert_eq!(world.handle(Event::Listening(second)), [away(&[])]);
    assert!(!world.supervisor.is_up());
    assert_eq!(world.handle(Event::Steered(true)), [Action::Tell(Note::Up)]);
    assert_eq!((world.supervisor.is_up(), world.supervisor.deadline()), (true, None));
}

#[test]
fn a_single_copy_is_not_steered() {
    let mut world = World::new(1, rules());
    world.tick();
    assert_eq!(world.handle(Event::Listening(instance(0, 0))), [Action::Tell(Note::Up)]);
}

/// The next copy's listener joins before that copy is ready.
#[test]
fn a_single_copy_whose_listener_is_kept_is_steered() {
    let mut world = World::new(1, Rules { keeps_listeners: true, ..rules() });
    world.tick();
    assert_eq!(world.handle(Event::Listening(instance(0, 0))), [away(&[])]);
    assert_eq!(world.handle(Event::Steered(true)), [Action::Tell(Note::Up)]);
}

#[test]
fn whoever_ends_before_all_are_up_ends_all() {
    let mut world = World::new(3, rules());
    world.tick();
    let [first, second, third] = [0, 1, 2].map(|seat| instance(seat, seat as u32));
    world.handle(Event::Listening(first));
    let actions = world.handle(Event::Ended(second, End::Exited(7)));
    assert_eq!(actions, [term(first), term(third)]);
    // What follows from that is not the reason.
    assert_eq!(world.handle(Event::Ended(third, End::Signalled(15))), []);
    let fatal = Fatal::EndedAtOnce(second, End::Exited(7));
    let actions = world.handle(Event::Ended(first, End::Exited(1)));
    assert_eq!(actions, [Action::Finish(Err(fatal))]);
}

#[test]
fn whoever_cannot_be_started_steered_or_never_listens_ends_all() {
    let first = instance(0, 0);
    let fatal = |event: Option<Event>| {
        let mut world = World::new(2, rules());
        world.tick();
        match event {
            Some(event) => world.handle(event),
            None => world.skip(),
        };
        let mut actions = world.handle(Event::Ended(first, End::Exited(0)));
        // One that never was is gone already.
        actions.extend(world.tick());
        actions
    };
    let not_started = Event::Ended(first, End::NotStarted(2));
    let mut world = World::new(2, rules());
    world.tick();
    let reason = Fatal::EndedAtOnce(first, End::NotStarted(2));
    assert_eq!(world.handle(not_started), [Action::Finish(Err(reason))]);
    assert_eq!(fatal(None), [Action::Finish(Err(Fatal::NeverListened(first)))]);
    assert_eq!(fatal(Some(Event::Unfit)), [Action::Finish(Err(Fatal::Unfit))]);

    let mut world = World::new(2, rules());
    world.tick();
    world.handle(Event::Listening(first));
    world.handle(Event::Listening(instance(1, 1)));
    let actions = world.handle(Event::Steered(false));
    assert_eq!(actions, [term(first), term(instance(1, 1))]);
    world.handle(Event::Ended(first, End::Exited(0)));
    let actions = world.handle(Event::Ended(instance(1, 1), End::Exited(0)));
    assert_eq!(actions, [Action::Finish(Err(Fatal::Steering))]);
}

#[test]
fn the_dead_come_back_after_a_pause_and_are_steered_to() {
    let mut world = World::up(2, rules());
    let died = End::Signalled(9);
    let (old, new) = (instance(1, 1), instance(1, 2));
    let pause = Duration::from_millis(100);
    let told = Action::Tell(Note::Restarting(old, died, pause));
    // The other alone is nothing to choose from.
    assert_eq!(world.handle(Event::Ended(old, died)), [told]);
    assert_eq!(world.pass(pause / 2), []);
    assert_eq!(world.skip(), [Action::Start(new, None)]);
    assert_eq!(world.handle(Event::Listening(new)), [away(&[])]);
    assert_eq!(world.handle(Event::Steered(true)), []);
    assert_eq!(world.supervisor.deadline(), None);
}

#[test]
fn pauses_double_and_begin_anew_for_those_that_lasted() {
    let mut world = World::up(2, rules());
    let end = End::Exited(1);
    let mut launch = 1;
    let mut die = |world: &mut World, lasted: Duration| {
        world.now += lasted;
        let actions = world.handle(Event::Ended(instance(1, launch), end));
        let Some(&Action::Tell(Note::Restarting(_, _, pause))) = actions.first() else {
            panic!("{actions:?}");
        };
        world.skip();
        launch += 1;
        world.handle(Event::Listening(instance(1, launch)));
        world.handle(Event::Steered(true));
        pause.as_millis()
    };
    let short = Duration::from_secs(1);
    assert_eq!([(); 3].map(|()| die(&mut world, short)), [100, 200, 400]);
    assert_eq!(die(&mut world, STABLE), 100);
    assert_eq!([(); 2].map(|()| die(&mut world, short)), [200, 400]);
    let last = instance(1, launch);
    let actions = world.handle(Event::Ended(last, end));
    assert_eq!(actions, [term(instance(0, 0))]);
    let actions = world.handle(Event::Ended(instance(0, 0), End::Exited(0)));
    assert_eq!(actions, [Action::Finish(Err(Fatal::CrashLoop(last, end)))]);
}

#[test]
fn pauses_differ_and_end_somewhere() {
    let millis = |failures, jitter| pause(failures, jitter).as_millis();
    assert_eq!((millis(1, 0.0), millis(1, 1.0)), (80, 120));
    assert_eq!((millis(5, 0.0), millis(5, 1.0)), (1280, 1920));
    assert_eq!((millis(60, 0.0), millis(u32::MAX, 1.0)), (8000, 12000));
}

#[test]
fn one_that_comes_back_and_does_not_listen_is_ended_and_counts_as_dead() {
    let mut world = World::up(2, rules());
    let new = instance(0, 2);
    world.handle(Event::Ended(instance(0, 0), End::Exited(0)));
    world.skip();
    assert_eq!(world.skip(), [Action::Tell(Note::NeverListened(new)), term(new)]);
    // It listens after all: too late.
    assert_eq!(world.handle(Event::Listening(new)), []);
    assert_eq!(world.skip(), [Action::Tell(Note::Killed(new)), Action::Kill(new)]);
    let end = End::Signalled(9);
    let told = Note::Restarting(new, end, Duration::from_millis(200));
    assert_eq!(world.handle(Event::Ended(new, end)), [Action::Tell(told)]);
}

#[test]
fn a_kept_listener_is_steered_away_from_until_its_next_copy_serves() {
    let rules = Rules { keeps_listeners: true, ..rules() };
    let mut world = World::up(2, rules);
    let (old, new) = (instance(1, 1), instance(1, 2));
    let actions = world.handle(Event::Ended(old, End::Exited(1)));
    assert_eq!(actions.last(), Some(&away(&[old])));
    assert!(world.supervisor.keeps(old));
    world.handle(Event::Steered(true));
    assert_eq!(world.skip(), [Action::Start(new, Some(old))]);
    assert!(!world.supervisor.keeps(old));
    // It dies again: its listener is still the same.
    let actions = world.handle(Event::Ended(new, End::Exited(1)));
    assert_eq!(actions.last(), Some(&away(&[new])));
    world.handle(Event::Steered(true));
    let next = instance(1, 3);
    assert_eq!(world.skip(), [Action::Start(next, Some(new))]);
    assert_eq!(world.handle(Event::Listening(next)), [away(&[])]);
    // When all are dead there is nobody to steer to.
    world.handle(Event::Steered(true));
    let actions = world.handle(Event::Ended(next, End::Exited(1)));
    assert_eq!(actions.last(), Some(&away(&[next])));
    let actions = world.handle(Event::Ended(instance(0, 0), End::Exited(1)));
    assert!(matches!(actions[..], [Action::Tell(Note::Restarting(..))]), "{actions:?}");
    assert_eq!(world.handle(Event::Steered(true)), []);
}

#[test]
fn steering_that_fails_later_is_tried_again() {
    let mut world = World::up(3, rules());
    world.handle(Event::Ended(instance(2, 2), End::Exited(1)));
    assert_eq!(world.handle(Event::Steered(false)), []);
    let new = instance(2, 3);
    assert_eq!(world.skip(), [Action::Start(new, None)]);
    assert_eq!(world.handle(Event::Listening(new)), []);
    assert_eq!(world.skip(), [away(&[])]);
    assert_eq!(world.handle(Event::Steered(true)), []);
    assert_eq!(world.supervisor.deadline(), None);
}

#[test]
fn a_signal_ends_all_and_a_second_one_at_once() {
    let mut world = World::up(2, rules());
    let both = [instance(0, 0), instance(1, 1)];
    let [first, second] = both;
    let actions = world.handle(Event::Stop(libc::SIGINT));
    let signal = |instance| Action::Signal(instance, libc::SIGINT);
    let told = Action::Tell(Note::Stopping(libc::SIGINT));
    assert_eq!(actions, [told, signal(first), signal(second)]);
    assert_eq!(world.handle(Event::Ended(first, End::Signalled(2))), []);
    assert_eq!(world.handle(Event::Stop(libc::SIGINT)), [Action::Kill(second)]);
    let actions = world.handle(Event::Ended(second, End::Signalled(9)));
    assert_eq!(actions, [Action::Finish(Ok(()))]);
    assert_eq!(world.handle(Event::Stop(libc::SIGINT)), []);
}

#[test]
fn who_does_not_end_is_killed_and_nobody_comes_back() {
    let mut world = World::up(2, rules());
    let (dead, stubborn) = (instance(0, 0), instance(1, 1));
    world.handle(Event::Ended(dead, End::Exited(1)));
    world.handle(Event::Stop(libc::SIGTERM));
    assert_eq!(world.pass(STOP / 2), []);
    let killed = [Action::Tell(Note::Killed(stubborn)), Action::Kill(stubborn)];
    assert_eq!(world.pass(STOP / 2), killed);
    assert_eq!(world.supervisor.deadline(), None);
    let actions = world.handle(Event::Ended(stubborn, End::Signalled(9)));
    assert_eq!(actions, [Action::Finish(Ok(()))]);
}
