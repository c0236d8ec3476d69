//! The same work through postbox and its peers, in alternating rounds, with one table for each column.
//!
//! ```console
//! $ cargo run --release --manifest-path benches/peers/Cargo.toml -- --quick
//! ```

use std::process::ExitCode;

use crate::options::Options;

mod contenders;
mod machine;
mod measure;
mod options;
#[path = "../shared/protocol.rs"]
mod protocol;
mod report;
mod syncs;

fn main() -> ExitCode {
    let options = match Options::from_arguments(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// False when a contender could not be built or run; the others' figures are there all the same.
fn run(options: &Options) -> Result<bool, String> {
    let contenders = contenders::build(options)?;
    if options.syncs {
        return syncs::count(options, &contenders);
    }
    let report = measure::measure(options, &contenders);
    print!("{}", report.as_markdown());
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?;
        std::fs::write(path, json + "\n").map_err(|error| format!("write {}: {error}", path.display()))?;
    }
    Ok(report.failures.is_empty())
}
