//! The programs that the tests on the real kernel drive, and how to get them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::shell::{program, run};

/// A command and the Debian package that brings it.
const NEEDED: [(&str, &str); 29] = [
    ("pgbouncer", "pgbouncer"),
    ("initdb", "postgresql"),
    ("pgbench", "postgresql"),
    ("nginx", "nginx"),
    ("haproxy", "haproxy"),
    ("gunicorn", "gunicorn"),
    ("/usr/bin/python3", "python3"),
    ("ip", "iproute2"),
    ("nstat", "iproute2"),
    ("iptables", "iptables"),
    ("bpftool", "bpftool"),
    ("ethtool", "ethtool"),
    ("gcc", "gcc"),
    ("go", "golang-go"),
    ("node", "nodejs"),
    ("wrk", "wrk"),
    ("setpriv", "util-linux"),
    ("capsh", "libcap2-bin"),
    ("ps", "procps"),
    ("strace", "strace"),
    ("promtool", "prometheus"),
    ("script", "bsdutils"),
    ("systemd-analyze", "systemd"),
    ("systemd-nspawn", "systemd-container"),
    ("podman", "podman"),
    ("runc", "runc"),
    ("catatonit", "catatonit"),
    ("/bin/busybox", "busybox-static"),
    ("chromium-headless-shell", "chromium-headless-shell"),
];

/// Makes sure that all of them are there: installs what is missing on Debian and its kin, names it
/// elsewhere.
pub(crate) fn install() -> Result<()> {
    let missing: Vec<_> = NEEDED.into_iter().filter(|(command, _)| !present(command)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = |part: fn(&(&'static str, &'static str)) -> &'static str| {
        let mut names: Vec<_> = missing.iter().map(part).collect();
        names.dedup();
        names
    };
    let (commands, packages) = (names(|it| it.0), names(|it| it.1));
    if !present("apt-get") {
        bail!(
            "the tests drive programs that are missing here: {}. Install them (on Debian the \
             packages are called {})",
            commands.join(", "),
            packages.join(", ")
        );
    }
    println!("installing what the tests drive and this machine lacks: {}", packages.join(", "));
    apt_install(&packages)?;
    let still: Vec<_> = commands.into_iter().filter(|command| !present(command)).collect();
    if !still.is_empty() {
        bail!("still missing after the installation: {}", still.join(", "));
    }
    Ok(())
}

/// Installs Debian packages, without what they recommend and without starting their services.
pub(crate) fn apt_install(packages: &[&str]) -> Result<()> {
    let quiet = NoServices::hold()?;
    run(&mut program("apt-get", &["update", "--quiet"]))?;
    let mut command = program("apt-get", &["install", "--quiet", "--yes"]);
    command.arg("--no-install-recommends").args(packages).env("DEBIAN_FRONTEND", "noninteractive");
    run(&mut command)?;
    drop(quiet);
    Ok(())
}

/// Whether a command is installed.
pub(crate) fn present(command: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut places: Vec<_> = path.split(':').map(|dir| Path::new(dir).join(command)).collect();
    places.extend(["/usr/sbin", "/sbin"].map(|dir| Path::new(dir).join(command)));
    // Debian keeps PostgreSQL's programs by version.
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    places.extend(versions.map(|version| version.path().join("bin").join(command)));
    places.iter().any(|place| place.is_file())
}

/// Keeps Debian's packages from starting the services they install, which would take ports and
/// memory of a machine that only wants to run tests.
struct NoServices {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn hold() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("write {POLICY}"))?;
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("chmod {POLICY}"))?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours && fs::remove_file(POLICY).is_err() {
            println!("remove {POLICY} by hand: it keeps packages from starting services");
        }
    }
}
