//! What each filter means, alone and together with others.

use std::time::Duration;

use postbox::{Context, Event, EventFilter, HandlerError, NewEvent, OutboxStatus, Page, Subscription};

use crate::support::{MICROSECOND, SECOND, TestBox, boxes, event, sql, start_time};
use crate::{ids, names, on_both};

fn filter() -> EventFilter {
    EventFilter::new()
}

#[track_caller]
fn assert_names(test: &TestBox, filter: &EventFilter, expected: &[&str]) {
    on_both(test, |outbox| assert_eq!(names(outbox, filter), expected, "{}: {filter:?}", test.kind));
}

#[test]
fn without_a_condition_it_means_every_event_in_order_of_publishing() {
    for test in &boxes() {
        assert_names(test, &filter(), &[]);
        test.bus.publish_all(["c", "a", "b"].map(event)).unwrap();
        assert_names(test, &filter(), &["c", "a", "b"]);
        assert_names(test, &EventFilter::default().name("*"), &["c", "a", "b"]);
    }
}

#[test]
fn names_have_the_wildcards_of_subscriptions() {
    for test in &boxes() {
        let published =
            ["invoice", "invoice.created", "invoice.line.added", "invoices.x", "Invoice.created", "invoice."];
        test.bus.publish_all(published.map(event)).unwrap();
        assert_names(test, &filter().name("invoice.created"), &["invoice.created"]);
        assert_names(test, &filter().name("invoice"), &["invoice"]);
        assert_names(test, &filter().name("invoice.*"), &["invoice.created", "invoice.line.added"]);
        assert_names(test, &filter().name("invoice.line.*"), &["invoice.line.added"]);
        assert_names(test, &filter().name("x.*"), &[]);
    }
}

