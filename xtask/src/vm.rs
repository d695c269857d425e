//! `vm`: what works on which kernel, as probed by running the command on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::packages::{self, apt_install};
use crate::shell::{cargo, root, run as execute};

mod boot;
mod debian;
mod image;
mod report;

use boot::Machine;
use image::Kernel;
use report::Report;

/// Boot other kernels under emulation, and try the command on each
///
/// Every kernel is booted by QEMU without hardware virtualisation, with an initramfs that holds the
/// release build of the command, the tests' worker and busybox. A program inside starts a worker
/// per CPU, steers them, connects from every CPU, kills workers and looks; what it found becomes a
/// table in Markdown, a column per kernel. Exits with 1 when a check that must hold everywhere did
/// not; what merely depends on the kernel (migration, BTF, SO_INCOMING_CPU) is said in words.
///
/// Takes a minute or two per kernel, so it is no part of `ci`. Kernels need no installation and the
/// machine is not touched: everything is kept below target/vm. Installs qemu-system-x86,
/// busybox-static and cpio where they are missing (as root on Debian and its kin).
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask vm debian
  cargo xtask vm --kernel linux-image-6.1.0-47-cloud-amd64_6.1.170-3_amd64.deb
  cargo xtask vm --kernel linux-binary-7.2.deb,linux-modules-7.2.deb --cpus 8
  cargo xtask vm --vmlinuz arch/x86/boot/bzImage --modules /lib/modules/7.3.0-rc1 --json

A kernel needs a serial console (8250), bpffs and initramfs built in, and inet_diag and tcp_diag
built in or among the modules.")]
pub(crate) struct Options {
    /// Kernels to fetch: `debian` takes the newest cloud kernels of Debian's suites, from the mirror
    /// that this machine's apt uses
    #[arg(value_enum)]
    set: Option<Set>,
    /// A kernel's Debian packages, joined by commas where there are several (repeatable)
    #[arg(long, value_name = "FILE.deb[,FILE.deb]")]
    kernel: Vec<String>,
    /// A bootable kernel image
    #[arg(long, value_name = "FILE")]
    vmlinuz: Option<PathBuf>,
    /// The directory where that kernel's modules are
    #[arg(long, value_name = "DIR", requires = "vmlinuz")]
    modules: Option<PathBuf>,
    /// CPUs of the virtual machine
    #[arg(long, default_value_t = 4, value_name = "N")]
    cpus: u32,
    /// Seconds that a kernel may take, from boot to power-off
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    limit: u64,
    /// Print JSON instead of the table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Set {
    /// The newest kernels of bullseye, bookworm, bookworm-security and sid
    Debian,
}

/// What the machine needs, and the package that brings it.
const TOOLS: [(&str, &str); 4] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("setpriv", "util-linux"),
];

pub(crate) fn run(options: &Options) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("builds and boots x86_64 only; this machine is {}", std::env::consts::ARCH);
    }
    let directory = target().join("vm");
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    tools()?;
    let kernels = kernels(options, &directory)?;
    execute(&mut cargo(&["build", "--release", "--quiet", "--package", "reuseport-user"]))?;
    // The guest's programs are the tests' own; their speed does not matter, their size does.
    let bins = ["--bin", "steer-test-worker", "--bin", "steer-vm-guest"];
    let mut build = cargo(&["build", "--release", "--quiet", "--package", "reuseport-tests"]);
    execute(build.args(bins))?;

    let mut reports = Vec::new();
    for kernel in kernels {
        println!("== {} on {} CPUs", kernel.name, options.cpus);
        let initramfs = image::initramfs(&kernel, &target().join("release"), &directory)?;
        let machine = Machine {
            vmlinuz: kernel.vmlinuz,
            initramfs,
            cpus: options.cpus,
            limit: Duration::from_secs(options.limit),
            logs: directory.join("logs").join(&kernel.name),
        };
        let report = Report::read(&kernel.name, &machine.boot()?);
        println!("{}", report.summary());
        reports.push(report);
    }
    if options.json {
        println!("{}", report::json(&reports));
    } else {
        println!("\n{}", report::table(&reports));
    }
    let failures: Vec<String> = reports.iter().flat_map(Report::failures).collect();
    if !failures.is_empty() {
        bail!("what must hold did not:\n{}", failures.join("\n"));
    }
    Ok(())
}

fn kernels(options: &Options, directory: &Path) -> Result<Vec<Kernel>> {
    let mut kernels = Vec::new();
    if matches!(options.set, Some(Set::Debian)) {
        for files in debian::fetch(&directory.join("debian"))? {
            kernels.push(Kernel::unpack(&files, directory)?);
        }
    }
    for files in &options.kernel {
        let files: Vec<PathBuf> = files.split(',').map(PathBuf::from).collect();
        kernels.push(Kernel::unpack(&files, directory)?);
    }
    if let Some(vmlinuz) = &options.vmlinuz {
        kernels.push(Kernel::given(vmlinuz, options.modules.as_deref())?);
    }
    if kernels.is_empty() {
        bail!("no kernel: `cargo xtask vm debian` fetches some, --kernel and --vmlinuz take files");
    }
    Ok(kernels)
}

fn tools() -> Result<()> {
    let missing: Vec<_> =
        TOOLS.iter().filter(|(command, _)| !packages::present(command)).map(|it| it.1).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !packages::present("apt-get") {
        bail!("missing here: {} (named as Debian names the packages)", missing.join(", "));
    }
    apt_install(&missing).context("install what boots kernels (as root)")
}

fn target() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR");
    target.map_or_else(|| root().join("target"), |dir| root().join(dir))
}
