//! What a test cannot do without. A missing condition fails the test: a skip would hide bugs.

/// Fails unless this process has uid 0.
pub fn root() {
    assert!(
        crate::sys::is_root(),
        "the integration tests need root (BPF, network namespaces): run `sudo -E env \
         PATH=$PATH cargo xtask test`"
    );
}

/// Fails unless the machine offers at least `count` CPUs to this process.
pub fn cpus(count: usize) {
    let have = crate::cpus().len();
    assert!(have >= count, "needs {count} CPUs, this process may run on {have}: see `taskset`");
}
