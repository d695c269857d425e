//! The README: every command in it is run, here, by the tests of `deploy/` or by `cargo xtask ci`.

use reuseport_tests::binary::Cli;
use reuseport_tests::cpus;
use reuseport_tests::launcher::Launch;
use reuseport_tests::leak::Baseline;
use reuseport_tests::netns::Netns;
use reuseport_tests::servers::{PgBouncer, PgBouncers, Postgres, Script};

const README: &str = include_str!("../../README.md");
const CI: &str = include_str!("../../xtask/src/ci.rs");

/// Lines of the README's `console` blocks that are typed, without their prompts.
pub(crate) fn commands() -> Vec<&'static str> {
    let mut commands = Vec::new();
    let mut console = false;
    for line in README.lines() {
        match line.strip_prefix("```") {
            Some(language) => console = language == "console",
            None if console => commands.extend(line.strip_prefix("# ")),
            None => {}
        }
    }
    commands
}

/// What follows `reuseport-steer` in a command, also where cargo runs it.
fn arguments(command: &str) -> Option<Vec<&str>> {
    let rest = command
        .strip_prefix("reuseport-steer ")
        .or_else(|| command.strip_prefix("cargo run --release -- "))?;
    Some(rest.split_whitespace().collect())
}

#[test]
fn every_command_of_ours_does_what_it_says_on_two_pgbouncers() {
    // `experiment` runs long, and has a test of its own.
    let is_long = |arguments: &[&str]| starts(arguments) || arguments[0] == "experiment";
    let before = Baseline::take();
    {
        let netns = Netns::new();
        let postgres = Postgres::start(&netns, 5432);
        let _bouncers = PgBouncer::one_per_cpu(&netns, &postgres, 6432, &cpus());
        let ours = commands().into_iter().filter_map(arguments).filter(|it| !is_long(it));
        let ours: Vec<_> = ours.collect();
        assert!(ours.len() >= 4, "the README's commands are not found: {ours:?}");
        // The host may have a PgBouncer of its own on that port.
        let here = ["--netns", "/proc/self/ns/net"];
        for mut arguments in ours {
            if arguments.contains(&"--port") || matches!(arguments[0], "status" | "top" | "metrics")
            {
                arguments.extend(here);
            }
            Cli::new(&arguments).netns(&netns).run().ok();
        }
        let detach = ["detach", "--port", "6432"].into_iter().chain(here);
        Cli::new(detach).netns(&netns).run().ok();
    }
    before.assert_same();
}

/// Whether it sets up the unit, which `deploy` has a system for.
pub(crate) fn sets_up(command: &str) -> bool {
    ["install ", "systemctl "].iter().any(|tool| command.starts_with(tool))
}

/// Whether it starts workers, and stays.
fn starts(arguments: &[&str]) -> bool {
    arguments[0] == "run" && !arguments.contains(&"--dry-run")
}

#[test]
fn every_launch_starts_what_it_says() {
    let netns = Netns::new();
    let postgres = Postgres::start(&netns, 5432);
    let configured = PgBouncers::configure(&netns, &postgres, 6432, cpus().len() as u32);
    let (ini, script) = (configured.path(), Script::node());
    let script = script.path();
    let launches: Vec<_> =
        commands().into_iter().filter_map(arguments).filter(|it| starts(it)).collect();
    assert!(launches.len() >= 2, "the README's launches are not found: {launches:?}");
    for arguments in launches {
        let here = |&word: &&str| match word {
            "/etc/pgbouncer/%i.ini" => ini.clone(),
            "server.js" => script.clone(),
            word => word.to_owned(),
        };
        let arguments: Vec<String> = arguments[1..].iter().map(here).collect();
        let launcher = Launch::new(&netns, arguments).up();
        launcher.stop();
    }
}

#[test]
fn every_other_command_is_one_that_ci_runs() {
    let is_other = |command: &&str| arguments(command).is_none() && !sets_up(command);
    let others: Vec<_> = commands().into_iter().filter(is_other).collect();
    assert!(others.len() >= 4, "the README's commands are not found: {others:?}");
    for command in others {
        assert!(CI.contains(&format!("\"{command}\"")), "CI does not run `{command}`");
    }
}

#[test]
fn what_it_says_in_passing_is_there() {
    // Verbs, options and exit codes that the text names outside of its console blocks.
    let help = Cli::new(["--help"]).run().ok().stdout;
    for verb in ["attach", "detach", "run", "status", "demo", "log", "man", "completions"]
        .into_iter()
        .chain(["drain", "undrain", "weight", "top", "trace", "metrics", "experiment"])
    {
        assert!(help.contains(&format!("\n  {verb} ")), "{verb}: {help}");
    }
    let drain = Cli::new(["drain", "--help"]).run().ok().stdout;
    for option in ["--pid", "--slot", "--timeout", "--no-wait"] {
        assert!(drain.contains(option), "{option}: {drain}");
    }
    let attach = Cli::new(["attach", "--help"]).run().ok().stdout;
    for option in ["--pin", "--weight", "--takeover", "--dry-run", "--worker", "--order"] {
        assert!(attach.contains(option), "{option}: {attach}");
    }
    let run = Cli::new(["run", "--help"]).run().ok().stdout;
    for option in [
        "--port",
        "--listen",
        "--workers",
        "--place",
        "--cpus",
        "--drain-timeout",
        "--stop-timeout",
        "--max-restarts",
        "--rung",
    ] {
        assert!(run.contains(option), "{option}: {run}");
    }
    let readme = README.split_whitespace().collect::<Vec<_>>().join(" ");
    for code in 0..=9 {
        assert!(help.contains(&format!("\n  {code}  ")), "exit code {code}: {help}");
        assert!(readme.contains(&format!(" {code} ")), "exit code {code} in the README");
    }
}
