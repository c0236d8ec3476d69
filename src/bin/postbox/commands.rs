//! The commands, in the order in which `--help` lists them. A new one is a file here, a variant, and a line in `run`.

mod backup;
mod blocked;
mod cancel;
mod catch_up;
mod compact;
mod completions;
mod consumers;
mod dead_letters;
mod discard;
mod export;
mod future;
mod import;
mod links;
mod list;
mod pause;
mod pauses;
mod prune;
mod replay;
mod reschedule;
mod restore;
mod resume;
mod retry;
mod sagas;
mod schedules;
mod settings;
mod show;
mod stats;
mod tree;
mod upgrade;
mod verify;
mod watch;

use clap::Subcommand;

pub(crate) use self::pause::kind_and_name;

use crate::context::Context;
use crate::failure::Failure;

#[derive(Subcommand)]
pub(crate) enum Command {
    Stats(stats::Args),
    Watch(watch::Args),
    List(list::Args),
    Show(show::Args),
    Tree(tree::Args),
    DeadLetters(dead_letters::Args),
    Blocked(blocked::Args),
    Future(future::Args),
    Reschedule(reschedule::Args),
    Cancel(cancel::Args),
    Retry(retry::Args),
    Discard(discard::Args),
    Replay(replay::Args),
    CatchUp(catch_up::Args),
    Pause(pause::Args),
    Resume(resume::Args),
    Pauses(pauses::Args),
    Schedules(schedules::Args),
    Prune(prune::Args),
    Compact(compact::Args),
    Consumers(consumers::Args),
    Links(links::Args),
    Sagas(sagas::Args),
    Export(export::Args),
    Import(import::Args),
    Settings(settings::Args),
    Backup(backup::Args),
    Restore(restore::Args),
    Verify(verify::Args),
    Upgrade(upgrade::Args),
    Completions(completions::Args),
}

impl Command {
    pub(crate) fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Command::Stats(args) => stats::run(&args, context),
            Command::Watch(args) => watch::run(&args, context),
            Command::List(args) => list::run(&args, context),
            Command::Show(args) => show::run(&args, context),
            Command::Tree(args) => tree::run(&args, context),
            Command::DeadLetters(args) => dead_letters::run(&args, context),
            Command::Blocked(args) => blocked::run(&args, context),
            Command::Future(args) => future::run(&args, context),
            Command::Reschedule(args) => reschedule::run(&args, context),
            Command::Cancel(args) => cancel::run(&args, context),
            Command::Retry(args) => retry::run(&args, context),
            Command::Discard(args) => discard::run(&args, context),
            Command::Replay(args) => replay::run(&args, context),
            Command::CatchUp(args) => catch_up::run(&args, context),
            Command::Pause(args) => pause::run(&args, context),
            Command::Resume(args) => resume::run(&args, context),
            Command::Pauses(args) => pauses::run(&args, context),
            Command::Schedules(args) => schedules::run(&args, context),
            Command::Prune(args) => prune::run(&args, context),
            Command::Compact(args) => compact::run(&args, context),
            Command::Consumers(args) => consumers::run(&args, context),
            Command::Links(args) => links::run(&args, context),
            Command::Sagas(args) => sagas::run(&args, context),
            Command::Export(args) => export::run(&args, context),
            Command::Import(args) => import::run(&args, context),
            Command::Settings(args) => settings::run(args, context),
            Command::Backup(args) => backup::run(&args, context),
            Command::Restore(args) => restore::run(&args, context),
            Command::Verify(args) => verify::run(&args, context),
            Command::Upgrade(args) => upgrade::run(&args, context),
            Command::Completions(args) => completions::run(&args, context),
        }
    }
}
