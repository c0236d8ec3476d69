//! What a worker does beside its events: pruning what is past its retention.

use std::time::{Duration, Instant};

use crate::core::Core;
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

    /// One short step, if it is time. What keeps it from that keeps nobody from delivering: it waits for the next pass.
    pub(super) fn work(&mut self, core: &Core, settings: &Settings) {
        if self.due(settings).is_none_or(|due| due > Instant::now()) {
            return;
        }
        let step = match self.pass.step(core, settings) {
            Ok(step) => step,
            Err(error) => {
                if core.first_warning_of("pruning") {
                    log::warn!(target: "postbox::worker", "processed events that are past their retention cannot be pruned: {error}");
                }
                self.pass = Pass::default();
                self.next_step = Instant::now() + BETWEEN_PASSES;
                return;
            }
        };
        if step.deleted > 0 {
            log::debug!(target: "postbox::worker", "pruned {} processed events", step.deleted);
        }
        self.next_step = Instant::now() + if step.is_over { BETWEEN_PASSES } else { BETWEEN_STEPS };
    }
}
