//! Reads the kernel's figures about a process.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// Ticks of `/proc/PID/stat`; 100 on every Linux (`getconf CLK_TCK`).
const TICKS_PER_SECOND: u64 = 100;

/// Processor time, user and system, of a process and of its children that have ended.
///
/// # Errors
/// When there is no such process.
pub fn cpu(pid: u32) -> Result<Duration, String> {
    let stat = read(&format!("/proc/{pid}/stat"))?;
    // The name is in parentheses and can contain anything. utime, stime, cutime and cstime are fields 14 to 17 (proc(5)).
    let behind_name = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let ticks: u64 =
        behind_name.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
}

/// A value in kB of `/proc/PID/status`, such as `VmHWM` (peak of the resident memory) or `VmRSS`, in bytes.
///
/// # Errors
/// When the process has ended.
pub fn memory(pid: u32, line: &str) -> Result<u64, String> {
    let path = format!("/proc/{pid}/status");
    let status = read(&path)?;
    let found = status.lines().find_map(|at| at.strip_prefix(line)?.strip_prefix(':'));
    let kilobytes = found.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.map(|count| count * 1_024).ok_or_else(|| format!("{path} has no {line}: the process has ended"))
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

/// Processor time of a process so far, in nanoseconds, by the names of its threads (`/proc/PID/task/TID/schedstat`).
pub fn threads(pid: u32) -> BTreeMap<String, u64> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let ran = read("schedstat").split_whitespace().next().and_then(|ran| ran.parse().ok()).unwrap_or(0_u64);
        *threads.entry(read("comm").trim().to_owned()).or_default() += ran;
    }
    threads
}
