use super::*;

const TIMEOUT: Duration = Duration::from_mins(1);

/// Generations, their clock, and the parts that the pins remember.
struct Group {
    generations: Generations,
    now: Duration,
    there: BTreeMap<u64, Member>,
}

impl Group {
    fn new() -> Self {
        let generations = Generations::new(TIMEOUT);
        Self { generations, now: Duration::ZERO, there: BTreeMap::new() }
    }

    /// With these workers, known for long. `started` is the cookie, so later ones are newer.
    fn settled(cookies: &[(u64, u32)]) -> Self {
        let mut group = Self::new();
        for &(cookie, cpu) in cookies {
            group.join(cookie, cpu);
        }
        group.wait(1);
        group.wait(20);
        assert_eq!(group.waiting(), [0; 0]);
        group
    }

    fn join(&mut self, cookie: u64, cpu: u32) {
        let class = Class { cpus: CpuSet::from([cpu]), name: "web".to_owned() };
        let member = Member { cookie, class, started: cookie, part: Part::Serves };
        self.there.insert(cookie, member);
    }

    /// A worker of another version, which may run on all CPUs of the group.
    fn deploy(&mut self, cookie: u64) {
        self.join(cookie, 0);
        let class = Class { cpus: CpuSet::from([0, 1]), name: "web-v2".to_owned() };
        self.there.get_mut(&cookie).unwrap().class = class;
    }

    fn leave(&mut self, cookie: u64) {
        self.there.remove(&cookie);
    }

    /// Lets time pass, looks, and does as told.
    fn wait(&mut self, seconds: u64) -> Verdict {
        self.now += Duration::from_secs(seconds);
        let members: Vec<Member> = self.there.values().cloned().collect();
        let verdict = self.generations.observe(self.now, &members);
        for cookie in &verdict.superseded {
            self.tell(*cookie, Part::StandsBy);
        }
        for cookie in &verdict.restored {
            self.tell(*cookie, Part::Serves);
        }
        verdict
    }

    fn tell(&mut self, cookie: u64, part: Part) {
        self.there.get_mut(&cookie).unwrap().part = part;
    }

    fn waiting(&self) -> Vec<u64> {
        let waits = |member: &&Member| member.part == Part::StandsBy;
        self.there.values().filter(waits).map(|member| member.cookie).collect()
    }
}

#[test]
fn a_newcomer_takes_over_and_gives_back_when_it_dies_young() {
    let mut group = Group::settled(&[(1, 0), (2, 1)]);
    group.join(3, 0);
    assert_eq!(group.wait(0).superseded, [1]);
    assert_eq!(group.wait(1), Verdict { stand_by: [1].into(), ..Verdict::default() });
    assert!(!group.generations.is_at_rest());
    group.leave(3);
    assert_eq!(group.wait(0), Verdict { restored: vec![1], ..Verdict::default() });
    group.join(4, 0);
    assert_eq!(group.wait(0).superseded, [1]);
    group.leave(1);
    assert_eq!(group.wait(0), Verdict::default());
}

/// A server of the library: its listeners stand by until it is ready, and their threads are given
/// their CPUs later.
#[test]
fn what_a_server_says_of_its_own_is_left_as_it_is() {
    let taken_over = || {
        let mut group = Group::settled(&[(1, 0), (2, 1)]);
        for cookie in [3, 4] {
            group.deploy(cookie);
            group.tell(cookie, Part::StandsBy);
        }
        assert_eq!(group.wait(1), Verdict::default(), "not ready yet");
        assert!(!group.generations.is_at_rest());
        for (old, new) in [(1, 3), (2, 4)] {
            group.tell(new, Part::Serves);
            group.tell(old, Part::StandsBy);
        }
        assert_eq!(group.wait(0), Verdict::default(), "took over");
        group
    };
    let mut group = taken_over();
    group.join(3, 0);
    group.join(4, 1);
    assert_eq!(group.wait(0), Verdict { stand_by: [1, 2].into(), ..Verdict::default() });
    group.leave(3);
    assert_eq!(group.wait(0).restored, [1], "of its class nobody else serves");
    // Dead before its threads had their CPUs.
    let mut group = taken_over();
    group.leave(3);
    assert_eq!(group.wait(0), Verdict::default(), "the other serves");
    group.leave(4);
    assert_eq!(group.wait(0).restored, [1, 2]);
    // It never gets ready, and nobody takes it away: in the end it counts as any other.
    let mut group = Group::settled(&[(1, 0), (2, 1)]);
    group.join(3, 0);
    group.tell(3, Part::StandsBy);
    assert_eq!(group.wait(1), Verdict::default());
    assert_eq!(group.wait(59), Verdict::default());
    let verdict = group.wait(1);
    assert_eq!((verdict.superseded, verdict.restored), (vec![1], vec![3]));
}

