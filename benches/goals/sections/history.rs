//! What a long history, or a long backlog, costs those who come after it.

use std::time::Instant;

use postbox::{Context, Event, Postbox, Result, Settings, Subscription};

use crate::table::{self, Sample, rate_of};
use crate::{Bench, event, fill, open};

pub(crate) fn history(bench: &Bench) {
    let rows = bench.scale.history;
    let empty = subscribed(open(&bench.path("empty.db")));
    let full = subscribed(open(&bench.path("full.db")));
    fill(&full, rows);
    finish_all(&full);

    let count = bench.scale.singles;
    let [mut publish, mut deliver] = [(), ()].map(|()| (Sample::new(), Sample::new()));
    for _ in 0..bench.scale.rounds {
        for (postbox, published, delivered) in
            [(&empty, &mut publish.1, &mut deliver.1), (&full, &mut publish.0, &mut deliver.0)]
        {
            published.push(rate_of(count, || {
                (0..count).for_each(|number| {
                    postbox.publish(event(number)).expect("published");
                });
            }));
            delivered.push(rate_of(count, || assert!(postbox.drain().expect("drained") > 0)));
        }
    }
    table::rate(&format!("publish with {rows} processed (floor: empty)"), &publish.0, &publish.1, "0.95");
    table::rate(&format!("claim, settle with {rows} processed"), &deliver.0, &deliver.1, "0.95");
    table::figure(&format!("stats() with {rows} processed"), &time_of_stats(&full), "1 ms");

    fill(&full, rows);
    full.publish_all((0..rows / 10).map(|number| event(number).delay(std::time::Duration::from_hours(1))))
        .expect("published");
    table::figure(&format!("stats() with {rows} pending"), &time_of_stats(&full), "1 ms");
    let (mut crowded, mut alone) = (Sample::new(), Sample::new());
    for _ in 0..bench.scale.rounds {
        empty.publish_all((0..500).map(event)).expect("published");
        for (postbox, sample) in [(&empty, &mut alone), (&full, &mut crowded)] {
            sample.push(rate_of(500, || assert_eq!(postbox.process_batch().expect("a batch"), 500)));
        }
    }
    table::rate(&format!("a batch of 500 of {rows} pending"), &crowded, &alone, "0.95");
}

fn subscribed(postbox: Postbox) -> Postbox {
    postbox.update_settings(|settings: &mut Settings| settings.batch_size = 500).expect("settings");
    postbox
        .subscribe(Subscription::new("*", "operations", |_: &Event, _: &Context<'_>| Ok(())))
        .expect("subscribed");
    postbox
}

/// As if all had been delivered, with their inbox rows.
fn finish_all(postbox: &Postbox) {
    postbox
        .transaction(|tx| -> Result<()> {
            tx.execute_batch(
                "UPDATE outbox_event SET status = 'processed', lease_id = 0, processed_at = available_at WHERE status = 'pending';
                 INSERT INTO inbox_event (event, consumer_name, status, processed_at, created_at, updated_at)
                 SELECT seq, 'operations', 'processed', available_at, available_at, available_at FROM outbox_event;",
            )?;
            Ok(())
        })
        .expect("finished");
}

fn time_of_stats(postbox: &Postbox) -> String {
    let mut sample = Sample::new();
    for _ in 0..9 {
        let begun = Instant::now();
        postbox.stats().expect("stats");
        sample.push(begun.elapsed().as_secs_f64());
    }
    format!("{:.2} ms", sample.median() * 1e3)
}
