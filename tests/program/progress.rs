//! Bars of what takes long, on a terminal.

use postbox::{Context, Event, Postbox, Subscription};

use crate::run;
use crate::support::{event, wait_until};
use crate::terminal::Terminal;

const MANY: usize = 2_000;

#[test]
fn replays_show_how_far_they_are_and_consumers_how_much_is_still_to_be_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    bus.subscribe(Subscription::new("a", "ledger", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
    bus.publish_all((0..MANY).map(|_| event("a"))).unwrap();
    bus.drain().unwrap();
    for (command, consumer) in [("replay", "ledger"), ("catch-up", "search")] {
        let args = [command, "app.db", "--consumer", consumer, "--yes"];
        let mut terminal = Terminal::run(dir.path(), &args, 24, 100);
        assert_eq!(terminal.ended().code(), Some(0));
        wait_until("its result", || terminal.written().contains("2000 processed events "));
        let written = terminal.written();
        let seen = |position: &str| written.contains(&format!("{position}/{MANY}"));
        assert!(written.contains("made due ") && (1..=10).any(|n| seen(&(n * 200).to_string())), "{written}");

        let left = |consumer: &str| {
            let consumers = run(dir.path(), &["consumers", "app.db", "--json"]).json();
            let mut consumers = consumers.as_array().unwrap().clone();
            consumers.retain(|one| one["name"] == consumer);
            consumers.first().map_or(0, |one| one["to_replay"].as_u64().unwrap())
        };
        assert_eq!(left(consumer), MANY as u64, "{command}");
        bus.subscribe(Subscription::new("*", "search", |_: &Event, _: &Context<'_>| Ok(()))).ok();
        bus.process_batch().unwrap();
        let batch = u64::from(bus.settings().batch_size);
        assert_eq!(left(consumer), MANY as u64 - batch, "{command}");
        bus.drain().unwrap();
        assert_eq!(left(consumer), 0, "{command}");
    }
}
