//! The tools that turn the BPF sources into objects, and how to get them.
//!
//! Either Debian's packages (a stable rustc with a precompiled `core` for BPF), or rustup's nightly
//! with rust-src; in both cases bpf-linker and llvm-objcopy.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::packages;
use crate::shell::{read, root, run};

const TARGET: &str = "bpfel-unknown-none";
const LLVM: &str = "22";
const BPF_LINKER: &str = "0.13.0";
const PACKAGES: [&str; 6] = [
    "rustc-web",
    "cargo-web",
    "libstd-rust-web-dev-bpf",
    "llvm-22",
    "llvm-22-dev",
    "libpolly-22-dev",
];

pub(super) enum Toolchain {
    /// Debian's cargo and rustc in /usr/bin, with a precompiled BPF `core`.
    Debian,
    /// rustup's nightly, building `core` from source.
    Nightly,
}

impl Toolchain {
    /// The tools here; on Debian as root, missing ones are installed.
    pub(super) fn find_or_install() -> Result<Self> {
        if let Some(found) = Self::find() {
            return Ok(found);
        }
        if !packages::present("apt-get") {
            bail!(
                "no BPF toolchain. On Debian: apt-get install {}; elsewhere: rustup toolchain \
                 install nightly --component rust-src; then: cargo install bpf-linker --version \
                 {BPF_LINKER}",
                PACKAGES.join(" ")
            );
        }
        println!("installing the BPF toolchain: {}", PACKAGES.join(", "));
        packages::apt_install(&PACKAGES)?;
        if !has("bpf-linker") {
            run(Command::new("cargo")
                .args(["install", "--quiet", "bpf-linker", "--locked", "--version", BPF_LINKER])
                .args(["--no-default-features", "--features", &format!("llvm-{LLVM}")])
                .env("LLVM_PREFIX", llvm_prefix()))?;
        }
        Self::find().context("the BPF toolchain is installed but does not answer")
    }

    fn find() -> Option<Self> {
        if !has("bpf-linker") || objcopy().is_none() {
            return None;
        }
        let debian_core = Path::new("/usr/lib/rustlib").join(TARGET).exists();
        if debian_core && Path::new("/usr/bin/cargo").exists() {
            return Some(Self::Debian);
        }
        let nightly =
            first_line(Command::new("rustc").args(["+nightly", "--print", "sysroot"])).ok()?;
        Path::new(&nightly)
            .join("lib/rustlib/src/rust/library/core")
            .exists()
            .then_some(Self::Nightly)
    }

    /// Tool to version, as the lock names them.
    pub(super) fn versions(&self) -> Result<Vec<(String, String)>> {
        let mut rustc = match self {
            Self::Debian => Command::new("/usr/bin/rustc"),
            Self::Nightly => Command::new("rustc"),
        };
        if matches!(self, Self::Nightly) {
            rustc.arg("+nightly");
        }
        Ok(vec![
            ("rustc".to_owned(), first_line(rustc.arg("--version"))?),
            ("bpf-linker".to_owned(), first_line(Command::new("bpf-linker").arg("--version"))?),
        ])
    }

    /// Compiles and strips each of `names`.
    pub(super) fn compile(&self, names: &[&'static str]) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let kernel = root().join("reuseport-ebpf/kernel");
        let mut cargo = match self {
            Self::Debian => Command::new("/usr/bin/cargo"),
            Self::Nightly => Command::new("cargo"),
        };
        if matches!(self, Self::Nightly) {
            cargo.args(["+nightly", "-Z", "build-std=core"]);
        }
        // What the outer cargo says of itself must not reach the inner one.
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG") || text.starts_with("CARGO_MANIFEST") {
                cargo.env_remove(&name);
            }
        }
        for name in [
            "CARGO",
            "RUSTC",
            "RUSTUP_TOOLCHAIN",
            "RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "LD_LIBRARY_PATH",
        ] {
            cargo.env_remove(name);
        }
        cargo
            .args(["build", "--release", "--locked", "--target", TARGET])
            .current_dir(&kernel)
            .env("PATH", self.path()?)
            // aya-ebpf uses asm_experimental_arch; for that crate alone.
            .env("RUSTC_BOOTSTRAP", "aya_ebpf")
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags()?.join("\u{1f}"));
        run(&mut cargo)?;

        let built = kernel.join("target").join(TARGET).join("release");
        names
            .iter()
            .map(|&name| {
                let stripped = built.join(format!("{name}.bpf.o"));
                let objcopy = objcopy().context("llvm-objcopy is missing")?;
                run(Command::new(objcopy)
                    .arg("--strip-debug")
                    .arg(built.join(name))
                    .arg(&stripped))?;
                Ok((name, fs::read(stripped)?))
            })
            .collect()
    }

    /// Debian's cargo finds its own rustc only if /usr/bin stands before rustup's proxies.
    fn path(&self) -> Result<OsString> {
        let path = env::var_os("PATH").context("PATH is not set")?;
        let before = matches!(self, Self::Debian).then(|| PathBuf::from("/usr/bin"));
        Ok(env::join_paths(before.into_iter().chain(env::split_paths(&path)))?)
    }
}

/// Line info of the BTF keeps file names: they are made relative, so that objects do not depend on
/// where they were built and tell nothing about it.
fn rustflags() -> Result<Vec<String>> {
    let cargo_home = env::var("CARGO_HOME")
        .or_else(|_| env::var("HOME").map(|home| format!("{home}/.cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;
    let registry = Path::new(&cargo_home).join("registry/src");
    let mut flags = vec![
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        "-Clinker=bpf-linker".to_owned(),
        format!("--remap-path-prefix={}=.", root().display()),
    ];
    for index in fs::read_dir(&registry).into_iter().flatten().flatten() {
        flags.push(format!("--remap-path-prefix={}=registry", index.path().display()));
    }
    Ok(flags)
}

fn llvm_prefix() -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{LLVM}"))
}

fn objcopy() -> Option<PathBuf> {
    let packaged = llvm_prefix().join("bin/llvm-objcopy");
    if packaged.exists() {
        return Some(packaged);
    }
    has("llvm-objcopy").then(|| PathBuf::from("llvm-objcopy"))
}

/// The first line of what a command prints.
fn first_line(command: &mut Command) -> Result<String> {
    Ok(read(command)?.lines().next().unwrap_or_default().to_owned())
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}
