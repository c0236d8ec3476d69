//! Releases of an application in any order, on one file: each consumer receives all that its release can read, at once and never twice.

use std::collections::BTreeSet;
use std::time::Duration;

use postbox::{
    Context, DomainEvent, Event, HandlerError, NewEvent, PauseTarget, Postbox, Subscription, Upcasters,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::support::{Calls, TestBox, file_box};

#[derive(Serialize, Deserialize)]
struct Made<const VERSION: u32> {
    number: usize,
}

impl<const VERSION: u32> DomainEvent for Made<VERSION> {
    const NAME: &'static str = "made";
    const SOURCE_MODULE: &'static str = "works";
    const AGGREGATE_TYPE: &'static str = "Thing";
    const VERSION: u32 = VERSION;
    const FORMER_NAMES: &'static [&'static str] = &["built"];

    fn aggregate_id(&self) -> String {
        "t-1".to_owned()
    }

    fn upcasters() -> Upcasters {
        (1..VERSION).fold(Upcasters::none(), Upcasters::unchanged)
    }
}

const CONSUMERS: [&str; 5] = ["plain", "ordered", "limited", "transactional", "failing"];
/// Of a release that reads it without a type: whatever its version.
const UNTYPED: u32 = 4;

/// The newest version that each consumer reads.
type Release = [u32; CONSUMERS.len()];

fn typed<const VERSION: u32>(consumer: &'static str, calls: &Calls) -> Subscription {
    let calls = calls.clone();
    if consumer == "transactional" {
        return Subscription::typed_transactional::<Made<VERSION>>(consumer, move |made, _| {
            calls.add(format!("{consumer} {}", made.number));
            Ok(())
        });
    }
    Subscription::typed::<Made<VERSION>>(consumer, move |made, _| {
        calls.add(format!("{consumer} {}", made.number));
        Ok(())
    })
}

fn untyped(consumer: &'static str, calls: &Calls) -> Subscription {
    let calls = calls.clone();
    let handler = move |event: &Event, _: &Context<'_>| {
        let number = event.payload()["number"].as_u64().unwrap();
        if consumer == "failing" && number.is_multiple_of(3) && event.attempt() == 1 {
            return Err(HandlerError::retry("not at first"));
        }
        calls.add(format!("{consumer} {number}"));
        Ok(())
    };
    Subscription::new("made", consumer, handler).alias("built")
}

fn install(bus: &Postbox, release: &Release, calls: &Calls) {
    bus.registry().clear();
    let subscription = |(consumer, reads): (&&'static str, &u32)| {
        let of = match reads {
            1 => typed::<1>(consumer, calls),
            2 => typed::<2>(consumer, calls),
            3 => typed::<3>(consumer, calls),
            _ => untyped(consumer, calls),
        };
        match *consumer {
            "ordered" => of.ordered(),
            "limited" => of.max_concurrency(1),
            _ => of,
        }
    };
    bus.subscribe_many(CONSUMERS.iter().zip(release).map(subscription)).unwrap();
}

/// Numbers that look random, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((self.0 >> 33) % u64::from(n)).unwrap()
    }

    fn release(&mut self) -> Release {
        CONSUMERS.map(|consumer| if consumer == "failing" { UNTYPED } else { 1 + self.below(UNTYPED) })
    }
}

struct Application {
    test: TestBox,
    release: Release,
    /// Another process, with another release.
    beside: Option<(Postbox, Release)>,
    /// Version, name and aggregate, by number.
    published: Vec<(u32, &'static str, u32)>,
    paused: BTreeSet<&'static str>,
    calls: Calls,
    received: BTreeSet<String>,
    steps: Vec<String>,
}

impl Application {
    fn new(dice: &mut Dice) -> Self {
        let (test, calls, release) = (file_box(), Calls::default(), dice.release());
        install(&test.bus, &release, &calls);
        let (published, paused, received) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        Application { test, release, beside: None, published, paused, calls, received, steps: Vec::new() }
    }

