//! Listeners that come and go, told by the kernel at the moment they do. Optional: where it cannot be
//! had, listing the sockets again and again finds them too, only later.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{HashMap, MapData, RingBuf};
use aya::{Ebpf, EbpfLoader};
use reuseport_common::watch::{self, Change};

use super::{BpfError, btf, run_at, run_at_end, take};
use crate::sys::caps::Cap;

/// Where the programs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// At the end of the functions that start and stop a listener: nothing runs per connection.
    ///
    /// # Minimum kernel version
    ///
    /// 5.12 on x86, 6.4 on arm64, where nothing forbids to patch the kernel's text.
    Functions,
    /// At the tracepoint of TCP's changes of state, several for each connection on the host; each costs
    /// some tens of nanoseconds.
    ///
    /// # Minimum kernel version
    ///
    /// 5.12.
    Tracepoint,
}

/// The programs, attached for as long as this lives.
#[derive(Debug)]
pub struct Watch {
    /// Where they run.
    pub hook: Hook,
    ports: HashMap<MapData, u16, u8>,
    changes: Changes,
    _attached: Ebpf,
}

/// The ring buffer; aya's has no `Debug`.
struct Changes(RingBuf<MapData>);

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Changes")
    }
}

impl Watch {
    /// Begins to watch `ports` in every network namespace.
    ///
    /// # Minimum kernel version
    ///
    /// 5.12 with BTF; `CAP_BPF` and `CAP_PERFMON`.
    pub fn start(ports: &BTreeSet<u16>) -> Result<Self, BpfError> {
        BpfError::require(Cap::Perfmon, "be told of listeners that come and go")?;
        Self::start_at(Hook::Functions, ports).or_else(|_| Self::start_at(Hook::Tracepoint, ports))
    }

    fn start_at(hook: Hook, ports: &BTreeSet<u16>) -> Result<Self, BpfError> {
        let kernel = btf::kernel()?;
        let offsets: [u8; size_of::<watch::Offsets>()] = bytemuck::cast(kernel.watch);
        let mut ebpf = EbpfLoader::new()
            // For CO-RE relocations, which Rust programs do not have.
            .btf(None)
            .override_global(watch::OFFSETS, &offsets[..], true)
            .load(reuseport_ebpf::WATCH)
            .map_err(BpfError::sort("create the BPF maps", Cap::Bpf))?;
        match hook {
            Hook::Functions => {
                for program in [watch::PROGRAM_STARTED, watch::PROGRAM_STOPPED] {
                    run_at_end(&mut ebpf, program, &kernel.places)?;
                }
            }
            Hook::Tracepoint => run_at(&mut ebpf, watch::PROGRAM_STATE, &kernel.places)?,
        }
        let mut watch = Self {
            hook,
            ports: take(&mut ebpf, watch::PORTS)?.try_into()?,
            changes: Changes(take(&mut ebpf, watch::CHANGES)?.try_into()?),
            _attached: ebpf,
        };
        watch.set_ports(ports)?;
        Ok(watch)
    }

    /// Watches these ports and no others.
    pub fn set_ports(&mut self, ports: &BTreeSet<u16>) -> Result<(), BpfError> {
        let before = self.ports.keys().collect::<Result<BTreeSet<u16>, _>>()?;
        for port in before.difference(ports) {
            self.ports.remove(port)?;
        }
        for port in ports.difference(&before) {
            self.ports.insert(port, 1, 0)?;
        }
        Ok(())
    }

    /// The next change, if there is one.
    pub fn take(&mut self) -> Option<Change> {
        let item = self.changes.0.next()?;
        // Of the size that the object says; anything else is nothing that it wrote.
        bytemuck::try_pod_read_unaligned(&item).ok()
    }
}

/// Readable when there is a change.
impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.changes.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::sys::{netns, sockopt};

    fn tells_who_comes_and_who_goes(hook: Hook) -> Result<(), BpfError> {
        // Ports that nobody has.
        let [ours, other] = [(); 2].map(|()| {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().port()
        });
        let mut watch = Watch::start_at(hook, &BTreeSet::from([ours]))?;
        let listener = TcpListener::bind(("127.0.0.1", ours)).unwrap();
        let cookie = sockopt::cookie(listener.as_fd()).unwrap();
        let ignored = TcpListener::bind(("127.0.0.1", other)).unwrap();
        // Connections are nobody's business.
        drop(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        drop(listener.accept().unwrap());
        drop(listener);
        drop(ignored);
        let here = netns::cookie(netns::inode(netns::OWN.as_ref()).unwrap()).unwrap();
        let (came, went) = (watch.take().unwrap(), watch.take().unwrap());
        assert_eq!((came.cookie, came.netns, came.port, came.listens), (cookie, here, ours, 1));
        assert_eq!((went.cookie, went.netns, went.port, went.listens), (cookie, here, ours, 0));
        assert!(came.at > 0 && came.at <= went.at, "{came:?} {went:?}");
        assert_eq!(watch.take(), None);

        watch.set_ports(&BTreeSet::from([other])).unwrap();
        drop(TcpListener::bind(("127.0.0.1", ours)).unwrap());
        let listener = TcpListener::bind(("127.0.0.1", other)).unwrap();
        assert_eq!(watch.take().map(|it| (it.port, it.listens)), Some((other, 1)));
        drop(listener);
        Ok(())
    }

    #[test]
    fn the_tracepoint_tells() {
        tells_who_comes_and_who_goes(Hook::Tracepoint).unwrap();
    }

    /// Not every kernel lets its functions be hooked; on those that do, nothing else is used.
    #[test]
    fn the_functions_tell_where_they_can_be_hooked() {
        let hooked = tells_who_comes_and_who_goes(Hook::Functions);
        let chosen = Watch::start(&BTreeSet::new()).unwrap().hook;
        match hooked {
            Ok(()) => assert_eq!(chosen, Hook::Functions),
            Err(error) => {
                // No word of the verifier's: the kernel refuses such programs as such.
                assert!(matches!(error, BpfError::NotPermitted { .. }), "{error}");
                assert_eq!(chosen, Hook::Tracepoint);
            }
        }
    }
}
