//! Events that recur.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use postbox::{Misfire, ScheduleRule, StoredSchedule};
use serde_json::{Value, json};

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::show::{self, Table};

/// Look at the schedules of recurring events, or stop and start one
///
/// The application makes them. None ticks by what is done here: events are published by the application's processes alone.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    List(List),
    Next(Next),
    Pause(Pause),
    Resume(Resume),
    Remove(Remove),
}

/// List the schedules by name
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox schedules list app.db
  postbox schedules list app.db --json | jq -r '.[] | select(.error) | .name, .error'

With --json, an array of objects, by name:
  name                    the schedule's
  event_name              the event that each tick publishes
  cron, time_zone         the expression and its zone, or null
  every_us                the interval in microseconds, or null
  starting_at, ending_at  times, or null
  misfire                 skip, once, or all_up_to
  misfire_max             up to how many, or null
  next_at, last_at        the next tick and the last, or null
  paused_at               since when it is paused, or null
  error                   why it does not tick, or null")]
struct List {
    /// The application's database, or a copy of it
    file: PathBuf,
}

/// Show a schedule's next ticks, as they come if it runs
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox schedules next app.db digest -n 10

With --json, an array of times.")]
struct Next {
    /// The application's database, or a copy of it
    file: PathBuf,
    /// The schedule
    name: String,
    /// How many at the most, 1 to 1000
    #[arg(short = 'n', long = "count", value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    count: u16,
}

/// Stop a schedule's ticks
///
/// Until `schedules resume`, also where the application puts it again. A running application notices within a second.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox schedules pause app.db digest

With --json, one object:
  name     as given
  changed  false: it was paused already")]
struct Pause {
    /// The application's database
    file: PathBuf,
    /// The schedule
    name: String,
}

/// Let a schedule go on
///
/// With its first tick from now on: those that passed during the pause are dropped.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox schedules resume app.db digest

With --json, one object:
  name     as given
  changed  false: it was not paused")]
struct Resume {
    /// The application's database
    file: PathBuf,
    /// The schedule
    name: String,
}

/// Remove a schedule
///
/// The events that it has published stay. An application that still puts it makes it anew, without its pause: to stop it for good,
/// `schedules pause`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox schedules remove app.db digest --yes

With --json, one object:
  name     as given
  removed  false: there was none")]
struct Remove {
    /// The application's database
    file: PathBuf,
    /// The schedule
    name: String,
    /// Remove it without a question
    #[arg(long)]
    yes: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    match &args.what {
        What::List(List { file }) => list(file, context),
        What::Next(Next { file, name, count }) => next(file, name, (*count).into(), context),
        What::Pause(Pause { file, name }) => {
            let change = |postbox: &postbox::Postbox| postbox.schedules().pause(name);
            switch(file, name, change, ["is paused", "was paused already"], context)
        }
        What::Resume(Resume { file, name }) => {
            let change = |postbox: &postbox::Postbox| postbox.schedules().resume(name);
            switch(file, name, change, ["goes on", "was not paused"], context)
        }
        What::Remove(Remove { file, name, yes }) => remove(file, name, *yes, context),
    }
}

fn list(file: &Path, context: &Context) -> Result<(), Failure> {
    let schedules = context::read(file)?.schedules().list().map_err(Failure::of(file))?;
    context.show(
        || schedules.iter().map(object).collect(),
        || {
            let mut table = Table::new(["name", "event", "rule", "misfire", "last", "next", "error"]);
            for schedule in &schedules {
                table.row([
                    schedule.name.clone(),
                    show::or_dash(schedule.event_name.clone()),
                    show::or_dash(schedule.rule.as_ref().map(rule)),
                    show::or_dash(schedule.misfire.map(|misfire| misfire.to_string())),
                    show::or_dash(schedule.last_at.map(show::time)),
                    match schedule.paused_at {
                        Some(since) => format!("paused since {}", show::time(since)),
                        None => show::or_dash(schedule.next_at.map(show::time)),
                    },
                    show::or_dash(schedule.error.clone()),
                ]);
            }
            table.render("There are no schedules.")
        },
    )
}

