//! Rolling restarts at the highest rate: the newer worker starts beside the older one, takes over, and
//! the older one goes. No connection is lost.

use std::time::{Duration, Instant};

use reuseport_tests::client::Target;
use reuseport_tests::eventually;
use reuseport_tests::load::Load;
use reuseport_tests::require;
use reuseport_tests::worker::{Spec, Worker};

use super::super::{PATIENCE, role, two};
use super::{length, migrations};
use crate::scene::Scene;

/// How the older one goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Going {
    /// With connections in its queue, which the kernel moves.
    Migration,
    /// When its queue is empty.
    Drain,
}

#[test]
fn older_workers_go_and_the_kernel_moves_what_waits() {
    restarts(Going::Migration);
}

#[test]
fn older_workers_are_drained_and_go() {
    restarts(Going::Drain);
}

fn start(scene: &Scene, index: u32, cpu: u32) -> Worker {
    let spec = Spec { index, cpus: vec![cpu], ledger: true, ..Spec::default() };
    Worker::start(&scene.netns, &spec)
}

fn restarts(going: Going) {
    require::cpus(2);
    let mut scene = Scene::new();
    scene.workers = two().into_iter().map(|cpu| start(&scene, 0, cpu)).collect();
    // Those that stop to accept on purpose are not to be steered around: the kernel moves what waits.
    let agent = scene.agent(&["--generation-timeout", "12s", "--spill", "off"]);
    scene.healed();
    // A sixth of that, and one more tick.
    std::thread::sleep(Duration::from_secs(4));
    let load = Load::start(&scene.netns, &Target::plain("127.0.0.1:8080"), &two(), 4);
    load.advance(100);
    let began = Instant::now();
    let count = length(100, 4);
    for round in 0..count {
        let place = round as usize % 2;
        let newer = start(&scene, round + 1, two()[place]);
        let mut older = std::mem::replace(&mut scene.workers[place], newer);
        if going == Going::Migration {
            older.tell("stop");
            let idle = eventually(PATIENCE, || older.in_hand() == 0);
            assert!(idle, "it does not stop");
        }
        let superseded = eventually(PATIENCE, || role(&scene.status(), &older) == "standby");
        assert!(superseded, "round {round}: {:#}\n{}", scene.status(), agent.log());
        if going == Going::Drain {
            let pid = older.pid().to_string();
            scene.cli("drain", &["--pid", &pid]).run().ok();
            older.tell("stop");
            assert!(eventually(PATIENCE, || older.in_hand() == 0), "it does not stop");
        }
        older.tell("exit");
        drop(older);
        load.advance(20);
        scene.healed();
    }
    let (took, tally) = (began.elapsed(), load.stop());
    let [moved, lost] = migrations(&scene.netns);
    println!(
        "{count} restarts, {going:?}: {} connections, {:.0}/s, {} failed; {moved} migrated, {lost} \
         could not be",
        tally.answered(),
        tally.answered() as f64 / took.as_secs_f64(),
        tally.failed(),
    );
    let log = agent.stop();
    assert_eq!(tally.failed(), 0, "{tally}\n{log}");
    assert!(going == Going::Drain || moved > 0, "nothing waited: {tally}");
}
