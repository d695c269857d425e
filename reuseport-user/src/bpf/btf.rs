//! Member offsets from the running kernel's BTF.
//!
//! Rust BPF programs carry no CO-RE relocations, so the loader looks the offsets up. aya's own BTF
//! type keeps struct members to itself; this reads just enough of the format (see the kernel's
//! `Documentation/bpf/btf.rst`) to answer one question.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use aya::Endianness;
use reuseport_common::{abi, watch};

use super::BpfError;
use crate::sys::mapped::Mapped;

pub(super) mod observe;

/// Where the kernel publishes its own BTF.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;

const KIND_POINTER: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNC: u32 = 12;
/// Typedef, volatile, const, restrict and type tags: they only rename what they point to.
const MODIFIERS: [u32; 5] = [KIND_TYPEDEF, 9, 10, 11, 18];

/// Why offsets are not to be had.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// No BTF: `CONFIG_DEBUG_INFO_BTF` is off, or `/sys` is hidden.
    #[error("{VMLINUX}: {0}")]
    Unreadable(#[source] io::Error),
    /// Not BTF, or cut short.
    #[error("{VMLINUX} is not well-formed BTF")]
    Malformed,
    /// This kernel has no such struct or member.
    #[error("this kernel's BTF has no {0}")]
    Missing(String),
}

/// The iterator over TCP sockets, as the kernel's BTF names it.
pub(super) const ITERATOR: &str = "bpf_iter_tcp";

/// Structs with members that our programs read.
const STRUCTS: [&str; 6] =
    ["sock", "sock_common", "sock_reuseport", "bpf_prog", "bpf_prog_aux", "net"];
/// The tracepoint of TCP's changes of state, as the kernel's BTF names its type.
const STATE_CHANGE: &str = "btf_trace_inet_sock_set_state";
/// Functions that our programs run at, and tracepoints, which are typedefs.
const PLACES: [(&str, u32); 4] = [
    (ITERATOR, KIND_FUNC),
    (watch::PROGRAM_STARTED.1, KIND_FUNC),
    (watch::PROGRAM_STOPPED.1, KIND_FUNC),
    (STATE_CHANGE, KIND_TYPEDEF),
];

/// What our programs need of the running kernel's BTF.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    /// Where `list_members` finds what it reads.
    pub(super) offsets: abi::Offsets,
    /// Where the `watch` object does.
    pub(super) watch: watch::Offsets,
    /// Of [`PLACES`].
    pub(super) places: Places<{ PLACES.len() }>,
}

/// Names, kinds and type ids of where programs run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places<const N: usize>([(&'static str, u32, Option<u32>); N]);

/// Looks it up, once in a process.
pub(super) fn kernel() -> Result<Kernel, BtfError> {
    static FOUND: OnceLock<Kernel> = OnceLock::new();
    if let Some(&kernel) = FOUND.get() {
        return Ok(kernel);
    }
    let kernel = look_up()?;
    Ok(*FOUND.get_or_init(|| kernel))
}

fn look_up() -> Result<Kernel, BtfError> {
    let bytes = Mapped::open(Path::new(VMLINUX)).map_err(BtfError::Unreadable)?;
    let btf = Btf::parse(&bytes, &STRUCTS, &PLACES)?;
    let places = Places::find(&btf, PLACES);
    Ok(Kernel { offsets: offsets(&btf)?, watch: watch_offsets(&btf)?, places })
}

impl<const N: usize> Places<N> {
    fn find(btf: &Btf<'_>, places: [(&'static str, u32); N]) -> Self {
        Self(places.map(|(name, kind)| (name, kind, btf.places.get(name).copied())))
    }

    /// A BTF that has one of the places under its id, and nothing before it that means anything.
    ///
    /// aya's `load` takes a whole BTF for nothing but that id, and reading the kernel's anew takes aya
    /// longer than all the rest of an attach.
    pub(super) fn stand_in(&self, name: &str) -> Result<aya::Btf, BpfError> {
        let place = self.0.iter().find_map(|it| Some((it.1, it.2.filter(|_| it.0 == name)?)));
        let (kind, id) = place.ok_or_else(|| BtfError::Missing(name.to_owned()))?;
        stand_in(name, kind, id)
    }
}

