//! Random consumers, outcomes and lost attempts, against a plain model of what DESIGN.md says of them.

use std::time::Duration;

use postbox::{
    Backoff, Context, Event, HandlerError, HandlerResult, InboxStatus, OutboxStatus, Subscription, Tx,
};

use crate::support::{Calls, SECOND, TestBox, boxes, event, inbox_rows, lose_an_attempt, outbox_row};

/// splitmix64: the same cases at every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn small(&mut self, least: u32, most: u32) -> u32 {
        least + u32::try_from(self.below(u64::from(most - least + 1))).unwrap()
    }
}

#[derive(Debug, Clone, Copy)]
enum Outcome {
    Succeeds,
    Fails,
    FailsFor(Duration),
    GivesUp,
    Skips,
    Panics,
}

impl Outcome {
    fn any(random: &mut Random) -> Self {
        match random.below(12) {
            0 | 1 => Outcome::Succeeds,
            2 => Outcome::Skips,
            3 => Outcome::GivesUp,
            4 | 5 => Outcome::FailsFor(random.small(0, 90) * SECOND),
            6 => Outcome::Panics,
            _ => Outcome::Fails,
        }
    }

    fn happens(self) -> HandlerResult {
        match self {
            Outcome::Succeeds => Ok(()),
            Outcome::Fails => Err(HandlerError::retry("fails")),
            Outcome::FailsFor(after) => Err(HandlerError::retry_after("fails", after)),
            Outcome::GivesUp => Err(HandlerError::dead_letter("gives up")),
            Outcome::Skips => Err(HandlerError::skip("skips")),
            // Without the message that a panic would print.
            Outcome::Panics => std::panic::resume_unwind(Box::new("panics")),
        }
    }
}

#[derive(Debug, Clone)]
struct Consumer {
    name: String,
    transactional: bool,
    attempts_max: u32,
    base: Duration,
    doubles: bool,
    /// Of each attempt.
    outcomes: Vec<Outcome>,
    // What the model knows of it.
    done: Option<InboxStatus>,
    gave_up: bool,
    failures: u32,
    known: bool,
}

impl Consumer {
    fn any(random: &mut Random, name: String) -> Self {
        Consumer {
            name,
            transactional: random.below(2) == 0,
            attempts_max: random.small(1, 5),
            base: random.small(1, 20) * SECOND,
            doubles: random.below(2) == 0,
            outcomes: (0..40).map(|_| Outcome::any(random)).collect(),
            done: None,
            gave_up: false,
            failures: 0,
            known: false,
        }
    }

    fn subscription(&self, event_name: &str, calls: &Calls) -> Subscription {
        let (outcomes, name, calls) = (self.outcomes.clone(), self.name.clone(), calls.clone());
        let outcome = move |event: &Event| {
            calls.add(&name);
            outcomes[event.attempt() as usize].happens()
        };
        let subscription = if self.transactional {
            Subscription::transactional(event_name, &self.name, move |event: &Event, _: &Tx<'_>| {
                outcome(event)
            })
        } else {
            Subscription::new(event_name, &self.name, move |event: &Event, _: &Context<'_>| outcome(event))
        };
        let backoff = if self.doubles { Backoff::exponential(self.base) } else { Backoff::fixed(self.base) };
        subscription.max_attempts(self.attempts_max).backoff(backoff)
    }

    fn is_open(&self) -> bool {
        self.done.is_none() && !self.gave_up
    }

    fn fails(&mut self) {
        self.known = true;
        self.failures += 1;
        self.gave_up = self.failures >= self.attempts_max;
    }

    /// One attempt: how long it wants to wait for the next, if it wants one.
    fn runs(&mut self, attempt: u32) -> Option<Duration> {
        self.known = true;
        let before = self.failures;
        match self.outcomes[attempt as usize] {
            Outcome::Succeeds => self.done = Some(InboxStatus::Processed),
            Outcome::Skips => self.done = Some(InboxStatus::Skipped),
            Outcome::GivesUp => {
                self.fails();
                self.gave_up = true;
            }
            Outcome::Fails | Outcome::FailsFor(_) | Outcome::Panics => self.fails(),
        }
        let delay = match self.outcomes[attempt as usize] {
            Outcome::FailsFor(after) => after,
            _ if self.doubles => self.base * 2_u32.pow(before),
            _ => self.base,
        };
        self.is_open().then_some(delay)
    }
}

fn assert_follows_the_model(test: &TestBox, random: &mut Random, case: u32) {
    let TestBox { kind, bus, clock, .. } = test;
    let (name, calls) = (format!("case.{case}"), Calls::default());
    let mut consumers: Vec<_> =
        (0..random.small(1, 4)).map(|n| Consumer::any(random, format!("consumer {n}"))).collect();
    let context = format!("{kind}, case {case}: {consumers:#?}");
    for consumer in &consumers {
        bus.subscribe(consumer.subscription(&name, &calls)).unwrap();
    }
    let id = bus.publish(event(&name)).unwrap();
    let mut attempt = 0;
    loop {
        if random.below(4) == 0 {
            lose_an_attempt(bus, id);
            attempt += 1;
            consumers.iter_mut().filter(|consumer| consumer.is_open()).for_each(Consumer::fails);
        }
        attempt += 1;
        bus.process_batch().unwrap();

        let ran: Vec<_> = consumers.iter().filter(|c| c.is_open()).map(|c| c.name.clone()).collect();
        assert_eq!(calls.take(), ran, "attempt {attempt}: {context}");
        let delay = consumers.iter_mut().filter(|c| c.is_open()).filter_map(|c| c.runs(attempt)).max();
        let status = match delay {
            Some(_) => OutboxStatus::Pending,
            None if consumers.iter().any(|consumer| consumer.gave_up) => OutboxStatus::DeadLetter,
            None => OutboxStatus::Processed,
        };
        let row = outbox_row(bus, id);
        assert_eq!((row.status, row.attempt_count), (status, attempt), "attempt {attempt}: {context}");
        assert_eq!(
            row.available_at - row.updated_at,
            delay.unwrap_or_default(),
            "attempt {attempt}: {context}"
        );
        assert_eq!(
            row.last_error.is_some(),
            status != OutboxStatus::Processed,
            "attempt {attempt}: {context}"
        );
        let rows: Vec<_> = inbox_rows(bus, id).into_iter().map(|row| (row.0, row.1, row.2)).collect();
        let expected: Vec<_> = consumers
            .iter()
            .filter(|consumer| consumer.known)
            .map(|c| (c.name.clone(), c.done.unwrap_or(InboxStatus::Failed), c.failures))
            .collect();
        assert_eq!(rows, expected, "attempt {attempt}: {context}");
        match delay {
            Some(delay) => clock.advance(delay),
            None => break,
        }
    }
    bus.registry().clear();
}

#[test]
fn random_consumers_outcomes_and_lost_attempts_follow_the_model() {
    for test in &boxes() {
        let mut random = Random(7);
        for case in 0..150 {
            assert_follows_the_model(test, &mut random, case);
        }
        let stats = test.bus.stats().unwrap();
        assert_eq!((stats.total, stats.pending + stats.processing), (150, 0), "{}", test.kind);
    }
}
