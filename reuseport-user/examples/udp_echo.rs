//! A UDP echo server: one socket and one thread per core, on IPv4 and IPv6.
//!
//! ```console
//! $ cargo run --example udp_echo -- 127.0.0.1:7000 [::1]:7000
//! ```
#![expect(clippy::print_stdout, reason = "an example speaks on stdout")]

use std::error::Error;

use reuseport_user::group::{BoxError, Group, Server};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

fn main() -> Result<(), Box<dyn Error>> {
    // v6only, so that both families can have the same port.
    let mut builder = Group::builder().v6only(true);
    for address in std::env::args().skip(1) {
        builder = builder.udp(address.parse::<std::net::SocketAddr>()?);
    }
    let group = builder.build()?;
    println!("listening on {:?}, steered by {}", group.addresses(), group.rung());
    Server::new(group).run(|mut worker, stop| async move {
        let mut tasks = JoinSet::new();
        while let Ok(socket) = worker.tokio_udp_socket() {
            tasks.spawn_local(echo(socket));
        }
        // Datagrams that are queued when it ends are lost, as UDP's are.
        tokio::select! {
            () = stop.requested() => Ok(()),
            Some(ended) = tasks.join_next() => ended?,
        }
    })?;
    Ok(())
}

async fn echo(socket: UdpSocket) -> Result<(), BoxError> {
    let mut bytes = vec![0; 65536];
    loop {
        let (count, peer) = socket.recv_from(&mut bytes).await?;
        socket.send_to(&bytes[..count], peer).await?;
    }
}
