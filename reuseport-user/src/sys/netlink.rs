//! A netlink socket for `sock_diag` dumps.

use std::io;

use netlink_packet_core::{NLM_F_DUMP_INTR, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::inet::InetResponse;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

use super::SyscallError;

/// Larger than any message the kernel makes of one dump step (32 KiB), so that none is cut off.
const BUFFER: usize = 256 << 10;

/// How often a dump is begun anew because the tables changed under it.
const ATTEMPTS: usize = 8;

/// Why a dump failed.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The kernel has no handler for this kind of socket.
    #[error(
        "the kernel cannot list these sockets (ENOENT): modules inet_diag and tcp_diag, udp_diag \
         or mptcp_diag are missing; load them with modprobe"
    )]
    NoHandler,
    /// The kernel refused.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
    /// The answer was no netlink message.
    #[error("the kernel's sock_diag answer could not be read: {0}")]
    Malformed(String),
}

/// An open `NETLINK_SOCK_DIAG` socket, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct SockDiag {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// What a batch of messages amounts to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Batch {
    /// More will come.
    More,
    /// The dump is complete.
    Done,
}

impl SockDiag {
    /// Opens one in the calling thread's namespace. Needs no privilege.
    pub fn open() -> Result<Self, SyscallError> {
        let failed = |call| move |source| SyscallError { call, source };
        let mut socket =
            Socket::new(NETLINK_SOCK_DIAG).map_err(failed("socket(NETLINK_SOCK_DIAG)"))?;
        socket.bind_auto().map_err(failed("bind(NETLINK_SOCK_DIAG)"))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed("connect(NETLINK_SOCK_DIAG)"))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Sends `request` (a whole message, header first) and returns every socket of the answer.
    ///
    /// A dump that the kernel marks as interrupted is repeated: it may have skipped sockets.
    pub fn dump(&mut self, request: &mut [u8]) -> Result<Vec<InetResponse>, DumpError> {
        let mut found = Vec::new();
        for _ in 0..ATTEMPTS {
            found.clear();
            if self.attempt(request, &mut found)? {
                return Ok(found);
            }
        }
        // Constant change: what the last attempt saw is as good as any other; the listeners are
        // verified one by one before use.
        Ok(found)
    }

    /// One dump; false when it was interrupted.
    fn attempt(
        &mut self,
        request: &mut [u8],
        found: &mut Vec<InetResponse>,
    ) -> Result<bool, DumpError> {
        let failed = |call| move |source| DumpError::from(SyscallError { call, source });
        self.sequence += 1;
        request[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        self.socket.send(request, 0).map_err(failed("send(sock_diag dump)"))?;
        let mut whole = true;
        loop {
            let received = match self.socket.recv(&mut self.buffer.as_mut_slice(), 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(failed("recv(sock_diag dump)"))?,
            };
            let bytes = self.buffer.get(..received).unwrap_or_default();
            let (batch, interrupted) = decode(bytes, self.sequence, found)?;
            whole &= !interrupted;
            if batch == Batch::Done {
                return Ok(whole);
            }
        }
    }
}

/// Decodes one datagram; the flag says whether a message was marked `NLM_F_DUMP_INTR`.
pub(crate) fn decode(
    mut bytes: &[u8],
    sequence: u32,
    found: &mut Vec<InetResponse>,
) -> Result<(Batch, bool), DumpError> {
    let malformed = |error: String| DumpError::Malformed(error);
    if bytes.is_empty() {
        return Err(malformed("an empty message".into()));
    }
    let mut interrupted = false;
    while !bytes.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(bytes)
            .map_err(|error| malformed(error.to_string()))?;
        let length = (message.header.length as usize).next_multiple_of(4);
        bytes = bytes.get(length..).unwrap_or_default();
        if message.header.sequence_number != sequence {
            continue; // The rest of an earlier dump that failed half-way.
        }
        interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                found.push(*response);
            }
            NetlinkPayload::Done(done) if done.code < 0 => return Err(refusal(-done.code)),
            NetlinkPayload::Done(_) => return Ok((Batch::Done, interrupted)),
            NetlinkPayload::Error(error) if error.raw_code() != 0 => {
                return Err(refusal(-error.raw_code()));
            }
            _ => {}
        }
    }
    Ok((Batch::More, interrupted))
}

/// The error for the kernel's answer `errno`.
fn refusal(errno: i32) -> DumpError {
    if errno == libc::ENOENT {
        return DumpError::NoHandler;
    }
    let source = io::Error::from_raw_os_error(errno);
    DumpError::Syscall(SyscallError { call: "sock_diag dump", source })
}
