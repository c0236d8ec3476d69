//! Recorders, handlers that fail on purpose, and waiting for a worker.

use std::sync::mpsc::channel;
use std::time::Duration;

use postbox::testing::{
    Outcome, Recorder, TestBox, assert_dead_lettered, assert_processed, fail_attempt, panic_with,
    wait_until_settled,
};
use postbox::{
    Context, Event, HandlerError, InboxStatus, NewEvent, OutboxStatus, PauseTarget, Subscription, Tx,
};

use crate::panics;
use crate::support::{Calls, SECOND, add_effect, boxes, effects, inbox_rows, make_effects, noting, writing};

/// How long a wait that ends may take.
const LIMIT: Duration = Duration::from_mins(1);

fn invoice(n: u32) -> NewEvent {
    NewEvent::new("invoice.created", "finance", "Invoice", format!("inv-{n}"))
}

fn retry(why: &str) -> Outcome {
    Outcome::Retry { why: why.to_owned(), after: None }
}

#[test]
fn a_recorder_writes_down_what_it_is_given_and_what_it_says() {
    for is_transactional in [false, true] {
        let (postbox, mail) = (TestBox::new(), Recorder::new("mail"));
        mail.fail_attempt(2, HandlerError::retry_after("later", SECOND)).fail_call(1, panic_with("boom"));
        let subscription =
            if is_transactional { mail.transactional("invoice.*") } else { mail.subscription("invoice.*") };
        postbox.subscribe(subscription).unwrap();
        let id = postbox.publish(invoice(1)).unwrap();
        assert_eq!(postbox.drain_all(), 1);
        let outcomes: Vec<_> = mail.calls().into_iter().map(|call| call.outcome).collect();
        let after = Outcome::Retry { why: "later".to_owned(), after: Some(SECOND) };
        assert_eq!(outcomes, [Outcome::Panicked { message: "boom".to_owned() }, after, Outcome::Processed]);
        let attempts: Vec<_> = mail.events().iter().map(|event| (event.id(), event.attempt())).collect();
        assert_eq!(attempts, [(id, 1), (id, 2), (id, 3)]);
        assert_eq!(mail.handled().len(), 1);
        mail.clear();
        assert!(mail.calls().is_empty());
        postbox.publish(invoice(2)).unwrap();
        assert_eq!(postbox.drain_due(), 0, "the first call again");
        assert_eq!(inbox_rows(&postbox, id), [("mail".to_owned(), InboxStatus::Processed, 2, None)]);
    }
}

#[test]
fn a_recorder_around_a_handler_lets_it_work_unless_it_is_to_fail() {
    let (postbox, mail, books) = (TestBox::new(), Recorder::new("mail"), Recorder::new("books"));
    make_effects(&postbox);
    let calls = Calls::default();
    mail.fail_call(2, HandlerError::dead_letter("full"));
    books.fail_attempt(1, HandlerError::skip("not mine"));
    postbox.subscribe(mail.around("invoice.created", noting(&calls, "mail"))).unwrap();
    postbox.subscribe(books.around_transactional("invoice.created", writing("books"))).unwrap();
    let ids = postbox.publish_all((1..=3).map(invoice)).unwrap();
    postbox.drain_all();
    assert_eq!(calls.all(), ["mail", "mail"]);
    assert!(effects(&postbox).is_empty());
    assert_dead_lettered!(postbox, ids[1], by = "mail", error = "full");
    assert_processed!(postbox, "*", count = 2);
    let said = inbox_rows(&postbox, ids[0]);
    assert_eq!(said[0], ("books".to_owned(), InboxStatus::Skipped, 0, Some("not mine".to_owned())));
}

#[test]
fn a_recorder_can_pause_its_consumer() {
    let (postbox, sync) = (TestBox::new(), Recorder::new("sync"));
    sync.fail_call(1, HandlerError::pause_consumer("offline", SECOND * 60));
    postbox.subscribe(sync.subscription("*")).unwrap();
    postbox.publish(invoice(1)).unwrap();
    assert_eq!(postbox.drain_due(), 0);
    assert_eq!(postbox.pauses().unwrap()[0].target, PauseTarget::consumer("sync"));
    assert_eq!(postbox.drain_for(SECOND * 60), 1);
}

#[test]
fn fail_attempt_wraps_plain_and_transactional_handlers() {
    let (postbox, calls) = (TestBox::new(), Calls::default());
    make_effects(&postbox);
    let plain = fail_attempt(1, HandlerError::retry("down"), noting(&calls, "plain"));
    let plain = fail_attempt(2, panic_with("out of luck"), plain);
    postbox.subscribe(Subscription::new("a", "plain", plain)).unwrap();
    let closure = fail_attempt(1, HandlerError::retry("locked"), |_: &Event, tx: &Tx<'_>| {
        Ok(add_effect(tx, "transactional")?)
    });
    postbox.subscribe(Subscription::transactional("a", "transactional", closure)).unwrap();
    let unused = fail_attempt(9, HandlerError::retry("never"), |_: &Event, _: &Context<'_>| Ok(()));
    postbox.subscribe(Subscription::new("a", "unused", unused)).unwrap();
    let id = postbox.publish(NewEvent::new("a", "m", "T", "1")).unwrap();
    assert_eq!(postbox.drain_all(), 1);
    assert_eq!(
        (calls.all(), effects(&postbox)),
        (vec!["plain".to_owned()], vec!["transactional".to_owned()])
    );
    let errors: Vec<_> =
        postbox.outbox().history(id).unwrap().into_iter().filter_map(|entry| entry.detail).collect();
    assert_eq!(errors, ["down", "locked", "panicked: out of luck"]);
}

