//! Sees a port's connections come into the accept queue and leave it: when, and on which CPUs.
//!
//! One program runs at every change of a TCP socket's state, one at the end of `inet_accept`; where the
//! kernel has no trampolines for that (arm64 before 6.4, some virtual machines), at the end of every
//! system call. Steering needs none of them; they are loaded for as long as `trace` runs.
#![no_std]
#![no_main]

mod memory;
mod object;
#[allow(dead_code, reason = "other objects use the rest")]
mod tcp;

#[path = "../../../reuseport-common/src/hist.rs"]
#[allow(dead_code, reason = "the user side uses the rest")]
mod hist;
#[path = "../../../reuseport-common/src/observe.rs"]
#[allow(dead_code, reason = "the user side uses the rest")]
mod observe;

use aya_ebpf::{
    Global,
    bindings::{BPF_ANY, BPF_NOEXIST, BPF_RB_NO_WAKEUP},
    cty::c_void,
    helpers::generated::{
        bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_smp_processor_id, bpf_ktime_get_ns,
    },
    macros::map,
    maps::{HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use hist::{BUCKETS, bucket};
use memory::read;
use tcp::StateChange;
use observe::{Event, Filter, Offsets, Syscall, Times, Total, Waiting, pair};

/// Sizes of the listeners' maps are placeholders: the loader sets them.
#[map]
static LISTENERS: HashMap<u64, u32> = HashMap::with_max_entries(1, 0);

/// Of those that nobody accepts, the oldest make room.
#[map]
static WAITING: LruHashMap<u64, Waiting> = LruHashMap::with_max_entries(1 << 16, 0);

#[map]
static TIMES: PerCpuArray<Times> = PerCpuArray::with_max_entries(1, 0);

#[map]
static PAIRS: HashMap<u64, u64> = HashMap::with_max_entries(1, 0);

#[map]
static TOTALS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Total::COUNT, 0);

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Where things are in this kernel's structs.
#[unsafe(no_mangle)]
static OFFSETS: Global<Offsets> = Global::new(Offsets::ZERO);

#[unsafe(no_mangle)]
static FILTER: Global<Filter> = Global::new(Filter::ZERO);

#[unsafe(no_mangle)]
static SYSCALL: Global<Syscall> = Global::new(Syscall::ZERO);

const AF_INET: u16 = 2;

/// A connection is established right after it came into its accept queue, but for TCP Fast Open. Until that is done it is
/// locked, so nobody's accept returns with it before.
#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/inet_sock_set_state")]
extern "C" fn queued(ctx: *const StateChange) -> i32 {
    // SAFETY: the verifier knows the tracepoint's arguments.
    let (socket, before, now) = unsafe { ((*ctx).socket as u64, (*ctx).before, (*ctx).now) };
    if before as u32 != tcp::SYN_RECV || now as u32 != tcp::ESTABLISHED || !is_meant(socket) {
        return 0;
    }
    count(Total::Queued);
    let at = OFFSETS.load();
    // With TCP Fast Open it may have been accepted before the handshake ended: it waits for nobody.
    if read::<u64>(socket, at.socket) != 0 {
        return 0;
    }
    let waiting = Waiting {
        // SAFETY: no arguments, no preconditions.
        since: unsafe { bpf_ktime_get_ns() },
        // SAFETY: as above.
        received: unsafe { bpf_get_smp_processor_id() },
        // Nothing but the handshake was measured yet; the kernel keeps eighths of microseconds.
        handshake: read::<u32>(socket, at.round_trip) >> 3,
    };
    let _never_full = WAITING.insert(&socket, &waiting, u64::from(BPF_ANY));
    0
}

/// `int inet_accept(struct socket *sock, struct socket *newsock, ...)`: the arguments that come after
/// differ from kernel to kernel.
#[unsafe(no_mangle)]
#[unsafe(link_section = "fexit/inet_accept")]
extern "C" fn accepted(ctx: *const [*const c_void; 2]) -> i32 {
    // SAFETY: the verifier knows the function's arguments.
    let [listening, accepted] = unsafe { [(*ctx)[0] as u64, (*ctx)[1] as u64] };
    let at = OFFSETS.load();
    note(read(listening, at.sock), read(accepted, at.sock));
    0
}

/// What `trace_sys_exit` passes, arguments in 8-byte seats.
#[repr(C)]
struct Return {
    registers: *const c_void,
    value: i64,
}

/// The end of any system call: nearly always not our business.
#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/sys_exit")]
extern "C" fn returned(ctx: *const Return) -> i32 {
    let call = SYSCALL.load();
    // SAFETY: the verifier knows the tracepoint's arguments.
    let (registers, value) = unsafe { ((*ctx).registers, (*ctx).value) };
    // SAFETY: the verifier checks that there is a number at this offset of `struct pt_regs`.
    let number = unsafe { *registers.cast::<u8>().add(call.number as usize).cast::<u32>() };
    if (number != call.accept4 && number != call.accept) || value < 0 {
        return 0;
    }
    // SAFETY: as above.
    let listening = unsafe { *registers.cast::<u8>().add(call.first as usize).cast::<u64>() };
    let at = OFFSETS.load();
    // SAFETY: no arguments, no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let table: u64 = read(read(task, at.files), at.table);
    let descriptors: u64 = read(table, at.descriptors);
    note(open_socket(descriptors, listening), open_socket(descriptors, value as u64));
    0
}

/// The `struct sock` behind a descriptor, if it is a socket's: a file that is none has something else
/// there, which is no key of any map.
#[inline(always)]
fn open_socket(descriptors: u64, descriptor: u64) -> u64 {
    let at = OFFSETS.load();
    let file: u64 = read(descriptors + (descriptor as u32 as u64) * 8, 0);
    read(read(file, at.private), at.sock)
}

/// A socket on the port and in the namespace.
#[inline(always)]
fn is_meant(socket: u64) -> bool {
    let (at, filter) = (OFFSETS.load(), FILTER.load());
    read::<u16>(socket, at.port) == filter.port
        && read::<u32>(read(socket, at.net), at.netns) == filter.netns
}

/// Takes down that `connection` was accepted from `listener`.
#[inline(always)]
fn note(listener: u64, connection: u64) {
    if connection == 0 || !is_meant(listener) {
        return;
    }
    let at = OFFSETS.load();
    let cookie: u64 = read(listener, at.cookie);
    // SAFETY: nothing is kept of the value.
    let Some(&index) = (unsafe { LISTENERS.get(&cookie) }) else { return count(Total::Unlisted) };
    let Some(times) = TIMES.get_ptr_mut(index) else { return };
    // SAFETY: an entry of an array, there as long as the map.
    let times = unsafe { &mut *times };

    // SAFETY: no arguments, no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: as above.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let depth = read::<u32>(listener, at.waiting) + 1;
    if depth > times.deepest {
        times.deepest = depth;
    }
    // SAFETY: copied at once.
    let found = unsafe { WAITING.get(&connection) }.copied();
    // One of TCP Fast Open whose handshake goes on: what is there is of who had this address before.
    let found = found.filter(|_| u32::from(read::<u8>(connection, at.state)) != tcp::SYN_RECV);
    let waiting = found.unwrap_or_default();
    if found.is_some() {
        let _gone = WAITING.remove(&connection);
        let wait = now.saturating_sub(waiting.since);
        if wait > times.longest {
            times.longest = wait;
        }
        let handshake = u64::from(waiting.handshake) * 1000;
        raise(&mut times.waits, bucket(wait));
        raise(&mut times.handshakes, bucket(handshake));
        count_pair(pair(index, waiting.received, cpu));
    } else {
        times.unseen += 1;
    }
    if FILTER.load().events == 0 {
        return;
    }
    // SAFETY: as above.
    let id = unsafe { bpf_get_current_pid_tgid() };
    let family: u16 = read(connection, at.family);
    let mut client = [0; 16];
    if family == AF_INET {
        client[..4].copy_from_slice(&read::<[u8; 4]>(connection, at.v4));
    } else {
        client = read(connection, at.v6);
    }
    let event = Event {
        at: now,
        waiting,
        client,
        family,
        port: read(connection, at.client_port),
        listener: cookie,
        accepted: cpu,
        depth,
        pid: (id >> 32) as u32,
        tid: id as u32,
        padding: 0,
    };
    // Nobody is woken: the reader looks again soon enough, and accept must not pay for it.
    if EVENTS.output::<Event>(&event, u64::from(BPF_RB_NO_WAKEUP)).is_err() {
        count(Total::LostEvents);
    }
}

/// One more in a bucket; what the verifier cannot know is within bounds.
///
/// Not atomic, as all that is counted here: it is this CPU's own, and the kernel never runs a program
/// inside another run of it.
#[inline(always)]
fn raise(histogram: &mut [u32; BUCKETS], bucket: usize) {
    if let Some(count) = histogram.get_mut(bucket) {
        *count += 1;
    }
}

#[inline(always)]
fn count(what: Total) {
    if let Some(total) = TOTALS.get_ptr_mut(what as u32) {
        // SAFETY: an entry of an array, there as long as the map.
        unsafe { *total += 1 };
    }
}

#[inline(always)]
fn count_pair(pair: u64) {
    if let Some(seen) = PAIRS.get_ptr_mut(&pair) {
        // SAFETY: entries of a listener are removed when no run can find it any more.
        unsafe { *seen += 1 };
    } else if PAIRS.insert(&pair, &1, u64::from(BPF_NOEXIST)).is_err() {
        count(Total::Unpaired);
    }
}
