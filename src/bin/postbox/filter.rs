//! Which events: the flags that the commands about many events share.

use clap::ValueEnum;
use postbox::time::OffsetDateTime;
use postbox::{Cursor, EventFilter, OutboxStatus, Page};

use crate::when;

/// Each argument says it for itself: what a struct says goes on behind it.
pub(crate) const HEADING: &str = "Which events (all that is given has to hold)";

/// For commands that know themselves which statuses they are about.
#[derive(clap::Args)]
pub(crate) struct Which {
    /// Of this name; `invoice.*` means every name below `invoice.`
    #[arg(long, help_heading = HEADING)]
    name: Option<String>,
    /// Published by this module
    #[arg(long, help_heading = HEADING)]
    module: Option<String>,
    /// About entities of this type
    #[arg(long, help_heading = HEADING, value_name = "TYPE")]
    aggregate_type: Option<String>,
    /// About the entity of this id
    #[arg(long, help_heading = HEADING, value_name = "ID")]
    aggregate_id: Option<String>,
    /// Published then or later: 2026-03-01T08:00:00Z, 2026-03-01 (in UTC), or how long ago: 90s, 10m, 2h, 3d
    #[arg(long, help_heading = HEADING, value_name = "TIME", value_parser = when::moment)]
    from: Option<OffsetDateTime>,
    /// Published before then
    #[arg(long, help_heading = HEADING, value_name = "TIME", value_parser = when::moment)]
    before: Option<OffsetDateTime>,
    /// Of this conversation
    #[arg(long, help_heading = HEADING, value_name = "ID")]
    correlation_id: Option<String>,
    /// With this text in the last error
    #[arg(long, help_heading = HEADING, value_name = "TEXT")]
    error: Option<String>,
}

impl Which {
    pub(crate) fn filter(&self) -> EventFilter {
        let mut filter = EventFilter::new();
        for (value, set) in [
            (&self.name, EventFilter::name as fn(EventFilter, String) -> EventFilter),
            (&self.module, EventFilter::source_module),
            (&self.aggregate_type, EventFilter::aggregate_type),
            (&self.aggregate_id, EventFilter::aggregate_id),
            (&self.correlation_id, EventFilter::correlation_id),
            (&self.error, EventFilter::error_contains),
        ] {
            if let Some(value) = value {
                filter = set(filter, value.clone());
            }
        }
        if let Some(from) = self.from {
            filter = filter.published_from(from);
        }
        if let Some(before) = self.before {
            filter = filter.published_before(before);
        }
        filter
    }
}

/// The same of those with an inbox row of a consumer.
#[derive(clap::Args)]
pub(crate) struct WithConsumer {
    #[command(flatten)]
    which: Which,
    /// Of which this consumer has an inbox row: it has come to an outcome, good or bad
    #[arg(long, help_heading = HEADING)]
    consumer: Option<String>,
}

impl WithConsumer {
    pub(crate) fn filter(&self) -> EventFilter {
        let filter = self.which.filter();
        match &self.consumer {
            Some(consumer) => filter.consumer(consumer),
            None => filter,
        }
    }

    /// Whether it asks for anything.
    pub(crate) fn is_given(&self) -> bool {
        self.filter() != EventFilter::new()
    }

    /// Of those that nobody processes by itself.
    pub(crate) fn dead(&self) -> EventFilter {
        self.filter().status(OutboxStatus::DeadLetter).status(OutboxStatus::Failed)
    }
}

/// All that can be asked for.
#[derive(clap::Args)]
pub(crate) struct Filter {
    #[command(flatten)]
    which: WithConsumer,
    /// In this status; given several times, in any of them
    #[arg(long, value_enum, help_heading = HEADING)]
    status: Vec<Status>,
}

impl Filter {
    pub(crate) fn filter(&self) -> EventFilter {
        self.status.iter().fold(self.which.filter(), |filter, status| filter.status((*status).into()))
    }
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Status {
    Pending,
    Processing,
    Processed,
    Failed,
    #[value(alias = "dead-letter")]
    DeadLetter,
}

impl From<Status> for OutboxStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Pending => OutboxStatus::Pending,
            Status::Processing => OutboxStatus::Processing,
            Status::Processed => OutboxStatus::Processed,
            Status::Failed => OutboxStatus::Failed,
            Status::DeadLetter => OutboxStatus::DeadLetter,
        }
    }
}

/// Which page of a list.
#[derive(clap::Args)]
#[command(next_help_heading = "Which page")]
pub(crate) struct Paging {
    /// The last published first: the default
    #[arg(long, conflicts_with = "oldest")]
    newest: bool,
    /// The first published first
    #[arg(long)]
    oldest: bool,
    /// So many at the most, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Go on behind this place, which the page before has told
    #[arg(long, value_name = "CURSOR")]
    after: Option<Cursor>,
}

impl Paging {
    pub(crate) fn page(&self) -> Page {
        let limit = self.limit.into();
        let page = if self.oldest { Page::oldest(limit) } else { Page::newest(limit) };
        self.after.map_or(page, |cursor| page.after(cursor))
    }
}
