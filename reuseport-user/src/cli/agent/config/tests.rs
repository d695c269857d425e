use std::io::Write as _;

use proptest::prelude::*;

use super::*;
use crate::steer::Settings;
use reuseport_common::abi::Policy;

fn possible() -> CpuSet {
    "0-3".parse().unwrap()
}

fn parsed(text: &str) -> Result<AgentOptions, Mistake> {
    parse(text.as_bytes(), &Settings::default(), &possible())
}

/// The error for this file, as people see it, without its path.
fn refused(bytes: &[u8]) -> String {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let error = read(file.path(), &Settings::default(), &possible()).unwrap_err().to_string();
    error.replace(&file.path().display().to_string(), "F")
}

#[test]
fn everything_has_a_place() {
    let options = parsed(
        "reconcile-interval = '250ms'\n\
         generation-timeout = '2m'\n\
         detach-on-exit = true\n\
         [[target]]\n\
         port = 6432\n\
         addr = ['10.0.0.5', '::1']\n\
         netns = '/run/netns/blue'\n\
         policy = 'round-robin'\n\
         [[target.worker]]\n\
         name = 'web'\n\
         cpus = '0-1,3'\n\
         [[target]]\n\
         port = 443\n\
         udp = true\n",
    )
    .unwrap();
    assert_eq!(options.interval, Duration::from_millis(250));
    assert_eq!(options.generation_timeout, Duration::from_mins(2));
    assert!(options.detach_on_exit);
    let [first, second] = &options.goals[..] else { panic!("{options:?}") };
    let target = &first.attach.target;
    assert_eq!((target.port, target.protocol), (6432, Protocol::Tcp));
    assert_eq!(target.addrs, ["10.0.0.5".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
    assert_eq!(target.netns, NetnsChoice::Path("/run/netns/blue".into()));
    assert_eq!(first.attach.policy, Policy::RoundRobin);
    let worker = NamedWorker { name: "web".to_owned(), cpus: "0-1,3".parse().unwrap() };
    assert_eq!(first.workers, [worker]);
    assert_eq!(second.attach.target.protocol, Protocol::Udp);
    assert_eq!((second.attach.policy, second.workers.len()), (Policy::Cpu, 0));
    let least = parsed("[[target]]\nport = 1").unwrap();
    assert_eq!((least.interval, least.detach_on_exit), (RECONCILE_INTERVAL, false));
    assert_eq!(least.generation_timeout, GENERATION_TIMEOUT);
}

#[test]
fn mistakes_are_told_with_their_line() {
    let target = "[[target]]\nport = 80\n";
    let worker =
        |name: &str, cpus: &str| format!("[[target.worker]]\nname = '{name}'\ncpus = {cpus}\n");
    let two =
        |one: &str, other: &str| format!("{target}{}{}", worker("a", one), worker("b", other));
    for (text, expected) in [
        (String::new(), "F:1:1: there is no [[target]]"),
        ("[[target]]\n".to_owned(), "F:1:1: missing field `port`"),
        (format!("{target}prot = 1\n"), "F:3:1: unknown field `prot`"),
        ("[[target]]\nport = 'x'\n".to_owned(), "F:2:8: invalid type: string \"x\""),
        ("[[target]]\nport = 0\n".to_owned(), "F:2:8: 0 is no port"),
        ("[[target]]\nport = 70000\n".to_owned(), "F:2:8: invalid value: integer `70000`"),
        ("[[target]]\nport = -1\n".to_owned(), "F:2:8: invalid value: integer `-1`"),
        (format!("{target}addr = ['1.2.3']\n"), "F:3:9: `1.2.3`: invalid IP address"),
        (format!("{target}addr = ['[::1]']\n"), "F:3:9: `[::1]`: invalid IP address"),
        (format!("{target}policy = 'fastest'\n"), "F:3:10: `fastest` is none of cpu, hash"),
        (format!("detach-on-exit = 'no'\n{target}"), "F:1:18: invalid type"),
        (format!("reconcile-interval = '1h'\n{target}"), "F:1:22: `1h` is not a time"),
        (format!("reconcile-interval = 1\n{target}"), "F:1:22: invalid type: integer `1`"),
        (format!("{target}\n\n{target}"), "F:6:8: port 80 is named by another [[target]]"),
        (format!("{target}addr = ['::1']\n{target}"), "F:5:8: port 80 is named by another"),
        (format!("{target}{target}netns = '/a'\nnetns = '/b'"), "F:6:1: duplicate key"),
        (two("'0'", "'99999'"), "F:8:8: CPU 99999 is beyond the largest id"),
        (two("'0'", "'4'"), "F:8:8: there is no CPU 4 on this machine, only 0-3"),
        (two("'0-2'", "'2-3'"), "F:8:8: CPU 2 is worker `a`'s already"),
        (two("'0'", "'-1'"), "F:8:8: `-1` is not a CPU number or range"),
        (two("'0'", "''"), "F:8:8: "),
        (two("'0'", "2"), "F:8:8: invalid type: integer `2`"),
        (two("'0'", "'1'").replace("'b'", "'a'"), "F:7:8: worker `a` is named already"),
        (format!("{target}x"), "F:3:2: "),
        ("[[target\n".to_owned(), "F:1:9: "),
    ] {
        let told = refused(text.as_bytes());
        assert!(told.starts_with(expected), "{text}\nsays {told:?}\nnot  {expected:?}");
    }
    assert!(parsed(&format!("{target}addr = ['::1']\n{target}addr = ['::2']\n")).is_ok());
    assert!(parsed(&format!("{target}netns = '/a'\n{target}netns = '/b'\n")).is_ok());
    assert!(parsed(&format!("{target}{target}udp = true\n")).is_ok());
}

#[test]
fn what_is_no_text_is_refused() {
    for (bytes, expected) in [
        (
            &b"\xef\xbb\xbf[[target]]\nport = 80\n"[..],
            "F:1:1: the file begins with a byte order mark",
        ),
        (b"[[target]]\nport = 8\x000\n", "F:2:9: there is a NUL byte"),
        (b"[[target]]\nport = 80 # \xff\n", "F:2:13: this is not UTF-8"),
        (&vec![b'#'; 10 << 20], "F:1:1: the file is larger than 1 MiB"),
    ] {
        let told = refused(bytes);
        assert!(told.starts_with(expected), "says {told:?}, not {expected:?}");
    }
    for (path, expected) in [
        ("/nonexistent/agent.toml", "No such file"),
        ("/dev/zero", "not a regular file"),
        ("/", "not a regular file"),
    ] {
        let error = read(path.as_ref(), &Settings::default(), &possible()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

proptest! {
    /// Whatever a file holds, it is read or refused, with a place that is in it.
    #[test]
    fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(parse(&bytes, &Settings::default(), &possible()));
    }

    #[test]
    fn no_text_makes_it_panic(lines in prop::collection::vec(prop::sample::select(vec![
        "[[target]]", "[[target.worker]]", "port = 80", "port = 'x'", "name = 'a'", "cpus = '0-1'",
        "cpus = '1'", "addr = ['::1']", "addr = 5", "policy = 'cpu'", "udp = true", "x = {", "é = 1",
        "reconcile-interval = '5s'", "# text",
    ]), 0..12)) {
        let text = lines.join("\n");
        if let Err((span, what)) = parse(text.as_bytes(), &Settings::default(), &possible()) {
            prop_assert!(span.start <= text.len() && !what.is_empty(), "{span:?} {what}");
        }
    }
}
