//! What a worker does beside its events: pruning what is past its retention.

use std::time::{Duration, Instant};

use crate::core::Core;
use crate::error::Result;
use crate::pruning::Pass;
use crate::settings::Settings;

/// Between two steps of a pass: others write meanwhile.
const BETWEEN_STEPS: Duration = Duration::from_millis(25);

/// Between two passes.
const BETWEEN_PASSES: Duration = Duration::from_mins(1);

pub(super) struct Housekeeping {
    pass: Pass,
    next_step: Instant,
}

impl Housekeeping {
    pub(super) fn begin() -> Self {
        Housekeeping { pass: Pass::default(), next_step: Instant::now() }
    }

    /// The settings have changed: it may be time.
    pub(super) fn look_again(&mut self) {
        self.next_step = Instant::now();
    }

    /// When there is something to do; `None` where nothing is to be pruned.
    pub(super) fn due(&self, settings: &Settings) -> Option<Instant> {
        settings.shortest_retention().is_some().then_some(self.next_step)
    }

    /// One short step, if it is time.
    pub(super) fn work(&mut self, core: &Core, settings: &Settings) -> Result<()> {
        if self.due(settings).is_none_or(|due| due > Instant::now()) {
            return Ok(());
        }
        let step = self.pass.step(core, settings)?;
        if step.deleted > 0 {
            log::debug!(target: "postbox::worker", "pruned {} processed events", step.deleted);
        }
        self.next_step = Instant::now() + if step.is_over { BETWEEN_PASSES } else { BETWEEN_STEPS };
        Ok(())
    }
}
