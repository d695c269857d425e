//! Who listens: sockets on a port, from the kernel's `sock_diag`, filtered by port in the kernel.

use std::net::SocketAddr;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};

use crate::model::Protocol;
use crate::sys::netlink::{DumpError, SockDiag};
use crate::sys::sockopt::IPPROTO_MPTCP;

/// `TCP_CLOSE`: the state of an unconnected UDP socket.
const UNCONNECTED: u32 = 1 << 7;
/// `TCP_ESTABLISHED`, `FIN_WAIT1`, `FIN_WAIT2`, `CLOSE_WAIT`, `LAST_ACK`, `CLOSING`: what a process
/// may still have open.
const CONNECTED: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// `TCP_SYN_RECV`, which to `sock_diag` includes `TCP_NEW_SYN_RECV`.
const HANDSHAKE: u32 = 1 << 3;
/// `TCP_LISTEN`.
const LISTENING: u32 = 1 << 10;
/// `TCP_BOUND_INACTIVE` (6.8): bound, neither listening nor connected.
const BOUND: u32 = 1 << 13;
/// `INET_DIAG_REQ_PROTOCOL`: the request's protocol where it does not fit into eight bits.
const REQ_PROTOCOL: u16 = 3;

/// A socket as `sock_diag` describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Socket {
    /// Local address and port.
    pub(crate) address: SocketAddr,
    /// IPv6 only; false for IPv4.
    pub(crate) v6only: bool,
    /// Bound device's index, 0 for none.
    pub(crate) device: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Inode of the socket file; 0 when it has none.
    pub(crate) inode: u64,
    /// `SO_COOKIE`.
    pub(crate) cookie: u64,
    /// Connections waiting to be accepted.
    pub(crate) queued: u32,
    /// Most that may wait.
    pub(crate) backlog: u32,
    /// What was dropped; told of listeners only.
    pub(crate) dropped: u32,
}

/// Which sockets to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// TCP listeners; a multipath listener's subflow is among them.
    TcpListeners,
    /// Unconnected UDP sockets.
    UdpUnconnected,
    /// Multipath listeners themselves.
    MptcpListeners,
    /// TCP sockets that are bound and nothing else; none before kernel 6.8.
    TcpBound,
    /// Connections whose handshake is not done, or that wait for data (`TCP_DEFER_ACCEPT`). Their
    /// listener is not told. The kernel walks through all connections for it.
    TcpHandshakes,
    /// TCP connections; without an inode until they are accepted.
    TcpConnections,
}

impl From<Protocol> for Kind {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::TcpListeners,
            Protocol::Udp => Self::UdpUnconnected,
        }
    }
}

/// Lists the sockets on `port`, of both families, in the namespace where `diag` was opened.
pub(crate) fn list(diag: &mut SockDiag, kind: Kind, port: u16) -> Result<Vec<Socket>, DumpError> {
    let mut sockets = list_family(diag, kind, port, libc::AF_INET)?;
    sockets.extend(list_family(diag, kind, port, libc::AF_INET6)?);
    Ok(sockets)
}

/// As [`list`], of one family (`AF_INET` or `AF_INET6`): in one dump.
pub(crate) fn list_family(
    diag: &mut SockDiag,
    kind: Kind,
    port: u16,
    family: i32,
) -> Result<Vec<Socket>, DumpError> {
    let found = diag.dump(&mut request(family as u8, kind, port))?;
    // The kernel filtered already; an old one that ignores the filter must not mislead us.
    Ok(found.iter().map(socket).filter(|socket| socket.address.port() == port).collect())
}

/// The message that asks for them.
fn request(family: u8, kind: Kind, port: u16) -> Vec<u8> {
    let states = match kind {
        Kind::TcpListeners | Kind::MptcpListeners => LISTENING,
        Kind::UdpUnconnected => UNCONNECTED,
        Kind::TcpBound => BOUND,
        Kind::TcpConnections => CONNECTED,
        Kind::TcpHandshakes => HANDSHAKE,
    };
    let extensions = match kind {
        Kind::TcpListeners => ExtensionFlags::SKMEMINFO,
        _ => ExtensionFlags::empty(),
    };
    let protocol = if kind == Kind::UdpUnconnected { Protocol::Udp } else { Protocol::Tcp };
    let mut socket_id =
        if i32::from(family) == libc::AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    socket_id.source_port = port;
    let request = InetRequest {
        family,
        protocol: protocol.number(),
        extensions,
        states: StateFlags::from_bits_retain(states),
        socket_id,
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    if kind == Kind::MptcpListeners {
        bytes.extend(8u16.to_ne_bytes());
        bytes.extend(REQ_PROTOCOL.to_ne_bytes());
        bytes.extend(IPPROTO_MPTCP.to_ne_bytes());
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
    }
    bytes
}

/// Picks what we need of an answer.
fn socket(response: &InetResponse) -> Socket {
    let header = &response.header;
    let id = &header.socket_id;
    // Two words, the low one first whatever the byte order.
    let [low, high]: [u32; 2] = bytemuck::cast(id.cookie);
    Socket {
        address: SocketAddr::new(id.source_address, id.source_port),
        v6only: response.nlas.iter().any(|nla| matches!(nla, Nla::SkV6Only(true))),
        device: id.interface_id,
        uid: header.uid,
        inode: u64::from(header.inode),
        cookie: u64::from(low) | u64::from(high) << 32,
        queued: header.recv_queue,
        backlog: header.send_queue,
        dropped: response.nlas.iter().find_map(drops).unwrap_or(0),
    }
}

fn drops(nla: &Nla) -> Option<u32> {
    match nla {
        Nla::MemInfo(memory) => Some(memory.drops),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
