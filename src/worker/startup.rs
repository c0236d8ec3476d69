//! A worker's first pass: it takes the whole backlog, in batches of its own size.

use std::collections::HashSet;

use super::in_flight::InFlight;
use super::turn::Outcome;
use crate::settings::Settings;

pub(crate) enum Startup {
    /// Claims what was due at this time. `ticks_until`: ticks that had come by then, by the wall clock, are still to be published.
    Claiming {
        began_at: i64,
        ticks_until: Option<i64>,
    },
    /// All of it is claimed; these are still under way.
    Ending(HashSet<i64>),
    Over,
}

impl Startup {
    pub(crate) fn begin(settings: &Settings, now: i64, wall: i64) -> Self {
        if settings.startup_drain_enabled && settings.allow_processing(true) {
            Startup::Claiming { began_at: now, ticks_until: Some(wall) }
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

    /// Ticks have been published, if there were any: what had come by the start is as due as what was there. `left`: the first that has come
    /// and is still to be published.
    pub(crate) fn has_ticked(&mut self, left: Option<i64>, now: i64) {
        if let Startup::Claiming { ticks_until: Some(until), .. } = *self {
            let is_any_left = left.is_some_and(|left| left <= until);
            *self = Startup::Claiming { began_at: now, ticks_until: is_any_left.then_some(until) };
        }
    }

    /// After a claim of up to `free`. Claims come in the order in which they were due: one from after the start has all
    /// of the backlog before it.
    pub(crate) fn has_claimed(&mut self, outcome: &Outcome, free: usize, in_flight: &InFlight) {
        if let Startup::Claiming { began_at, .. } = *self
            && ((outcome.claimed < free && !outcome.alone && outcome.refused.is_none())
                || outcome.latest_due_at > began_at)
        {
            self.nothing_left(in_flight);
        }
    }

    pub(crate) fn nothing_left(&mut self, in_flight: &InFlight) {
        if matches!(self, Startup::Claiming { ticks_until: None, .. }) {
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
