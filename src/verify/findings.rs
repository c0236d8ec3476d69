//! What the figures of a look come to, in words.

use std::time::Duration;

use time::OffsetDateTime;

use super::audit::{Counter, Events, Sagas, Unreadable};
use super::{Finding, Severity};
use crate::clock::{LATEST, from_micros};
use crate::db::owner::OwnerState;
use crate::db::schema::Differences;
use crate::error::Error;
use crate::outbox::claim::LeaseId;
use crate::schedule::table::Flaw;

/// A -wal that is larger was kept from being emptied.
const WAL_BYTES_MAX: u64 = 64 << 20;

/// So many bytes of free pages are worth a word, if they are a quarter of the file.
const FREE_BYTES_MIN: u64 = 1 << 20;

/// Clocks of two machines may differ by so much.
const AHEAD_MAX: Duration = Duration::from_hours(1);

#[derive(Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, severity: Severity, check: &'static str, what: impl Into<String>, advice: &str) {
        self.0.push(Finding { severity, check, what: what.into(), advice: advice.to_owned() });
    }

    pub(super) fn worst_first(mut self) -> Vec<Finding> {
        self.0.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        self.0
    }

    pub(super) fn integrity(&mut self, found: Vec<String>) {
        for what in found {
            let advice = "keep a copy of the file with its -wal, then restore the last good backup; what SQLite can still \
                          read, its `.recover` command saves";
            self.add(Severity::Error, "integrity", what, advice);
        }
    }

    pub(super) fn unreadable(&mut self, error: &Error) {
        let what = format!("the rows cannot all be read: {error}");
        self.add(Severity::Error, "integrity", what, "restore the last good backup");
    }

    pub(super) fn schema(&mut self, differences: &Differences) {
        for object in &differences.missing {
            let advice = "somebody has dropped it: restore the last good backup, or make it again as schema.sql of this release does";
            self.add(Severity::Error, "schema", format!("the {object} is missing"), advice);
        }
        for object in &differences.changed {
            let advice = "somebody has changed it: compare it with schema.sql of this release";
            self.add(Severity::Warning, "schema", format!("the {object} is not as postbox makes it"), advice);
        }
        for object in &differences.foreign {
            let advice =
                "nothing, if the application made it; a trigger can refuse or swallow what postbox writes";
            self.add(Severity::Note, "schema", format!("the {object} is not postbox's"), advice);
        }
    }

    pub(super) fn counters(&mut self, events: &Events, counter: Option<&Counter>) {
        const ADVICE: &str = "statistics may be off, and deliveries are not: the application sets it right when it next opens the \
                              file with fewer than 5,000 pending events";
        let Some(counter) = counter else {
            let advice = "somebody has deleted it: INSERT INTO main.postbox_counter (singleton) VALUES (1), while nobody has the file open";
            self.add(Severity::Error, "counters", "postbox_counter has no row", advice);
            return;
        };
        if counter.processed != events.processed {
            let what = format!(
                "processed events: {} by the counter, {} by counting",
                counter.processed, events.processed
            );
            self.add(Severity::Warning, "counters", what, ADVICE);
        }
        let total = counter.last_deleted.max(events.newest).saturating_sub(counter.deleted);
        if total != events.numbered {
            let what = format!("events: {total} by the counter, {} by counting", events.numbered);
            let advice = "statistics may be off, and deliveries are not: another program has inserted or deleted rows; set \
                          `deleted` of postbox_counter right";
            self.add(Severity::Warning, "counters", what, advice);
        }
    }

    pub(super) fn events(&mut self, events: &Events, unreadable: &Unreadable) {
        const SET_ASIDE: &str = "another program wrote that: the application sets them aside as dead letters when it next opens the file";
        let cases = [
            (
                Severity::Error,
                unreadable.json,
                "whose payload or metadata is no JSON",
                "another program wrote it: they cannot be delivered, and end as dead letters",
            ),
            (
                Severity::Error,
                unreadable.text,
                "of whose texts one is no UTF-8",
                "another program wrote it: they cannot be delivered, or not be exported; `postbox show` names the column",
            ),
            (Severity::Warning, events.unknown_status, "of a status that nobody knows", SET_ASIDE),
            (
                Severity::Warning,
                events.never_due,
                "that are due after the year 9999, that is, never",
                SET_ASIDE,
            ),
            (
                Severity::Warning,
                events.misnumbered,
                "of a number that no box can have given",
                "another program wrote them, and what consumers did with them cannot be noted: publish them anew, and delete these",
            ),
            (
                Severity::Note,
                events.dead_letter + events.failed,
                "that have failed for good",
                "look at their errors, and retry or discard them",
            ),
            (
                Severity::Note,
                events.held,
                "that wait for somebody to subscribe to them",
                "nothing, if the consumer is still to come",
            ),
            (
                Severity::Note,
                events.paused,
                "that wait for what is paused",
                "resume it when its reason is gone",
            ),
            (
                Severity::Note,
                events.waiting,
                "that wait for their turn",
                "nothing, while those before them are on their way; behind one that has failed, retry or discard that one",
            ),
            (
                Severity::Note,
                events.limited,
                "that wait for room with a consumer that has limits",
                "nothing: they go on as soon as its limits let them, where the application runs",
            ),
            (
                Severity::Note,
                events.newer,
                "that wait for a release that knows their payload's version",
                "start that release of the application",
            ),
        ];
        for (severity, count, what, advice) in cases {
            if count > 0 {
                self.add(severity, "events", format!("events {what}: {count}"), advice);
            }
        }
    }

    pub(super) fn claims(
        &mut self,
        claims: &[(LeaseId, i64)],
        now: i64,
        state_of: impl Fn(u32) -> OwnerState,
    ) {
        let state = |lease: LeaseId| lease.owner().map_or(OwnerState::Unknown, &state_of);
        let count = |wanted, over: bool| {
            claims.iter().filter(|(lease, until)| state(*lease) == wanted && (*until <= now) == over).count()
        };
        let dead = count(OwnerState::Dead, false) + count(OwnerState::Dead, true);
        if dead > 0 {
            let what = format!("events that a process has claimed which died: {dead}");
            let advice =
                "the application takes them over when it next opens the file, or within a poll where it runs";
            self.add(Severity::Warning, "claims", what, advice);
        }
        let late = count(OwnerState::Alive, true);
        if late > 0 {
            let what = format!("events whose lease has run out under a process that lives: {late}");
            let advice = "look whether it hangs, or whether `processing_lease_ms` is too short for handlers that run by hand";
            self.add(Severity::Warning, "claims", what, advice);
        }
        let unknown = count(OwnerState::Unknown, false) + count(OwnerState::Unknown, true);
        if unknown > 0 {
            let what = format!("events that a process has claimed of which nothing is known here: {unknown}");
            let advice = "nothing: in a copy that is usual, and they are due when their leases have run out";
            self.add(Severity::Note, "claims", what, advice);
        }
    }

    pub(super) fn inbox(&mut self, orphaned: i64, misplaced: i64) {
        if orphaned > 0 {
            let what = format!("inbox rows about events that are not there: {orphaned}");
            let advice = "the trigger outbox_event_deleted was missing, or another program wrote them: they can be deleted";
            self.add(Severity::Warning, "inbox", what, advice);
        }
        if misplaced > 0 {
            let what = format!("inbox rows under another consumer's number: {misplaced}");
            let advice = "another program wrote them, and what they say is not seen: their consumers may be asked again";
            self.add(Severity::Error, "inbox", what, advice);
        }
    }

    pub(super) fn history(&mut self, orphaned: i64) {
        if orphaned > 0 {
            let what = format!("rows of postbox_history about events that are not there: {orphaned}");
            let advice = "the trigger outbox_event_deleted was missing: they can be deleted";
            self.add(Severity::Warning, "history", what, advice);
        }
    }

    pub(super) fn sagas(&mut self, sagas: &Sagas) {
        if sagas.unreadable > 0 {
            let what = format!("sagas whose row cannot be read: {}", sagas.unreadable);
            let advice = "another program has spoilt them: their events end as dead letters; set the rows right, and retry those";
            self.add(Severity::Error, "sagas", what, advice);
        }
        if sagas.waiting_in_vain > 0 {
            let what =
                format!("sagas that wait for a timeout which does not come: {}", sagas.waiting_in_vain);
            let advice = "its event was cancelled, discarded or deleted, or nobody subscribed to it: `postbox sagas show`, then compensate or complete them";
            self.add(Severity::Warning, "sagas", what, advice);
        }
        if sagas.dead_timeouts > 0 {
            let what = format!("sagas that have failed for good at a timeout: {}", sagas.dead_timeouts);
            self.add(Severity::Warning, "sagas", what, "look at the dead letter's error, and retry it");
        }
    }

    pub(super) fn settings(&mut self, unusable: &[String]) {
        for key in unusable {
            let what = format!("the value of {key} cannot be used and is passed over");
            self.add(Severity::Warning, "settings", what, "set it again, to a value within its range");
        }
    }

    pub(super) fn schedules(&mut self, flaws: &[(String, Flaw)]) {
        for (name, flaw) in flaws {
            let (what, advice) = match flaw {
                Flaw::Spoilt(error) => (
                    format!("the schedule {name} cannot be understood, and does not tick: {error}"),
                    "another program wrote it: the application sets it right when it next puts it, or it can be removed",
                ),
                Flaw::Time => (
                    format!("the schedule {name} has a time that is none"),
                    "another program wrote it: remove the schedule, and have the application put it again",
                ),
                Flaw::Failing => (
                    format!("the schedule {name} does not tick"),
                    "`postbox schedules list` says why: what refuses its event is the application's, a trigger or a constraint",
                ),
            };
            self.add(Severity::Warning, "schedules", what, advice);
        }
    }

    /// `latest`: the latest time in an event.
    pub(super) fn clock(&mut self, latest: i64, now: OffsetDateTime) {
        let latest = from_micros(latest.min(LATEST));
        if latest > now + AHEAD_MAX {
            let hours = (latest - now).whole_hours();
            let what = format!("the newest event is {hours} hours ahead of this machine's clock");
            let advice = "see which clock is wrong: the box's time never goes back, so that delays and leases count from there";
            self.add(Severity::Warning, "clock", what, advice);
        }
    }

    pub(super) fn sizes(&mut self, wal_bytes: u64, page_bytes: u64, pages: u64, free_pages: u64) {
        if wal_bytes > WAL_BYTES_MAX {
            let what = format!("the -wal has {wal_bytes} bytes");
            let advice = "somebody keeps a read transaction open, so that it cannot be emptied: look for a connection that forgot one";
            self.add(Severity::Warning, "size", what, advice);
        }
        if free_pages * page_bytes >= FREE_BYTES_MIN && free_pages * 4 >= pages {
            let what = format!("{free_pages} of {pages} pages are free");
            self.add(
                Severity::Note,
                "size",
                what,
                "`postbox compact` gives the space back; new rows use it otherwise",
            );
        }
    }
}
