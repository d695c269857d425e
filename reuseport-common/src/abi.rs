//! Map names and value layouts: the contract between a loaded program and whoever opens its pins.
//!
//! Any change of a layout, of a meaning or of a map's kind must raise [`ABI_VERSION`]: pins outlive
//! the binary that made them, and a newer binary must recognise an older one's.

use bytemuck::{Pod, Zeroable};

/// Version of every layout in this module, stored in [`Config::abi`].
///
/// Zero is never a version: a zeroed `CONFIG` means "not filled yet" and steers nothing.
pub const ABI_VERSION: u32 = 2;

/// Name of the one-entry array that holds [`Config`].
pub const CONFIG: &str = "CONFIG";
/// Name of the array of [`Row`]s: two halves of equal size, the active [`View`] says which is live.
pub const TABLE: &str = "TABLE";
/// Name of the `REUSEPORT_SOCKARRAY`: slot to socket, 8-byte values so that cookies can be read back.
pub const SOCKETS: &str = "SOCKETS";
/// Name of the mmapable array of [`Load`], one per slot.
pub const LOAD: &str = "LOAD";
/// Name of the array of [`SeatState`], one per slot: what each is to get. No program reads it; it is
/// kept beside the table so that whoever plans next knows what was wanted.
pub const SEATS: &str = "SEATS";
/// Name of the per-CPU array of `u64` counters; [`crate::stats`] gives the indices.
pub const COUNTERS: &str = "COUNTERS";

/// Name of the iterator over the listeners of a port.
pub const PROGRAM_LIST_MEMBERS: &str = "list_members";
/// Name of the global that holds [`Offsets`].
pub const OFFSETS: &str = "OFFSETS";
/// Name of the global that holds the port, host byte order.
pub const PORT: &str = "PORT";
/// Name of the program for kernels without request migration (before 5.14).
pub const PROGRAM_SELECT: &str = "select";
/// Name of the program that also chooses where a closing listener's connections go (5.14+).
pub const PROGRAM_SELECT_OR_MIGRATE: &str = "select_or_migrate";
/// Name of [`PROGRAM_SELECT`] with a log.
pub const PROGRAM_SELECT_LOGGED: &str = "select_logged";
/// Name of [`PROGRAM_SELECT_OR_MIGRATE`] with a log.
pub const PROGRAM_SELECT_OR_MIGRATE_LOGGED: &str = "select_or_migrate_logged";

/// [`Config::flags`]: the program is [`PROGRAM_SELECT_OR_MIGRATE`].
pub const FLAG_MIGRATES: u32 = 1;
/// [`Config::flags`]: the program writes aya-log records on its rare paths.
pub const FLAG_LOGS: u32 = 2;

/// "No slot" in a [`Row`].
pub const NO_SLOT: u32 = u32::MAX;

/// "No CPU" in a [`SeatState`].
pub const NO_CPU: u32 = u32::MAX;

/// What a row of the table means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u32)]
pub enum Policy {
    /// The CPU that runs the protocol softirq (after RPS/RFS).
    Cpu = 1,
    /// The connection's 4-tuple hash, as the kernel computed it.
    Hash = 2,
    /// A random number per selection.
    Random = 3,
    /// Each CPU walks the table by itself, one row per selection.
    RoundRobin = 4,
}

impl Policy {
    /// Every policy.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Hash, Self::Random, Self::RoundRobin];

    /// The policy a stored number stands for, if it is one.
    pub const fn from_u32(value: u32) -> Option<Self> {
        match value {
            1 => Some(Self::Cpu),
            2 => Some(Self::Hash),
            3 => Some(Self::Random),
            4 => Some(Self::RoundRobin),
            _ => None,
        }
    }

    /// Its name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Hash => "hash",
            Self::Random => "random",
            Self::RoundRobin => "round-robin",
        }
    }
}

