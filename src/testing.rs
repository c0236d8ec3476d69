//! What tests need to be deterministic, and, with the feature `testing`, what applications test themselves with.
//!
//! [`ManualClock`] is always there.
// The page is read on the repository's pages as well, where its links lead to the sources; of two meanings of a link the first counts.
#![cfg_attr(feature = "testing", doc = "")]
#![cfg_attr(feature = "testing", doc = include_str!("testing/links.md"))]
#![cfg_attr(feature = "testing", doc = "")]
#![cfg_attr(feature = "testing", doc = include_str!("testing/your_application.md"))]

#[cfg(feature = "testing")]
mod alone;
#[cfg(feature = "testing")]
mod assertions;
mod clock;
#[cfg(feature = "testing")]
mod crash;
#[cfg(feature = "testing")]
mod describe;
#[cfg(feature = "testing")]
mod drains;
#[cfg(feature = "testing")]
mod due;
#[cfg(feature = "testing")]
mod failures;
#[cfg(feature = "testing")]
mod made_up;
#[cfg(feature = "testing")]
mod outcome;
#[cfg(feature = "testing")]
mod pattern;
#[cfg(feature = "testing")]
mod recorder;
#[cfg(feature = "testing")]
mod settled;
#[cfg(feature = "testing")]
mod step;
#[cfg(feature = "testing")]
mod test_box;

pub use self::clock::ManualClock;
#[cfg(feature = "testing")]
pub use self::{
    alone::{Alone, Ran, run_handler, run_transactional},
    assertions::{Expected, Many, One, Subject},
    drains::DrainLimit,
    failures::{FailAttempt, Failure, fail_attempt, panic_with},
    made_up::{MadeUpEvent, event},
    outcome::Outcome,
    pattern::{Pattern, absent, anything, exactly, that},
    recorder::{RecordedCall, Recorder},
    settled::wait_until_settled,
    step::{Conversation, RanStep, run_step},
    test_box::{TestBox, TestBoxBuilder},
};
#[cfg(feature = "testing")]
pub use crate::crash::CrashPoint;
#[cfg(feature = "testing")]
#[doc(inline)]
pub use crate::{assert_dead_lettered, assert_processed, assert_published, json_pattern, refute_published};
