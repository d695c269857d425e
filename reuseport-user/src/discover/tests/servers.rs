//! Real servers.

use std::fs;
use std::process::Command;

use super::support::{Server, group};
use crate::model::{Evidence, Served};

#[test]
fn nginx_workers_by_their_epoll_sets() {
    let directory = tempfile::tempdir().unwrap();
    let reserved = Server::start("bound");
    let port = reserved.port;
    let path = directory.path().join("nginx.conf");
    let root = directory.path().display();
    let text = format!(
        "daemon off; pid {root}/pid; error_log {root}/error; worker_processes 3; events {{}}
         http {{ access_log off; client_body_temp_path {root}/1; proxy_temp_path {root}/2;
         fastcgi_temp_path {root}/3; uwsgi_temp_path {root}/4; scgi_temp_path {root}/5;
         server {{ listen 127.0.0.1:{port} reuseport; return 204; }} }}"
    );
    fs::write(&path, text).unwrap();
    let mut command = Command::new("nginx");
    let server = Server::configured(command.arg("-c").arg(&path), port, 3);
    let group = group(&server);
    let mut pids = Vec::new();
    for listener in &group.listeners {
        assert_eq!(listener.holders.len(), 4);
        let Served::By(workers) = &listener.served else { panic!("{listener:?}") };
        assert_eq!(workers.len(), 1, "{workers:?}");
        assert!(workers[0].evidence <= Evidence::EpollSet && workers[0].tid.is_none());
        assert_eq!(workers[0].name, "nginx");
        pids.push(workers[0].pid);
    }
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 3);
    assert!(!pids.contains(&server.pid()));
}

#[test]
fn haproxy_threads_by_what_they_wait_for() {
    let directory = tempfile::tempdir().unwrap();
    let reserved = Server::start("bound");
    let port = reserved.port;
    let path = directory.path().join("haproxy.cfg");
    let text = format!(
        "global\n nbthread 2\n cpu-map auto:1/1-2 0-1\ndefaults\n mode http\n timeout client 9s\n timeout server 9s\n \
         timeout connect 9s\nfrontend f\n bind 127.0.0.1:{port} shards by-thread\n"
    );
    fs::write(&path, text).unwrap();
    let mut command = Command::new("haproxy");
    let server = Server::configured(command.arg("-db").arg("-f").arg(&path), port, 2);
    let group = group(&server);
    let mut tids = Vec::new();
    for listener in &group.listeners {
        let Served::By(workers) = &listener.served else { panic!("{listener:?}") };
        assert_eq!(workers.len(), 1, "{workers:?}");
        assert_eq!((workers[0].pid, workers[0].evidence), (server.pid(), Evidence::Polling));
        assert_eq!(workers[0].cpus.len(), 1, "{workers:?}");
        tids.push(workers[0].tid.unwrap());
    }
    tids.sort_unstable();
    tids.dedup();
    assert_eq!(tids.len(), 2);
}

#[test]
fn gunicorn_workers_without_the_arbiter() {
    let directory = tempfile::tempdir().unwrap();
    let reserved = Server::start("bound");
    fs::write(directory.path().join("app.py"), "def app(e, s):\n s('204 No', [])\n return []\n")
        .unwrap();
    let mut command = Command::new("gunicorn");
    command.current_dir(directory.path());
    command.args([
        "--reuse-port",
        "-w",
        "2",
        "-b",
        &format!("127.0.0.1:{}", reserved.port),
        "app:app",
    ]);
    let server = Server::configured(&mut command, reserved.port, 1);
    let group = group(&server);
    let [listener] = group.listeners.as_slice() else { panic!("{group:?}") };
    let Served::By(workers) = &listener.served else { panic!("{listener:?}") };
    assert_eq!(workers.len(), 2, "{workers:?}");
    assert!(workers.iter().all(|worker| worker.pid != server.pid()));
    assert!(workers.iter().all(|worker| worker.evidence == Evidence::Polling));
}