/// How to read the table: written whole into the idle half of [`Config`], then made active.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct View {
    /// A [`Policy`].
    pub policy: u32,
    /// Index of this view's first entry in `TABLE`.
    pub base: u32,
    /// Number of rows: CPUs for [`Policy::Cpu`], table positions for the others.
    pub rows: u32,
    /// Entries per row, at least 1; several workers on one CPU share its row by lanes.
    pub lanes: u32,
}

/// Which group the pins belong to: everything that makes two reuseport groups distinct.
///
/// Mirrors the kernel's own rule for membership (`inet_reuseport_add_sock`), plus the network
/// namespace and the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct RawGroupKey {
    /// `SO_NETNS_COOKIE`, or the namespace's inode where the kernel has no cookie (before 5.14).
    pub netns: u64,
    /// Address in network byte order; IPv4 in the first four bytes.
    pub address: [u8; 16],
    /// Owner of the sockets (`sk_uid`).
    pub uid: u32,
    /// Bound device's index, 0 for none.
    pub device: u32,
    /// Port in host byte order.
    pub port: u16,
    /// 4 or 6.
    pub family: u8,
    /// `IPPROTO_TCP` or `IPPROTO_UDP`.
    pub protocol: u8,
    /// 1 for an IPv6 group that takes IPv6 only.
    pub v6only: u8,
    /// Always zero.
    pub padding: [u8; 3],
}

/// The one value of `CONFIG`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Config {
    /// [`ABI_VERSION`]; anything else steers nothing.
    pub abi: u32,
    /// Which of `views` is live: 0 or 1. One store switches the whole plan.
    pub active: u32,
    /// Counts the plans that were made active, from 1.
    pub generation: u32,
    /// Slots of `SOCKETS`, `LOAD`, `SEATS` and `COUNTERS`.
    pub slots: u32,
    /// Entries in each half of `TABLE`.
    pub half: u32,
    /// Bits: [`FLAG_MIGRATES`], [`FLAG_LOGS`].
    pub flags: u32,
    /// Hash of the object the program was loaded from: another one means another program.
    pub object: u64,
    /// Seconds since the epoch when the program was attached.
    pub attached_at: u64,
    /// The group that this program was attached to.
    pub group: RawGroupKey,
    /// The live view and the one being prepared.
    pub views: [View; 2],
}

impl Config {
    /// The view that the program reads now.
    pub fn live(&self) -> View {
        self.views[(self.active & 1) as usize]
    }
}

/// One entry of `TABLE`: where a connection goes, and where it goes instead.
///
/// Eight bytes, written and read as one word: a reader never sees half of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Row {
    /// First choice of slot, or [`NO_SLOT`].
    pub first: u32,
    /// Second choice of slot, or [`NO_SLOT`].
    pub second: u32,
}

impl Row {
    /// A row that points nowhere: the kernel's hash decides.
    pub const EMPTY: Self = Self { first: NO_SLOT, second: NO_SLOT };
}

/// How loaded a slot is: the word that a selection reads before it takes a first choice.
///
/// Two may write it, each its own part, with plain stores into the mapped array:
///
/// - The worker in the slot, where it cooperates, owns `pending` and the lower 31 bits of `limit`.
///   It sets the limit once (leaving [`EVICTED`] as it is) and then stores `pending` as it likes.
/// - The agent owns [`EVICTED`], and sets and clears that one bit atomically. It never writes what
///   is the worker's: one that hangs with a word that looks well can still be evicted, and one that
///   publishes does not end its eviction by that.
///
/// Whoever puts another socket into the slot zeroes it all. Eight bytes, as [`Row`]: a reader never
/// sees half of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Load {
    /// Connections waiting or in service; the worker chooses, `limit` is in the same unit.
    pub pending: u32,
    /// Above this the row's second choice is taken; 0 means "no limit". And [`EVICTED`].
    pub limit: u32,
}

/// The bit of [`Load::limit`] that says: take the second choice, whatever is pending.
pub const EVICTED: u32 = 1 << 31;

