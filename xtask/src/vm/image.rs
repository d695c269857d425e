//! What is booted: a kernel out of its package, and an initramfs made for it.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::shell::{program, read, run};

/// Listing sockets; most distributions build it as modules. In the order they must be loaded.
const MODULES: [&str; 3] = ["inet_diag", "tcp_diag", "udp_diag"];

/// The first program in the guest. What runs after it writes its report to the second serial line.
const INIT: &str = "\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/bin:/bin REUSEPORT_STEER=/reuseport-steer RUST_BACKTRACE=0
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
stty -F /dev/ttyS1 raw -echo
/steer-vm-guest /dev/ttyS1
echo \"the guest's program ended with $?\"
reboot -f
";

/// A kernel to boot.
pub(super) struct Kernel {
    /// Names its column and its files.
    pub(super) name: String,
    /// The image.
    pub(super) vmlinuz: PathBuf,
    modules: Option<PathBuf>,
}

impl Kernel {
    /// A kernel from its Debian packages, unpacked below `directory` once.
    pub(super) fn unpack(packages: &[PathBuf], directory: &Path) -> Result<Self> {
        let stem =
            packages.first().and_then(|path| path.file_stem()).context("a package's name")?;
        let name = stem.to_string_lossy().into_owned();
        let place = directory.join("kernels").join(&name);
        if !place.exists() {
            // Renamed when complete: an interrupted run leaves no half kernel to be trusted.
            let partial = directory.join("kernels").join(format!("{name}.partial"));
            drop(fs::remove_dir_all(&partial));
            for package in packages {
                fs::create_dir_all(&partial)?;
                run(program("dpkg-deb", &["-x"]).arg(package).arg(&partial))?;
            }
            fs::rename(&partial, &place)?;
        }
        let files = files(&place);
        let vmlinuz = |path: &&PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
        };
        let vmlinuz = files.iter().find(vmlinuz);
        let vmlinuz = vmlinuz.with_context(|| format!("{name} contains no vmlinuz"))?.clone();
        Ok(Self { name, vmlinuz, modules: Some(place) })
    }

    /// A kernel that somebody built.
    pub(super) fn given(vmlinuz: &Path, modules: Option<&Path>) -> Result<Self> {
        let vmlinuz = vmlinuz.canonicalize().with_context(|| vmlinuz.display().to_string())?;
        let name = vmlinuz.file_name().context("the kernel's file name")?;
        let name = name.to_string_lossy().into_owned();
        Ok(Self { name, vmlinuz, modules: modules.map(Path::to_owned) })
    }
}

/// Builds the initramfs for a kernel: our programs, busybox, their libraries, the modules.
pub(super) fn initramfs(kernel: &Kernel, programs: &Path, directory: &Path) -> Result<PathBuf> {
    let root = directory.join("root");
    drop(fs::remove_dir_all(&root));
    for part in ["bin", "dev", "modules", "proc", "run", "sys", "tmp", "usr/bin"] {
        fs::create_dir_all(root.join(part))?;
    }
    fs::write(root.join("init"), INIT)?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    let which =
        |name: &str| read(&mut program("which", &[name])).map(|it| PathBuf::from(it.trim()));
    copy(&which("busybox")?, &root.join("bin/busybox"))?;
    // busybox has one too, but knows no bounding set.
    let setpriv = which("setpriv")?;
    copy(&setpriv, &root.join("usr/bin/setpriv"))?;
    libraries(&setpriv, &root)?;
    for name in ["reuseport-steer", "steer-test-worker", "steer-vm-guest"] {
        let binary = programs.join(name);
        copy(&binary, &root.join(name))?;
        libraries(&binary, &root)?;
    }
    modules(kernel, &root)?;
    symlink("bin", root.join("sbin"))?;

    let archive = directory.join(format!("{}.cpio", kernel.name));
    pack(&root, &archive)?;
    Ok(archive)
}

/// Copies the shared libraries and the loader of a program to where it looks for them.
fn libraries(binary: &Path, root: &Path) -> Result<()> {
    let list = read(program("ldd", &[]).arg(binary))?;
    for path in list.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("a library's directory")?)?;
        copy(Path::new(path), &to)?;
    }
    Ok(())
}

/// Puts the modules and the order to load them into `/modules`.
fn modules(kernel: &Kernel, root: &Path) -> Result<()> {
    let files = kernel.modules.as_deref().map(files).unwrap_or_default();
    let mut order = Vec::new();
    for name in MODULES {
        // A kernel that has it built in has no file.
        let found = files.iter().find_map(|path| {
            let file = path.file_name()?.to_str()?;
            Some((path, file.strip_prefix(name)?.strip_prefix(".ko")?))
        });
        let Some((path, compression)) = found else { continue };
        let decompressor = match compression {
            "" => "cat",
            ".xz" => "xzcat",
            ".zst" => "zstdcat",
            ".gz" => "zcat",
            other => bail!("{}: compressed in an unknown way ({other})", path.display()),
        };
        let to = File::create(root.join(format!("modules/{name}.ko")))?;
        run(program(decompressor, &[]).arg(path).stdout(to))?;
        order.push(format!("{name}.ko"));
    }
    Ok(fs::write(root.join("modules/order"), order.join("\n"))?)
}

/// Packs a directory as the kernel wants it.
fn pack(root: &Path, archive: &Path) -> Result<()> {
    let list = |path: PathBuf| path.strip_prefix(root).ok().map(|it| it.display().to_string());
    let mut names: Vec<String> = tree(root).into_iter().filter_map(list).collect();
    names.sort_unstable();
    let mut command = Command::new("cpio");
    command.args(["--quiet", "--create", "--format=newc", "--owner=0:0"]).current_dir(root);
    command.stdin(Stdio::piped()).stdout(File::create(archive)?);
    let mut child = command.spawn().context("start cpio")?;
    let mut stdin = child.stdin.take().context("cpio's stdin")?;
    stdin.write_all((names.join("\n") + "\n").as_bytes())?;
    drop(stdin);
    let status = child.wait()?;
    if !status.success() {
        bail!("cpio failed: {status}");
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    Ok(())
}

/// Regular files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    tree(directory).into_iter().filter(|path| path.is_file()).collect()
}

/// Everything below a directory, links not followed.
fn tree(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        found.push(entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(tree(&entry.path()));
        }
    }
    found
}
