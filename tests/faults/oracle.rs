//! What must be true of the files whatever happened, as the application and its users would see it. It answers with what is
//! wrong, and so can also tell that a broken build is broken.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postbox::rusqlite::Connection;
use postbox::testing::ManualClock;
use postbox::uuid::Uuid;
use postbox::{EventId, Postbox};
use time::OffsetDateTime;

use crate::life::{self, Build, EFFECTS, Files, PLACED, Replaced, Witness};
use crate::support::LIMIT;

/// What a life told the outside before it was cut short.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) acknowledged: HashSet<String>,
    pub(crate) handled: HashSet<String>,
    /// These were said to be new.
    pub(crate) replaced: Vec<Replaced>,
}

/// By what clock the file is recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// The machine's: what was in the hands of the dead is due at once.
    AtOnce,
    /// An hour later, when every lease has run out: a power cut may have taken the proof of death.
    Later,
}

/// How the application that recovers is built, and when it does.
pub(crate) fn check(files: &Files, told: &Told, build: Build, recovery: Recovery) -> Vec<String> {
    let mut wrong = Vec::new();
    if files.app.exists() {
        if let Err(error) = recover(&files.app, told, build, recovery, &mut wrong) {
            wrong.push(format!("the file cannot be recovered: {error}"));
        }
    } else if !told.acknowledged.is_empty() {
        wrong.push("the file is gone".to_owned());
    }
    for (copy, what) in [(&files.copy, Replaced::Copy), (&files.restored, Replaced::Restored)] {
        if !copy.exists() {
            wrong.push(format!("{what:?} is neither the old nor the new file"));
        } else if let Err(error) = check_copy(copy, told.replaced.contains(&what), &mut wrong) {
            wrong.push(format!("{what:?} is not whole: {error}"));
        }
    }
    wrong
}

fn recover(
    app: &Path,
    told: &Told,
    build: Build,
    recovery: Recovery,
    wrong: &mut Vec<String>,
) -> postbox::Result<()> {
    let (start, step) = match recovery {
        Recovery::AtOnce => (Duration::ZERO, Duration::from_millis(1)), // the backoff of a retry
        Recovery::Later => (Duration::from_hours(1), Duration::from_mins(1)),
    };
    let clock = ManualClock::new(OffsetDateTime::now_utc() + start);
    let bus = Postbox::builder().settings(life::patient()).clock(clock.clone()).open(app)?;
    let before = Contents::of(app)?;
    let mut say = |what: &str, ids: Vec<&String>| {
        if !ids.is_empty() {
            wrong.push(format!("{what}: {ids:?}"));
        }
    };
    say("lost", told.acknowledged.iter().filter(|id| !before.events.contains_key(*id)).collect());
    say(
        "handled and never committed",
        told.handled.iter().filter(|id| !before.events.contains_key(*id)).collect(),
    );
    before.check_consistent(wrong);

    // What is left is done, each once.
    let witness = Arc::new(Recovering::default());
    life::subscribe(&bus, app, build, witness);
    for _ in 0..50 {
        bus.drain()?;
        let stats = bus.stats()?;
        if stats.pending + stats.processing == 0 {
            break;
        }
        clock.advance(step);
    }
    let stats = bus.stats()?;
    bus.close()?;
    let after = Contents::of(app)?;
    if stats.processed != after.count("processed") || stats.total != after.events.len() as u64 {
        wrong.push(format!("{stats:?} miscounts"));
    }
    after.check_consistent(wrong);
    after.check_done(wrong);
    let gone: Vec<_> = before.events.keys().filter(|id| !after.events.contains_key(*id)).collect();
    if !gone.is_empty() {
        wrong.push(format!("lost while recovering: {gone:?}"));
    }
    Ok(())
}

/// A backup, or what was restored from one: a whole file of some moment.
fn check_copy(copy: &Path, must_be_new: bool, wrong: &mut Vec<String>) -> postbox::Result<()> {
    let mut of_copy = Vec::new();
    let contents = Contents::of(copy)?;
    contents.check_consistent(&mut of_copy);
    if must_be_new && contents.version == 1 {
        of_copy.push("the new file is lost".to_owned());
    }
    wrong.extend(of_copy.into_iter().map(|what| format!("in {}: {what}", copy.display())));
    Ok(())
}

#[derive(Default)]
struct Recovering(Mutex<Vec<EventId>>);

impl Witness for Recovering {
    fn acknowledged(&self, _: EventId) {}