/// A BTF with one type of a name, under its id.
fn stand_in(name: &str, kind: u32, id: u32) -> Result<aya::Btf, BpfError> {
    let bytes = stand_in_bytes(name, kind, id);
    aya::Btf::parse(&bytes, Endianness::default()).map_err(|error| BpfError::Load(error.into()))
}

fn stand_in_bytes(name: &str, kind: u32, id: u32) -> Vec<u8> {
    let strings: Vec<u8> = [b"\0", name.as_bytes(), b"\0"].concat();
    // Pointers to void are the shortest types there are.
    let void_pointer = [0, KIND_POINTER << 24, 0];
    let mut words = void_pointer.repeat(id.saturating_sub(1) as usize);
    words.extend([1, kind << 24, 0]);
    let types = size_of_val(words.as_slice()) as u32;
    let mut bytes = Vec::with_capacity(24 + types as usize + strings.len());
    bytes.extend(MAGIC.to_ne_bytes());
    bytes.extend([VERSION, 0]);
    let head = [24, 0, types, types, strings.len() as u32];
    bytes.extend(head.into_iter().chain(words).flat_map(u32::to_ne_bytes));
    bytes.extend(strings);
    bytes
}

fn offsets(btf: &Btf<'_>) -> Result<abi::Offsets, BtfError> {
    Ok(abi::Offsets {
        state: btf.common("skc_state")?,
        port: btf.common("skc_num")?,
        cookie: btf.common("skc_cookie")?,
        group: btf.offset("sock", "sk_reuseport_cb")?,
        group_id: btf.offset("sock_reuseport", "reuseport_id")?,
        members: btf.offset("sock_reuseport", "num_socks")?,
        program: btf.offset("sock_reuseport", "prog")?,
        program_aux: btf.offset("bpf_prog", "aux")?,
        program_id: btf.offset("bpf_prog_aux", "id")?,
    })
}

fn watch_offsets(btf: &Btf<'_>) -> Result<watch::Offsets, BtfError> {
    Ok(watch::Offsets {
        state: btf.common("skc_state")?,
        port: btf.common("skc_num")?,
        net: btf.common("skc_net")?,
        netns_cookie: btf.offset("net", "net_cookie").unwrap_or(0),
    })
}

/// Types by id, and the ids of the structs and places that were asked for.
struct Btf<'a> {
    strings: &'a [u8],
    types: &'a [u8],
    /// Byte position of each type; id 0 is void.
    positions: Vec<u32>,
    structs: HashMap<&'a str, u32>,
    /// Functions and typedefs.
    places: HashMap<&'a str, u32>,
}

