//! Attach, re-plan, replace and detach without a pause, with clients on every CPU.
//!
//! The library is called in this process: a process for each operation would spend most of the time
//! starting. `REUSEPORT_SOAK=10000 cargo xtask test soak` sets how many operations; unless told, as
//! many as fit into ten seconds.
#![expect(clippy::print_stdout, reason = "what was counted is the result; see it with --nocapture")]

use std::env;
use std::time::{Duration, Instant};

use reuseport_common::abi::Policy;
use reuseport_tests::client::Target;
use reuseport_tests::cpus;
use reuseport_tests::load::Load;
use reuseport_tests::process::tool;
use reuseport_tests::scene::{PORT, Scene};
use reuseport_tests::worker::Spec;
use reuseport_user::discover::{self, NetnsChoice};
use reuseport_user::steer::{AttachOptions, Detached, Settings, attach, detach};

/// Without being told how many: long enough to hit what a few operations do not.
const SHORT: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Done {
    attached: u32,
    replanned: u32,
    replaced: u32,
    detached: u32,
}

impl Done {
    fn operations(&self) -> u32 {
        self.attached + self.replanned + self.replaced + self.detached
    }
}

/// A BPF file system of our own: the lock on the usual one is for all tests, and would be taken
/// here all the time.
struct Bpffs(tempfile::TempDir);

impl Bpffs {
    fn mount() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().to_str().expect("a path of ours is text").to_owned();
        tool("mount", &["-t", "bpf", "bpf", &path]);
        Self(directory)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        tool("umount", &[self.0.path().to_str().expect("a path of ours is text")]);
    }
}

#[test]
fn soak() {
    let (scene, _workers) = Scene::with_workers(&Spec::default());
    let netns = NetnsChoice::Path(scene.netns.path());
    let target = discover::Target { netns, ..discover::Target::tcp(PORT) };
    let bpffs = Bpffs::mount();
    let settings = Settings { bpffs: bpffs.0.path().to_owned(), ..Settings::default() };
    let wanted = env::var("REUSEPORT_SOAK").ok();
    let wanted: Option<u32> = wanted.map(|text| text.parse().expect("REUSEPORT_SOAK is a number"));

    let load = Load::start(&scene.netns, &Target::plain("127.0.0.1:8080").told(), &cpus(), 2);
    load.advance(100);
    let begun = Instant::now();
    let more = |done: u32| wanted.map_or_else(|| begun.elapsed() < SHORT, |wanted| done < wanted);
    let done = scene.netns.run_in(|| {
        let mut done = Done::default();
        while more(done.operations()) {
            round(&target, &settings, &mut done);
        }
        done
    });
    let took = begun.elapsed();
    let tally = load.stop();
    println!(
        "{} operations ({done:?}) in {took:.1?}, {} connections, {} failed",
        done.operations(),
        tally.answered() + tally.failed(),
        tally.failed()
    );
    assert_eq!(tally.failed(), 0, "{tally}");
    assert!(done.operations() >= 20 && tally.answered() > 100, "{done:?}, {tally}");
    drop(bpffs);
    scene.attach(&[]);
    scene.assert_steered();
}

/// Attach, four times in place, replace the program, in place, detach, and detach what is detached.
fn round(target: &discover::Target, settings: &Settings, done: &mut Done) {
    let with = |policy, log| {
        let settings = settings.clone();
        let options = AttachOptions { policy, log, settings, ..AttachOptions::new(target.clone()) };
        let reports = attach(&options).expect("attach");
        reports[0].attached.expect("in force").in_place
    };
    assert!(!with(Policy::Cpu, false), "nothing was attached");
    done.attached += 1;
    for policy in [Policy::Hash, Policy::RoundRobin, Policy::Random, Policy::Cpu] {
        assert!(with(policy, false), "the program was there");
        done.replanned += 1;
    }
    assert!(!with(Policy::Cpu, true), "a program that logs is another one");
    done.replaced += 1;
    assert!(with(Policy::Hash, true), "the program was there");
    done.replanned += 1;
    for outcome in [Detached::Detached, Detached::Already] {
        let reports = detach(target, settings).expect("detach");
        assert_eq!(reports[0].outcome, outcome);
        done.detached += 1;
    }
}
