//! A small application and its tests: `cargo run --example testing_your_app --features testing`
//!
//! Each function below `tests` would be a `#[test]` of an application that has postbox with the feature `testing` among its
//! dev-dependencies. Here `main` calls them, so that they say what they have seen.

use postbox::{Error, Postbox, Subscription};

mod shop {
    //! The application: it takes orders, sends mail and keeps the books.

    use postbox::serde_json::{Value, json};
    use postbox::{Context, Error, Event, HandlerError, HandlerResult, NewEvent, Postbox, Tx};

    pub(crate) fn make_tables(postbox: &Postbox) -> Result<(), Error> {
        let sql = "CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY);
                   CREATE TABLE IF NOT EXISTS ledger (order_id TEXT, cents INTEGER)";
        postbox.transaction(|tx| Ok(tx.execute_batch(sql)?))
    }

    pub(crate) fn place_order(
        postbox: &Postbox,
        id: &str,
        email: &str,
        skus: &[&str],
    ) -> Result<bool, Error> {
        let lines: Vec<Value> = skus.iter().map(|sku| json!({ "sku": sku, "cents": 250 })).collect();
        if lines.is_empty() {
            return Ok(false);
        }
        let payload = json!({ "email": email, "lines": lines, "cents": 250 * lines.len() });
        postbox.transaction(|tx| {
            tx.execute("INSERT INTO orders VALUES (?1)", [id])?;
            tx.publish(NewEvent::new("order.placed", "sales", "Order", id).payload(payload))
        })?;
        Ok(true)
    }

    /// Effects outside of the file: at least once.
    pub(crate) fn send_mail(event: &Event, cx: &Context<'_>) -> HandlerResult {
        let email = event.payload()["email"].as_str().filter(|email| email.contains('@'));
        let email = email.ok_or_else(|| HandlerError::dead_letter("no address"))?;
        let sent = NewEvent::new("mail.sent", "mail", "Mail", email).idempotency_key(event.id().to_string());
        cx.publish(sent)?;
        Ok(())
    }

    /// Effects in the file: exactly once.
    pub(crate) fn book(event: &Event, tx: &Tx<'_>) -> HandlerResult {
        let cents = event.payload()["cents"].as_i64().ok_or_else(|| HandlerError::dead_letter("no sum"))?;
        tx.execute("INSERT INTO ledger VALUES (?1, ?2)", (event.aggregate_id(), cents))?;
        Ok(())
    }
}

/// What the application does at its start.
fn start(postbox: &Postbox) -> Result<(), Error> {
    shop::make_tables(postbox)?;
    postbox.subscribe(Subscription::new("order.placed", "mail", shop::send_mail))?;
    postbox.subscribe(Subscription::transactional("order.placed", "books", shop::book))
}

mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use postbox::serde_json::json;
    use postbox::testing::{
        CrashPoint, Outcome, Recorder, TestBox, assert_dead_lettered, assert_processed, assert_published,
        event, fail_attempt, refute_published, run_handler, that,
    };
    use postbox::{HandlerError, NewEvent, Subscription, Tx};

    use crate::{shop, start};

    pub(crate) fn an_order_is_published_with_its_lines() {
        let postbox = TestBox::new();
        shop::make_tables(&postbox).unwrap();
        assert!(shop::place_order(&postbox, "o-1", "ada@example.com", &["pen", "ink"]).unwrap());
        let placed = assert_published!(
            postbox,
            "order.placed",
            { "lines": [{ "sku": "pen" }, { "sku": "ink" }], "cents": that(|cents| cents.as_i64() > Some(0)) },
            aggregate_id = "o-1",
        );
        println!("placed       {} is published with its lines", placed.event_name);
    }

    pub(crate) fn an_order_without_lines_is_refused() {
        let postbox = TestBox::new();
        shop::make_tables(&postbox).unwrap();
        assert!(!shop::place_order(&postbox, "o-1", "ada@example.com", &[]).unwrap());
        refute_published!(postbox, "*");
        println!("refused      nothing is published for an order without lines");
    }

    pub(crate) fn mail_goes_out_once_the_server_is_back() {
        let postbox = TestBox::new();
        shop::make_tables(&postbox).unwrap();
        let mail = fail_attempt(1, HandlerError::retry("connection refused"), shop::send_mail);
        let mail = fail_attempt(2, HandlerError::retry("timed out"), mail);
        postbox.subscribe(Subscription::new("order.placed", "mail", mail)).unwrap();
        shop::place_order(&postbox, "o-1", "ada@example.com", &["pen"]).unwrap();
        postbox.drain_all();
        let placed = assert_processed!(postbox, "order.placed", by = "mail");
        assert_published!(postbox, "mail.sent", caused_by = placed.id, count = 1);
        assert_eq!(placed.attempt_count, 3);
        println!("mailed       at the third attempt, and once");
    }

    pub(crate) fn an_order_without_an_address_is_a_dead_letter() {
        // The handler alone, and then in its place.
        let postbox = TestBox::new();
        let placed = NewEvent::new("order.placed", "sales", "Order", "o-1").payload(json!({ "email": "" }));
        let ran = run_handler(&postbox, &event(placed), &shop::send_mail);
        assert_eq!(ran.outcome, Outcome::DeadLetter { why: "no address".to_owned() });

        start(&postbox).unwrap();
        shop::place_order(&postbox, "o-1", "nowhere", &["pen"]).unwrap();
        postbox.drain_all();
        assert_dead_lettered!(postbox, "order.placed", by = "mail", error = "no address");
        assert_processed!(postbox, "order.placed", by = "books");
        println!("dead letter  an order without an address");
    }

    pub(crate) fn each_order_is_booked_exactly_once_wherever_the_process_dies() {
        let steps = [
            CrashPoint::AfterPublish,
            CrashPoint::AfterClaim,
            CrashPoint::BeforeHandler,
            CrashPoint::AfterHandler,
            CrashPoint::BeforeCommit,
            CrashPoint::AfterCommit,
            CrashPoint::AfterSettle,
        ];
        for step in steps {
            let mail = Recorder::new("more.mail");
            let at_start = mail.clone();
            let mut postbox = TestBox::builder()
                .setup(|postbox| start(postbox).unwrap())
                .setup(move |postbox| {
                    postbox.subscribe(at_start.around("order.*", shop::send_mail)).unwrap();
                })
                .open();
            postbox.crash_at(step, |postbox| {
                shop::place_order(postbox, "o-1", "ada@example.com", &["pen"]).unwrap();
                postbox.drain_all();
            });
            postbox.drain_all();
            let booked = |tx: &Tx<'_>| {
                Ok::<u32, postbox::Error>(tx.query_row("SELECT count(*) FROM ledger", [], |row| row.get(0))?)
            };
            assert_eq!(postbox.transaction(booked).unwrap(), 1, "{step:?}");
            assert!(!mail.handled().is_empty(), "{step:?}");
            assert_published!(postbox, "mail.sent", count = 1);
        }
        println!("crashed      at {} steps, and each order was booked exactly once", steps.len());
    }

    pub(crate) fn what_a_failing_assertion_says() {
        let postbox = TestBox::new();
        shop::make_tables(&postbox).unwrap();
        shop::place_order(&postbox, "o-1", "ada@example.com", &["ink"]).unwrap();
        let failing = || assert_published!(postbox, "order.placed", { "lines": [{ "sku": "pen" }] });
        let said = catch_unwind(AssertUnwindSafe(failing)).expect_err("it is to fail");
        println!("\n{}", said.downcast_ref::<String>().expect("text"));
    }
}

fn main() {
    tests::an_order_is_published_with_its_lines();
    tests::an_order_without_lines_is_refused();
    tests::mail_goes_out_once_the_server_is_back();
    tests::an_order_without_an_address_is_a_dead_letter();
    tests::each_order_is_booked_exactly_once_wherever_the_process_dies();
    tests::what_a_failing_assertion_says();
}
