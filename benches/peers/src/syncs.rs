//! How often the disk is asked to sync for each event: the proof of what the tables say about durability.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::contenders::{Contender, Contenders};
use crate::options::Options;
use crate::protocol::{Column, Variant};
use crate::report::Grid;

/// The difference between two runs leaves opening and closing out.
const FEW: usize = 50;
const MORE: usize = 150;

pub(crate) fn count(options: &Options, contenders: &Contenders) -> Result<bool, String> {
    let mut grid = Grid::new(&["syncs per event", "stored one by one", "stored and handled", "durability"]);
    for contender in &contenders.built {
        for variant in &contender.variants {
            let cell = |column| {
                if !variant.columns.contains(&column) {
                    return Ok("-".to_owned());
                }
                per_event(options, contender, variant, column).map(|syncs| format!("{syncs:.2}"))
            };
            let cells: [String; 2] = [cell(Column::OneByOne)?, cell(Column::Latency)?];
            grid.row([variant.name.clone()].into_iter().chain(cells).chain([variant.durability.clone()]));
        }
    }
    print!("{grid}");
    Ok(contenders.failures.is_empty())
}

fn per_event(
    options: &Options,
    contender: &Contender,
    variant: &Variant,
    column: Column,
) -> Result<f64, String> {
    let syncs = |events| syncs(options, &contender.command(options, variant, column, events));
    Ok((syncs(MORE)? as f64 - syncs(FEW)? as f64) / (MORE - FEW) as f64)
}

fn syncs(options: &Options, command: &Command) -> Result<usize, String> {
    let trace = options.dir.join("syncs");
    fs::create_dir_all(&options.dir).map_err(|error| failed(&options.dir, &error))?;
    let status = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=fsync,fdatasync", "-o"])
        .arg(&trace)
        .arg(command.get_program())
        .args(command.get_args())
        .stdout(Stdio::null())
        .status()
        .map_err(|error| format!("strace: {error}"))?;
    if !status.success() {
        return Err(format!("{} under strace ended with {status}", command.get_program().display()));
    }
    let lines = fs::read_to_string(&trace).map_err(|error| failed(&trace, &error))?;
    fs::remove_file(&trace).map_err(|error| failed(&trace, &error))?;
    // A call that another thread's output cuts in two is counted at its beginning.
    Ok(lines.lines().filter(|line| line.contains("sync(")).count())
}

fn failed(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}
