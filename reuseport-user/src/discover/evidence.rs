//! Evidence of who serves a listener: epoll sets, and what blocked threads wait for.

pub(crate) mod epoll;
pub(crate) mod sample;
pub(crate) mod syscall;
pub(crate) mod watch;
