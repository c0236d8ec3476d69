//! A worker's first pass: it takes the whole backlog, in batches of its own size.

use std::collections::HashSet;

use super::in_flight::InFlight;
use super::turn::Outcome;
use crate::settings::Settings;

pub(crate) enum Startup {
    /// Claims what was due at this time.
    Claiming {
        began_at: i64,
    },
    /// All of it is claimed; these are still under way.
    Ending(HashSet<i64>),
    Over,
}

impl Startup {
    pub(crate) fn begin(settings: &Settings, now: i64) -> Self {
        if settings.startup_drain_enabled && settings.allow_processing(true) {
            Startup::Claiming { began_at: now }
        } else {
            Startup::Over
        }
    }

    /// How many events may be in flight.
    pub(crate) fn slots(&self, settings: &Settings) -> usize {
        let slots = match self {
            Startup::Claiming { .. } => settings.startup_drain_batch_size,
            Startup::Ending(_) | Startup::Over => settings.batch_size,
        };
        usize::try_from(slots).unwrap_or(usize::MAX)
    }

    /// After a claim of up to `free`. Claims come in the order in which they were due: one from after the start has all
    /// of the backlog before it.
    pub(crate) fn has_claimed(&mut self, outcome: &Outcome, free: usize, in_flight: &InFlight) {
        if let Startup::Claiming { began_at } = *self
            && ((outcome.claimed < free && !outcome.alone && outcome.refused.is_none())
                || outcome.latest_due_at > began_at)
        {
            self.nothing_left(in_flight);
        }
    }

    pub(crate) fn nothing_left(&mut self, in_flight: &InFlight) {
        if matches!(self, Startup::Claiming { .. }) {
            *self = Startup::Ending(in_flight.seqs().collect());
        }
    }

    /// Whether everything has been tried once. `settled`: nothing that came back waits to be recorded.
    pub(crate) fn is_over(&self, settings: &Settings, in_flight: &InFlight, settled: bool) -> bool {
        match self {
            Startup::Claiming { .. } => !settings.allow_processing(true),
            Startup::Ending(under_way) => settled && !under_way.iter().any(|seq| in_flight.contains(*seq)),
            Startup::Over => true,
        }
    }
}
