//! Every fault there is, injected for real: the process killed at each operation on the disk, the power cut at any point, each
//! operation failed once and for good, files taken away. After each, nothing acknowledged is lost, nothing is done twice, and
//! nobody is told what is not so. Each harness has a control: a build with a mistake, which it must find.
//!
//! The short forms run with the tests; `just soak` runs the long ones. RELIABILITY.md has the figures.
#![cfg(target_os = "linux")]

#[path = "support/fault/mod.rs"]
mod fault;
#[path = "support/files.rs"]
mod support;
#[path = "support/timing.rs"]
mod timing;

#[path = "faults/io_errors.rs"]
mod io_errors;
#[path = "faults/kill_points.rs"]
mod kill_points;
#[path = "faults/life.rs"]
mod life;
#[path = "faults/logged.rs"]
mod logged;
#[path = "faults/oracle.rs"]
mod oracle;
#[path = "faults/power_cuts.rs"]
mod power_cuts;
#[path = "faults/taken_away.rs"]
mod taken_away;
#[path = "faults/unknown_commits.rs"]
mod unknown_commits;
#[path = "faults/waiting_worker.rs"]
mod waiting_worker;

use crate::timing::folder;

/// How often: the short form's number unless the environment says another.
fn times(variable: &str, short: usize) -> usize {
    support::given(variable)
        .map_or(short, |n| n.parse().unwrap_or_else(|_| panic!("{variable}={n}: no number")))
}