#[test]
fn a_whole_generation_takes_over_one_by_one() {
    let mut group = Group::settled(&[(1, 0), (2, 1), (3, 2)]);
    for cpu in 0..3 {
        group.join(10 + u64::from(cpu), cpu);
        assert_eq!(group.wait(1).superseded, [u64::from(cpu) + 1]);
    }
    assert_eq!(group.waiting(), [1, 2, 3]);
    for cookie in 1..4 {
        group.leave(cookie);
        group.wait(1);
    }
    // And the next one.
    group.join(20, 1);
    assert_eq!(group.wait(1).superseded, [11]);
}

#[test]
fn what_is_not_replaced_in_time_was_a_scale_out() {
    let mut group = Group::settled(&[(1, 0)]);
    group.join(2, 0);
    group.wait(0);
    assert_eq!(group.wait(59).restored, [0; 0]);
    assert_eq!(group.wait(1).restored, [1]);
    // Two of them are usual from now on.
    group.join(3, 0);
    assert_eq!(group.wait(0).superseded, [1]);
    assert_eq!(group.waiting(), [1]);
}

#[test]
fn a_group_that_starts_supersedes_nobody() {
    let mut group = Group::new();
    for cookie in 1..9 {
        group.join(cookie, 0);
        assert_eq!(group.wait(5), Verdict::default());
    }
    assert!(!group.generations.is_at_rest());
    group.wait(20);
    assert!(group.generations.is_at_rest());
    group.join(9, 0);
    assert_eq!(group.wait(0).superseded, [1]);
}

#[test]
fn a_crashed_worker_that_comes_back_takes_nobodys_place() {
    let mut group = Group::settled(&[(1, 0), (2, 0), (3, 0)]);
    group.leave(2);
    group.wait(1);
    // Long after, for a restart.
    assert_eq!(group.wait(300), Verdict::default());
    group.join(4, 0);
    assert_eq!(group.wait(1), Verdict::default());
    // After longer still, there are fewer for good.
    group.leave(3);
    group.wait(1);
    group.wait(600);
    group.join(5, 0);
    assert_eq!(group.wait(1).superseded, [1]);
}

#[test]
fn a_worker_that_is_moved_is_no_newcomer() {
    let mut group = Group::settled(&[(1, 0), (2, 1)]);
    // Both on one CPU, and back.
    group.join(2, 0);
    assert_eq!(group.wait(1), Verdict::default());
    assert_eq!(group.wait(30), Verdict::default());
    group.join(2, 1);
    assert_eq!(group.wait(1), Verdict::default());
    // But who is moved as it starts is one.
    group.join(3, 7);
    assert_eq!(group.wait(1), Verdict::default());
    group.join(3, 1);
    assert_eq!(group.wait(1).superseded, [2]);
}

#[test]
fn the_next_agent_goes_on_with_what_the_pins_say() {
    let mut group = Group::settled(&[(1, 0), (2, 1)]);
    group.join(3, 0);
    group.wait(0);
    group.generations = Generations::new(TIMEOUT);
    assert_eq!(group.wait(1), Verdict { stand_by: [1].into(), ..Verdict::default() });
    group.leave(3);
    assert_eq!(group.wait(1).restored, [1]);
}

#[test]
fn who_got_no_cpu_and_is_older_than_one_who_did_stood_by() {
    let mut group = Group::new();
    for (cookie, cpu) in [(1, 0), (2, 1), (3, 0), (4, 1), (5, 0)] {
        group.join(cookie, cpu);
    }
    let members: Vec<Member> = group.there.into_values().collect();
    // 4 joined since; of 5 it could not be seen.
    let has_cpu = BTreeMap::from([(1, false), (2, true), (3, true), (4, false)]);
    assert_eq!(stood_by(&members, &has_cpu), [1].into());
    let has_cpu = BTreeMap::from([(1, false), (2, false), (3, false), (4, false)]);
    assert_eq!(stood_by(&members, &has_cpu), [].into());
}

#[test]
fn who_is_taken_out_by_hand_is_left_alone() {
    let mut group = Group::settled(&[(1, 0), (2, 0)]);
    group.there.get_mut(&1).unwrap().part = Part::Out;
    assert_eq!(group.wait(1), Verdict::default());
    group.join(3, 0);
    assert_eq!(group.wait(1), Verdict::default(), "it fills the place");
    group.there.get_mut(&1).unwrap().part = Part::Serves;
    assert_eq!(group.wait(1), Verdict::default(), "put back by hand");
    assert_eq!(group.wait(100), Verdict::default());
}

#[test]
fn listeners_of_one_process_are_of_one_generation() {
    let mut group = Group::settled(&[(1, 0)]);
    for cookie in [10, 11] {
        group.join(cookie, 0);
        group.there.get_mut(&cookie).unwrap().started = 10;
    }
    assert_eq!(group.wait(1).superseded, [1]);
    group.leave(1);
    assert_eq!(group.wait(1), Verdict::default());
    group.wait(20);
    assert_eq!(group.wait(1), Verdict::default());
}

