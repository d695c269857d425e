use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::super::test::{group, listener, snapshot};
use super::*;
use crate::observe::Snapshot;

fn parse(text: &str) -> Option<Endpoint> {
    text.parse().ok()
}

#[test]
fn addresses_and_sockets_are_read_or_refused() {
    let unix = Endpoint::Unix("/run/x".into());
    assert_eq!(parse("unix:/run/x"), Some(unix.clone()));
    for text in ["127.0.0.1:9464", "[::1]:9464", "unix:/run/x", "0.0.0.0:1"] {
        assert_eq!(parse(text).unwrap().to_string(), text);
    }
    for text in ["", "9464", ":9464", "localhost:9464", "unix:", "unix:x", "/run/x", "1.2.3.4"] {
        assert_eq!(parse(text), None, "{text:?}");
    }
}

#[test]
fn what_only_this_machine_reaches_is_local() {
    for (text, local) in [
        ("127.0.0.1:1", true),
        ("127.8.9.1:1", true),
        ("[::1]:1", true),
        ("[::ffff:127.0.0.1]:1", true),
        ("unix:/x", true),
        ("0.0.0.0:1", false),
        ("[::]:1", false),
        ("10.0.0.1:1", false),
    ] {
        assert_eq!(parse(text).unwrap().is_local(), local, "{text}");
    }
}

/// A port that was free a moment ago.
fn endpoint() -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    Endpoint::Tcp(listener.local_addr().unwrap())
}

fn source() -> Snapshot {
    snapshot(1, vec![group(vec![listener(10, Some(0), 0)])])
}

fn ask(endpoint: &Endpoint, request: &str) -> String {
    fn talk(mut stream: impl std::io::Read + std::io::Write, request: &str) -> String {
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
    match endpoint {
        Endpoint::Tcp(address) => talk(TcpStream::connect(address).unwrap(), request),
        Endpoint::Unix(path) => talk(UnixStream::connect(path).unwrap(), request),
    }
}

fn get(endpoint: &Endpoint, path: &str) -> String {
    ask(endpoint, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
}

#[test]
fn it_serves_metrics_and_state_and_refuses_the_rest() {
    let endpoint = endpoint();
    let server = Server::start(endpoint.clone(), false, source).unwrap();
    let metrics = get(&endpoint, "/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
    assert!(metrics.contains("content-type: text/plain; version=0.0.4\r\n"), "{metrics}");
    assert!(metrics.contains("\nreuseport_steer_groups{state=\"steered\"} 1\n"), "{metrics}");
    let state = get(&endpoint, "/state");
    let json = state.split("\r\n\r\n").nth(1).unwrap();
    let read: Snapshot = serde_json::from_str(json).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), json);
    assert_eq!(read.groups[0].group, source().groups[0].group);

    assert!(get(&endpoint, "/").starts_with("HTTP/1.1 404 "));
    for method in ["POST", "PUT", "DELETE", "HEAD"] {
        let request = format!("{method} /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
        let answer = ask(&endpoint, &request);
        assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET"), "{answer}");
    }
    let huge = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let mut stream = match &endpoint {
        Endpoint::Tcp(address) => TcpStream::connect(address).unwrap(),
        Endpoint::Unix(_) => unreachable!(),
    };
    // It may hang up before all of it was sent, and then what it said may be lost.
    let _hung_up = stream.write_all(huge.as_bytes());
    let mut answer = String::new();
    let _reset = stream.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    drop(server);
    let Endpoint::Tcp(address) = endpoint else { unreachable!() };
    assert!(TcpStream::connect(address).is_err(), "it listens after its end");
}

#[test]
fn a_socket_file_is_replaced_when_dead_and_removed_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let endpoint = Endpoint::Unix(path.clone());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let server = Server::start(endpoint.clone(), false, source).unwrap();
    assert!(get(&endpoint, "/metrics").starts_with("HTTP/1.1 200 "));
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
    let second = Server::start(endpoint.clone(), false, source);
    assert!(matches!(second, Err(ServeError::Taken(_))), "{second:?}");
    assert!(get(&endpoint, "/metrics").starts_with("HTTP/1.1 200 "), "the first goes on");
    drop(server);
    assert!(!path.exists());
    // What is no socket is not ours to remove.
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Server::start(endpoint, false, source), Err(ServeError::Taken(_))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    let nowhere = Endpoint::Unix(Path::new("/nonexistent/socket").into());
    assert!(matches!(Server::start(nowhere, false, source), Err(ServeError::Listen { .. })));
}

#[test]
fn only_this_machine_unless_told_otherwise() {
    let anywhere: Endpoint = "0.0.0.0:0".parse().unwrap();
    let refused = Server::start(anywhere.clone(), false, source);
    assert!(matches!(refused, Err(ServeError::Remote(_))), "{refused:?}");
    Server::start(anywhere, true, source).unwrap();
}

#[test]
fn clients_that_dawdle_are_dropped_and_others_served() {
    let endpoint = endpoint();
    let _server = Server::start(endpoint.clone(), false, source).unwrap();
    let Endpoint::Tcp(address) = endpoint else { unreachable!() };
    let mut idle: Vec<_> = (0..64).map(|_| TcpStream::connect(address).unwrap()).collect();
    for stream in &mut idle {
        stream.write_all(b"GET /met").unwrap();
    }
    let began = Instant::now();
    assert!(get(&endpoint, "/metrics").starts_with("HTTP/1.1 200 "));
    // 64 of them, 16 at a time, two seconds each; a bound for a busy machine.
    assert!(began.elapsed() < Duration::from_mins(1), "{:?}", began.elapsed());
    for mut stream in idle {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut rest = Vec::new();
        let _reset = stream.read_to_end(&mut rest);
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408 "), "{rest:?}");
    }
}

#[test]
fn however_often_it_is_asked_it_looks_seldom() {
    let endpoint = endpoint();
    let looks = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&looks);
    let _server = Server::start(endpoint.clone(), false, move || {
        counter.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(100));
        source()
    });
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        get(&endpoint, "/metrics");
    }
    // Each rests for nine times as long as it took.
    let most = (began.elapsed().as_millis() / 1000 + 1) as u32;
    let looks = looks.load(Ordering::Relaxed);
    assert!((1..=most).contains(&looks), "{looks} looks in {:?}", began.elapsed());
}

#[test]
fn fetching_tells_what_is_wrong() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ask = |endpoint: &Endpoint, path| runtime.block_on(fetch(endpoint, path));
    let endpoint = endpoint();
    assert!(matches!(ask(&endpoint, "/state"), Err(FetchError::Connect { .. })));
    let server = Server::start(endpoint.clone(), false, source).unwrap();
    let state = ask(&endpoint, "/state").unwrap();
    let read: Snapshot = serde_json::from_slice(&state).unwrap();
    assert_eq!(read.version, "1.2.3");
    let strange = ask(&endpoint, "/other").unwrap_err();
    assert!(strange.to_string().contains("404"), "{strange}");
    drop(server);
    let Endpoint::Tcp(address) = endpoint else { unreachable!() };
    let other = TcpListener::bind(address).unwrap();
    let babbler = std::thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        stream.write_all(b"220 mail.example ESMTP\r\n").unwrap();
    });
    let strange = ask(&Endpoint::Tcp(address), "/state").unwrap_err();
    assert!(matches!(strange, FetchError::Stranger { .. }), "{strange:?}");
    babbler.join().unwrap();
}
