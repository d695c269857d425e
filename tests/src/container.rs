//! Containers as a runtime makes them: namespaces, capabilities, a seccomp profile, an image.
//!
//! podman with runc, in a storage of the test's own. Images are made from nothing but our own
//! programs, linked statically, so that no registry is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::netns::Netns;
use crate::process::{self, must};
use crate::require;
use crate::turn::Turn;

/// The profile that Debian's podman applies unless told otherwise.
const PACKAGED_PROFILE: &str = "/usr/share/containers/seccomp.json";

/// What the default profile allows `bpf` for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// As Debian 12 packages it: `CAP_SYS_ADMIN`.
    Packaged,
    /// As Docker, containerd and later podmans have it: also `CAP_BPF`.
    Current,
}

/// An engine with a storage of its own; what it made goes with it.
#[derive(Debug)]
pub struct Podman {
    home: tempfile::TempDir,
    pods: Vec<String>,
    _turn: Turn,
}

impl Podman {
    /// Sets one up. Needs root.
    pub fn new(profile: Profile) -> Self {
        require::root();
        let turn = Turn::shared();
        let home = tempfile::tempdir().expect("a directory");
        let seccomp = seccomp_profile(profile).to_string();
        fs::write(home.path().join("seccomp.json"), seccomp).expect("write a profile");
        let podman = Self { home, pods: Vec::new(), _turn: turn };
        podman.configure("private");
        podman
    }

    /// Whose processes containers see from now on, which `hostPID` of a manifest tells other runtimes:
    /// this podman passes over it.
    pub fn share_processes(&self) {
        self.configure("host");
    }

