//! gunicorn with `--reuse-port`: an instance's workers share the one listener of their master, so
//! a group is made of several instances.

use crate::client::{Target, exchange};
use crate::netns::Netns;
use crate::servers::{Home, Server, command};
use crate::sys::Become;

const APPLICATION: &str = "\
import os

def application(environ, start_response):
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [str(os.getpid()).encode()]
";

/// Where `app.py` is; goes with its directory.
#[derive(Debug)]
pub struct Application(Home);

impl Application {
    /// The directory.
    pub fn path(&self) -> String {
        self.0.text("")
    }
}

/// A running gunicorn; it answers with the pid of the worker that served.
#[derive(Debug)]
pub struct Gunicorn {
    server: Server,
}

impl Gunicorn {
    /// The directory of the application, for instances that somebody else starts.
    pub fn application() -> Application {
        let home = Home::new(None);
        home.write("app.py", APPLICATION);
        Application(home)
    }

    /// Starts an instance of `workers` processes on 0.0.0.0:`port` in `netns`, all of them bound
    /// to `cpu` if given.
    pub fn start(netns: &Netns, port: u16, workers: usize, cpu: Option<u32>) -> Self {
        let home = Home::new(None);
        home.write("app.py", APPLICATION);
        let mut command = command(netns, "gunicorn", Become { cpu, ..Become::default() });
        command.current_dir(home.path()).env("PYTHONDONTWRITEBYTECODE", "1");
        command.arg("--reuse-port");
        command.args(["--workers", &workers.to_string()]);
        command.args(["--bind", &format!("0.0.0.0:{port}"), "app"]);
        let log = home.log();
        let target = Target::http(&format!("127.0.0.1:{port}"));
        let ready = |_| {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            text.matches("Booting worker").count() >= workers
                && netns.run_in(|| exchange(&target).is_ok())
        };
        let server = Server::start("gunicorn", home, &mut command, libc::SIGTERM, ready);
        Self { server }
    }

    /// The master's process id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// The workers' process ids, ascending.
    pub fn workers(&self) -> Vec<u32> {
        self.server.children()
    }
}
