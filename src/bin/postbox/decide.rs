//! Decisions about events: what the commands that take them share.

use std::path::Path;

use postbox::{Error, EventFilter, EventId, EventStory, HistoryKind, Outbox, OutboxStatus, Postbox};
use serde_json::json;

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::filter::{HEADING, WithConsumer};
use crate::show;

/// Before many events are decided about.
#[derive(clap::Args)]
pub(crate) struct Sure {
    /// Only say how many events it would be about
    #[arg(long)]
    dry_run: bool,
    /// Go on without a question where it is about more than one event
    #[arg(long)]
    yes: bool,
}

/// Which events it is about, of those that the command can be about.
#[derive(clap::Args)]
pub(crate) struct Chosen {
    /// These events, all or none; instead of them a filter, or --all
    ids: Vec<EventId>,
    #[command(flatten)]
    filter: WithConsumer,
    /// Every one that there is, or that the filter means
    #[arg(long, help_heading = HEADING)]
    all: bool,
    #[command(flatten)]
    sure: Sure,
}

/// What a command decides about.
pub(crate) struct Subject {
    /// One of them: `dead letter`.
    what: &'static str,
    /// What an event has to be, for the error.
    expected: &'static str,
    within: fn(EventFilter) -> EventFilter,
    is_one: fn(&EventStory) -> bool,
}

/// What nobody processes by itself.
pub(crate) const DEAD_LETTERS: Subject = Subject {
    what: "dead letter",
    expected: "a dead letter",
    within: |filter| filter.status(OutboxStatus::DeadLetter).status(OutboxStatus::Failed),
    is_one: |story| matches!(story.event.status, OutboxStatus::DeadLetter | OutboxStatus::Failed),
};

/// What nobody has begun with.
pub(crate) const UNSTARTED: Subject = Subject {
    what: "event",
    expected: "an event that has not started",
    within: |filter| filter.status(OutboxStatus::Pending).unstarted(),
    is_one: |story| {
        let event = &story.event;
        let is_replayed = story.history.iter().any(|entry| entry.kind == HistoryKind::Replayed);
        let is_new = event.attempt_count == 0 && event.last_error.is_none();
        event.status == OutboxStatus::Pending && is_new && story.inbox.is_empty() && !is_replayed
    },
};

/// How to decide, and how to speak of it.
pub(crate) struct Decision<'a> {
    pub(crate) about: Subject,
    /// Behind a number of them, as in `3 dead letters get new attempts`: for one, and for many.
    pub(crate) says: [&'static str; 2],
    pub(crate) about_one: &'a dyn Fn(&Outbox<'_>, EventId) -> Result<(), Error>,
    pub(crate) about_many: &'a dyn Fn(&Outbox<'_>, &EventFilter) -> Result<usize, Error>,
}

pub(crate) fn about_chosen(
    file: &Path,
    chosen: &Chosen,
    decision: &Decision<'_>,
    context: &Context,
) -> Result<(), Failure> {
    let filtered = chosen.filter.is_given() || chosen.all;
    match (chosen.ids.is_empty(), filtered) {
        (false, true) => Err(Failure::Usage("give the events' ids, or a filter, and not both")),
        (true, false) => Err(Failure::Usage("say which: the events' ids, a filter, or --all")),
        (false, false) => about_each(file, chosen, decision, context),
        (true, true) => {
            let filter = chosen.filter.filter();
            let many = Many {
                what: decision.about.what,
                says: decision.says,
                to: None,
                count: &|outbox| outbox.count(&(decision.about.within)(filter.clone())),
                decide: &|outbox| (decision.about_many)(outbox, &filter),
            };
            about_many(file, &chosen.sure, &many, context)
        }
    }
}

