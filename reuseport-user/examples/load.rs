//! A server that publishes its load: each connection holds its core for a while, and a core that has
//! enough of them lets the nearest other one take the next.
//!
//! Plain threads and blocking calls; no runtime.
//!
//! ```console
//! $ cargo run --example load -- 127.0.0.1:7000 4
//! ```
#![expect(clippy::print_stdout, reason = "an example speaks on stdout")]

use std::error::Error;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;

use reuseport_user::group::{BoxError, Group, InService, Worker};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address: SocketAddr = arguments.next().as_deref().unwrap_or("127.0.0.1:7000").parse()?;
    let most: u32 = arguments.next().as_deref().unwrap_or("4").parse()?;
    // Above this many connections in service, a worker's next ones go elsewhere.
    let mut group = Group::builder().tcp(address).spill_above(most).build()?;
    println!("listening on {}, steered by {}", group.addresses()[0], group.rung());
    let threads: Vec<_> =
        group.take_workers().into_iter().map(|worker| thread::spawn(|| serve(worker))).collect();
    for thread in threads {
        thread.join().map_err(|_panic| "a worker panicked")?.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// One thread for all connections of a core: whoever says something is answered, at the next turn.
fn serve(mut worker: Worker) -> Result<(), BoxError> {
    worker.pin()?;
    let listener = worker.listener()?;
    listener.set_nonblocking(true)?;
    let load = worker.load_guard();
    let mut connections: Vec<(TcpStream, InService)> = Vec::new();
    loop {
        match listener.accept() {
            Ok((mut stream, _)) => {
                // It counts for as long as it is kept, and before the client knows of it.
                let in_service = load.enter();
                stream.set_nonblocking(true)?;
                if writeln!(stream, "cpu {}", worker.cpu()).is_ok() {
                    connections.push((stream, in_service));
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(std::time::Duration::from_millis(1));
            }
            Err(error) => return Err(error.into()),
        }
        connections.retain_mut(|(stream, _)| is_open(stream));
    }
}

/// Whether the client is still there; what it says is read and thrown away.
fn is_open(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 64]) {
        Ok(count) => count > 0,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}
