//! The catalogue: which events are published, by whom, and who receives them.

mod support;

use postbox::{CatalogueEntry, Context, DomainEvent, Event, EventDeclaration, Postbox, Subscription};
use serde::{Deserialize, Serialize};

use crate::support::{TestBox, boxes, file_box, refused_field};

#[derive(Serialize, Deserialize)]
struct Created {}

impl DomainEvent for Created {
    const NAME: &'static str = "invoice.created";
    const SOURCE_MODULE: &'static str = "finance";
    const AGGREGATE_TYPE: &'static str = "Invoice";
    const VERSION: u32 = 2;
    const FORMER_NAMES: &'static [&'static str] = &["bill.created"];

    fn aggregate_id(&self) -> String {
        "inv-1".to_owned()
    }
}

fn to(name: &str, consumer: &str) -> Subscription {
    Subscription::new(name, consumer, |_: &Event, _: &Context<'_>| Ok(()))
}

fn declare(bus: &Postbox, name: &str, version: u32, module: &str) {
    bus.catalogue().declare_event(EventDeclaration::new(name, version, module)).unwrap();
}

fn shown(entry: &CatalogueEntry) -> String {
    let versions: Vec<String> = entry
        .versions
        .iter()
        .map(|of| {
            format!(
                "{}{}",
                of.version,
                of.aggregate_type.as_ref().map_or(String::new(), |of| format!(" {of}"))
            )
        })
        .collect();
    let list = |list: &[String]| list.join(",");
    format!(
        "{} [{}] ({}) {} -> {}",
        entry.name,
        list(&entry.former_names),
        versions.join(","),
        list(&entry.publishers),
        list(&entry.consumers)
    )
}

fn all(bus: &Postbox) -> Vec<String> {
    bus.catalogue().entries().iter().map(shown).collect()
}

#[test]
fn entries_have_names_versions_publishers_and_consumers_in_their_order() {
    for TestBox { kind, bus, .. } in &boxes() {
        let catalogue = bus.catalogue();
        catalogue.declare::<Created>().unwrap();
        catalogue.declare::<Created>().unwrap();
        declare(bus, "invoice.created", 1, "legacy");
        declare(bus, "order.placed", 1, "sales");
        bus.subscribe_many([
            to("invoice.*", "last"),
            Subscription::typed::<Created>("first", |_, _| Ok(())).priority(1),
            to("invoice.created", "second").alias("rechnung.erstellt"),
            to("paid", "mail"),
        ])
        .unwrap();
        assert_eq!(
            all(bus),
            [
                "invoice.created [bill.created,rechnung.erstellt] (1,2 Invoice) finance,legacy -> first,last,second",
                "order.placed [] (1) sales -> ",
                "paid [] ()  -> mail",
            ],
            "{kind}"
        );
        assert!(catalogue.entries().iter().all(|entry| entry.versions.iter().all(|of| !of.has_schema)));
        bus.registry().remove_by_consumer_prefix("second");
        assert!(
            all(bus)[0].starts_with("invoice.created [bill.created] "),
            "{kind}: it follows the subscriptions"
        );
    }
}

#[test]
fn what_nobody_handles_and_what_nobody_publishes_is_found_through_patterns_and_aliases() {
    for TestBox { kind, bus, .. } in &boxes() {
        for name in ["by.name", "by.pattern", "by.old_name", "by_nobody", "by_nobody.below"] {
            declare(bus, name, 1, "m");
        }
        bus.catalogue().declare::<Created>().unwrap();
        bus.subscribe_many([
            to("by.name", "c"),
            to("by.pattern.*", "none below"),
            to("by.pattern", "c"),
            to("by.new_name", "c").alias("by.old_name"),
            to("nobody", "c"),
            to("nobody", "d").alias("nor.that"),
            to("none.*", "c"),
            to("bill.created", "c"), // events have another name by now
        ])
        .unwrap();
        let catalogue = bus.catalogue();
        assert_eq!(catalogue.unhandled(), ["by_nobody", "by_nobody.below", "invoice.created"], "{kind}");
        assert_eq!(catalogue.unpublished(), ["bill.created", "by.pattern.*", "nobody", "none.*"], "{kind}");
        bus.subscribe(to("*", "all")).unwrap();
        assert_eq!(catalogue.unhandled(), [""; 0], "{kind}");
        assert_eq!(catalogue.unpublished().len(), 4, "{kind}: `*` matches what is declared");
    }
}

#[test]
fn where_nothing_is_declared_everything_that_is_subscribed_to_is_unpublished() {
    for TestBox { bus, .. } in &boxes() {
        assert!(bus.catalogue().entries().is_empty() && bus.catalogue().unpublished().is_empty());
        bus.subscribe_many([to("*", "c"), to("a.*", "c"), to("a", "c")]).unwrap();
        assert_eq!(bus.catalogue().unpublished(), ["*", "a", "a.*"]);
        assert_eq!(all(bus), ["a [] ()  -> c"]);
    }
}

#[test]
fn declarations_that_contradict_are_refused_and_change_nothing() {
    for TestBox { bus, .. } in &boxes() {
        let new = |name: &str, version| EventDeclaration::new(name, version, "m");
        let declare = |event: EventDeclaration| bus.catalogue().declare_event(event);
        declare(new("a", 1).aggregate_type("A").former_name("old")).unwrap();
        let before = all(bus);
        let refused = declare(new("a", 1).aggregate_type("B").former_name("older"));
        let said = refused.as_ref().unwrap_err().to_string();
        assert_eq!(said, "invalid aggregate_type: version 1 of `a` was declared with `A`, not `B`");
        assert_eq!(refused_field(refused), "aggregate_type");
        assert_eq!(refused_field(declare(new("b", 1).former_name("old"))), "former_name");
        assert_eq!(refused_field(declare(new("b", 1).former_name("b"))), "former_name");
        assert_eq!(refused_field(declare(new("b", 0))), "version");
        assert_eq!(refused_field(declare(new("b.*", 1))), "event_name");
        assert_eq!(refused_field(declare(new(" ", 1))), "event_name");
        assert_eq!(refused_field(declare(new("b", 1).former_name("c.*"))), "event_name");
        assert_eq!(refused_field(declare(new("b", 1).aggregate_type(""))), "aggregate_type");
        assert_eq!(refused_field(declare(EventDeclaration::new("b", 1, ""))), "source_module");
        assert_eq!(all(bus), before);
        // Another version may be about something else, and who says nothing contradicts nobody.
        declare(new("a", 2).aggregate_type("B")).unwrap();
        declare(new("a", 1)).unwrap();
        assert_eq!(all(bus), ["a [old] (1 A,2 B) m -> "]);
    }
}

#[test]
fn it_is_declared_anew_at_every_start() {
    let test_box = file_box();
    test_box.bus.catalogue().declare::<Created>().unwrap();
    let test_box = test_box.reopen();
    assert!(test_box.bus.catalogue().entries().is_empty());
}
