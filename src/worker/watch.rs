//! What a worker looks at beside its own channels: commits of others, the settings, what is due and when.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::left_alone::LeftAlone;
use super::ticking;
use crate::core::{Core, Release};
use crate::error::Result;
use crate::outbox::{self, strays};
use crate::schedule::table;
use crate::settings::Settings;
use crate::{limits, newer, ordering};

pub(crate) struct Watch {
    /// A connection of the worker's own; `None` in memory, where there is one connection for all.
    reader: Option<Connection>,
    /// The reader's `data_version` at the last look.
    seen_version: Option<i64>,
    next_poll: Instant,
    /// When the next tick of a schedule is, by the wall clock.
    next_tick: Option<i64>,
    /// Schedules that cannot tick.
    pub(super) ticks_left_alone: LeftAlone,
    /// Of the registry, when what waits was last gone through.
    generation: u64,
}

impl Watch {
    pub(crate) fn begin(core: &Core) -> Result<(Self, Arc<Settings>)> {
        let reader = core.db.open_reader("start")?;
        let settings = match &reader {
            Some(conn) => core.reload_settings(conn)?,
            None => core.settings(),
        };
        let generation = core.registry.generation();
        ordering::look_after(core, "start")?;
        limits::look_after(core, "start")?;
        newer::look_after(core, "start")?;
        // Opening has just done the rest of what a poll does.
        let next_poll = Instant::now() + Duration::from_millis(settings.polling_interval_ms);
        let watch = Watch {
            reader,
            seen_version: None,
            next_poll,
            next_tick: None,
            ticks_left_alone: LeftAlone::for_a_while(),
            generation,
        };
        watch.follow_clock(core)?;
        Ok((watch, Arc::new(settings)))
    }

    /// True when something may have changed: what is due is to be looked up. `idle`: the last look found nothing.
    pub(crate) fn look(&mut self, core: &Core, settings: &mut Arc<Settings>, idle: bool) -> Result<bool> {
        let polls = Instant::now() >= self.next_poll;
        let changed = if let Some(reader) = &self.reader {
            let version: i64 =
                reader.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
            let changed = polls || self.seen_version != Some(version);
            if changed {
                *settings = Arc::new(core.reload_settings(reader)?);
                self.seen_version = Some(version);
            }
            changed
        } else {
            let now = core.settings();
            let changed = now != **settings;
            if changed {
                *settings = Arc::new(now);
            }
            changed
        };
        if polls {
            self.follow_clock(core)?;
        }
        // In memory nothing tells of a change.
        let may_tick_again = self.ticks_left_alone.forget_old();
        if polls || changed || self.reader.is_none() || may_tick_again {
            self.look_at_ticks(core)?;
        }
        let generation = core.registry.generation();
        if polls || generation != self.generation {
            ordering::look_after(core, "process")?;
            limits::look_after(core, "process")?;
            newer::look_after(core, "process")?;
            self.generation = generation;
        }
        if polls {
            core.take_over_from_the_dead()?;
            if !self.read(core, |conn| strays::find(conn, 1))?.is_empty() {
                core.set_strays_aside("process")?;
            }
            self.read(core, |conn| core.pauses.look_again(conn))?;
            core.release_held_again(); // what another process held that knew no subscriber, for one
            let interval =
                if idle { settings.idle_polling_interval_ms } else { settings.polling_interval_ms };
            self.next_poll = Instant::now() + Duration::from_millis(interval);
        }
        Ok(polls || changed)
    }

    fn follow_clock(&self, core: &Core) -> Result<()> {
        if core.may_have_schedules() { ticking::follow_clock(core, &self.ticks_left_alone) } else { Ok(()) }
    }

    fn look_at_ticks(&mut self, core: &Core) -> Result<()> {
        if core.may_have_schedules() {
            let skip = |seq| self.ticks_left_alone.contains(seq);
            self.next_tick = self.read(core, |conn| table::next_tick(conn, i64::MIN, skip))?;
        }
        Ok(())
    }

    /// Publishes ticks that have come; those that are left come in the next turn. True when there were any, or some are left.
    pub(super) fn publish_ticks(&mut self, core: &Core) -> Result<bool> {
        let wall = ticking::wall(core);
        if self.next_tick.is_none_or(|tick| tick > wall) {
            return Ok(false);
        }
        let published = ticking::publish_some(core, &self.ticks_left_alone, wall)?;
        self.look_at_ticks(core)?;
        Ok(published == Some(true) || self.tick_that_has_come(core).is_some())
    }

    /// One that is still to be published.
    pub(super) fn tick_that_has_come(&self, core: &Core) -> Option<i64> {
        self.next_tick.filter(|tick| *tick <= ticking::wall(core))
    }

    /// How long it is to the next tick.
    pub(super) fn until_tick(&self, core: &Core) -> Option<Duration> {
        let left = self.next_tick?.saturating_sub(ticking::wall(core));
        Some(Duration::from_micros(u64::try_from(left).unwrap_or(0)))
    }

    pub(crate) fn next_poll(&self) -> Instant {
        self.next_poll
    }

    /// When the next event is due that this box has not in its hands.
    pub(super) fn next_due(&self, core: &Core, left_alone: &LeftAlone) -> Result<Option<i64>> {
        self.read(core, |conn| outbox::next_due(conn, not_to_be_claimed(core, left_alone)))
    }

    /// A read, so that an empty claim does not take the write lock.
    pub(super) fn is_due(&self, core: &Core, left_alone: &LeftAlone) -> Result<bool> {
        let (now, skip) = (core.clock.now(), not_to_be_claimed(core, left_alone));
        self.read(core, |conn| outbox::is_due(conn, now, skip))
    }

    /// What held events are to be let go for, if any.
    pub(crate) fn release_for(&self, core: &Core) -> Result<Option<Release>> {
        self.read(core, |conn| core.release_held_for(conn))
    }

    fn read<T>(&self, core: &Core, f: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        match &self.reader {
            Some(reader) => f(reader),
            None => core.db.read("process", f),
        }
    }
}

/// What this box has in its hands, or leaves alone.
fn not_to_be_claimed(core: &Core, left_alone: &LeftAlone) -> impl Fn(i64) -> bool {
    move |seq| core.in_flight().contains_key(&seq) || left_alone.contains(seq)
}