#[test]
fn wait_for_returns_when_the_worker_has_called_so_often() {
    for test in boxes() {
        let mail = Recorder::new("mail");
        test.bus.subscribe(mail.subscription("invoice.*")).unwrap();
        let worker = test.bus.start().unwrap();
        test.bus.publish_all((1..=5).map(invoice)).unwrap();
        assert_eq!(mail.wait_for(5, LIMIT).len(), 5);
        assert!(worker.shutdown(LIMIT).unwrap().clean);
    }
}

#[test]
fn a_wait_in_vain_tells_of_the_calls_that_there_were() {
    let (postbox, mail) = (TestBox::new(), Recorder::new("mail"));
    mail.fail_call(1, HandlerError::retry("down"));
    let said = panics(|| mail.wait_for(1, Duration::ZERO));
    assert_eq!(said, "consumer mail has ended 0 of 1 calls within 0ns");
    postbox.subscribe(mail.subscription("invoice.*")).unwrap();
    postbox.publish(invoice(1)).unwrap();
    postbox.drain_due();
    let said = panics(|| mail.wait_for(2, Duration::from_millis(1)));
    let call = "invoice.created  finance/Invoice/inv-1  attempt 1: Retry { why: \"down\", after: None }";
    assert_eq!(said, format!("consumer mail has ended 1 of 2 calls within 1ms:\n  {call}"));
    assert_eq!(mail.calls()[0].outcome, retry("down"));
}

#[test]
fn what_settles_is_waited_for_whatever_it_comes_to() {
    for test in boxes() {
        let handle = |event: &Event, _: &Context<'_>| match event.aggregate_id() {
            "inv-1" => Ok(()),
            _ => Err(HandlerError::dead_letter("no")),
        };
        test.bus.subscribe(Subscription::new("invoice.*", "mail", handle)).unwrap();
        let worker = test.bus.start().unwrap();
        let ids = test.bus.publish_all([invoice(1), invoice(2)]).unwrap();
        assert_eq!(wait_until_settled(&test.bus, ids[0], LIMIT), OutboxStatus::Processed);
        assert_eq!(wait_until_settled(&test.bus, ids[1], LIMIT), OutboxStatus::DeadLetter);
        assert!(worker.shutdown(LIMIT).unwrap().clean);
    }
}

#[test]
fn what_does_not_settle_is_told_as_far_as_it_has_come() {
    let (postbox, mail) = (TestBox::new(), Recorder::new("mail"));
    mail.fail_attempt(1, HandlerError::retry("down"));
    postbox.subscribe(mail.subscription("invoice.*")).unwrap();
    let id = postbox.publish(invoice(1).payload(serde_json::json!({ "total": 1 }))).unwrap();
    postbox.drain_due();
    let said = panics(|| wait_until_settled(&postbox, id, Duration::ZERO));
    let expected = format!(
        "not settled within 0ns:
  invoice.created  finance/Invoice/inv-1  pending  {id}
    is due in 1s, after 1 attempt
    last error: down
    payload: {{\"total\":1}}
    consumer mail: failed, failed attempts: 1, down
    subscribed in this box: mail
    history: 2024-01-01 0:00:00.0 +00:00:00 failed (mail) down
  no worker runs"
    );
    assert_eq!(said, expected);
    let nobody = "0198c0de-0000-7000-8000-000000000000".parse().unwrap();
    let said = panics(|| wait_until_settled(&postbox, nobody, LIMIT));
    assert_eq!(said, format!("there is no event {nobody}"));
}

#[test]
fn a_worker_on_a_clock_of_the_test_goes_on_when_it_is_moved() {
    let (postbox, mail) = (TestBox::new(), Recorder::new("mail"));
    let (told, hears) = channel();
    postbox
        .subscribe(mail.around("invoice.*", move |_: &Event, _: &Context<'_>| {
            told.send(()).map_err(HandlerError::retry)
        }))
        .unwrap();
    let worker = postbox.start().unwrap();
    assert!(worker.wait_for_startup_drain(LIMIT));
    let id = postbox.publish(invoice(1).delay(SECOND * 3_600)).unwrap();
    postbox.advance(SECOND * 3_600);
    hears.recv_timeout(LIMIT).unwrap();
    assert_eq!(wait_until_settled(&postbox, id, LIMIT), OutboxStatus::Processed);
}