    fn configure(&self, processes: &str) {
        // Low limits: raising them is not always ours to do.
        let settings = format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\npidns = \
             \"{processes}\"\n[engine]\ncgroup_manager = \"cgroupfs\"\nruntime = \
             \"runc\"\nevents_logger = \"none\"\n"
        );
        fs::write(self.home.path().join("containers.conf"), settings).expect("write settings");
    }

    fn command(&self, args: &[&str]) -> Command {
        self.with(process::command("podman"), args)
    }

    fn with(&self, mut podman: Command, args: &[&str]) -> Command {
        podman.env("CONTAINERS_CONF", self.home.path().join("containers.conf"));
        podman.arg("--root").arg(self.home.path().join("storage"));
        podman.arg("--runroot").arg(self.home.path().join("run"));
        podman.args(["--storage-driver", "vfs"]).args(args);
        podman
    }

    /// The image that `deploy/Dockerfile` describes, but for the compiler: ours is at hand.
    pub fn build_steer(&self, name: &str) {
        let stage = self.home.path().join("build");
        fs::create_dir_all(&stage).expect("make a directory");
        fs::copy(statically().join("reuseport-steer"), stage.join("reuseport-steer"))
            .expect("copy the command");
        let context = format!("build={}", stage.display());
        let repository = repository();
        let dockerfile = repository.join("deploy/Dockerfile");
        let mut build = self.command(&["build", "--quiet", "--build-context", &context]);
        must(build.args(["--tag", name, "--file"]).arg(dockerfile).arg(stage));
    }

    /// An image of the test worker and a shell.
    pub fn build_worker(&self, name: &str) {
        let stage = self.home.path().join("worker");
        fs::create_dir_all(&stage).expect("make a directory");
        fs::copy(statically().join("steer-test-worker"), stage.join("steer-test-worker"))
            .expect("copy the worker");
        fs::copy("/bin/busybox", stage.join("busybox")).expect("Debian's busybox is static");
        let lines = "FROM scratch\nCOPY steer-test-worker busybox /bin/\n";
        fs::write(stage.join("Dockerfile"), lines).expect("write a Dockerfile");
        must(self.command(&["build", "--quiet", "--tag", name]).arg(stage));
    }

    /// Starts the pods of a manifest, each in a network namespace of its own without any network.
    pub fn play(&mut self, manifest: &str, pods: &[&str]) {
        let play = self.command(&["kube", "play", "--network", "none"]);
        self.play_by(play, manifest, pods);
    }

    /// Starts the pods of a manifest that are on the host's network, where `host` is that.
    pub fn play_on(&mut self, host: &Netns, manifest: &str, pods: &[&str]) {
        let play = self.with(host.command("podman"), &["kube", "play"]);
        self.play_by(play, manifest, pods);
    }

    fn play_by(&mut self, mut play: Command, manifest: &str, pods: &[&str]) {
        let file = self.home.path().join(format!("{}.yaml", pods.join("-")));
        // This podman takes the profile of a pod from its annotations alone.
        let annotated = "metadata:\n  annotations:\n    \
                         seccomp.security.alpha.kubernetes.io/pod: localhost/seccomp.json\n";
        let manifest = manifest.replacen("metadata:\n", annotated, 1);
        fs::write(&file, manifest).expect("write a manifest");
        self.pods.extend(pods.iter().map(|&pod| pod.to_owned()));
        must(play.arg("--seccomp-profile-root").arg(self.home.path()).arg(file));
    }

    /// What a container printed so far, both streams.
    pub fn logs(&self, container: &str) -> String {
        let mut logs = self.command(&["logs", container]);
        let (_, stdout, stderr) = process::capture(&mut logs, std::time::Duration::from_secs(30));
        stdout + &stderr
    }

    /// Runs something in a container that runs.
    pub fn exec(&self, container: &str, args: &[&str]) -> String {
        must(self.command(&["exec", container]).args(args))
    }

    /// [`Podman::exec`] for a container on the host's network, where `host` is that: whatever is run
    /// in it is on the network that it was started from.
    pub fn exec_on(&self, host: &Netns, container: &str, args: &[&str]) -> String {
        must(self.with(host.command("podman"), &["exec", container]).args(args))
    }

    /// Process id, as the host sees it, of a container's first process.
    pub fn pid(&self, container: &str) -> u32 {
        let text = must(&mut self.command(&["inspect", "--format", "{{.State.Pid}}", container]));
        text.trim().parse().expect("a process id")
    }

    /// The network namespace of a container.
    pub fn netns(&self, container: &str) -> Netns {
        Netns::of(self.pid(container))
    }

    /// Ends a container as `kubectl delete` would, without patience.
    pub fn kill(&self, container: &str) {
        must(&mut self.command(&["kill", container]));
    }

    /// Starts an ended container again.
    pub fn start(&self, container: &str) {
        must(&mut self.command(&["start", container]));
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        for pod in &self.pods {
            drop(self.command(&["pod", "rm", "--force", "--time", "0", pod]).output());
        }
        drop(self.command(&["rmi", "--all", "--force"]).output());
        // Shared memory of the pods, mounted below the storage.
        drop(self.command(&["unshare", "true"]).output());
    }
}

/// The packaged profile, with the rule for `bpf` that is asked for.
fn seccomp_profile(profile: Profile) -> Value {
    let text = fs::read_to_string(PACKAGED_PROFILE).expect("podman's default seccomp profile");
    let mut value: Value = serde_json::from_str(&text).expect("a seccomp profile");
    if profile == Profile::Current {
        let rules = value["syscalls"].as_array_mut().expect("rules");
        for rule in rules.iter_mut() {
            let names = rule["names"].as_array_mut().expect("names");
            names.retain(|name| name != "bpf");
        }
        let allow = |cap: &str| {
            let includes = json!({ "caps": [cap] });
            json!({ "names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": includes })
        };
        let deny = json!({
            "names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
            "excludes": { "caps": ["CAP_BPF"] },
        });
        rules.extend([allow("CAP_BPF"), deny]);
    }
    value
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// Our programs without any library to load, built once.
fn statically() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let directory = repository().join("target");
        let mut cargo = process::command(env!("CARGO"));
        cargo.args(["build", "--quiet", "--locked", "--target", &target]);
        cargo.args(["--package", "reuseport-user", "--bin", "reuseport-steer"]);
        cargo.args(["--package", "reuseport-tests", "--bin", "steer-test-worker"]);
        cargo
            .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=debuginfo")
            .arg("--target-dir")
            .arg(&directory);
        let (status, _, stderr) =
            process::capture(cargo.current_dir(repository()), std::time::Duration::from_mins(15));
        assert!(status.is_some_and(|status| status.success()), "{stderr}");
        directory.join(target).join("debug")
    })
}
