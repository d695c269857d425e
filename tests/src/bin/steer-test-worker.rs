//! A worker for the tests: listeners of any kind, one reply per connection, told what to do on
//! stdin. `worker.rs` of the library is its manual.
#![expect(clippy::print_stdout, reason = "its answers go to the harness through stdout")]

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use reuseport_tests::sys;
use serde_json::{Value, json};

struct Options(HashMap<String, String>);

impl Options {
    fn flag(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// 0 where it is not given.
    fn optional(&self, name: &str) -> u32 {
        if self.flag(name) { self.number(name) } else { 0 }
    }

    fn number(&self, name: &str) -> u32 {
        self.text(name).parse().unwrap_or_else(|_| panic!("{name} is not a number"))
    }
}

/// What the serving threads share with the one that reads stdin.
struct Shared {
    options: Options,
    listeners: Mutex<Vec<Option<OwnedFd>>>,
    fds: Vec<RawFd>,
    accepted: Vec<AtomicU64>,
    ledger: Option<Ledger>,
    stopped: Mutex<bool>,
    resumed: Condvar,
}

/// What outlives a SIGKILL: how many connections were taken up and how many of them were answered.
struct Ledger {
    file: File,
    begun: AtomicU64,
    done: AtomicU64,
}

impl Ledger {
    fn open(path: &str) -> io::Result<Self> {
        let file = File::options().write(true).open(path)?;
        Ok(Self { file, begun: AtomicU64::new(0), done: AtomicU64::new(0) })
    }

    /// Before a connection is accepted.
    fn begin(&self) {
        self.put(0, self.begun.fetch_add(1, Relaxed) + 1);
    }

    /// There was none.
    fn cancel(&self) {
        self.put(0, self.begun.fetch_sub(1, Relaxed) - 1);
    }

    /// Its answer is in the kernel's hands.
    fn finish(&self) {
        self.put(8, self.done.fetch_add(1, Relaxed) + 1);
    }

