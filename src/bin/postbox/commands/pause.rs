//! Work that waits.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use postbox::{EventFilter, Page, Pause, PauseTarget, Postbox};
use serde_json::{Value, json};

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::{show, when};

/// Pause a consumer, or all events of a name
///
/// What is paused waits, at no cost and without an attempt spent, until `resume` or for a time. A running application notices
/// within a second; handlers that run end as they do. Pausing what is paused changes its reason and its end. A name that the file
/// has never heard of is paused as well, with a warning.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox pause app.db consumer mail --reason 'the server moves' --for 2h
  postbox pause app.db event invoice.created

With --json, one object, as of `pauses`:
  kind, name    what is paused: consumer or event, and its name
  reason        as it was given, or null
  since, until  times; until is null where only `resume` ends it")]
pub(crate) struct Args {
    /// The application's database
    file: PathBuf,
    #[command(flatten)]
    target: Target,
    /// Why, for whoever wonders: 1 to 1023 characters
    #[arg(long)]
    reason: Option<String>,
    /// For so long: 90s, 10m, 2h, 3d; at least 100ms
    #[arg(long = "for", value_name = "TIME", value_parser = when::length)]
    duration: Option<Duration>,
}

/// What can be paused.
#[derive(clap::Args)]
pub(crate) struct Target {
    /// Whether it is a consumer, or the events of a name
    kind: Kind,
    /// Its name: the whole of it, without a wildcard
    name: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Consumer,
    Event,
}

impl Target {
    pub(crate) fn get(&self) -> PauseTarget {
        match self.kind {
            Kind::Consumer => PauseTarget::consumer(&self.name),
            Kind::Event => PauseTarget::event_name(&self.name),
        }
    }
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let postbox = context::write(&args.file)?;
    let pause = postbox
        .pause(&args.target.get(), args.reason.as_deref(), args.duration)
        .map_err(Failure::of(&args.file))?;
    let warning = stranger(&postbox, &pause.target);
    postbox.close().map_err(Failure::of(&args.file))?;
    if let Some(warning) = warning {
        show::tell(&warning);
    }
    context.show(
        || object(&pause),
        || {
            let what = show::printable(&pause.target.to_string());
            match pause.until {
                Some(until) => format!("{what} is paused until {}\n", show::time(until)),
                None => format!("{what} is paused until it is resumed\n"),
            }
        },
    )
}

/// A warning, if the file has never heard of what is meant: its name may be wrong.
pub(crate) fn stranger(postbox: &Postbox, target: &PauseTarget) -> Option<String> {
    let (is_known, said) = match target {
        PauseTarget::Consumer(name) => (
            context::knows_consumer(postbox, name),
            format!(
                "no consumer of the name {name} has had to do with this file: `postbox consumers` lists those that have"
            ),
        ),
        PauseTarget::EventName(name) => {
            let page = postbox.outbox().list(&EventFilter::new().name(name), &Page::newest(1));
            (page.map(|page| !page.events.is_empty()), format!("no event of the name {name} is in this file"))
        }
    };
    let said = match is_known {
        Ok(true) => return None,
        Ok(false) => said,
        Err(error) => format!("whether the file knows the name cannot be read: {error}"),
    };
    Some(format!("postbox: warning: {}\n", show::printable(&said)))
}

pub(crate) fn object(pause: &Pause) -> Value {
    let (kind, name) = kind_and_name(&pause.target);
    json!({
        "kind": kind,
        "name": name,
        "reason": pause.reason,
        "since": show::time_json(pause.since),
        "until": pause.until.map(show::time_json),
    })
}

/// As the command line has them.
pub(crate) fn kind_and_name(target: &PauseTarget) -> (&'static str, &str) {
    match target {
        PauseTarget::Consumer(name) => ("consumer", name),
        PauseTarget::EventName(name) => ("event", name),
    }
}