/// The filter and the registry must not differ in what a pattern means.
#[test]
fn a_pattern_means_what_a_subscription_to_it_receives() {
    for TestBox { bus, kind, .. } in &boxes() {
        let published = ["a", "a.b", "a.b.c", "ab.c", "A.b", "ä.b", "ä.b.ö", "a.", "a..b", "a.%", "日.本"];
        bus.publish_all(published.map(event)).unwrap();
        for pattern in ["*", "a.*", "a", "a.b.*", "ä.*", "ä.b.*", "日.*", "a..*"] {
            bus.registry().clear();
            bus.subscribe(Subscription::new(pattern, "c", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
            let received: Vec<&str> =
                published.into_iter().filter(|name| bus.registry().has_handlers(name)).collect();
            assert_eq!(names(&bus.outbox(), &filter().name(pattern)), received, "{kind}, {pattern}");
        }
    }
}

#[test]
fn wildcards_of_sql_mean_themselves() {
    for test in &boxes() {
        let published = ["a%.x", "ab.x", "a_.x", "a[b].x", "a?.x", "a\\.x", "a'.x", "a\".x"];
        test.bus.publish_all(published.map(event)).unwrap();
        for (pattern, expected) in [
            ("a%.*", "a%.x"),
            ("a_.*", "a_.x"),
            ("a[b].*", "a[b].x"),
            ("a?.*", "a?.x"),
            ("a\\.*", "a\\.x"),
            ("a'.*", "a'.x"),
            ("a\".*", "a\".x"),
            ("a%.x", "a%.x"),
        ] {
            assert_names(test, &filter().name(pattern), &[expected]);
        }
    }
}

#[test]
fn where_an_event_comes_from_and_what_it_is_about() {
    for test in &boxes() {
        test.bus
            .publish_all([
                NewEvent::new("one", "finance", "Invoice", "1"),
                NewEvent::new("two", "finance", "Invoice", "2").correlation_id("talk"),
                NewEvent::new("three", "finance", "Order", "1").correlation_id("Talk"),
                NewEvent::new("four", "operations", "Invoice", "1").correlation_id("talk"),
            ])
            .unwrap();
        assert_names(test, &filter().source_module("finance"), &["one", "two", "three"]);
        assert_names(test, &filter().source_module("Finance"), &[]);
        assert_names(test, &filter().aggregate_type("Invoice"), &["one", "two", "four"]);
        assert_names(test, &filter().aggregate_id("1"), &["one", "three", "four"]);
        assert_names(test, &filter().correlation_id("talk"), &["two", "four"]);
        assert_names(test, &filter().correlation_id("tal"), &[]);
        let invoice_1 = filter().source_module("finance").aggregate_type("Invoice").aggregate_id("1");
        assert_names(test, &invoice_1, &["one"]);
        assert_names(test, &invoice_1.clone().correlation_id("talk"), &[]);
        // The last that was said of a field counts.
        assert_names(test, &invoice_1.source_module("operations"), &["four"]);
    }
}

/// One event of each status, by its name.
fn in_each_status(test: &TestBox) {
    test.bus
        .publish_all(["processing", "pending", "dead_letter", "failed", "processed", "pending"].map(event))
        .unwrap();
    sql(&test.bus, |tx| tx.execute("UPDATE outbox_event SET status = event_name", []));
}

#[test]
fn statuses_alone_and_any_of_several() {
    use OutboxStatus::{DeadLetter, Failed, Pending, Processed, Processing};
    for test in &boxes() {
        in_each_status(test);
        for status in [Processing, DeadLetter, Failed, Processed] {
            assert_names(test, &filter().status(status), &[status.as_str()]);
        }
        assert_names(test, &filter().status(Pending), &["pending", "pending"]);
        assert_names(
            test,
            &filter().status(Pending).status(Failed).status(Pending),
            &["pending", "failed", "pending"],
        );
        assert_names(test, &filter().status(Processed).status(Processing), &["processing", "processed"]);
        assert_names(
            test,
            &filter().status(Pending).status(Processing).status(DeadLetter).status(Failed),
            &["processing", "pending", "dead_letter", "failed", "pending"],
        );
        let all = [Pending, Processing, DeadLetter, Failed, Processed];
        let every = all.into_iter().fold(filter(), EventFilter::status);
        assert_names(
            test,
            &every,
            &["processing", "pending", "dead_letter", "failed", "processed", "pending"],
        );
        for status in all {
            assert_names(test, &filter().status(status).name("other"), &[]);
            assert_names(test, &filter().status(status).aggregate_id("other"), &[]);
            let counted = test.bus.outbox().count_by_status(status).unwrap();
            assert_eq!(test.bus.outbox().count(&filter().status(status)).unwrap(), counted);
        }
    }
}

#[test]
fn consumers_mean_events_of_which_they_have_a_row_whatever_came_of_it() {
    for test in &boxes() {
        let ok = |_: &Event, _: &Context<'_>| Ok(());
        test.bus.subscribe(Subscription::new("a.*", "one", ok)).unwrap();
        test.bus
            .subscribe(Subscription::new("a.fails", "two", |_: &Event, _: &Context<'_>| {
                Err(HandlerError::dead_letter("no"))
            }))
            .unwrap();
        test.bus.subscribe(Subscription::new("b", "three", ok)).unwrap();
        test.bus.publish_all(["a.ok", "a.fails", "b", "nobody's"].map(event)).unwrap();
        test.bus.drain().unwrap();
        assert_names(test, &filter().consumer("one"), &["a.ok", "a.fails"]);
        assert_names(test, &filter().consumer("two"), &["a.fails"]);
        assert_names(test, &filter().consumer("three"), &["b"]);
        assert_names(test, &filter().consumer("four"), &[]);
        assert_names(test, &filter().consumer("one").status(OutboxStatus::DeadLetter), &["a.fails"]);
        assert_names(test, &filter().consumer("one").status(OutboxStatus::Pending), &[]);
    }
}

/// Shifted by 20 bits, such a number is the first event's.
#[test]
fn a_row_whose_number_no_box_gives_has_no_consumers() {
    for test in &boxes() {
        test.bus.subscribe(Subscription::new("a", "one", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
        test.bus.publish(event("a")).unwrap();
        test.bus.drain().unwrap();
        sql(&test.bus, |tx| {
            tx.execute(
                "INSERT INTO outbox_event (seq, id, available_at, created_at, event_name, source_module, aggregate_type, aggregate_id, payload)
                 VALUES ((1 << 44) + 1, randomblob(16), 0, 0, 'forged', 'm', 'T', '1', '{}')",
                [],
            )
        });
        assert_names(test, &filter().consumer("one"), &["a"]);
        assert_names(test, &filter(), &["a", "forged"]);
    }
}

#[test]
fn times_are_from_and_before_to_the_microsecond() {
    for test in &boxes() {
        for name in ["first", "second", "third"] {
            test.bus.publish(event(name)).unwrap();
            test.clock.advance(MICROSECOND);
        }
        let at = |micros: u32| start_time() + MICROSECOND * micros;
        let half = Duration::from_nanos(500);
        assert_names(test, &filter().published_from(at(1)), &["second", "third"]);
        assert_names(test, &filter().published_before(at(1)), &["first"]);
        assert_names(test, &filter().published_from(at(1)).published_before(at(2)), &["second"]);
        assert_names(test, &filter().published_from(at(1)).published_before(at(1)), &[]);
        assert_names(test, &filter().published_from(at(0) + half), &["second", "third"]);
        assert_names(test, &filter().published_before(at(1) + half), &["first", "second"]);
        let long_ago = start_time() - SECOND * 4_000_000_000;
        assert_names(test, &filter().published_from(long_ago), &["first", "second", "third"]);
        assert_names(test, &filter().published_before(long_ago), &[]);
    }
}

#[test]
fn errors_by_a_part_of_their_text_as_it_is_written() {
    for test in &boxes() {
        test.bus
            .subscribe(Subscription::new("*", "c", |event: &Event, _: &Context<'_>| {
                Err(HandlerError::dead_letter(match event.name() {
                    "percent" => "100% Timed out",
                    "hundred" => "100 timed out",
                    "glob" => "[a]* né?",
                    _ => "else",
                }))
            }))
            .unwrap();
        test.bus.publish_all(["percent", "hundred", "glob", "else"].map(event)).unwrap();
        test.bus.drain().unwrap();
        test.bus.publish(event("no error")).unwrap();
        for (text, expected) in [
            ("imed out", vec!["percent", "hundred"]),
            ("timed out", vec!["hundred"]),
            ("100%", vec!["percent"]),
            ("%", vec!["percent"]),
            ("_", vec![]),
            ("[a]", vec!["glob"]),
            ("*", vec!["glob"]),
            ("né?", vec!["glob"]),
            ("else ", vec![]),
        ] {
            assert_names(test, &filter().error_contains(text), &expected);
        }
    }
}

/// Each by itself would mean more.
#[test]
fn all_that_is_asked_for_has_to_hold() {
    for test in &boxes() {
        test.bus
            .subscribe(Subscription::new("a.*", "c", |event: &Event, _: &Context<'_>| {
                if event.aggregate_id() == "ok" { Ok(()) } else { Err(HandlerError::dead_letter("refused")) }
            }))
            .unwrap();
        let of = |name: &str, module: &str, kind: &str, id: &str, talk: &str| {
            NewEvent::new(name, module, kind, id).correlation_id(talk)
        };
        test.bus.publish(of("a.x", "m", "T", "1", "talk")).unwrap();
        test.clock.advance(SECOND);
        let events = [
            of("a.meant", "m", "T", "1", "talk"),
            of("b.x", "m", "T", "1", "talk"),
            of("a.x", "n", "T", "1", "talk"),
            of("a.x", "m", "U", "1", "talk"),
            of("a.x", "m", "T", "2", "talk"),
            of("a.x", "m", "T", "1", "other"),
            of("a.x", "m", "T", "ok", "talk"),
        ];
        test.bus.publish_all(events).unwrap();
        test.clock.advance(SECOND);
        test.bus.publish(of("a.x", "m", "T", "1", "talk")).unwrap();
        test.bus.drain().unwrap();
        let meant = filter()
            .name("a.*")
            .source_module("m")
            .aggregate_type("T")
            .aggregate_id("1")
            .status(OutboxStatus::DeadLetter)
            .status(OutboxStatus::Processed)
            .consumer("c")
            .published_from(start_time() + SECOND)
            .published_before(start_time() + 2 * SECOND)
            .correlation_id("talk")
            .error_contains("refus");
        assert_names(test, &meant, &["a.meant"]);
        assert_eq!(meant.clone(), meant);
        assert_ne!(meant.clone().name("a.meant"), meant);
    }
}

/// In a file of UTF-16 texts are stored, and would be ordered, otherwise.
#[test]
fn a_file_of_utf_16_is_filtered_alike() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    rusqlite::Connection::open(&path)
        .unwrap()
        .execute_batch("PRAGMA encoding = 'UTF-16le'; CREATE TABLE app (x)")
        .unwrap();
    let bus = postbox::Postbox::open(&path).unwrap();
    let published = ["日本.a", "日本.b", "日本", "日.c", "invoice.x", "invoice\u{12e}x", "𝄞.x"];
    bus.publish_all(published.map(event)).unwrap();
    let outbox = bus.outbox();
    assert_eq!(names(&outbox, &filter().name("日本.*")), ["日本.a", "日本.b"]);
    assert_eq!(names(&outbox, &filter().name("invoice.*")), ["invoice.x"]);
    assert_eq!(names(&outbox, &filter().name("𝄞.*")), ["𝄞.x"]);
    assert_eq!(names(&outbox, &filter().name("日本")), ["日本"]);
    let page = outbox.list(&filter(), &Page::oldest(10)).unwrap();
    assert!(page.events.iter().all(|event| event.unreadable.is_empty()));
    assert_eq!(ids(&page.events).len(), published.len());
}
