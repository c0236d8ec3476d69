//! Where the figures are from.

use std::{env, fmt, fs, thread};

use serde::Serialize;

#[derive(Serialize)]
pub(crate) struct Machine {
    processor: String,
    cores: usize,
    kernel: String,
    sqlite: &'static str,
    postbox: &'static str,
    /// Programs that wanted to run in the minute before. More than none, and the figures are noisy.
    load_before: Option<f64>,
}

impl Machine {
    pub(crate) fn here() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let processor = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| Some(line.strip_prefix("model name")?.split_once(": ")?.1.to_owned()));
        Machine {
            processor: processor.unwrap_or_else(|| env::consts::ARCH.to_owned()),
            cores: thread::available_parallelism().map_or(1, usize::from),
            kernel: format!("{} {}", env::consts::OS, read("/proc/sys/kernel/osrelease").trim()),
            sqlite: postbox::rusqlite::version(),
            postbox: env!("CARGO_PKG_VERSION"),
            load_before: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { processor, cores, kernel, sqlite, postbox, load_before } = self;
        write!(f, "postbox {postbox}, SQLite {sqlite}, {processor}, {cores} cores, {kernel}")?;
        load_before.map_or(Ok(()), |load| write!(f, ", load average {load} before"))
    }
}