impl<'a> Btf<'a> {
    fn parse(
        bytes: &'a [u8],
        wanted: &[&'a str],
        places: &[(&'a str, u32)],
    ) -> Result<Self, BtfError> {
        let header = |at: usize| word(bytes, at).map(|value| value as usize);
        if u16::from_le_bytes([byte(bytes, 0)?, byte(bytes, 1)?]) != MAGIC {
            return Err(BtfError::Malformed);
        }
        let start = header(4)?;
        let section = |offset: usize, length: usize| {
            let from = start.checked_add(offset).ok_or(BtfError::Malformed)?;
            let to = from.checked_add(length).ok_or(BtfError::Malformed)?;
            bytes.get(from..to).ok_or(BtfError::Malformed)
        };
        let types = section(header(8)?, header(12)?)?;
        let strings = section(header(16)?, header(20)?)?;

        let (structs, found) = (HashMap::new(), HashMap::new());
        let mut btf = Self { strings, types, positions: vec![0], structs, places: found };
        let mut at = 0;
        while at < types.len() {
            let id = btf.positions.len() as u32;
            btf.positions.push(at as u32);
            let (kind, members) = btf.info(at)?;
            if kind == KIND_STRUCT {
                let name = btf.name(word(types, at)?)?;
                if let Some(&name) = wanted.iter().find(|&&wanted| wanted.as_bytes() == name) {
                    btf.structs.insert(name, id);
                }
            }
            if kind == KIND_FUNC || kind == KIND_TYPEDEF {
                let name = word(types, at)?;
                let is_it = |it: &&(&str, u32)| it.1 == kind && btf.name_is(name, it.0.as_bytes());
                if let Some(&(place, _)) = places.iter().find(is_it) {
                    btf.places.entry(place).or_insert(id);
                }
            }
            at += 12 + trailer(kind, members).ok_or(BtfError::Malformed)?;
        }
        Ok(btf)
    }

    /// Byte offset of a member that no bit field shares; it may stand in anonymous members.
    fn offset(&self, name: &str, member: &str) -> Result<u32, BtfError> {
        let missing = || BtfError::Missing(format!("{name}.{member}"));
        let &id = self.structs.get(name).ok_or_else(missing)?;
        let bits = self.find(id, member.as_bytes(), 0)?.ok_or_else(missing)?;
        if bits % 8 == 0 { Ok(bits / 8) } else { Err(missing()) }
    }

    /// Byte offset in `sock` of a member of its `__sk_common`.
    fn common(&self, member: &str) -> Result<u32, BtfError> {
        Ok(self.offset("sock", "__sk_common")? + self.offset("sock_common", member)?)
    }

    /// Bit offset of `member` in the struct or union `id`.
    fn find(&self, id: u32, member: &[u8], depth: u32) -> Result<Option<u32>, BtfError> {
        // Anonymous nesting is two or three deep; anything endless is not BTF.
        if depth > 16 {
            return Err(BtfError::Malformed);
        }
        let at = self.position(id)?;
        let (kind, count) = self.info(at)?;
        if MODIFIERS.contains(&kind) {
            return self.find(word(self.types, at + 8)?, member, depth + 1);
        }
        if kind != KIND_STRUCT && kind != KIND_UNION {
            return Ok(None);
        }
        // With the kind flag set, the upper eight bits are the size of a bit field.
        let mask = if word(self.types, at + 4)? >> 31 == 1 { 0x00ff_ffff } else { u32::MAX };
        for index in 0..count as usize {
            let entry = at + 12 + index * 12;
            let name = self.name(word(self.types, entry)?)?;
            let offset = word(self.types, entry + 8)? & mask;
            if name == member {
                return Ok(Some(offset));
            }
            if name.is_empty() {
                let inner = self.find(word(self.types, entry + 4)?, member, depth + 1)?;
                if let Some(inner) = inner {
                    return Ok(Some(offset + inner));
                }
            }
        }
        Ok(None)
    }

    fn position(&self, id: u32) -> Result<usize, BtfError> {
        self.positions.get(id as usize).map(|&at| at as usize).ok_or(BtfError::Malformed)
    }

    /// Kind and member count of the type at a position.
    fn info(&self, at: usize) -> Result<(u32, u32), BtfError> {
        let info = word(self.types, at + 4)?;
        Ok((info >> 24 & 0x1f, info & 0xffff))
    }

    /// Whether this is the name at `offset`; cheaper than to find its end.
    fn name_is(&self, offset: u32, name: &[u8]) -> bool {
        let rest = self.strings.get(offset as usize..).and_then(|rest| rest.strip_prefix(name));
        rest.is_some_and(|rest| rest.first() == Some(&0))
    }

    fn name(&self, offset: u32) -> Result<&'a [u8], BtfError> {
        let rest = self.strings.get(offset as usize..).ok_or(BtfError::Malformed)?;
        rest.split(|&byte| byte == 0).next().ok_or(BtfError::Malformed)
    }
}

/// Bytes that follow a type's 12-byte head; `None` for a kind this does not know.
fn trailer(kind: u32, members: u32) -> Option<usize> {
    let members = members as usize;
    Some(match kind {
        // Int, variable, declaration tag.
        1 | 14 | 17 => 4,
        KIND_ARRAY => 12,
        // Struct, union, section, 64-bit enum.
        KIND_STRUCT | KIND_UNION | 15 | 19 => members * 12,
        // Enum, function prototype.
        KIND_ENUM | 13 => members * 8,
        // Pointer, forward, modifiers, function, float.
        KIND_POINTER | 7..=KIND_FUNC | 16 | 18 => 0,
        _ => return None,
    })
}

fn byte(bytes: &[u8], at: usize) -> Result<u8, BtfError> {
    bytes.get(at).copied().ok_or(BtfError::Malformed)
}

fn word(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u32::from_le_bytes).ok_or(BtfError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BTF of `struct sock { union { struct { int pad; int inner; }; }; int plain; }`.
    fn sample() -> Vec<u8> {
        let strings = b"\0sock\0inner\0plain\0pad\0int\0";
        let at = |name: &str| {
            let needle: Vec<u8> = [b"\0", name.as_bytes(), b"\0"].concat();
            strings.windows(needle.len()).position(|window| window == needle).unwrap() as u32 + 1
        };
        let types: Vec<u32> = [
            vec![at("int"), 1 << 24, 4, 32],
            vec![0, KIND_STRUCT << 24 | 2, 8, at("pad"), 1, 0, at("inner"), 1, 32],
            vec![0, KIND_UNION << 24 | 1, 8, 0, 2, 0],
            vec![at("sock"), KIND_STRUCT << 24 | 2, 12, 0, 3, 0, at("plain"), 1, 64],
        ]
        .concat();
        let types: Vec<u8> = types.into_iter().flat_map(u32::to_le_bytes).collect();
        let head = [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32];
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        bytes.extend(head.into_iter().flat_map(u32::to_le_bytes));
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn finds_members_also_in_anonymous_ones() {
        let bytes = sample();
        let btf = Btf::parse(&bytes, &["sock"], &[]).unwrap();
        assert_eq!(btf.offset("sock", "plain").unwrap(), 8);
        assert_eq!(btf.offset("sock", "inner").unwrap(), 4);
        assert!(matches!(btf.offset("sock", "absent"), Err(BtfError::Missing(_))));
        assert!(matches!(btf.offset("other", "plain"), Err(BtfError::Missing(_))));
    }

    #[test]
    fn every_truncation_is_an_error_and_not_a_panic() {
        let bytes = sample();
        for length in 0..bytes.len() {
            assert!(Btf::parse(&bytes[..length], &["sock"], &[]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn this_kernels_offsets_are_plausible() {
        let offsets = kernel().unwrap().offsets;
        let all: [u32; 9] = bytemuck::cast(offsets);
        assert!(all.iter().all(|&offset| offset < 16384), "{offsets:?}");
        assert_ne!(offsets.state, offsets.port);
        assert_ne!(offsets.group, 0);
    }

    #[test]
    fn a_stand_in_has_its_place_under_its_id() {
        let kernel = kernel().unwrap();
        for (name, kind, id) in kernel.places.0 {
            let id = id.unwrap();
            let bytes = stand_in_bytes(name, kind, id);
            let btf = Btf::parse(&bytes, &[], &[(name, kind)]).unwrap();
            assert_eq!(btf.places.get(name).copied(), Some(id));
            assert_eq!(btf.positions.len() as u32, id + 1);
            kernel.places.stand_in(name).unwrap();
        }
        assert!(kernel.places.stand_in("tcp_v4_rcv").is_err());
    }
}