fn rule(rule: &ScheduleRule) -> String {
    match rule {
        ScheduleRule::Every { interval } => format!("every {}", exactly(*interval)),
        rule => rule.to_string(),
    }
}

/// In all its units: no rule may look like another.
fn exactly(interval: Duration) -> String {
    let units = [
        (86_400_000_000, "d"),
        (3_600_000_000, "h"),
        (60_000_000, "min"),
        (1_000_000, "s"),
        (1_000, "ms"),
        (1, "us"),
    ];
    let mut left = interval.as_micros();
    let mut shown = Vec::new();
    for (size, name) in units {
        if left >= size {
            shown.push(format!("{} {name}", left / size));
            left %= size;
        }
    }
    shown.join(" ")
}

fn object(schedule: &StoredSchedule) -> Value {
    let (cron, time_zone, every) = match &schedule.rule {
        Some(ScheduleRule::Cron { expression, time_zone }) => (Some(expression), Some(time_zone), None),
        Some(ScheduleRule::Every { interval }) => (None, None, Some(interval)),
        _ => (None, None, None),
    };
    let (misfire, max) = match schedule.misfire {
        Some(Misfire::All { max }) => (Some("all_up_to".to_owned()), Some(max)),
        misfire => (misfire.map(|misfire| misfire.to_string()), None),
    };
    json!({
        "name": schedule.name,
        "event_name": schedule.event_name,
        "cron": cron,
        "time_zone": time_zone,
        "every_us": every.and_then(|every| u64::try_from(every.as_micros()).ok()),
        "starting_at": schedule.starting_at.map(show::time_json),
        "ending_at": schedule.ending_at.map(show::time_json),
        "misfire": misfire,
        "misfire_max": max,
        "next_at": schedule.next_at.map(show::time_json),
        "last_at": schedule.last_at.map(show::time_json),
        "paused_at": schedule.paused_at.map(show::time_json),
        "error": schedule.error,
    })
}

fn next(file: &Path, name: &str, count: usize, context: &Context) -> Result<(), Failure> {
    let times = context::read(file)?.schedules().next_times(name, count).map_err(Failure::of(file))?;
    context.show(
        || times.iter().map(|at| show::time_json(*at)).collect(),
        || match times.as_slice() {
            [] => "No more ticks are to come.\n".to_owned(),
            times => times.iter().map(|at| show::time(*at) + "\n").collect(),
        },
    )
}

/// Says the one thing or the other.
fn switch(
    file: &Path,
    name: &str,
    change: impl FnOnce(&postbox::Postbox) -> postbox::Result<bool>,
    [done, was_so]: [&str; 2],
    context: &Context,
) -> Result<(), Failure> {
    let postbox = context::write(file)?;
    let changed = change(&postbox).map_err(Failure::of(file))?;
    postbox.close().map_err(Failure::of(file))?;
    context.show(
        || json!({ "name": name, "changed": changed }),
        || format!("schedule {} {}\n", show::printable(name), if changed { done } else { was_so }),
    )
}

fn remove(file: &Path, name: &str, yes: bool, context: &Context) -> Result<(), Failure> {
    drop(context::read(file)?);
    context::confirm(yes, &format!("Remove the schedule {name} from {}?", show::path(file)))?;
    let postbox = context::write(file)?;
    let removed = postbox.schedules().remove(name).map_err(Failure::of(file))?;
    postbox.close().map_err(Failure::of(file))?;
    context.show(
        || json!({ "name": name, "removed": removed }),
        || {
            let name = show::printable(name);
            if removed {
                format!("schedule {name} is removed\n")
            } else {
                format!("there was no schedule {name}\n")
            }
        },
    )
}