    fn put(&self, at: u64, count: u64) {
        self.file.write_all_at(&count.to_ne_bytes(), at).expect("write the ledger");
    }
}

fn main() -> ExitCode {
    let options = std::env::args().skip(1).map(|arg| match arg.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (arg, String::new()),
    });
    match run(Options(options.collect())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{}", failure(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> io::Result<()> {
    let cpus = cpus(&options);
    if !threaded(&options) && !cpus.is_empty() {
        sys::pin(0, &cpus)?;
    }
    let count = options.number("listeners");
    sys::usage::raise_open_files()?;
    let listeners =
        (0..count).map(|place| bound(&options, place)).collect::<io::Result<Vec<_>>>()?;
    let fds: Vec<RawFd> = listeners.iter().map(OwnedFd::as_raw_fd).collect();
    let cookies =
        listeners.iter().map(|fd| sys::cookie(fd.as_fd())).collect::<io::Result<Vec<_>>>()?;
    let ledger =
        options.flag("ledger").then(|| Ledger::open(options.text("ledger"))).transpose()?;
    let shared = Arc::new(Shared {
        ledger,
        accepted: fds.iter().map(|_| AtomicU64::new(0)).collect(),
        listeners: Mutex::new(listeners.into_iter().map(Some).collect()),
        fds,
        options,
        stopped: Mutex::new(false),
        resumed: Condvar::new(),
    });
    // A thread of one listener serves in main, as real servers of one thread do: commands come
    // through another one.
    let (start, started) = mpsc::channel();
    let commands = thread::Builder::new().name("commands".to_owned()).spawn({
        let shared = Arc::clone(&shared);
        move || obey(&shared, &cookies, &start)
    })?;
    if let Ok(tids) = started.recv() {
        serve(&shared, &tids);
    }
    commands.join().expect("the thread that reads commands");
    Ok(())
}

fn cpus(options: &Options) -> Vec<u32> {
    let list = options.text("cpus").split(',').filter(|cpu| !cpu.is_empty());
    list.map(|cpu| cpu.parse().expect("a CPU's number")).collect()
}

fn threaded(options: &Options) -> bool {
    matches!(options.text("style"), "accept" | "threads")
}

fn bound(options: &Options, place: u32) -> io::Result<OwnedFd> {
    let mut addresses = options.text("addr").split(',').cycle();
    let ip: IpAddr = addresses.nth(place as usize).unwrap_or_default().parse().expect("an address");
    let address = SocketAddr::new(ip, options.number("port") as u16);
    let domain = if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let (kind, protocol) = match (options.flag("udp"), options.flag("mptcp")) {
        (true, _) => (libc::SOCK_DGRAM, 0),
        (_, true) => (libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
        _ => (libc::SOCK_STREAM, 0),
    };
    let socket = sys::socket(domain, kind, protocol)?;
    let set = |level, name, value: i32| {
        sys::set_option(socket.as_fd(), level, name, &value.to_ne_bytes())
    };
    if !options.flag("udp") {
        set(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    }
    if options.flag("defer") {
        set(libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 30)?;
    }
    if !options.flag("no-reuseport") {
        set(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    if ip.is_ipv6() {
        set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, options.flag("v6only").into())?;
    }
    if options.flag("incoming-cpu") {
        let cpu = options.number("incoming-cpu") as i32;
        set(libc::SOL_SOCKET, libc::SO_INCOMING_CPU, cpu)?;
    }
    if options.flag("device") {
        let device = options.text("device").as_bytes();
        sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, device)?;
    }
    sys::bind(socket.as_fd(), address)?;
    Ok(socket)
}

/// Listens, starts the serving threads and says who they are.
fn listen(shared: &Arc<Shared>, start: &mpsc::Sender<mpsc::Sender<i32>>) -> io::Result<Vec<i32>> {
    if !shared.options.flag("udp") {
        set_backlog(shared, shared.options.number("backlog") as i32)?;
    }
    let (tell, tids) = mpsc::channel();
    start.send(tell).expect("main waits for this");
    let count = if threaded(&shared.options) { shared.fds.len() } else { 1 };
    Ok(tids.iter().take(count).collect())
}

/// `listen` on every listener: the first time it makes them listen, again it changes the backlog.
fn set_backlog(shared: &Shared, backlog: i32) -> io::Result<()> {
    let listeners = shared.listeners.lock().unwrap_or_else(PoisonError::into_inner);
    listeners.iter().flatten().try_for_each(|listener| sys::listen(listener.as_fd(), backlog))
}

/// Reads commands until `exit` or the end of stdin, then ends the process.
fn obey(shared: &Arc<Shared>, cookies: &[u64], start: &mpsc::Sender<mpsc::Sender<i32>>) {
    let tids =
        if shared.options.flag("no-listen") { Ok(Vec::new()) } else { listen(shared, start) };
    let ready = tids.map(|tids| json!({"tids": tids, "cookies": cookies, "fds": shared.fds}));
    say(&ready);
    for command in io::stdin().lines().map_while(Result::ok) {
        let answer = match command.as_str() {
            "listen" => listen(shared, start).map(|tids| json!({"tids": tids})),
            "stop" | "resume" => {
                let mut stopped = shared.stopped.lock().unwrap_or_else(PoisonError::into_inner);
                *stopped = command == "stop";
                shared.resumed.notify_all();
                Ok(json!({}))
            }
            "relisten" => set_backlog(shared, 7).map(|()| json!({})),
            "close first" => {
                shared.listeners.lock().unwrap_or_else(PoisonError::into_inner)[0] = None;
                Ok(json!({}))
            }
            "close" => {
                shared.listeners.lock().unwrap_or_else(PoisonError::into_inner).clear();
                Ok(json!({}))
            }
            "stats" => {
                let accepted: Vec<_> = shared.accepted.iter().map(|n| n.load(Relaxed)).collect();
                Ok(json!({"accepted": accepted}))
            }
            "exit" => {
                say(&Ok(json!({})));
                break;
            }
            _ => Err(io::Error::from(io::ErrorKind::Unsupported)),
        };
        say(&answer);
    }
    #[expect(clippy::exit, reason = "the serving threads never return")]
    std::process::exit(0);
}

fn say(answer: &io::Result<Value>) {
    match answer {
        Ok(value) => println!("{value}"),
        Err(error) => println!("{}", failure(error)),
    }
}

fn failure(error: &io::Error) -> Value {
    json!({"error": error.to_string(), "errno": error.raw_os_error()})
}

/// Serves for ever, in this thread or in one for each listener.
fn serve(shared: &Arc<Shared>, tids: &mpsc::Sender<i32>) {
    let style = shared.options.text("style");
    if !threaded(&shared.options) {
        tids.send(sys::thread_id()).expect("the command thread waits");
        return serve_with(shared, style, &shared.fds);
    }
    let cpus = cpus(&shared.options);
    thread::scope(|scope| {
        for (index, fd) in shared.fds.iter().enumerate() {
            let (cpus, tids) = (&cpus, tids.clone());
            scope.spawn(move || {
                if !cpus.is_empty() {
                    sys::pin(0, &[cpus[index % cpus.len()]]).expect("bind a thread to its CPU");
                }
                tids.send(sys::thread_id()).expect("the command thread waits");
                serve_with(shared, style, std::slice::from_ref(fd));
            });
        }
    });
}

fn serve_with(shared: &Shared, style: &str, fds: &[RawFd]) {
    let set = sys::epoll(fds).expect("an epoll set");
    loop {
        let ready = match style {
            "epoll" | "threads" => sys::epoll_wait(&set),
            "poll" => sys::poll(fds),
            "accept" => Ok(fds[0]),
            _ => panic!("no such style: {style}"),
        };
        let Ok(ready) = ready else { continue };
        if style != "accept" {
            wait_while_stopped(shared);
        }
        if shared.options.flag("udp") {
            let place = count(shared, ready);
            // A client that went away is its own business.
            drop(sys::answer(ready, || line(shared, place, None)));
            continue;
        }
        let ledger = shared.ledger.as_ref();
        ledger.inspect(|it| it.begin());
        let Ok(connection) = sys::accept(ready) else {
            ledger.inspect(|it| it.cancel());
            // Closed under us: nothing will ever come.
            wait_while_stopped(shared);
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        if style == "accept" {
            wait_while_stopped(shared);
        }
        let place = count(shared, ready);
        let line = line(shared, place, sys::incoming_cpu(connection.as_fd()).ok());
        work(shared.options.optional("work"));
        thread::sleep(Duration::from_micros(shared.options.optional("nap").into()));
        let mut connection = File::from(connection);
        if shared.options.flag("defer") {
            // What is left unread turns the close into a reset.
            drop(connection.read(&mut [0; 64]));
        }
        // A client that went away is its own business.
        drop(connection.write_all(line.as_bytes()));
        ledger.inspect(|it| it.finish());
    }
}

/// Uses the CPU for so many microseconds.
fn work(micros: u32) {
    let until = Instant::now() + Duration::from_micros(micros.into());
    while micros > 0 && Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// Counts a connection or datagram of the listener `fd`; its place among the listeners.
fn count(shared: &Shared, fd: RawFd) -> usize {
    let place = shared.fds.iter().position(|&it| it == fd).unwrap_or(0);
    shared.accepted[place].fetch_add(1, Relaxed);
    place
}

fn wait_while_stopped(shared: &Shared) {
    let stopped = shared.stopped.lock().unwrap_or_else(PoisonError::into_inner);
    drop(
        shared
            .resumed
            .wait_while(stopped, |stopped| *stopped)
            .unwrap_or_else(PoisonError::into_inner),
    );
}

/// What it answers.
fn line(shared: &Shared, place: usize, incoming_cpu: Option<i32>) -> String {
    if shared.options.flag("brief") {
        return "k\n".to_owned();
    }
    let line = json!({
        "worker": shared.options.number("index") as usize + place,
        "pid": std::process::id(),
        "tid": sys::thread_id(),
        "cpu": sys::current_cpu(),
        "incoming_cpu": incoming_cpu,
    });
    format!("{line}\n")
}