    fn handled(&self, id: EventId) {
        self.0.lock().unwrap().push(id);
    }

    fn replaced(&self, _: Replaced) {}
}

/// What stands in a file, read by plain SQLite.
struct Contents {
    /// Name and status, by id.
    events: HashMap<String, (String, String)>,
    placed: Vec<String>,
    effects: Vec<String>,
    /// Events that the transactional consumer has processed.
    marked: HashSet<String>,
    /// Events that caused a follow-up.
    causes: Vec<String>,
    integrity: String,
    /// Of the schema; the files that were there before hold version 1.
    version: i64,
}

impl Contents {
    fn of(path: &Path) -> postbox::Result<Self> {
        let conn = Connection::open(path)?;
        conn.busy_timeout(LIMIT)?;
        let texts = |sql: &str| -> postbox::Result<Vec<String>> {
            Ok(conn.prepare(sql)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
        };
        let ids = |sql: &str| -> postbox::Result<Vec<String>> {
            let ids = conn
                .prepare(sql)?
                .query_map([], |row| row.get::<_, Uuid>(0))?
                .collect::<Result<Vec<_>, _>>()?;
            Ok(ids.iter().map(Uuid::to_string).collect())
        };
        let events = conn
            .prepare("SELECT id, event_name, status FROM outbox_event")?
            .query_map([], |row| Ok((row.get::<_, Uuid>(0)?.to_string(), (row.get(1)?, row.get(2)?))))?
            .collect::<Result<_, _>>()?;
        let marked = ids(&format!(
            "SELECT o.id FROM inbox_event i JOIN outbox_event o ON o.seq = i.event
             WHERE i.consumer_name = '{EFFECTS}' AND i.status = 'processed'"
        ))?;
        Ok(Contents {
            events,
            placed: texts("SELECT event FROM placed")?,
            effects: texts("SELECT event FROM effect")?,
            marked: marked.into_iter().collect(),
            causes: ids("SELECT causation_id FROM outbox_event WHERE causation_id IS NOT NULL")?,
            integrity: texts("PRAGMA integrity_check")?.join("; "),
            version: conn.query_row("SELECT version FROM postbox_schema", [], |row| row.get(0))?,
        })
    }

    fn count(&self, status: &str) -> u64 {
        self.events.values().filter(|(_, of)| of == status).count() as u64
    }

    fn orders(&self) -> impl Iterator<Item = &String> {
        self.events.iter().filter(|(_, (name, _))| name == PLACED).map(|(id, _)| id)
    }

    /// True at every moment.
    fn check_consistent(&self, wrong: &mut Vec<String>) {
        if self.integrity != "ok" {
            wrong.push(format!("integrity_check: {}", self.integrity));
        }
        let placed: HashSet<_> = self.placed.iter().collect();
        let orders: HashSet<_> = self.orders().collect();
        if placed.len() != self.placed.len() {
            wrong.push("rows of the application are doubled".to_owned());
        }
        for id in orders.difference(&placed) {
            wrong.push(format!("an event without its row: {id}"));
        }
        for id in placed.difference(&orders) {
            wrong.push(format!("a row without its event: {id}"));
        }
        let effects: HashSet<_> = self.effects.iter().collect();
        if effects.len() != self.effects.len() {
            wrong.push(format!("effects are doubled: {} of {} events", self.effects.len(), effects.len()));
        }
        for id in effects.iter().filter(|id| !self.marked.contains(**id)) {
            wrong.push(format!("an effect without its mark: {id}"));
        }
        for id in self.marked.iter().filter(|id| !effects.contains(id)) {
            wrong.push(format!("a mark without its effect: {id}"));
        }
        let causes: HashSet<_> = self.causes.iter().collect();
        if causes.len() != self.causes.len() || causes.iter().any(|id| !effects.contains(*id)) {
            wrong.push("follow-ups are doubled, or have no effect beside them".to_owned());
        }
    }

    /// True once everything was delivered.
    fn check_done(&self, wrong: &mut Vec<String>) {
        for (id, (name, status)) in self.events.iter().filter(|(_, (_, status))| status != "processed") {
            wrong.push(format!("the {name} {id} stays {status}"));
        }
        let effects: HashSet<_> = self.effects.iter().collect();
        for id in self.orders().filter(|id| !effects.contains(id)) {
            wrong.push(format!("an effect never happened: {id}"));
        }
    }
}
