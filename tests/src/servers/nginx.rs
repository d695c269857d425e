//! nginx with `listen ... reuseport`: every process holds every listener, epoll sets tell who
//! serves which.

use std::time::Duration;

use crate::client::{Target, exchange};
use crate::eventually;
use crate::netns::Netns;
use crate::servers::{Home, Server, command};
use crate::sys::Become;

/// A running nginx; it answers with the pid of the worker that served.
#[derive(Debug)]
pub struct Nginx {
    server: Server,
    port: u16,
    workers: usize,
}

impl Nginx {
    /// Starts it with `workers` processes on 0.0.0.0:`port` in `netns`, bound to CPUs by nginx.
    pub fn start(netns: &Netns, port: u16, workers: usize) -> Self {
        let home = Home::new(None);
        configure(&home, port, workers);
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
        configure(&self.server.home, self.port, workers);
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

fn configure(home: &Home, port: u16, workers: usize) {
    let path = home.path().display();
    home.write(
        "nginx.conf",
        &format!(
            "daemon off;\n\
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
