//! Tuning, stopping and resuming while a worker runs, by the application and by an operator's process. Nothing is lost
//! meanwhile, and what was set is kept in the file.
//!
//!     cargo run --example settings_at_runtime

use std::error::Error;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use postbox::{Context, Event, NewEvent, Postbox, Subscription};

const LIMIT: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("app.db");

    let app = Postbox::open(&file)?;
    let (printed, prints) = channel();
    app.subscribe(Subscription::new("label.requested", "printer", move |_: &Event, _: &Context<'_>| {
        Ok(printed.send(())?)
    }))?;
    let worker = app.start()?;

    // A second box on the same file, as another process has it: an admin tool, say.
    let operator = Postbox::open(&file)?;

    request_labels(&app, 1)?;
    wait_for(1, &prints)?;
    println!("running          1 label printed");

    // Stop everything. Publishing goes on.
    app.update_settings(|settings| settings.enabled = false)?;
    request_labels(&app, 5)?;
    let quiet = prints.recv_timeout(Duration::from_millis(300));
    assert_eq!(quiet, Err(RecvTimeoutError::Timeout), "nothing is delivered while the box is off");
    assert_eq!(app.stats()?.pending, 5);
    println!("switched off     5 labels wait");

    // The operator resumes. The worker of the other process notices within a second.
    operator.update_settings(|settings| settings.enabled = true)?;
    wait_for(5, &prints)?;
    println!("switched on      5 labels printed");

    // Stop only the worker, and take batches by hand: they follow the operator's size from one to the next.
    app.update_settings(|settings| settings.processor_enabled = false)?;
    request_labels(&app, 10)?;
    for (batch_size, expected) in [(4, 4), (100, 6)] {
        operator.update_settings(|settings| settings.batch_size = batch_size)?;
        let taken = app.process_batch()?;
        assert_eq!(taken, expected);
        println!("batch_size {batch_size:<5} {taken} labels in one batch");
    }
    wait_for(10, &prints)?;

    // A bad value is refused by its name, and nothing is changed.
    let before = operator.settings();
    let refused = operator.update_settings(|settings| settings.batch_size = 0).expect_err("0 is no batch");
    assert!(matches!(refused, postbox::Error::Invalid { field: "batch_size", .. }));
    assert_eq!(operator.settings(), before);
    println!("refused          {refused}");

    app.update_settings(|settings| settings.processor_enabled = true)?;
    request_labels(&app, 1)?;
    wait_for(1, &prints)?;
    println!("worker resumed   1 label printed");

    worker.shutdown(LIMIT)?;
    let stats = app.stats()?;
    assert_eq!((stats.processed, stats.total), (17, 17));
    operator.close()?;
    app.close()?;

    let settings = Postbox::open(&file)?.settings();
    assert_eq!(settings.batch_size, 100);
    println!("opened again     batch_size is still {}", settings.batch_size);
    Ok(())
}

fn request_labels(postbox: &Postbox, count: usize) -> postbox::Result<()> {
    let label = |n| NewEvent::new("label.requested", "shop", "Label", format!("label-{n}"));
    postbox.publish_all((1..=count).map(label))?;
    Ok(())
}

fn wait_for(count: usize, prints: &Receiver<()>) -> Result<(), RecvTimeoutError> {
    (0..count).try_for_each(|_| prints.recv_timeout(LIMIT))
}
