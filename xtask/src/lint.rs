//! `lint`: format, lints, documentation, and the rules of the house that no compiler knows.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::shell::{Steps, cargo, program, read, root, run as execute};

/// No choices: the same everywhere.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {}

/// Most lines of a source file.
const LONGEST: usize = 400;

/// Where code may be `unsafe`; the compiler refuses it wherever the exception is not declared.
const UNSAFE: [&str; 2] = ["reuseport-user/src/sys/", "tests/src/sys.rs"];

pub(crate) fn run(_: &Options) -> Result<()> {
    let files = Tracked::list()?;
    let mut steps = Steps::default();
    steps.step("format", || execute(&mut cargo(&["fmt", "--all", "--check"])));
    steps.step("rules of the house", || files.check());
    steps.step("clippy", || {
        execute(&mut cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "--deny=warnings",
        ]))?;
        // The library alone, as others depend on it.
        execute(&mut cargo(&[
            "clippy",
            "--package=reuseport-user",
            "--lib",
            "--no-default-features",
            "--quiet",
            "--",
            "--deny=warnings",
        ]))
    });
    steps.step("dependencies of the library alone", lean_library);
    steps.step("documentation", || {
        let mut command = cargo(&["doc", "--workspace", "--no-deps", "--quiet"]);
        execute(command.env("RUSTDOCFLAGS", "--deny=warnings"))
    });
    steps.finish()
}

/// Whoever depends on the library compiles none of the command's crates.
fn lean_library() -> Result<()> {
    // Each is at the root of a large part of the command's tree.
    const HEAVY: [&str; 6] = ["anyhow", "clap", "hyper", "ratatui", "serde_json", "tokio"];
    let options = ["--no-default-features", "--edges=normal", "--prefix=none", "--format={p}"];
    let tree = read(cargo(&["tree", "--package=reuseport-user"]).args(options))?;
    let crates: BTreeSet<&str> =
        tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    match HEAVY.iter().find(|it| crates.contains(*it)) {
        Some(heavy) => bail!("the library alone depends on {heavy}"),
        None => Ok(()),
    }
}

/// The files under version control that are text.
struct Tracked(Vec<(String, String)>);

