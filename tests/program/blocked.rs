//! `blocked`: where nothing goes on for an ordered consumer.

use postbox::{Context, Event, HandlerError, NewEvent, Postbox, Subscription};

use super::run;

#[test]
fn blocked_entities_are_listed_and_free_once_somebody_has_decided() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    assert_eq!(run(dir.path(), &["blocked", "app.db"]).ok(), "No events wait behind one that has failed.\n");
    let handler = |event: &Event, _: &Context<'_>| match event.name() {
        "order.placed" => Err(HandlerError::dead_letter("no such customer")),
        _ => Ok(()),
    };
    bus.subscribe(Subscription::new("*", "shop.sync", handler).ordered()).unwrap();
    let of = |order: &str, name: &str| NewEvent::new(name, "sales", "Order", order);
    let ids = bus
        .publish_all([
            of("o-1", "order.placed"),
            of("o-1", "order.paid"),
            of("o-1", "order.shipped"),
            of("o-2", "order.placed"),
            of("o-2", "order.paid"),
            of("o-3", "order.paid"),
        ])
        .unwrap();
    assert_eq!(bus.drain().unwrap(), 1);

    let shown = run(dir.path(), &["blocked", "app.db"]).ok();
    let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines[0],
        ["module", "type", "entity", "id", "waiting", "behind", "event", "consumers", "error"]
    );
    let id = ids[0].to_string();
    let told = ["sales", "Order", "o-1", "2", &id, "order.placed", "shop.sync", "no", "such", "customer"];
    assert_eq!(lines[1], told, "{shown}");
    assert_eq!(lines.len(), 3, "{shown}");
    assert_eq!(run(dir.path(), &["blocked", "app.db", "--limit", "1"]).ok().lines().count(), 2);

    let stats = run(dir.path(), &["stats", "app.db", "--json"]).json();
    assert_eq!(stats["behind"], 3);
    let commands: Vec<&str> =
        stats["next"].as_array().unwrap().iter().map(|step| step["command"].as_str().unwrap()).collect();
    assert!(commands.contains(&"postbox blocked app.db"), "{commands:?}");

    let listed = run(dir.path(), &["blocked", "app.db", "--json"]).json();
    assert_eq!((&listed[1]["waiting"], &listed[1]["event"]["id"]), (&1.into(), &ids[3].to_string().into()));
    let discard = ["discard", "app.db", &id, "--reason", "the customer is gone", "--yes"];
    run(dir.path(), &discard).ok();
    assert_eq!(run(dir.path(), &["blocked", "app.db", "--json"]).json().as_array().unwrap().len(), 1);
    assert_eq!(bus.drain().unwrap(), 2, "what waited goes on in the application");
}
