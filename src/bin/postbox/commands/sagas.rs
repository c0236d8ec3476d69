//! Sagas: where they stand, and the end of those that go on no more.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use postbox::{Cursor, Error, Page, Postbox, SagaFilter, SagaInstance, SagaStatus, SagaSummary};
use serde_json::{Value, json};

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::show::{self, Table};
use crate::when;

/// Look at sagas, and end those that are stuck
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    List(List),
    Show(One),
    Compensate(End),
    Complete(End),
}

/// List sagas: the last that began first, or with --stuck-for those that have not changed for longest
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox sagas list app.db --name order --status running
  postbox sagas list app.db --stuck-for 1h
  postbox sagas list app.db --json | jq -r '.sagas[].correlation_id'

With --json, one object:
  sagas  an array: {name, correlation_id, status (running, completed, compensated), created_at, updated_at, last_event, reason, cursor}
  next   for --after, where there are more; null with --stuck-for")]
struct List {
    /// The application's database, or a copy of it
    file: PathBuf,
    /// Of the saga of this name
    #[arg(long)]
    name: Option<String>,
    /// In this status
    #[arg(long)]
    status: Option<Status>,
    /// Only those that run and have not changed for so long: 90s, 10m, 2h, 3d
    #[arg(long, value_name = "TIME", value_parser = when::length, conflicts_with_all = ["status", "after"])]
    stuck_for: Option<Duration>,
    /// So many at the most, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Those behind the last page: its `next`
    #[arg(long, value_name = "CURSOR")]
    after: Option<Cursor>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Status {
    Running,
    Completed,
    Compensated,
}

/// Tell all about one saga: where it stands, what it waits for, what would undo it
///
/// Its state is shown only with --state: it is the customer's.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox sagas show app.db order o-17
  postbox sagas show app.db order o-17 --json | jq '.timeouts[].due_at'

With --json, one object, as of `sagas list`, and:
  timeouts  an array: {name, event_id, event_name, due_at}
  undo      an array: the names of the events that undo what it has done, in the order in which they were noted
  state     with --state")]
struct One {
    /// The application's database, or a copy of it
    file: PathBuf,
    /// The saga's name
    name: String,
    /// Which conversation: its correlation id
    id: String,
    /// Show the state as well
    #[arg(long)]
    state: bool,
}

/// End one that runs: `compensate` publishes what undoes what it has done, `complete` leaves it as it is
///
/// Its timeouts are cancelled. It cannot be taken back: events that come for it later are skipped, or handled as after any end.
/// What is published is delivered by the application.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox sagas compensate app.db order o-17 --reason 'the customer called, ticket 4711' --dry-run
  postbox sagas compensate app.db order o-17 --reason 'the customer called, ticket 4711' --yes
  postbox sagas complete app.db order o-17 --reason 'shipped by hand' --yes

With --json, one object:
  name, correlation_id  as given
  published             the names of the events that undo what it had done, in the order in which they are published
  dry_run               true: it was not done")]
struct End {
    /// The application's database
    file: PathBuf,
    /// The saga's name
    name: String,
    /// Which conversation: its correlation id
    id: String,
    /// Why, which is kept: 1 to 1000 characters
    #[arg(long)]
    reason: String,
    /// Only say what it would do
    #[arg(long)]
    dry_run: bool,
    /// Go on without a question
    #[arg(long)]
    yes: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    match &args.what {
        What::List(args) => list(args, context),
        What::Show(args) => one(args, context),
        What::Compensate(args) => end(args, SagaStatus::Compensated, context),
        What::Complete(args) => end(args, SagaStatus::Completed, context),
    }
}

fn list(args: &List, context: &Context) -> Result<(), Failure> {
    let postbox = context::read(&args.file)?;
    let (sagas, next) = found(&postbox, args).map_err(Failure::of(&args.file))?;
    context.show(
        || json!({ "sagas": show::json_of(&sagas), "next": next.map(|next| next.to_string()) }),
        || {
            let mut table =
                Table::new(["saga", "correlation id", "status", "began", "changed", "last event", "reason"]);
            for saga in &sagas {
                table.row([
                    saga.name.clone(),
                    saga.correlation_id.clone(),
                    saga.status.to_string(),
                    show::time(saga.created_at),
                    show::time(saga.updated_at),
                    saga.last_event.clone(),
                    show::or_dash(saga.reason.clone()),
                ]);
            }
            let mut text = table.render("There are no such sagas.");
            if let Some(next) = next {
                let _ = writeln!(text, "There are more: --after {next}");
            }
            text
        },
    )
}

fn found(postbox: &Postbox, args: &List) -> Result<(Vec<SagaSummary>, Option<Cursor>), Error> {
    if let Some(stuck_for) = args.stuck_for {
        let stuck = postbox.sagas().stuck(args.name.as_deref(), stuck_for, args.limit.into())?;
        return Ok((stuck, None));
    }
    let mut filter = SagaFilter::new();
    if let Some(name) = &args.name {
        filter = filter.name(name);
    }
    if let Some(status) = args.status {
        filter = filter.status(match status {
            Status::Running => SagaStatus::Running,
            Status::Completed => SagaStatus::Completed,
            Status::Compensated => SagaStatus::Compensated,
        });
    }
    let mut page = Page::newest(args.limit.into());
    if let Some(after) = args.after {
        page = page.after(after);
    }
    let page = postbox.sagas().list(&filter, &page)?;
    Ok((page.sagas, page.next))
}

fn get(postbox: &Postbox, file: &Path, name: &str, id: &str) -> Result<SagaInstance, Failure> {
    let not_found = || Error::NotFound { what: "saga", id: format!("{name}/{id}") };
    let saga = postbox.sagas().get(name, id).and_then(|saga| saga.ok_or_else(not_found));
    saga.map_err(Failure::of(file))
}

fn one(args: &One, context: &Context) -> Result<(), Failure> {
    let saga = get(&context::read(&args.file)?, &args.file, &args.name, &args.id)?;
    context.show(|| object(&saga, args.state), || text(&saga, args.state))
}

fn object(saga: &SagaInstance, with_state: bool) -> Value {
    let mut object = show::json_of(saga);
    if let (Value::Object(fields), false) = (&mut object, with_state) {
        fields.remove("state");
    }
    object
}

fn text(saga: &SagaInstance, with_state: bool) -> String {
    let SagaInstance { summary, state, timeouts, undo, .. } = saga;
    let mut text = show::fields([
        ("saga", summary.name.clone()),
        ("correlation id", summary.correlation_id.clone()),
        ("status", summary.status.to_string()),
        ("began", show::time(summary.created_at)),
        ("changed", show::time(summary.updated_at)),
        ("last event", summary.last_event.clone()),
        ("reason", show::or_dash(summary.reason.clone())),
        ("undone by", if undo.is_empty() { "-".to_owned() } else { undo.join(", ") }),
    ]);
    if !timeouts.is_empty() {
        let mut table = Table::bare(["timeout", "due", "event", "id"]);
        for timeout in timeouts {
            table.row([
                timeout.name.clone(),
                show::time(timeout.due_at),
                timeout.event_name.clone(),
                timeout.event_id.to_string(),
            ]);
        }
        let _ = write!(text, "\n{}", table.render(""));
    }
    if with_state {
        let _ = write!(text, "\n{}", show::json(state));
    }
    text
}

fn end(args: &End, ends_as: SagaStatus, context: &Context) -> Result<(), Failure> {
    let End { file, name, id, reason, .. } = args;
    let saga = get(&context::read(file)?, file, name, id)?;
    if saga.summary.status != SagaStatus::Running {
        let status = saga.summary.status;
        let reason = format!("{name}/{id} is {status} already: only one that is running can be ended");
        return Err(Failure::of(file)(Error::Invalid { field: "saga", reason }));
    }
    let undoes = ends_as == SagaStatus::Compensated;
    let mut published = if undoes { undone_by(&saga) } else { Vec::new() };
    let what = if undoes { "undone" } else { "ended as it is" };
    let events = |published: &[String]| {
        if published.is_empty() {
            "no event is published".to_owned()
        } else {
            format!("published: {}", published.join(", "))
        }
    };
    if !args.dry_run {
        let question = format!("The saga {name} of {id} is {what}; {}.", events(&published));
        context::confirm(args.yes, &question)?;
        let postbox = context::write(file)?;
        // It may have gone on since it was looked at.
        let ended = postbox.transaction(|tx| {
            let sagas = tx.sagas();
            if !undoes {
                return sagas.complete(name, id, reason);
            }
            published = sagas.get(name, id)?.as_ref().map_or_else(Vec::new, undone_by);
            sagas.compensate(name, id, reason).map(drop)
        });
        ended.and_then(|()| postbox.close()).map_err(Failure::of(file))?;
    }
    context.show(
        || json!({ "name": name, "correlation_id": id, "published": published, "dry_run": args.dry_run }),
        || {
            let would = if args.dry_run { "dry run: " } else { "" };
            show::printable(&format!("{would}the saga {name} of {id} is {what}; {}", events(&published)))
                + "\n"
        },
    )
}

/// As they are published.
fn undone_by(saga: &SagaInstance) -> Vec<String> {
    saga.undo.iter().rev().cloned().collect()
}
