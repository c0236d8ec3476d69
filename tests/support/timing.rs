//! What must be quick, on machines that are not.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// In memory where that can be had: what is timed waits for no disk.
pub(crate) fn folder() -> TempDir {
    let quick = Path::new("/dev/shm");
    if quick.is_dir() { tempfile::tempdir_in(quick) } else { tempfile::tempdir() }.unwrap()
}

/// More than a machine is slow by chance.
pub(crate) const TRIES: u32 = 10;

/// Does this until it has once taken less than `limit`. What a busy machine adds comes and goes; what a fault adds comes every
/// time.
#[track_caller]
pub(crate) fn within(limit: Duration, what: &str, mut act: impl FnMut()) {
    let mut took = Vec::new();
    for _ in 0..TRIES {
        let start = Instant::now();
        act();
        match start.elapsed() {
            quick if quick < limit => return,
            slow => took.push(slow),
        }
    }
    panic!("{what}: never within {limit:?}: {took:?}");
}
