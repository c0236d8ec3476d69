//! Calls of the box from inside its own transactions and handlers: errors, and not deadlocks.

use postbox::{
    Context, EntityRef, Error, Event, InboxId, LinkType, NewLink, OutboxStatus, Postbox, Subscription, Tx,
};

use crate::support::{
    TestBox, add_effect, assert_reentrant, boxes, effects, ends, event, make_effects, status,
};

fn link() -> NewLink {
    let end = |id: &str| EntityRef::new("finance", "Invoice", id);
    NewLink::new(end("1"), end("2"), LinkType::Reference)
}

/// Everything of the box that would wait for its own transaction.
fn assert_writers_are_refused(bus: &Postbox, kind: &str, inbox_row: InboxId) {
    let (inbox, links) = (bus.inbox(), bus.links());
    assert_reentrant(bus.publish(event("a")));
    assert_reentrant(bus.publish_all([event("a"), event("b")]));
    assert_reentrant(bus.transaction::<(), Error>(|_| panic!("it must not run")));
    assert_reentrant(bus.update_settings(|_| panic!("it must not run")));
    assert_reentrant(links.create(link()));
    assert_reentrant(links.delete(uuid::Uuid::nil()));
    assert_reentrant(links.get_or_create(link()));
    assert_reentrant(links.create_unique(link()));
    assert_reentrant(links.delete_of(&EntityRef::new("finance", "Invoice", "1")));
    assert_reentrant(bus.announce_deleted(&EntityRef::new("finance", "Invoice", "1")));
    assert_reentrant(inbox.get_or_create("0198c0de-0000-7000-8000-000000000000".parse().unwrap(), "c"));
    assert_reentrant(inbox.mark_processing(inbox_row));
    assert_reentrant(inbox.mark_processed(inbox_row));
    assert_reentrant(inbox.mark_failed(inbox_row, "no"));
    assert_reentrant(inbox.mark_skipped(inbox_row));
    assert_reentrant(inbox.increment_attempt(inbox_row));
    assert_reentrant(bus.process_batch());
    assert_reentrant(bus.drain());
    assert_reentrant(bus.backup(std::env::temp_dir().join("postbox-never-written.db")));
    assert_reentrant(bus.clone().close());
    if kind == "file" {
        assert_reentrant(bus.with_quiesced_file::<()>(|_| panic!("it must not run")));
    }
}

#[test]
fn writers_of_the_box_inside_its_own_transaction_are_errors_and_not_deadlocks() {
    for TestBox { kind, bus, .. } in &boxes() {
        let (of_box, kind) = (bus.clone(), *kind);
        ends(move || {
            of_box.transaction::<_, Error>(|tx| {
                assert_writers_are_refused(&of_box, kind, 1.into());
                tx.publish(event("a"))
            })
        })
        .unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}: the transaction itself was not disturbed");
        bus.publish(event("b")).unwrap();
    }
}

#[test]
fn writers_of_the_box_inside_a_transactional_handler_are_errors_and_not_deadlocks() {
    for TestBox { kind, bus, .. } in &boxes() {
        let (of_box, kind) = (bus.clone(), *kind);
        bus.subscribe(Subscription::transactional("a", "c", move |_: &Event, tx: &Tx<'_>| {
            assert_writers_are_refused(&of_box, kind, 1.into());
            tx.publish(event("b"))?;
            Ok(())
        }))
        .unwrap();
        let id = bus.publish(event("a")).unwrap();
        let of_box = bus.clone();
        assert_eq!(ends(move || of_box.drain()).unwrap(), 2, "{kind}");
        assert_eq!(status(bus, id), OutboxStatus::Processed, "{kind}");
        // The handler holds a clone of the box.
        bus.registry().clear();
    }
}

#[test]
fn a_plain_handler_may_write_by_the_box_but_not_process_or_close_it() {
    for TestBox { kind, bus, .. } in &boxes() {
        make_effects(bus);
        bus.subscribe(Subscription::new("a", "c", |_: &Event, cx: &Context<'_>| {
            let bus = cx.postbox();
            assert_reentrant(bus.process_batch());
            assert_reentrant(bus.drain());
            assert_reentrant(bus.clone().close());
            bus.publish(event("b"))?;
            bus.transaction::<_, Error>(|tx| Ok(add_effect(tx, "written")?))?;
            bus.links().create(link())?;
            bus.update_settings(|settings| settings.batch_size = 7)?;
            Ok(())
        }))
        .unwrap();
        bus.publish(event("a")).unwrap();
        let of_box = bus.clone();
        assert_eq!(ends(move || of_box.drain()).unwrap(), 2, "{kind}");
        assert_eq!(effects(bus), ["written"]);
        assert_eq!(bus.settings().batch_size, 7);
    }
}
