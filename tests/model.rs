//! Random sequences of steps, taken by a real box (in a real file, or in memory) and by a plain model, and compared after every step.
//!
//! `POSTBOX_SEQUENCES=10000 cargo test --test model` is the long form. A sequence that fails is made as short as it can be,
//! and its seed is kept in tests/model.proptest-regressions, from where it is played first ever after.

#[path = "support/model.rs"]
mod model;
#[path = "support/steps.rs"]
mod steps;

use std::env;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::bool::weighted;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any};
use proptest::prop_oneof;
use proptest::strategy::BoxedStrategy;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};

use crate::model::Model;
use crate::steps::{Consumer, Decision, NAMES, New, Outcome, Outcomes, RealBox, Step};

/// Without `POSTBOX_SEQUENCES`: some seconds.
const SEQUENCES: u32 = 200;

const STEPS_MAX: usize = 40;

static STEPS_TAKEN: AtomicUsize = AtomicUsize::new(0);

impl ReferenceStateMachine for Model {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        (vec(consumer(), 1..=4), weighted(0.25))
            .prop_map(|(consumers, in_memory)| Model::new(consumers, in_memory))
            .boxed()
    }

    fn transitions(_: &Model) -> BoxedStrategy<Step> {
        prop_oneof![
            6 => new().prop_map(Step::Publish),
            2 => (vec(new(), 0..4), any::<bool>())
                .prop_map(|(events, commits)| Step::PublishInTransaction(events, commits)),
            6 => outcomes().prop_map(Step::ProcessBatch),
            2 => outcomes().prop_map(Step::Drain),
            2 => (0_usize..8).prop_map(Step::LoseAnAttempt),
            5 => moves().prop_map(Step::MoveClock),
            1 => any::<bool>().prop_map(Step::DeadLetters),
            2 => (0_usize..8, any::<bool>()).prop_map(|(at, retry)| {
                Step::Decide(at, if retry { Decision::Retry } else { Decision::Discard })
            }),
            1 => Just(Step::CloseAndOpen),
            1 => Just(Step::Backup),
            1 => Just(Step::Restore),
        ]
        .boxed()
    }

    fn apply(mut state: Model, step: &Step) -> Model {
        state.apply(step);
        state
    }
}

fn consumer() -> impl Strategy<Value = Consumer> {
    let listens_to = any::<[bool; NAMES.len()]>();
    (listens_to, any::<bool>(), 1_u32..=5, 1_u64..=20, any::<bool>()).prop_map(
        |(listens_to, transactional, attempts_max, base, doubles)| {
            let base = Duration::from_secs(base);
            Consumer { listens_to, transactional, attempts_max, base, doubles }
        },
    )
}

fn new() -> impl Strategy<Value = New> {
    let delay = prop_oneof![3 => Just(0), 1 => 0_u64..=60].prop_map(Duration::from_secs);
    (0..NAMES.len(), option::weighted(0.3, 0_u8..4), delay).prop_map(|(name, key, delay)| New {
        name,
        key,
        delay,
    })
}

fn outcomes() -> impl Strategy<Value = Outcomes> {
    let outcome = prop_oneof![
        4 => Just(Outcome::Succeeds),
        1 => Just(Outcome::Skips),
        3 => Just(Outcome::Fails),
        2 => (0_u64..90).prop_map(|seconds| Outcome::FailsFor(Duration::from_secs(seconds))),
        1 => Just(Outcome::GivesUp),
        1 => Just(Outcome::Panics),
    ];
    vec(outcome, 1..6).prop_map(Outcomes)
}

/// Mostly forward and by whole seconds, as backoffs are; also back, and by any microsecond.
fn moves() -> impl Strategy<Value = i64> {
    prop_oneof![
        4 => (0_i64..=30).prop_map(|seconds| seconds * 1_000_000),
        1 => 0_i64..=10_000_000,
        1 => -100_000_000_i64..0,
    ]
}

struct Compared;

impl StateMachineTest for Compared {
    type SystemUnderTest = RealBox;
    type Reference = Model;

    fn init_test(model: &Model) -> RealBox {
        RealBox::new(model)
    }

    fn apply(mut real: RealBox, model: &Model, step: Step) -> RealBox {
        STEPS_TAKEN.fetch_add(1, Ordering::Relaxed);
        real.apply(&step, model);
        real
    }

    fn check_invariants(real: &RealBox, model: &Model) {
        real.check(model);
    }
}

#[test]
fn a_real_box_says_after_every_step_what_the_model_says() {
    let sequences = env::var("POSTBOX_SEQUENCES").map_or(SEQUENCES, |n| n.parse().expect("a number"));
    let config = Config {
        cases: sequences,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/model.proptest-regressions",
        ))),
        ..Config::default()
    };
    let mut runner = TestRunner::new(config.clone());
    let outcome = runner.run(&Model::sequential_strategy(1..STEPS_MAX), |(model, steps, seen)| {
        Compared::test_sequential(config.clone(), model, steps, seen);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}\n{runner}");
    }
    println!("{sequences} sequences, {} steps, each compared", STEPS_TAKEN.load(Ordering::Relaxed));
}
