//! HAProxy with `shards by-thread`: one process, a listener and an epoll set for each thread.

use std::time::Duration;

use crate::client::{Target, exchange};
use crate::netns::Netns;
use crate::servers::{Home, Server, command};
use crate::sys::Become;

/// A running HAProxy; it answers with the number of the thread that served, from 0.
#[derive(Debug)]
pub struct Haproxy {
    server: Server,
}

impl Haproxy {
    /// Starts it with a thread for each of `cpus` (ascending, two at least), bound to it, on
    /// 0.0.0.0:`port` in `netns`.
    pub fn start(netns: &Netns, port: u16, cpus: &[u32]) -> Self {
        Self::start_bound(netns, port, cpus, &[])
    }

    /// Starts the next one like that, to which this one leaves the port (`-sf`); it ends when its
    /// requests are done.
    #[must_use]
    pub fn succeed(&self, netns: &Netns, port: u16, cpus: &[u32]) -> Self {
        Self::start_bound(netns, port, cpus, &["-sf", &self.pid().to_string()])
    }

    fn start_bound(netns: &Netns, port: u16, cpus: &[u32], more: &[&str]) -> Self {
        // HAProxy 2.6 takes a line for a single thread (`cpu-map 1/1 0`) and binds nothing.
        let list: Vec<_> = cpus.iter().map(u32::to_string).collect();
        let bound = format!("  cpu-map auto:1/1-{} {}", cpus.len(), list.join(" "));
        Self::start_with(netns, port, cpus.len(), &bound, more)
    }

    /// Starts it with `threads` threads that may run anywhere.
    pub fn start_unbound(netns: &Netns, port: u16, threads: usize) -> Self {
        Self::start_with(netns, port, threads, "", &[])
    }

    /// Waits for its end.
    pub fn wait(&mut self) {
        let ended = self.server.process.wait(Duration::from_secs(20)).is_some();
        assert!(ended, "haproxy {} does not end", self.pid());
    }

    fn start_with(netns: &Netns, port: u16, threads: usize, bound: &str, more: &[&str]) -> Self {
        let home = Home::new(None);
        let configuration = home.write(
            "haproxy.cfg",
            &format!(
                "global\n\
                 \x20 nbthread {threads}\n\
                 {bound}\n\
                 defaults\n\
                 \x20 mode http\n\
                 \x20 timeout client 10s\n\
                 \x20 timeout connect 10s\n\
                 \x20 timeout server 10s\n\
                 frontend test\n\
                 \x20 bind 0.0.0.0:{port} shards by-thread backlog 4096\n\
                 \x20 http-request return status 200 content-type text/plain lf-string \
                 \"%[thread]\"\n"
            ),
        );
        let mut command = command(netns, "haproxy", Become::default());
        command.args(["-db", "-f"]).arg(configuration).args(more);
        let target = Target::http(&format!("127.0.0.1:{port}"));
        let ready = |_| netns.run_in(|| exchange(&target).is_ok());
        let server = Server::start("haproxy", home, &mut command, libc::SIGTERM, ready);
        Self { server }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }
}
