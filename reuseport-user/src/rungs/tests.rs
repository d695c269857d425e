use std::os::fd::AsFd as _;

use super::*;
use crate::loopback::{ADDRESSES, Pair};

fn pair() -> Pair {
    Pair::open(ADDRESSES[0]).unwrap()
}

fn fds(pair: &Pair) -> [BorrowedFd<'_>; 2] {
    [pair.listeners[0].as_fd(), pair.listeners[1].as_fd()]
}

fn traces(pair: &Pair) -> [Trace; 2] {
    fds(pair).map(|fd| inspect(fd).unwrap())
}

const NOTHING: [Trace; 2] = [Trace::Nothing; 2];

fn ours(cpu: Cpu) -> Trace {
    Trace::IncomingCpu { cpu, ours: true }
}

#[test]
fn what_was_set_is_found_and_undone() {
    let pair = pair();
    let [a, b] = fds(&pair);
    assert_eq!(traces(&pair), NOTHING);
    let applied = apply(Rung::IncomingCpu, &[(a, Some(1)), (b, None)]).unwrap();
    assert_eq!(applied, Applied { set: 2, left: 0 });
    assert_eq!(traces(&pair), [ours(1), Trace::Nothing]);
    // Again, with other CPUs.
    apply(Rung::IncomingCpu, &[(a, Some(0)), (b, Some(1))]).unwrap();
    assert_eq!(traces(&pair), [ours(0), ours(1)]);
    let removed = remove(&[a, b]).unwrap();
    assert_eq!(removed, Removed { unset: 2, left: 0, classic: false });
    assert_eq!(traces(&pair), NOTHING);
    assert_eq!(remove(&[a, b]).unwrap(), Removed::default());
}

#[test]
fn what_the_server_set_is_left_alone() {
    let pair = pair();
    let [a, b] = fds(&pair);
    sockopt::set_incoming_cpu(a, Some(7)).unwrap();
    let servers = Trace::IncomingCpu { cpu: 7, ours: false };
    let applied = apply(Rung::IncomingCpu, &[(a, Some(0)), (b, Some(1))]).unwrap();
    assert_eq!(applied, Applied { set: 1, left: 1 });
    assert_eq!(traces(&pair), [servers, ours(1)]);
    let error = apply(Rung::ClassicBpf, &[(a, Some(0)), (b, Some(1))]).unwrap_err();
    assert!(matches!(error, RungError::ServersOwn), "{error}");
    assert_eq!(traces(&pair), [servers, ours(1)]);
    assert_eq!(remove(&[a, b]).unwrap(), Removed { unset: 1, left: 1, classic: false });
    assert_eq!(traces(&pair), [servers, Trace::Nothing]);
}

#[test]
fn from_rung_to_rung_nothing_stays_behind() {
    let pair = pair();
    let [a, b] = fds(&pair);
    let seats = [(a, Some(0)), (b, Some(1))];
    let places = [0, 1].map(|index| Trace::Place(Place { index, of: 2 }));
    apply(Rung::IncomingCpu, &seats).unwrap();
    apply(Rung::ClassicBpf, &seats).unwrap();
    assert_eq!(traces(&pair), places);
    apply(Rung::IncomingCpu, &seats).unwrap();
    assert_eq!(traces(&pair), [ours(0), ours(1)]);
    assert!(!sockopt::detach_reuseport(a).unwrap(), "the classic program was left attached");
    apply(Rung::ClassicBpf, &seats).unwrap();
    assert_eq!(remove(&[a, b]).unwrap(), Removed { unset: 0, left: 0, classic: true });
    assert!(!sockopt::detach_reuseport(a).unwrap());
    apply(Rung::IncomingCpu, &seats).unwrap();
    apply(Rung::Hash, &seats).unwrap();
    assert_eq!(traces(&pair), NOTHING);
    assert!(matches!(apply(Rung::Ebpf, &seats), Err(RungError::NotHere)));
}

/// A program that we do not know of is nobody's to remove.
#[test]
fn a_classic_program_without_our_places_stays() {
    let pair = pair();
    let [a, b] = fds(&pair);
    let program = [libc::sock_filter { code: (libc::BPF_RET) as u16, jt: 0, jf: 0, k: 0 }];
    sockopt::attach_reuseport_classic(a, &program).unwrap();
    assert_eq!(remove(&[a, b]).unwrap(), Removed::default());
    assert!(sockopt::detach_reuseport(b).unwrap());
}
