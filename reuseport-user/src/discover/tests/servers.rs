//! Real servers.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use super::support::{Server, eventually, group, workers};
use crate::model::Evidence;

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
    assert!(group(&server).listeners.iter().all(|listener| listener.holders.len() == 4));
    // Three workers, none of them the master, each with one listener.
    eventually(&server, &(3, 3, false), |group| {
        let all: Vec<Vec<_>> = workers(group).into_iter().flatten().collect();
        let served = all.iter().filter(|it| it.len() == 1 && it[0].1.is_none()).count();
        let pids: BTreeSet<_> = all.iter().flatten().map(|it| it.0).collect();
        (served, pids.len(), pids.contains(&server.pid()))
    });
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
    // A listener on each thread, a thread on each CPU.
    eventually(&server, &(2, 2, 2), |group| {
        let all: Vec<Vec<_>> = workers(group).into_iter().flatten().collect();
        let served = all.iter().filter(|it| it.len() == 1 && it[0].2 == Evidence::Polling);
        let tids: BTreeSet<_> = all.iter().flatten().filter_map(|it| it.1).collect();
        let cpus: BTreeSet<_> = all.iter().flatten().map(|it| it.3.clone()).collect();
        (served.count(), tids.len(), cpus.len())
    });
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
    eventually(&server, &vec![Ok((2, true))], |group| {
        let arbiter = server.pid();
        let polling = |it: &(u32, _, _, _)| it.0 != arbiter && it.2 == Evidence::Polling;
        let all = workers(group).into_iter();
        all.map(|it| it.map(|it| (it.len(), it.iter().all(polling)))).collect()
    });
}
