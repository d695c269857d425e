//! Debian's kernels, fetched by apt with sources, lists and cache of our own: the machine's apt is
//! asked for its mirror and otherwise left alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell::{program, read, run};

const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Suites, in the order of age of their kernels.
const SUITES: [&str; 4] = ["bullseye", "bookworm", "bookworm-security", "sid"];

/// The newest kernel of each of these series is taken; the last is whatever is newest of all.
const SERIES: [&str; 4] = ["5.10.", "6.1.", "6.12.", ""];

const FLAVOUR: &str = "-cloud-amd64";

/// Fetches the kernels' packages into `directory`, those of a kernel together.
pub(super) fn fetch(directory: &Path) -> Result<Vec<Vec<PathBuf>>> {
    let apt = Apt { directory: directory.to_owned() };
    apt.update()?;
    let names = read(&mut apt.command("apt-cache", &["pkgnames", "linux-"]))?;
    let names: Vec<&str> = names.lines().collect();
    SERIES
        .into_iter()
        .map(|series| {
            let packages = choose(&names, series);
            if packages.is_empty() {
                bail!("no kernel {series} in {}", SUITES.join(", "));
            }
            packages.iter().map(|package| apt.download(package)).collect()
        })
        .collect()
}

struct Apt {
    directory: PathBuf,
}

impl Apt {
    fn update(&self) -> Result<()> {
        for part in ["lists/partial", "cache/archives/partial", "packages"] {
            let path = self.directory.join(part);
            fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        }
        let format = ["--format", "$(REPO_URI)", "Created-By: Packages"];
        let uris = read(program("apt-get", &["indextargets"]).args(format))
            .context("ask apt for its mirror (needs Debian's apt; else give --kernel FILE.deb)")?;
        let sources = sources(&uris)?;
        fs::write(self.directory.join("sources.list"), sources).context("write sources.list")?;
        run(&mut self.command("apt-get", &["update", "--quiet"]))
    }

    fn download(&self, package: &str) -> Result<PathBuf> {
        let place = self.directory.join("packages");
        // The version is part of the file's name: what is there already is not fetched again.
        let found = || -> Result<Option<PathBuf>> {
            let version = read(&mut self.command("apt-cache", &["show", package]))?;
            let field = |name: &str| version.lines().find_map(|line| line.strip_prefix(name));
            let version = field("Version: ").context("apt-cache shows no version")?;
            let architecture = field("Architecture: ").unwrap_or("amd64");
            let version = version.replace(':', "%3a");
            let path = place.join(format!("{package}_{version}_{architecture}.deb"));
            Ok(path.is_file().then_some(path))
        };
        if let Some(path) = found()? {
            return Ok(path);
        }
        let mut command = self.command("apt-get", &["download", "--quiet", package]);
        run(command.current_dir(&place))?;
        found()?.with_context(|| format!("apt-get did not download {package}"))
    }

    fn command(&self, name: &str, args: &[&str]) -> Command {
        let at = |part: &str| self.directory.join(part).display().to_string();
        let mut command = program(name, &[]);
        for (option, value) in [
            ("Dir::Etc::sourcelist", at("sources.list")),
            ("Dir::Etc::sourceparts", "-".to_owned()),
            ("Dir::State::lists", at("lists")),
            ("Dir::Cache", at("cache")),
            // The user that apt drops to may not reach the build directory.
            ("APT::Sandbox::User", "root".to_owned()),
            ("Acquire::Languages", "none".to_owned()),
            ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false".to_owned()),
        ] {
            command.arg("-o").arg(format!("{option}={value}"));
        }
        command.args(args);
        command
    }
}

/// Our sources on the mirrors among `uris`.
fn sources(uris: &str) -> Result<String> {
    let ending = |end: &str| uris.lines().find(|uri| uri.trim_end_matches('/').ends_with(end));
    let main = ending("/debian").context("none of apt's sources is a mirror of Debian")?;
    let beside = format!("{}-security/", main.trim_end_matches('/'));
    let security = ending("/debian-security").unwrap_or(&beside);
    let line = |suite: &str| {
        let uri = if suite.ends_with("-security") { security } else { main };
        format!("deb [signed-by={KEYS}] {uri} {suite} main\n")
    };
    Ok(SUITES.map(line).concat())
}

/// The packages of the newest kernel whose version begins with `series`.
///
/// A kernel is one package, `linux-image-VERSION`; newer ones are split into `linux-binary-` and
/// `linux-modules-`, and the image is an empty package that needs both.
fn choose(names: &[&str], series: &str) -> Vec<String> {
    let versions = names.iter().filter_map(|name| {
        let version = name.strip_prefix("linux-image-")?.strip_suffix(FLAVOUR)?;
        (version.starts_with(series) && version.starts_with(|it: char| it.is_ascii_digit()))
            .then_some(version)
    });
    let Some(newest) = versions.max_by_key(|version| numbers(version)) else { return Vec::new() };
    let package = |part: &str| format!("linux-{part}-{newest}{FLAVOUR}");
    let is_split = names.contains(&package("binary").as_str());
    let parts: &[&str] = if is_split { &["binary", "modules"] } else { &["image"] };
    parts.iter().map(|part| package(part)).collect()
}

fn numbers(version: &str) -> Vec<u32> {
    version.split(|it: char| !it.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::{choose, sources};

    #[test]
    fn the_newest_of_a_series_is_chosen_by_number() {
        let names = [
            "linux-image-5.10.0-9-cloud-amd64",
            "linux-image-5.10.0-32-cloud-amd64",
            "linux-image-5.10.0-33-amd64",
            "linux-image-6.12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-cloud-amd64",
        ];
        assert_eq!(choose(&names, "5.10."), ["linux-image-5.10.0-32-cloud-amd64"]);
        assert_eq!(choose(&names, ""), ["linux-image-6.12.117+deb12-cloud-amd64"]);
        assert!(choose(&names, "5.4.").is_empty());
    }

    #[test]
    fn a_split_kernel_is_two_packages() {
        let names = ["binary", "image", "modules"].map(|it| format!("linux-{it}-7.2-cloud-amd64"));
        let names = names.each_ref().map(String::as_str);
        assert_eq!(choose(&names, "7."), [names[0], names[2]]);
    }

    #[test]
    fn sources_stay_on_the_machines_mirror() {
        let text = sources("http://other.example/x/\nhttp://mirror.example/debian/\n").unwrap();
        assert!(text.contains("http://mirror.example/debian/ sid main"));
        assert!(text.contains("http://mirror.example/debian-security/ bookworm-security main"));
        assert!(!text.contains("other"));
        assert!(sources("http://other.example/x/\n").is_err());
    }
}