#[test]
fn a_deploy_of_other_workers_takes_over_when_it_is_complete() {
    let mut group = Group::settled(&[(1, 0), (2, 1), (3, 0)]);
    group.deploy(10);
    assert_eq!(group.wait(1), Verdict::default(), "one more worker is no deploy");
    group.deploy(11);
    assert_eq!(group.wait(1).superseded, [1, 2]);
    assert!(!group.generations.is_at_rest());
    group.deploy(12);
    group.deploy(13);
    assert_eq!(group.wait(1).superseded, [3]);
    // The next agent knows from what the pins say.
    group.generations = Generations::new(TIMEOUT);
    let before = Verdict { stand_by: [1, 2, 3].into(), ..Verdict::default() };
    assert_eq!(group.wait(1), before);
    assert_eq!(group.wait(30), before);
    for cookie in 1..4 {
        group.leave(cookie);
        group.wait(1);
        assert_eq!(group.waiting().len(), 3 - cookie as usize);
    }
    group.wait(20);
    group.wait(20);
    assert!(group.generations.is_at_rest());
    // And back, by fewer.
    group.join(20, 0);
    assert_eq!(group.wait(1), Verdict::default());
    group.join(21, 1);
    assert_eq!(group.wait(1).superseded, [10, 11]);
}

#[test]
fn a_deploy_that_dies_young_gives_back() {
    let mut group = Group::settled(&[(1, 0), (2, 1)]);
    for cookie in [10, 11] {
        group.deploy(cookie);
    }
    assert_eq!(group.wait(1).superseded, [1, 2]);
    group.leave(10);
    assert_eq!(group.wait(1).restored, [1, 2]);
    group.leave(11);
    assert_eq!(group.wait(1), Verdict::default());
}

#[test]
fn a_deploy_beside_which_the_old_stay_was_a_scale_out() {
    let mut group = Group::settled(&[(1, 0), (2, 1)]);
    for cookie in 10..13 {
        group.deploy(cookie);
    }
    assert_eq!(group.wait(1).superseded, [1, 2]);
    assert_eq!(group.wait(59), Verdict { stand_by: [1, 2].into(), ..Verdict::default() });
    assert_eq!(group.wait(1).restored, [1, 2]);
    assert_eq!(group.wait(300), Verdict::default());
    assert_eq!(group.wait(300), Verdict::default());
    assert!(group.generations.is_at_rest());
}

#[test]
fn a_deploy_with_more_workers_of_the_same_kind_uses_all_of_them() {
    let mut group = Group::settled(&[(1, 0), (2, 1)]);
    for cookie in 10..14 {
        group.join(cookie, cookie as u32 % 2);
    }
    assert_eq!(group.wait(1).superseded, [1, 2]);
    assert_eq!(group.waiting(), [1, 2]);
    group.leave(1);
    group.wait(1);
    assert_eq!(group.waiting(), [2]);
    group.leave(2);
    for seconds in [1, 5, 20, 100] {
        assert_eq!(group.wait(seconds), Verdict::default());
    }
}

/// Whatever comes and goes and however long it takes: somebody serves, and who stands by does so
/// because of newer ones, and not for ever.
mod whatever_happens {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Event {
        Join(u32),
        Deploy,
        Leave(prop::sample::Index),
        Wait(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0u32..3).prop_map(Event::Join),
            Just(Event::Deploy),
            any::<prop::sample::Index>().prop_map(Event::Leave),
            (1u64..90).prop_map(Event::Wait),
        ]
    }

    proptest! {
        #[test]
        fn somebody_serves(events in prop::collection::vec(event(), 0..40)) {
            let mut group = Group::settled(&[(1, 0), (2, 1), (3, 1)]);
            for (cookie, event) in (10..).zip(events) {
                let mut seconds = 0;
                match event {
                    Event::Join(cpu) => group.join(cookie, cpu),
                    Event::Deploy => group.deploy(cookie),
                    Event::Leave(which) => {
                        let all: Vec<u64> = group.there.keys().copied().collect();
                        if !all.is_empty() {
                            group.leave(*which.get(&all));
                        }
                    }
                    Event::Wait(time) => seconds = time,
                }
                group.wait(seconds);
                let serves = group.there.values().filter(|it| it.part == Part::Serves);
                let newest = serves.map(|it| it.started).max();
                let waits = group.waiting();
                prop_assert!(newest.is_some() || waits.is_empty(), "{:?}", waits);
                prop_assert!(waits.iter().all(|cookie| Some(*cookie) < newest), "{:?}", waits);
            }
            for _ in 0..12 {
                group.wait(60);
            }
            prop_assert_eq!(group.waiting(), [0; 0]);
            for _ in 0..12 {
                group.wait(60);
            }
            prop_assert!(group.generations.is_at_rest());
        }
    }
}
