//! Fixture trees laid out as `/sys`, and synthetic machines.

use std::fs;
use std::path::Path;

use super::synthetic::machine;
use super::*;

/// Writes a tree of (path below devices/system, content).
fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a temporary directory");
    for (path, content) in files {
        let path = root.path().join("devices/system").join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        fs::write(path, format!("{content}\n")).expect("write");
    }
    root
}

fn read(root: &Path) -> Topology {
    Topology::read_from(root).expect("a readable tree")
}

fn groups(topology: &Topology) -> Vec<(u32, bool, u32, u32, u32)> {
    topology.cpus().iter().map(|c| (c.id, c.online, c.core, c.llc, c.node)).collect()
}

#[test]
fn a_small_vm_without_caches_or_nodes() {
    let root = tree(&[
        ("cpu/possible", "0-1"),
        ("cpu/online", "0-1"),
        ("cpu/cpu0/topology/core_cpus_list", "0"),
        ("cpu/cpu0/topology/package_cpus_list", "0-1"),
        ("cpu/cpu1/topology/core_cpus_list", "1"),
        ("cpu/cpu1/topology/package_cpus_list", "0-1"),
    ]);
    let topology = read(root.path());
    assert_eq!(groups(&topology), [(0, true, 0, 0, 0), (1, true, 1, 0, 0)]);
    assert_eq!(topology.distance(0, 1), Distance::Llc);
}

#[test]
fn nothing_but_the_two_lists() {
    let root = tree(&[("cpu/possible", "0-1"), ("cpu/online", "0-1")]);
    let topology = read(root.path());
    assert_eq!(groups(&topology), [(0, true, 0, 0, 0), (1, true, 1, 1, 0)]);
    assert_eq!(topology.distance(0, 1), Distance::Node);
}

/// Two nodes of two cores of two threads; L2 is per core, L3 per node, L1 is not unified.
#[test]
fn two_nodes_with_smt() {
    let mut files = vec![
        ("cpu/possible".to_owned(), "0-7"),
        ("cpu/online".to_owned(), "0-7"),
        ("node/node0/cpulist".to_owned(), "0-1,4-5"),
        ("node/node1/cpulist".to_owned(), "2-3,6-7"),
        ("node/has_cpu".to_owned(), "0-1"),
    ];
    for cpu in 0..8 {
        let core = ["0,4", "1,5", "2,6", "3,7"][cpu % 4];
        let node = if cpu % 4 < 2 { "0-1,4-5" } else { "2-3,6-7" };
        files.push((format!("cpu/cpu{cpu}/topology/thread_siblings_list"), core));
        // A package as large as the machine: the cache must win over it.
        files.push((format!("cpu/cpu{cpu}/topology/package_cpus_list"), "0-7"));
        for (index, level, kind, shared) in [
            (0, "1", "Data", core),
            (1, "3", "Unified", node),
            (2, "2", "Unified", core),
            (3, "9", "Instruction", "0-7"),
        ] {
            let dir = format!("cpu/cpu{cpu}/cache/index{index}");
            files.push((format!("{dir}/level"), level));
            files.push((format!("{dir}/type"), kind));
            files.push((format!("{dir}/shared_cpu_list"), shared));
        }
    }
    let files: Vec<_> = files.iter().map(|(path, content)| (path.as_str(), *content)).collect();
    let topology = read(tree(&files).path());
    assert_eq!(topology.rows(), 8);
    for (a, b, distance) in [
        (3, 3, Distance::Same),
        (0, 4, Distance::Sibling),
        (0, 5, Distance::Llc),
        (2, 7, Distance::Llc),
        (0, 2, Distance::Remote),
        (0, 99, Distance::Remote),
    ] {
        assert_eq!(topology.distance(a, b), distance, "{a} {b}");
        assert_eq!(topology.distance(b, a), distance, "{b} {a}");
    }
}

#[test]
fn offline_and_sparse() {
    let root = tree(&[
        ("cpu/possible", "0-3,8-11"),
        ("cpu/online", "0-2,9"),
        ("node/node0/cpulist", "0-2"),
        ("node/node1/cpulist", "9"),
        ("cpu/cpu0/topology/thread_siblings_list", "0-1"),
        ("cpu/cpu2/topology/thread_siblings_list", "2"),
        ("cpu/cpu9/topology/thread_siblings_list", "9"),
        ("cpu/cpu0/topology/core_siblings_list", "0-2"),
        ("cpu/cpu9/topology/core_siblings_list", "9"),
        // Present but offline: the link is there, the topology is not.
        ("cpu/cpu8/node1/cpulist", "9"),
    ]);
    let topology = read(root.path());
    assert_eq!(
        groups(&topology),
        [
            (0, true, 0, 0, 0),
            (1, true, 0, 0, 0),
            (2, true, 2, 0, 0),
            (3, false, 3, 3, 0),
            (8, false, 8, 8, 1),
            (9, true, 9, 9, 1),
            (10, false, 10, 10, 0),
            (11, false, 11, 11, 0),
        ]
    );
    assert_eq!(topology.rows(), 12);
    assert_eq!(topology.online(), CpuSet::from([0, 1, 2, 9]));
    assert_eq!(topology.possible(), CpuSet::from([0, 1, 2, 3, 8, 9, 10, 11]));
    assert_eq!(topology.get(8).map(|cpu| cpu.online), Some(false));
    assert_eq!(topology.get(5), None);
    assert_eq!(topology.distance(8, 9), Distance::Node);
}

#[test]
fn what_is_wrong_is_named() {
    let empty = tree(&[]);
    let error = Topology::read_from(empty.path()).expect_err("no sysfs");
    assert!(matches!(&error, TopologyError::Read { .. }), "{error:?}");
    assert!(error.to_string().contains("devices/system/cpu/possible"), "{error}");

    let garbage = tree(&[("cpu/possible", "0-x"), ("cpu/online", "0")]);
    let error = Topology::read_from(garbage.path()).expect_err("no list");
    assert!(matches!(&error, TopologyError::Parse { .. }), "{error:?}");

    let none = tree(&[("cpu/possible", "0"), ("cpu/online", "")]);
    let error = Topology::read_from(none.path()).expect_err("no CPU");
    assert!(matches!(&error, TopologyError::NoCpu { .. }), "{error:?}");
    assert!(error.to_string().contains("cpu/online"), "{error}");
}

#[test]
fn reads_this_machine() {
    let topology = Topology::read().expect("Linux has sysfs");
    assert!(!topology.online().is_empty());
    assert!(topology.online().is_subset(&topology.possible()));
}

#[test]
fn synthetic_machines_are_numbered_as_linux_does() {
    let topology = machine(2, 2, 2, 2).build();
    assert_eq!(topology.possible().len(), 16);
    assert_eq!(topology.distance(0, 8), Distance::Sibling);
    assert_eq!(topology.distance(0, 1), Distance::Llc);
    assert_eq!(topology.distance(0, 9), Distance::Llc);
    assert_eq!(topology.distance(0, 2), Distance::Node);
    assert_eq!(topology.distance(0, 4), Distance::Remote);

    let topology = machine(1, 1, 4, 1).offline(&CpuSet::from([1])).renumber(|id| id * 10).build();
    assert_eq!(topology.online(), CpuSet::from([0, 20, 30]));
    assert_eq!(topology.rows(), 31);
    assert_eq!(topology.distance(0, 10), Distance::Node);
}
