//! nginx with `listen ... reuseport`: every process holds every listener, epoll sets tell who
//! serves which.

use std::time::Duration;

use crate::client::{Target, exchange};
use crate::eventually;
use crate::netns::Netns;
use crate::servers::{Home, Server, command};
use crate::sys::{self, Become};

/// A running nginx; it answers with the pid of the worker that served.
#[derive(Debug)]
pub struct Nginx {
    server: Server,
    port: u16,
    workers: usize,
}

/// A running nginx that is a daemon, which it must be to replace its own binary. It answers as
/// [`Nginx`] does.
#[derive(Debug)]
pub struct NginxDaemon {
    /// A shell that takes the daemon along.
    shell: Server,
}

impl Nginx {
    /// Starts it with `workers` processes on 0.0.0.0:`port` in `netns`, bound to CPUs by nginx.
    pub fn start(netns: &Netns, port: u16, workers: usize) -> Self {
        let home = Home::new(None);
        configure(&home, port, workers, false);
        let mut command = command(netns, "nginx", Become::default());
        command.arg("-p").arg(home.path()).arg("-e").arg(home.path().join("errors"));
        command.arg("-c").arg(home.path().join("nginx.conf"));
        let target = Target::http(&format!("127.0.0.1:{port}"));
        let ready = |pid| {
            crate::process::children(pid).len() == workers
                && netns.run_in(|| exchange(&target).is_ok())
        };
        let server = Server::start("nginx", home, &mut command, libc::SIGTERM, ready);
        Self { server, port, workers }
    }

    /// The master's process id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// The workers' process ids, ascending.
    pub fn workers(&self) -> Vec<u32> {
        self.server.children()
    }

    /// Changes the number of workers in its configuration, and reloads.
    pub fn resize(&mut self, workers: usize) {
        self.workers = workers;
        configure(&self.server.home, self.port, workers, false);
        self.reload();
    }

    /// Reloads with as many workers and waits until none of the old ones is left.
    pub fn reload(&self) {
        let old = self.workers();
        self.server.signal(libc::SIGHUP);
        let done = eventually(Duration::from_secs(20), || {
            let now = self.workers();
            now.len() == self.workers && now.iter().all(|pid| !old.contains(pid))
        });
        assert!(done, "nginx did not reload: workers {:?}, were {old:?}", self.workers());
    }
}

impl NginxDaemon {
    /// As [`Nginx::start`].
    pub fn start(netns: &Netns, port: u16, workers: usize) -> Self {
        let home = Home::new(None);
        configure(&home, port, workers, true);
        // By its path, as it starts the next binary by that.
        let script = "$(command -v nginx) -p $0 -e $0/errors -c $0/nginx.conf || exit
            trap 'kill -TERM $(cat $0/pid); kill $!; exit' TERM
            sleep infinity & wait";
        let mut command = command(netns, "sh", Become::default());
        command.arg("-c").arg(script).arg(home.path());
        let target = Target::http(&format!("127.0.0.1:{port}"));
        let ready = |_| netns.run_in(|| exchange(&target).is_ok());
        Self { shell: Server::start("nginx", home, &mut command, libc::SIGTERM, ready) }
    }

    /// The master's process id: of the newer one, where there are two.
    pub fn pid(&self) -> u32 {
        let path = self.shell.home.path().join("pid");
        let text = std::fs::read_to_string(path).expect("its pid file");
        text.trim().parse().expect("a pid")
    }

    /// Starts another binary beside the one that runs, and waits until it has as many workers. The
    /// older master's process id: it goes on until it is told to quit.
    pub fn upgrade(&self) -> u32 {
        let old = self.pid();
        let workers = crate::process::children(old).len();
        sys::kill(old, libc::SIGUSR2).expect("signal nginx");
        let begun = eventually(Duration::from_secs(20), || {
            let path = self.shell.home.path().join("pid");
            let new = std::fs::read_to_string(path).ok().and_then(|it| it.trim().parse().ok());
            new.is_some_and(|new| new != old && crate::process::children(new).len() == workers)
        });
        assert!(begun, "nginx did not start its new binary");
        old
    }
}

fn configure(home: &Home, port: u16, workers: usize, daemon: bool) {
    let path = home.path().display();
    let daemon = if daemon { "on" } else { "off" };
    home.write(
        "nginx.conf",
        &format!(
            "daemon {daemon};\n\
             pid {path}/pid;\n\
             worker_processes {workers};\n\
             worker_cpu_affinity auto;\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n\
               access_log off;\n\
               server {{\n\
                 listen 0.0.0.0:{port} reuseport backlog=4096;\n\
                 location / {{ return 200 \"$pid\\n\"; }}\n\
               }}\n\
             }}\n"
        ),
    );
}