    fn go_on(mut self, dice: &mut Dice) -> Self {
        match dice.below(7) {
            0 | 1 => {
                for _ in 0..=dice.below(3) {
                    self.publish(
                        1 + dice.below(3),
                        ["made", "made", "built"][dice.below(3) as usize],
                        dice.below(2),
                    );
                }
            }
            2 => {
                self.beside = None;
                self.test = self.test.reopen();
                self.change(dice.release());
            }
            3 => self.change(dice.release()),
            4 => {
                self.toggle_pause(["plain", "ordered", "limited", "failing", "made"][dice.below(5) as usize]);
            }
            5 => {
                let release = dice.release();
                let bus = self.test.second();
                install(&bus, &release, &self.calls);
                self.steps.push(format!("beside it {release:?}"));
                self.beside = Some((bus, release));
            }
            _ => self.beside = None,
        }
        self
    }

    fn publish(&mut self, version: u32, name: &'static str, aggregate: u32) {
        let event = NewEvent::new(name, "works", "Thing", format!("t-{aggregate}")).version(version);
        self.test.bus.publish(event.payload(json!({ "number": self.published.len() }))).unwrap();
        self.steps.push(format!("{}: version {version} of {name}, t-{aggregate}", self.published.len()));
        self.published.push((version, name, aggregate));
    }

    fn change(&mut self, release: Release) {
        install(&self.test.bus, &release, &self.calls);
        self.steps.push(format!("{release:?}"));
        self.release = release;
    }

    fn toggle_pause(&mut self, what: &'static str) {
        let target = if what == "made" { PauseTarget::event_name(what) } else { PauseTarget::consumer(what) };
        self.steps.push(format!("pause or resume {what}"));
        if self.paused.remove(what) {
            self.test.bus.resume(&target).unwrap();
        } else {
            self.test.bus.pause(&target, None, None).unwrap();
            self.paused.insert(what);
        }
    }

    /// Until all that waits for a time alone has had it.
    fn settle(&mut self) {
        for _ in 0..6 {
            self.test.bus.drain().unwrap();
            if let Some((beside, _)) = &self.beside {
                beside.drain().unwrap();
            }
            self.test.clock.advance(Duration::from_hours(1));
        }
    }

    fn check(&mut self) {
        for call in self.calls.take() {
            assert!(self.received.insert(call.clone()), "twice: {call}, after {:#?}", self.steps);
        }
        for (consumer, reads) in CONSUMERS.iter().zip(self.release) {
            let beside = self.beside.as_ref().zip(CONSUMERS.iter().position(|of| of == consumer));
            let reads = beside.map_or(0, |((_, release), place)| release[place]).max(reads);
            let mut is_behind = [false; 2];
            for (number, (version, name, aggregate)) in self.published.iter().enumerate() {
                let is_behind = &mut is_behind[*aggregate as usize];
                let has_received = self.received.contains(&format!("{consumer} {number}"));
                let has_to_wait = *version > reads
                    || self.paused.contains(consumer)
                    || self.paused.contains(name)
                    || (*consumer == "ordered" && *is_behind);
                assert!(has_received || has_to_wait, "{consumer} lacks {number} after {:#?}", self.steps);
                *is_behind |= !has_received;
            }
        }
    }
}

#[test]
fn in_whatever_order_releases_come_each_consumer_receives_what_it_can_read_once_and_nobody_waits_for_another()
{
    for seed in 1..=8 {
        let mut dice = Dice(seed);
        let mut application = Application::new(&mut dice);
        for _ in 0..25 {
            application = application.go_on(&mut dice);
            application.settle();
            application.check();
        }
        application.beside = None;
        while let Some(what) = application.paused.first().copied() {
            application.toggle_pause(what);
        }
        application.change([3, 3, UNTYPED, 3, UNTYPED]);
        application.settle();
        application.check();
        let stats = application.test.bus.stats().unwrap();
        let all = application.published.len();
        assert_eq!((stats.processed, stats.pending, stats.held_back), (all as u64, 0, 0), "seed {seed}");
        assert_eq!(application.received.len(), all * CONSUMERS.len(), "seed {seed}");
    }
}
