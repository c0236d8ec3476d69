//! What this process uses, from /proc: `None` where there is none.

use std::fs;
use std::path::Path;

/// Of the library's own threads.
pub(crate) struct Usage {
    /// How often they went to sleep of their own accord, which is how often they woke up.
    pub(crate) wakes: usize,
    pub(crate) cpu_ns: usize,
    /// The same in the kernel's ticks, mostly of 10 ms.
    pub(crate) cpu_ticks: usize,
}

pub(crate) fn usage_of_postbox_threads() -> Option<Usage> {
    let mut sum = None;
    for thread in fs::read_dir("/proc/self/task").ok()?.flatten() {
        let thread = thread.path();
        if fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.starts_with("postbox-")) {
            let of_thread = usage_of(&thread)?;
            let so_far = sum.get_or_insert(Usage { wakes: 0, cpu_ns: 0, cpu_ticks: 0 });
            so_far.wakes += of_thread.wakes;
            so_far.cpu_ns += of_thread.cpu_ns;
            so_far.cpu_ticks += of_thread.cpu_ticks;
        }
    }
    sum
}

fn usage_of(thread: &Path) -> Option<Usage> {
    let status = fs::read_to_string(thread.join("status")).ok()?;
    let stat = fs::read_to_string(thread.join("stat")).ok()?;
    // The name in parentheses may hold spaces. After it, `utime` and `stime` are fields 12 and 13.
    let mut ticks = stat.rsplit(')').next()?.split_whitespace().skip(11).map(str::parse::<usize>);
    let schedstat = fs::read_to_string(thread.join("schedstat")).ok()?;
    Some(Usage {
        wakes: value_of("voluntary_ctxt_switches:", &status)?,
        cpu_ns: schedstat.split_whitespace().next()?.parse().ok()?,
        cpu_ticks: ticks.next()?.ok()? + ticks.next()?.ok()?,
    })
}

/// The process's memory, as the kernel counts it.
pub(crate) fn resident_kib() -> Option<usize> {
    value_of("VmRSS:", &fs::read_to_string("/proc/self/status").ok()?)
}

fn value_of(name: &str, status: &str) -> Option<usize> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}
