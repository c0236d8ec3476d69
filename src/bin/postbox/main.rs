//! The program `postbox`: a look at a box's file, and a hand on it, from the command line.
//!
//! Every command is a file in `commands`: its arguments, its text and its JSON. What they share is in `context` (opening,
//! confirming), `advice` (what to do), `decide` (decisions about events), `filter` and `when` (which events, and times), `events` and `envelope` (how
//! they are shown, and exchanged), `show` (tables, JSON, a pipe that is closed) and `failure` (what goes wrong, and the exit codes).

#![forbid(unsafe_code)]

mod advice;
mod commands;
mod context;
mod decide;
mod envelope;
mod events;
mod failure;
mod filter;
mod screen;
mod show;
mod when;

use std::process::ExitCode;

use clap::Parser;

use crate::commands::Command;
use crate::context::Context;

/// Looks at a postbox in a SQLite file, and works on it.
///
/// Works beside the running application and on copies. Commands that only look never write to the file.
#[derive(Parser)]
#[command(
    name = "postbox",
    version,
    propagate_version = true,
    after_help = "\
Examples:
  postbox stats app.db
  postbox verify copy-from-the-customer.db
  postbox settings set app.db batch_size 50
  postbox stats app.db --json | jq .dead_letter

Exit codes:
  0  it is done
  1  it failed: the reason is on stderr, with the next step
  2  the command line is wrong
  3  `verify` found problems, or `export` rows that it could not read
  4  it was not confirmed: answer the question, or give --yes"
)]
struct Program {
    #[command(subcommand)]
    command: Command,

    /// Print JSON: one object or array, in the shape that the command's --help describes
    #[arg(long, global = true)]
    json: bool,
}

fn main() -> ExitCode {
    let Program { command, json } = Program::parse();
    match command.run(&Context::new(json)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
