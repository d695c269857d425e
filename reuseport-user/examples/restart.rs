//! A restart without a lost connection: start it a second time, with another greeting, and the first
//! one hands over and ends.
//!
//! ```console
//! $ cargo run --example restart -- 127.0.0.1:7000 old &
//! $ cargo run --example restart -- 127.0.0.1:7000 new
//! ```
//!
//! The second one opens listeners of its own beside the first one's and gets ready. Then it takes the
//! rows of the steering table over, in one write. The first one sees that, accepts what is still in
//! its queues, ends what it is at, and exits.
#![expect(clippy::print_stdout, reason = "an example speaks on stdout")]

use std::error::Error;
use std::net::SocketAddr;

use reuseport_user::group::{Group, Server};
use tokio::io::AsyncWriteExt as _;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address: SocketAddr = arguments.next().as_deref().unwrap_or("127.0.0.1:7000").parse()?;
    let greeting: &'static str = arguments.next().unwrap_or_else(|| "hello".to_owned()).leak();
    let mut builder = Group::builder().tcp(address).standby();
    if let Some(bpffs) = arguments.next() {
        builder = builder.bpffs(bpffs);
    }
    let group = builder.build()?;
    println!("listening on {}, steered by {}", group.addresses()[0], group.rung());
    for notice in group.notices() {
        println!("note: {}: {}", notice.what, notice.remedy);
    }
    let report = Server::new(group).until_superseded().serve(|_core| {
        move |mut stream: tokio::net::TcpStream, _peer| async move {
            // Its client may be gone already.
            let _sent = stream.write_all(greeting.as_bytes()).await;
        }
    })?;
    println!("{report:?}");
    Ok(())
}