/// All or none.
fn about_each(
    file: &Path,
    chosen: &Chosen,
    decision: &Decision<'_>,
    context: &Context,
) -> Result<(), Failure> {
    let mut ids = chosen.ids.clone();
    ids.sort_unstable();
    ids.dedup();
    if chosen.sure.dry_run {
        let postbox = context::read(file)?;
        for id in &ids {
            would_be_one(&decision.about, &postbox, *id).map_err(Failure::of(file))?;
        }
    } else {
        if ids.len() > 1 {
            let of = show::count_of(ids.len() as u64, decision.about.what);
            context::confirm(chosen.sure.yes, &format!("{of} {}.", decision.says[1]))?;
        }
        let postbox = context::write(file)?;
        let decided = postbox.transaction(|tx| -> postbox::Result<()> {
            ids.iter().try_for_each(|id| (decision.about_one)(&tx.outbox(), *id))
        });
        decided.and_then(|()| postbox.close()).map_err(Failure::of(file))?;
    }
    tell(ids.len() as u64, decision.about.what, decision.says, chosen.sure.dry_run, context)
}

/// The error that deciding about it would end with.
fn would_be_one(of: &Subject, postbox: &Postbox, id: EventId) -> Result<(), Error> {
    match postbox.outbox().story(id)? {
        Some(story) if (of.is_one)(&story) => Ok(()),
        None => Err(Error::NotFound { what: "event", id: id.to_string() }),
        Some(story) => Err(Error::WrongStatus {
            operation: "dry run",
            id: id.to_string(),
            status: story.event.status.as_str(),
            expected: of.expected,
        }),
    }
}

/// A decision about all that a filter means.
pub(crate) struct Many<'a> {
    /// What it is about: `dead letter`.
    pub(crate) what: &'static str,
    /// As of a [`Decision`].
    pub(crate) says: [&'static str; 2],
    /// The consumer that is to receive them: a question is asked where the file has never heard of it.
    pub(crate) to: Option<&'a str>,
    pub(crate) count: &'a dyn Fn(&Outbox<'_>) -> Result<u64, Error>,
    pub(crate) decide: &'a dyn Fn(&Outbox<'_>) -> Result<usize, Error>,
}

pub(crate) fn about_many(
    file: &Path,
    sure: &Sure,
    many: &Many<'_>,
    context: &Context,
) -> Result<(), Failure> {
    let postbox = if sure.dry_run { context::read(file)? } else { context::write(file)? };
    let progress = context::progress("counting".to_owned());
    let count = (many.count)(&postbox.outbox()).map_err(Failure::of(file))?;
    drop(progress);
    if sure.dry_run {
        return tell(count, many.what, many.says, true, context);
    }
    let of = format!("{} {}", show::count_of(count, many.what), many.says[usize::from(count != 1)]);
    let stranger = many.to.filter(|_| count > 0).map(|to| stranger(&postbox, to)).transpose();
    match stranger.map_err(Failure::of(file))?.flatten() {
        Some(warning) => context::confirm(sure.yes, &format!("{of}. {warning}"))?,
        None if count > 1 => context::confirm(sure.yes, &format!("{of}."))?,
        None => {}
    }
    let progress = context::progress(of);
    let decided = (many.decide)(&postbox.outbox()).map_err(Failure::of(file))?;
    drop(progress);
    postbox.close().map_err(Failure::of(file))?;
    tell(decided as u64, many.what, many.says, false, context)
}

/// What to say of a consumer that has never had to do with events of this file: its name may be wrong.
fn stranger(postbox: &Postbox, consumer: &str) -> Result<Option<String>, Error> {
    let is_known = context::knows_consumer(postbox, consumer)?;
    Ok((!is_known).then(|| {
        format!(
            "No consumer of the name {consumer} has had to do with this file: they wait until one subscribes."
        )
    }))
}

fn tell(count: u64, what: &str, says: [&str; 2], dry_run: bool, context: &Context) -> Result<(), Failure> {
    context.show(
        || json!({ "events": count, "dry_run": dry_run }),
        || {
            let would = if dry_run { "dry run: " } else { "" };
            format!("{would}{} {}\n", show::count_of(count, what), says[usize::from(count != 1)])
        },
    )
}
