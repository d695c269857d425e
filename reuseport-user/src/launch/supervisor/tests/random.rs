//! Whatever happens, in whatever order: what must always hold.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// What the world does next; the numbers choose who is meant.
#[derive(Clone, Copy, Debug)]
enum Step {
    Listen(usize),
    Die(usize),
    Drain(usize),
    Steer(bool),
    Roll,
    Wait,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => any::<usize>().prop_map(Step::Listen),
        2 => any::<usize>().prop_map(Step::Die),
        3 => any::<usize>().prop_map(Step::Drain),
        4 => Just(Step::Steer(true)),
        1 => Just(Step::Steer(false)),
        2 => Just(Step::Roll),
        3 => Just(Step::Wait),
    ];
    prop::collection::vec(step, 0..120)
}

/// A copy, as the world knows it.
#[derive(Clone, Copy, Debug, Default)]
struct Alive {
    listens: bool,
    told: bool,
}

/// The world's side: who runs, and whether a steering is under way.
struct Kernel {
    world: World,
    alive: BTreeMap<Instance, Alive>,
    seen: BTreeSet<Instance>,
    steering: bool,
    finished: bool,
}

impl Kernel {
    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            assert!(!self.finished, "nothing follows the end: {action:?}");
            match action {
                Action::Start(instance, left) => {
                    assert!(self.seen.insert(instance), "{instance:?} is started once");
                    assert!(left.is_none_or(|left| !self.alive.contains_key(&left)));
                    self.alive.insert(instance, Alive::default());
                    let copies = self.alive.keys().filter(|it| it.seat == instance.seat).count();
                    assert!(copies <= 2, "{copies} copies of a worker");
                }
                Action::Signal(instance, _) => {
                    let it = self.alive.get_mut(&instance).expect("signals go to the living");
                    it.told = true;
                    // One that serves is told to end only beside another, or when all are.
                    let replaced = |(other, it): (&Instance, &Alive)| {
                        other.seat == instance.seat && *other > instance && it.listens
                    };
                    let served = self.alive[&instance].listens;
                    let all = !self.world.supervisor.is_up();
                    let newer =
                        self.alive.keys().any(|it| it.seat == instance.seat && *it < instance);
                    assert!(!served || all || newer || self.alive.iter().any(replaced));
                }
                Action::Kill(instance) => {
                    assert!(self.alive[&instance].told, "first told, then killed");
                }
                Action::Steer { away } => {
                    assert!(!self.steering, "one steering at a time");
                    self.steering = true;
                    let serves = |(instance, it): (&Instance, &Alive)| {
                        it.listens && !it.told && !away.contains(instance)
                    };
                    assert!(self.alive.iter().any(serves), "somebody is left to serve");
                }
                Action::Finish(_) => {
                    assert!(self.alive.is_empty(), "nothing is left running");
                    self.finished = true;
                }
                Action::Tell(_) => {}
            }
        }
    }

    fn event(&mut self, event: Event) {
        let actions = self.world.handle(event);
        self.take(actions);
    }

    fn nth(&self, index: usize, fits: impl Fn(&Alive) -> bool) -> Option<Instance> {
        let all: Vec<Instance> =
            self.alive.iter().filter(|(_, it)| fits(it)).map(|(&it, _)| it).collect();
        all.get(index % all.len().max(1)).copied()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Listen(index) => {
                let Some(instance) = self.nth(index, |it| !it.listens) else { return };
                self.alive.get_mut(&instance).expect("it is alive").listens = true;
                self.event(Event::Listening(instance));
            }
            Step::Die(index) => {
                let Some(instance) = self.nth(index, |_| true) else { return };
                self.alive.remove(&instance);
                self.event(Event::Ended(instance, End::Exited(1)));
            }
            Step::Drain(index) => {
                let Some(instance) = self.nth(index, |it| it.listens) else { return };
                self.event(Event::Drained(instance));
            }
            Step::Steer(done) => {
                if std::mem::take(&mut self.steering) {
                    self.event(Event::Steered(done));
                }
            }
            Step::Roll => self.event(Event::Roll),
            Step::Wait => {
                if self.world.supervisor.deadline().is_some() {
                    let actions = self.world.skip();
                    self.take(actions);
                }
            }
        }
    }

    /// Everything goes well from now on.
    fn settle(&mut self) {
        for _ in 0..500 {
            for step in [Step::Listen(0), Step::Steer(true), Step::Drain(0)] {
                self.step(step);
            }
            if let Some(told) = self.nth(0, |it| it.told) {
                self.alive.remove(&told);
                self.event(Event::Ended(told, End::Exited(0)));
            }
            // Time passes only when nobody has anything to do.
            if self.nth(0, |it| !it.listens || it.told).is_none() && !self.steering {
                self.step(Step::Wait);
            }
        }
    }
}

proptest! {
    #[test]
    fn nobody_is_lost_doubled_or_left(
        seats in 1usize..4,
        keeps_listeners: bool,
        steps in steps(),
    ) {
        let rules = Rules { keeps_listeners, ..rules() };
        let mut kernel = Kernel {
            world: World::new(seats, rules),
            alive: BTreeMap::new(),
            seen: BTreeSet::new(),
            steering: false,
            finished: false,
        };
        let actions = kernel.world.tick();
        kernel.take(actions);
        for step in steps {
            kernel.step(step);
        }
        kernel.settle();
        if !kernel.finished {
            // Whatever came before, each worker has one copy that serves, and nothing is pending.
            let serving: Vec<usize> =
                kernel.alive.iter().filter(|(_, it)| it.listens && !it.told).map(|(it, _)| it.seat).collect();
            prop_assert_eq!(serving, (0..seats).collect::<Vec<_>>());
            prop_assert_eq!(kernel.alive.len(), seats);
            prop_assert_eq!(kernel.world.supervisor.deadline(), None);
            let before: Vec<Instance> = kernel.alive.keys().copied().collect();
            kernel.event(Event::Roll);
            kernel.settle();
            prop_assert!(before.iter().all(|it| !kernel.alive.contains_key(it)));
            prop_assert_eq!(kernel.alive.len(), seats);
            kernel.event(Event::Stop(15));
            kernel.settle();
            prop_assert!(kernel.finished);
        }
    }
}
