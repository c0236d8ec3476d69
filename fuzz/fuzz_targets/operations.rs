//! Bytes become steps, which a box in memory and the plain model of the tests take together.

#![no_main]

#[path = "../../tests/support/model.rs"]
mod model;
#[allow(dead_code, reason = "a box in memory is neither closed nor restored")]
#[path = "../../tests/support/steps.rs"]
mod steps;

use std::time::Duration;

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::{Corpus, fuzz_target};

use crate::model::Model;
use crate::steps::{Consumer, Decision, NAMES, New, Outcome, Outcomes, RealBox, Step};

/// Each costs some milliseconds.
const STEPS_MAX: usize = 48;

fuzz_target!(|bytes: &[u8]| -> Corpus {
    match play(&mut Unstructured::new(bytes)) {
        Ok(()) => Corpus::Keep,
        Err(_) => Corpus::Reject, // too few bytes for a consumer
    }
});

fn play(bytes: &mut Unstructured<'_>) -> Result<()> {
    let consumers = (0..bytes.int_in_range(1..=4)?).map(|_| consumer(bytes)).collect::<Result<_>>()?;
    let mut model = Model::new(consumers, true);
    let mut real = RealBox::new(&model);
    real.check(&model);
    for _ in 0..STEPS_MAX {
        let Ok(step) = step(bytes) else { break };
        model.apply(&step);
        real.apply(&step, &model);
        real.check(&model);
        if bytes.is_empty() {
            break;
        }
    }
    Ok(())
}

fn consumer(bytes: &mut Unstructured<'_>) -> Result<Consumer> {
    Ok(Consumer {
        listens_to: bytes.arbitrary()?,
        transactional: bytes.arbitrary()?,
        attempts_max: bytes.int_in_range(1..=5)?,
        base: Duration::from_secs(bytes.int_in_range(1..=20)?),
        doubles: bytes.arbitrary()?,
    })
}

fn step(bytes: &mut Unstructured<'_>) -> Result<Step> {
    Ok(match bytes.int_in_range(0..=16)? {
        0..=3 => Step::Publish(new(bytes)?),
        4 => {
            let events = (0..bytes.int_in_range(0..=12)?).map(|_| new(bytes)).collect::<Result<_>>()?;
            Step::PublishInTransaction(events, bytes.arbitrary()?)
        }
        5..=8 => Step::ProcessBatch(outcomes(bytes)?),
        9 => Step::Drain(outcomes(bytes)?),
        10 | 11 => Step::LoseAnAttempt(bytes.int_in_range(0..=7)?),
        12 | 13 => Step::MoveClock(i64::from(bytes.int_in_range(0..=60_u8)?) * 1_000_000),
        14 => Step::MoveClock(bytes.int_in_range(-100_000_000..=100_000_000)?),
        15 => {
            let decision = if bytes.arbitrary()? { Decision::Retry } else { Decision::Discard };
            Step::Decide(bytes.int_in_range(0..=7)?, decision)
        }
        _ => Step::DeadLetters(bytes.arbitrary()?),
    })
}

fn new(bytes: &mut Unstructured<'_>) -> Result<New> {
    let key = bytes.int_in_range(0..=7)?;
    Ok(New {
        name: bytes.int_in_range(0..=NAMES.len() - 1)?,
        key: (key < 4).then_some(key),
        delay: Duration::from_secs(bytes.int_in_range(-60..=60_i8)?.max(0).unsigned_abs().into()),
    })
}

fn outcomes(bytes: &mut Unstructured<'_>) -> Result<Outcomes> {
    let outcomes = (0..bytes.int_in_range(1..=5)?).map(|_| {
        Ok(match bytes.int_in_range(0..=11)? {
            0..=3 => Outcome::Succeeds,
            4 => Outcome::Skips,
            5..=7 => Outcome::Fails,
            8 | 9 => Outcome::FailsFor(Duration::from_secs(bytes.int_in_range(0..=90)?)),
            10 => Outcome::GivesUp,
            _ => Outcome::Panics,
        })
    });
    outcomes.collect::<Result<_>>().map(Outcomes)
}
