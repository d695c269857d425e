//! What `/proc` says about processes: the judge of what the command says and does.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

/// CPUs that a process or thread may run on, from its `status`.
pub fn allowed(tid: u32) -> Vec<u32> {
    let path = format!("/proc/{tid}/status");
    let status = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let list = list.unwrap_or_else(|| panic!("no Cpus_allowed_list in {path}")).trim();
    list.split(',')
        .flat_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let number = |text: &str| text.parse::<u32>().expect("a CPU");
            number(first)..=number(last)
        })
        .collect()
}

/// Threads of a process, ascending: mostly in order of creation.
pub fn threads(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut tids: Vec<u32> =
        tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect();
    tids.sort_unstable();
    tids
}

/// User that a process runs as.
pub fn uid(pid: u32) -> u32 {
    fs::metadata(format!("/proc/{pid}")).expect("a running process").uid()
}

/// Processes that have the socket open, on the whole machine: whoever was left with a duplicate.
pub fn holders(inode: u64) -> Vec<u32> {
    let wanted = format!("socket:[{inode}]");
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|entry| fs::read_link(entry.path()).ok())
            .any(|file| file.as_os_str() == wanted.as_str())
    })
    .collect()
}
