//! Where the figures are from.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Instant;
use std::{env, thread};

use serde::Serialize;

#[derive(Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) system: String,
}

impl Machine {
    pub(crate) fn here() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Machine {
            processor: model.unwrap_or(env::consts::ARCH).to_owned(),
            cores: thread::available_parallelism().map_or(0, usize::from),
            system: format!("{} {}", env::consts::OS, kernel.trim()),
        }
    }
}

/// Programs that wanted to run, over the last minute. More than one, ours, and the figures are noisy.
pub(crate) fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// What a synced append of 4 KiB takes on this disk, in microseconds: the floor under every synced commit.
pub(crate) fn synced_append_us(dir: &Path) -> std::io::Result<f64> {
    const APPENDS: u32 = 200;
    fs::create_dir_all(dir)?;
    let path = dir.join("append");
    let mut file = File::create(&path)?;
    let began = Instant::now();
    for _ in 0..APPENDS {
        file.write_all(&[7; 4_096])?;
        file.sync_data()?;
    }
    let each = began.elapsed().as_secs_f64() * 1e6 / f64::from(APPENDS);
    fs::remove_file(path)?;
    Ok(each)
}
