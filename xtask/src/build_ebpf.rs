//! `cargo xtask build-ebpf`: compiles the BPF objects, or checks that the committed ones are right.
//!
//! The objects are committed, so that building and installing need stable Rust only. The lock
//! beside them names the hash of the sources they were made from, the tools that made them and
//! their own hashes. `--check` fails when the sources changed without a rebuild, or an object
//! without the lock; where the tools here are the lock's, it also rebuilds and compares bytes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::shell::root;

mod toolchain;

use toolchain::Toolchain;

const REMEDY: &str = "run `cargo xtask build-ebpf` and commit the result";

const OBJECTS: [&str; 3] = ["steer", "watch", "observe"];

/// What the objects are made from, relative to the root.
const SOURCES: [&str; 5] = [
    "reuseport-common/Cargo.toml",
    "reuseport-common/src",
    "reuseport-ebpf/kernel/Cargo.lock",
    "reuseport-ebpf/kernel/Cargo.toml",
    "reuseport-ebpf/kernel/src",
];

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Change nothing: fail if the committed objects are not those of the sources
    #[arg(long)]
    pub(crate) check: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let sources = hash_sources()?;
    if options.check { check(&sources) } else { build(&sources) }
}

fn build(sources: &str) -> Result<()> {
    let toolchain = Toolchain::find_or_install()?;
    let mut lock = BTreeMap::from([("sources".to_owned(), sources.to_owned())]);
    lock.extend(toolchain.versions()?);
    for (name, object) in toolchain.compile(&OBJECTS)? {
        lock.insert(file_name(name), sha256(&object));
        fs::write(objects().join(file_name(name)), object)?;
    }
    let mut text = String::from("# Written by `cargo xtask build-ebpf`; `--check` compares.\n");
    for (key, value) in &lock {
        writeln!(text, "{key} = {value}")?;
    }
    fs::write(objects().join("objects.lock"), text)?;
    println!("built {}", OBJECTS.map(file_name).join(", "));
    Ok(())
}

fn check(sources: &str) -> Result<()> {
    let lock = read_lock()?;
    let locked = |key: &str| lock.get(key).with_context(|| format!("objects.lock has no `{key}`"));
    ensure!(
        locked("sources")? == sources,
        "the BPF sources are not those that the committed objects were made from: {REMEDY}"
    );
    for name in OBJECTS {
        let object = fs::read(objects().join(file_name(name)))?;
        ensure!(
            *locked(&file_name(name))? == sha256(&object),
            "{} is not the object that objects.lock names: {REMEDY}",
            file_name(name)
        );
    }
    println!("sources and objects agree with objects.lock");

    let toolchain = Toolchain::find_or_install()?;
    let built = toolchain.compile(&OBJECTS)?;
    let versions = toolchain.versions()?;
    if versions.iter().any(|(tool, version)| lock.get(tool) != Some(version)) {
        println!("compiled, but not compared byte by byte: other tools here than in objects.lock");
        for (tool, version) in &versions {
            println!("  {tool}: {version} here, {} in the lock", locked(tool)?);
        }
        return Ok(());
    }
    for (name, object) in built {
        ensure!(
            *locked(&file_name(name))? == sha256(&object),
            "{} built here differs from the committed one, with the same tools: {REMEDY}",
            file_name(name)
        );
    }
    println!("rebuilt byte for byte");
    Ok(())
}

fn objects() -> PathBuf {
    root().join("reuseport-ebpf/objects")
}

fn file_name(object: &str) -> String {
    format!("{object}.bpf.o")
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

fn read_lock() -> Result<BTreeMap<String, String>> {
    let path = objects().join("objects.lock");
    let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        .map(|line| {
            let (key, value) =
                line.split_once(" = ").with_context(|| format!("bad line: {line}"))?;
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

/// One hash over the names and contents of every source file, in order of name.
fn hash_sources() -> Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        list_files(&root().join(source), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let name =
            file.strip_prefix(root())?.to_str().context("file name is not UTF-8")?.to_owned();
        let content = fs::read(&file)?;
        hash.update(format!("{name}\0{}\0", content.len()));
        hash.update(content);
    }
    Ok(hex(&hash.finalize()))
}

fn list_files(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    if !path.is_dir() {
        bail!("{} is missing", path.display());
    }
    for entry in fs::read_dir(path)? {
        list_files(&entry?.path(), files)?;
    }
    Ok(())
}
