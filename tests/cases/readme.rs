//! The README: every command in it is run, here or by `cargo xtask ci`.

use reuseport_tests::binary::Cli;
use reuseport_tests::cpus;
use reuseport_tests::leak::Baseline;
use reuseport_tests::netns::Netns;
use reuseport_tests::servers::{PgBouncer, Postgres};

const README: &str = include_str!("../../README.md");
const CI: &str = include_str!("../../xtask/src/ci.rs");

/// Lines of the README's `console` blocks that are typed, without their prompts.
fn commands() -> Vec<&'static str> {
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
    let before = Baseline::take();
    {
        let netns = Netns::new();
        let postgres = Postgres::start(&netns, 5432);
        let _bouncers = PgBouncer::one_per_cpu(&netns, &postgres, 6432, &cpus());
        let ours: Vec<_> = commands().into_iter().filter_map(arguments).collect();
        assert!(ours.len() >= 4, "the README's commands are not found: {ours:?}");
        // The host may have a PgBouncer of its own on that port.
        let here = ["--netns", "/proc/self/ns/net"];
        for mut arguments in ours {
            if matches!(arguments[0], "attach" | "detach" | "status") {
                arguments.extend(here);
            }
            Cli::new(&arguments).netns(&netns).run().ok();
        }
        let detach = ["detach", "--port", "6432"].into_iter().chain(here);
        Cli::new(detach).netns(&netns).run().ok();
    }
    before.assert_same();
}

#[test]
fn every_other_command_is_one_that_ci_runs() {
    let others: Vec<_> =
        commands().into_iter().filter(|command| arguments(command).is_none()).collect();
    assert!(others.len() >= 4, "the README's commands are not found: {others:?}");
    for command in others {
        assert!(CI.contains(&format!("\"{command}\"")), "CI does not run `{command}`");
    }
}

#[test]
fn what_it_says_in_passing_is_there() {
    // Verbs, options and exit codes that the text names outside of its console blocks.
    let help = Cli::new(["--help"]).run().ok().stdout;
    for verb in ["attach", "detach", "status", "demo", "log", "man", "completions"] {
        assert!(help.contains(&format!("\n  {verb} ")), "{verb}: {help}");
    }
    let attach = Cli::new(["attach", "--help"]).run().ok().stdout;
    for option in ["--pin", "--weight", "--takeover", "--dry-run", "--worker", "--order"] {
        assert!(attach.contains(option), "{option}: {attach}");
    }
    for code in 0..=7 {
        assert!(help.contains(&format!("\n  {code}  ")), "exit code {code}: {help}");
        assert!(README.contains(&format!(" {code} ")), "exit code {code} in the README");
    }
}
