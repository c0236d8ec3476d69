//! What those cost everybody else that wait: for a pause, or for their turn.

use postbox::{Context, Event, HandlerError, NewEvent, PauseTarget, Postbox, Subscription};

use crate::Bench;
use crate::measure::{Pair, Sample, in_turn, rate_of};
use crate::report::{Goal, Report, Row};
use crate::table::count;
use crate::work::{
    CONSUMER, MODULE, NAME, TYPE, drain_by_worker, fill, open, payload, publish_one_by_one, subscribe,
};

/// Published in one transaction or two, and delivered, a slice.
const SLICE: usize = 1_000;

/// Of each aggregate. The first is a dead letter, and the others wait behind it.
const IN_ORDER: usize = 10;

pub(crate) fn waiting(bench: &Bench, report: &mut Report) {
    let ordered = bench.scale.backlog;
    let paused = ordered / 10;
    let [empty, full] = ["empty.db", "full.db"].map(|name| open(&bench.path(name)));
    for postbox in [&empty, &full] {
        subscribe(postbox);
        subscribe_to_what_waits(postbox);
    }
    let new = |name: &str, aggregate: usize| {
        NewEvent::new(name, MODULE, TYPE, format!("o-{aggregate}")).payload(payload(aggregate))
    };
    for round in 0..IN_ORDER {
        let name = if round == 0 { "ordered.first" } else { "ordered.next" };
        fill_with(&full, ordered / IN_ORDER, |number| new(name, number));
    }
    full.pause(&PauseTarget::consumer("paused"), None, None).expect("paused");
    fill_with(&full, paused, |number| new("paused", number));
    drain_by_worker(&full);
    full.drain().expect("drained");
    let backlog = full.outbox().backlog().expect("what waits");
    assert_eq!(backlog.behind + backlog.paused, (ordered - ordered / IN_ORDER + paused) as u64);
    let what = format!("{} waiting for their turn, {} paused", count(ordered), count(paused));
    beside(bench, report, &full, &empty, &format!("{what} (floor: none)"));

    let [none, some] = ["none.db", "some.db"].map(|name| open(&bench.path(name)));
    subscribe(&none);
    subscribe(&some);
    subscribe_to_what_waits(&some);
    beside(bench, report, &some, &none, "an ordered consumer of other events (floor: none)");
    in_order(bench, report);
}

fn subscribe_to_what_waits(postbox: &Postbox) {
    let fails_first = |event: &Event, _: &Context<'_>| match event.name() {
        "ordered.first" => Err(HandlerError::dead_letter("the first")),
        _ => Ok(()),
    };
    let nothing = |_: &Event, _: &Context<'_>| Ok(());
    postbox
        .subscribe_many([
            Subscription::new("ordered.*", "ordered", fails_first).ordered(),
            Subscription::new("paused", "paused", nothing),
        ])
        .expect("subscribed");
}

fn fill_with(postbox: &Postbox, events: usize, event: impl Fn(usize) -> NewEvent) {
    for first in (0..events).step_by(1_000) {
        postbox.publish_all((first..(first + 1_000).min(events)).map(&event)).expect("published");
    }
}

fn beside(bench: &Bench, report: &mut Report, ours: &Postbox, floor: &Postbox, what: &str) {
    let singles = bench.scale.singles;
    let (mut published, mut delivered) = (Pair::default(), Pair::default());
    let measure = |postbox: &Postbox, published: &mut Sample, delivered: &mut Sample| {
        published.push(rate_of(singles, || publish_one_by_one(postbox, singles)));
        fill(postbox, SLICE - singles);
        delivered.push(rate_of(SLICE, || assert_eq!(postbox.drain().expect("drained"), SLICE)));
    };
    in_turn(
        bench.scale.slices,
        || measure(ours, &mut published.ours, &mut delivered.ours),
        || measure(floor, &mut published.floor, &mut delivered.floor),
    );
    for (how, pair) in [("publish", published), ("claim and settle", delivered)] {
        let row = Row::against(format!("{how} with {what}"), "events/s", &pair.ours, &pair.floor);
        report.add(row.goal(Goal::RatioAtLeast(if what.starts_with("an ") { 0.85 } else { 0.95 })));
    }
}

/// A backlog of aggregates with some events each, to a consumer that wants them in order.
fn in_order(bench: &Bench, report: &mut Report) {
    let total = bench.scale.backlog;
    let of_box = |is_ordered: bool| {
        let bench = bench.in_new_folder();
        let postbox = open(&bench.path("box.db"));
        for round in 0..IN_ORDER {
            let new = |number| {
                NewEvent::new(NAME, MODULE, TYPE, format!("o-{number}")).payload(payload(number + round))
            };
            fill_with(&postbox, total / IN_ORDER, new);
        }
        let subscription = Subscription::new(NAME, CONSUMER, |_: &Event, _: &Context<'_>| Ok(()));
        postbox
            .subscribe(if is_ordered { subscription.ordered() } else { subscription })
            .expect("subscribed");
        let rate = rate_of(total, || drain_by_worker(&postbox));
        postbox.close().expect("closed");
        rate
    };
    let mut rates = Pair::default();
    in_turn(bench.scale.rounds, || rates.ours.push(of_box(true)), || rates.floor.push(of_box(false)));
    let what = format!("backlog of {}, {IN_ORDER} an aggregate, in order (floor: in none)", count(total));
    report.add(Row::against(what, "events/s", &rates.ours, &rates.floor));
}