impl Load {
    /// Whether the slot has more than it should.
    #[inline(always)]
    pub const fn is_over(self) -> bool {
        self.is_evicted() || (self.limit != 0 && self.pending > self.limit)
    }

    /// Whether the agent took it out.
    #[inline(always)]
    pub const fn is_evicted(self) -> bool {
        self.limit & EVICTED != 0
    }
}

/// What part a seat takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Role {
    /// It gets its share.
    #[default]
    Active = 0,
    /// Superseded by a newer generation: it gets nothing while any active seat can serve, but is the
    /// second choice of the rows that would be its own.
    Standby = 1,
    /// Taken out by hand: it gets nothing and is nobody's second choice.
    Drained = 2,
    /// As standby, by the word of the newer process of its program that has taken over: its own may
    /// end. An agent only sees who is newer, not who is ready.
    Superseded = 3,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Active, Self::Standby, Self::Drained, Self::Superseded];

    /// The role a stored number stands for; one that this version does not know is none.
    pub const fn from_u32(value: u32) -> Option<Self> {
        match value {
            0 => Some(Self::Active),
            1 => Some(Self::Standby),
            2 => Some(Self::Drained),
            3 => Some(Self::Superseded),
            _ => None,
        }
    }
}

/// What the worker in a slot is to get, as the user or the agent wants it: the one value of `SEATS`
/// per slot.
///
/// It speaks of one socket. Where `cookie` is not that of the socket in the slot (another one sits
/// there now, or nothing was ever wanted), it means nothing, and the default holds: a normal share,
/// [`Role::Active`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SeatState {
    /// `SO_COOKIE` of the socket that is meant; 0 is none's.
    pub cookie: u64,
    /// Percent of a normal share.
    pub weight: u32,
    /// A [`Role`].
    pub role: u32,
    /// The CPU that the last plan counted its worker on, or [`NO_CPU`]: what to go by where it cannot
    /// be seen now who that is.
    pub home: u32,
    /// Always zero.
    pub padding: u32,
}

/// Offsets in bytes within this kernel's structs, from its BTF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Offsets {
    /// `sock.__sk_common.skc_state`
    pub state: u32,
    /// `sock.__sk_common.skc_num`
    pub port: u32,
    /// `sock.__sk_common.skc_cookie`
    pub cookie: u32,
    /// `sock.sk_reuseport_cb`
    pub group: u32,
    /// `sock_reuseport.reuseport_id`
    pub group_id: u32,
    /// `sock_reuseport.num_socks`
    pub members: u32,
    /// `sock_reuseport.prog`
    pub program: u32,
    /// `bpf_prog.aux`
    pub program_aux: u32,
    /// `bpf_prog_aux.id`
    pub program_id: u32,
}

impl Offsets {
    /// Not filled.
    pub const ZERO: Self = Self {
        state: 0,
        port: 0,
        cookie: 0,
        group: 0,
        group_id: 0,
        members: 0,
        program: 0,
        program_aux: 0,
        program_id: 0,
    };
}

/// One TCP listener as the kernel sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Member {
    /// The socket cookie, as `SO_COOKIE` and `ss -e` give it; 0 where none was made yet.
    pub cookie: u64,
    /// `reuseport_id`: equal for all members of a group.
    pub group: u32,
    /// The attached BPF program's id; 0 with `attached` set is a classic BPF program.
    pub program: u32,
    /// Listeners in the group.
    pub members: u16,
    /// 1 if the socket is in a reuseport group at all.
    pub reuseport: u8,
    /// 1 if a program is attached to the group.
    pub attached: u8,
    /// Always zero.
    pub padding: u32,
}

impl Member {
    /// A record with nothing in it.
    pub const ZERO: Self =
        Self { cookie: 0, group: 0, program: 0, members: 0, reuseport: 0, attached: 0, padding: 0 };
}
