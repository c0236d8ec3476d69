//! Events that recur: a sync every quarter of an hour, a report each evening, and what becomes of their ticks while the machine is off,
//! while a schedule is paused, and when the clock goes back.
//!
//!     cargo run --example schedules
//!     cargo run --example schedules --features cron      # with cron expressions as well
//!
//! The clock is the example's own, so that a week takes no time.

use std::error::Error;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postbox::testing::ManualClock;
use postbox::time::OffsetDateTime;
use postbox::{Clock, Event, Misfire, NewEvent, Postbox, Schedule, Subscription, Tx};

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// 23 March 2026, 08:00 UTC.
const MONDAY: u64 = 1_774_252_800;

type Log = Arc<Mutex<Vec<String>>>;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("app.db");
    let clock = ManualClock::new(OffsetDateTime::UNIX_EPOCH + Duration::from_secs(MONDAY));
    let log = Log::default();

    let postbox = start(&file, &clock, &log)?;
    for _ in 0..4 {
        clock.advance(15 * MINUTE);
        postbox.drain()?; // a program starts a worker instead, which sleeps until the next tick
    }
    let ticks = take(&log);
    println!("running      {}", ticks.join(", "));
    assert_eq!(ticks, ["sync 08:15", "sync 08:30", "sync 08:45", "sync 09:00"]);

    // The machine is off for two days. Of the hourly readings the newest three are made up for; one report stands for both
    // evenings; the sync waits for its next tick.
    postbox.close()?;
    clock.advance(48 * HOUR + 5 * MINUTE);
    let postbox = start(&file, &clock, &log)?;
    postbox.drain()?;
    let ticks = take(&log);
    println!("off for 48h  {}", ticks.join(", "));
    assert_eq!(ticks, ["reading 07:00", "reading 08:00", "reading 09:00", "report 20:00"]);

    // Paused: what passes is not made up for.
    postbox.schedules().pause("reading")?;
    clock.advance(3 * HOUR);
    postbox.schedules().resume("reading")?;
    postbox.drain()?;
    clock.advance(HOUR);
    postbox.drain()?;
    let ticks: Vec<_> = take(&log).into_iter().filter(|tick| tick.starts_with("reading")).collect();
    println!("paused       {}", ticks.join(", "));
    assert_eq!(ticks, ["reading 13:00"]);

    // The clock is set back by half an hour: no tick comes twice.
    clock.set(clock.now() - 30 * MINUTE);
    for _ in 0..2 {
        clock.advance(15 * MINUTE);
        postbox.drain()?;
    }
    let ticks = take(&log);
    println!("set back     {}", if ticks.is_empty() { "nothing twice".to_owned() } else { ticks.join(", ") });
    assert!(ticks.is_empty(), "{ticks:?}");

    for schedule in postbox.schedules().list()? {
        let next = schedule.next_at.map_or_else(|| "-".to_owned(), time);
        println!("next         {} {next}", schedule.name);
    }
    #[cfg(feature = "cron")]
    by_expression(&postbox)?;
    postbox.close()?;
    Ok(())
}

/// What the application does whenever it starts. Schedules that are there already go on as they are.
fn start(file: &Path, clock: &ManualClock, log: &Log) -> postbox::Result<Postbox> {
    let postbox = Postbox::builder().clock(clock.clone()).open(file)?;
    let due = |what: &str| NewEvent::new(what, "office", "Job", what);
    let monday = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(MONDAY);
    let schedules = postbox.schedules();
    schedules.put("sync", Schedule::every(15 * MINUTE, due("sync")).misfire(Misfire::Skip))?;
    schedules.put("report", Schedule::every(24 * HOUR, due("report")).starting_at(monday + 12 * HOUR))?;
    let reading = Schedule::every(HOUR, due("reading")).starting_at(monday + 2 * HOUR);
    schedules.put("reading", reading.misfire(Misfire::All { max: 3 }))?;

    let log = Arc::clone(log);
    postbox.subscribe(Subscription::transactional("*", "office", move |event: &Event, _: &Tx<'_>| {
        if let (Some(name), Some(tick), Ok(mut log)) =
            (event.scheduled_by(), event.scheduled_for(), log.lock())
        {
            log.push(format!("{name} {}", time(tick)));
        }
        Ok(())
    }))?;
    Ok(postbox)
}

/// By the clocks on the wall in Berlin, where they go forward that Sunday.
#[cfg(feature = "cron")]
fn by_expression(postbox: &Postbox) -> Result<(), Box<dyn Error>> {
    let digest = NewEvent::new("digest", "office", "Job", "digest");
    postbox.schedules().put("digest", Schedule::cron("0 6 * * 5-7,1", "Europe/Berlin", digest.clone()))?;
    let times: Vec<_> = postbox.schedules().next_times("digest", 4)?.into_iter().map(time).collect();
    println!("06:00 Berlin {} UTC", times.join(", "));
    assert_eq!(times, ["05:00", "05:00", "04:00", "04:00"], "Friday, Saturday, and in summer time");

    let refused = postbox.schedules().put("digest", Schedule::cron("0 6 * * FRY", "Europe/Berlin", digest));
    println!("refused      {}", refused.err().ok_or("FRY is no day")?);
    Ok(())
}

fn time(at: OffsetDateTime) -> String {
    format!("{:02}:{:02}", at.hour(), at.minute())
}

fn take(log: &Log) -> Vec<String> {
    log.lock().map(|mut log| std::mem::take(&mut *log)).unwrap_or_default()
}