impl Tracked {
    fn list() -> Result<Self> {
        // With what is new and not ignored: a file must not wait for its commit to be looked at.
        let list = read(&mut program(
            "git",
            &["ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        ))
        .context("list the tracked files")?;
        let text = |path: &str| {
            let bytes = fs::read(root().join(path)).ok()?;
            Some((path.to_owned(), String::from_utf8(bytes).ok()?))
        };
        Ok(Self(list.split('\0').filter(|path| !path.is_empty()).filter_map(text).collect()))
    }

    fn check(&self) -> Result<()> {
        let offenders: Vec<String> =
            [self.long_files(), self.unsafe_files(), self.lax_members()?, self.leftovers()]
                .concat();
        for offender in &offenders {
            println!("{offender}");
        }
        if !offenders.is_empty() {
            bail!("{} offence(s) against the rules above", offenders.len());
        }
        Ok(())
    }

    fn sources(&self) -> impl Iterator<Item = &(String, String)> {
        let source = |path: &str| {
            Path::new(path).extension().is_some_and(|kind| kind == "rs" || kind == "py")
        };
        self.0.iter().filter(move |(path, _)| source(path))
    }

    /// Source files that are too long to be read at one sitting.
    fn long_files(&self) -> Vec<String> {
        self.sources()
            .map(|(path, text)| (path, text.lines().count()))
            .filter(|(_, lines)| *lines > LONGEST)
            .map(|(path, lines)| format!("{path}: {lines} lines, at most {LONGEST}"))
            .collect()
    }

    /// Files that declare an exception from `unsafe_code = "deny"` without being listed for it.
    fn unsafe_files(&self) -> Vec<String> {
        let declared = |text: &str| {
            text.lines().map(str::trim_start).any(|line| {
                (line.starts_with("#![") || line.starts_with("#[")) && line.contains("(unsafe_code")
            })
        };
        self.sources()
            .filter(|(path, text)| {
                declared(text) && !UNSAFE.iter().any(|listed| path.starts_with(listed))
            })
            .map(|(path, _)| {
                format!("{path}: `unsafe` is allowed below {} only", UNSAFE.join(", "))
            })
            .collect()
    }

    /// Members of the workspace whose lints are not the workspace's.
    fn lax_members(&self) -> Result<Vec<String>> {
        let metadata = read(&mut cargo(&["metadata", "--no-deps", "--format-version=1"]))?;
        let members = self.0.iter().filter(|(path, _)| {
            path.ends_with("/Cargo.toml")
                && metadata.contains(&format!("{}\"", root().join(path).display()))
        });
        let members: Vec<_> = members.collect();
        if members.is_empty() {
            bail!("cargo metadata names no member of this repository");
        }
        let lax = |text: &str| {
            let lints = text.split("\n[lints]\n").nth(1).unwrap_or_default();
            lints.lines().next() != Some("workspace = true")
        };
        let lax = members.into_iter().filter(|(_, text)| lax(text));
        Ok(lax.map(|(path, _)| format!("{path}: no `[lints] workspace = true`")).collect())
    }

    /// Marks of unfinished work, and paths that exist on one machine only.
    fn leftovers(&self) -> Vec<String> {
        let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
        let homes = ["home", "root", "Users", "work", "workspace"].map(|name| format!("/{name}/"));
        let mut found = Vec::new();
        for (path, text) in &self.0 {
            for (number, line) in (1..).zip(text.lines()) {
                let marked = words(line).any(|word| marks.contains(&word));
                let homely = homes.iter().any(|home| starts_a_path(line, home));
                if marked {
                    found.push(format!("{path}:{number}: unfinished: {}", line.trim()));
                }
                if homely {
                    found.push(format!("{path}:{number}: a path of one machine: {}", line.trim()));
                }
            }
        }
        found
    }
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
}

/// Whether `prefix` stands in `line` as the beginning of an absolute path.
fn starts_a_path(line: &str, prefix: &str) -> bool {
    line.match_indices(prefix).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|letter| !letter.is_alphanumeric() && !"/._-}>$*~".contains(letter))
    })
}

#[cfg(test)]
mod tests {
    use super::{Tracked, starts_a_path};

    fn tracked(path: &str, text: &str) -> Tracked {
        Tracked(vec![(path.to_owned(), text.to_owned())])
    }

    #[test]
    fn counts_lines() {
        assert!(tracked("a/b.rs", &"x\n".repeat(400)).long_files().is_empty());
        assert_eq!(tracked("a/b.rs", &"x\n".repeat(401)).long_files().len(), 1);
        assert!(tracked("data.json", &"x\n".repeat(401)).long_files().is_empty());
    }

    #[test]
    fn finds_unsafe_where_it_is_not_allowed() {
        let text = "#![expect(unsafe_code, reason = \"\")]\n";
        assert!(tracked("reuseport-user/src/sys/bpf.rs", text).unsafe_files().is_empty());
        assert_eq!(tracked("reuseport-user/src/plan/mod.rs", text).unsafe_files().len(), 1);
        assert!(
            tracked("reuseport-user/src/plan/mod.rs", "// (unsafe_code\n")
                .unsafe_files()
                .is_empty()
        );
    }

    #[test]
    fn finds_marks_and_paths() {
        let mark = concat!("TO", "DO");
        assert_eq!(tracked("a", &format!("// {mark}: later")).leftovers().len(), 1);
        assert!(tracked("a", &format!("{mark}S_LEFT")).leftovers().is_empty());
        let home = format!("/{}/", "home");
        assert!(starts_a_path(&format!("see {home}me"), &home));
        assert!(starts_a_path(&format!("{home}me"), &home));
        assert!(!starts_a_path(&format!("https://example.org{home}me"), &home));
    }
}
