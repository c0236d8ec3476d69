//! A plain model of a box: what it must say of every event after each step. It knows no SQL, no lease and no thread.

use std::time::Duration;

use postbox::{InboxStatus, OutboxStatus};

use super::steps::{Consumer, Decision, New, Outcome, Outcomes, Step};

/// In Unix microseconds, as all times here.
pub(crate) const START: i64 = 1_700_000_000_000_000;
/// The error of a consumer whose attempt was lost begins so.
pub(crate) const LOST: &str = "attempt ";
const BATCH: usize = 10;

/// How far a consumer is with an event: `received` until it has had an outcome.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    pub(crate) status: InboxStatus,
    pub(crate) failures: u32,
    pub(crate) error: Option<&'static str>,
    gave_up: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// Never used again, not even after a restore.
    pub(crate) number: usize,
    pub(crate) new: New,
    pub(crate) status: OutboxStatus,
    pub(crate) attempts: u32,
    pub(crate) available_at: i64,
    pub(crate) created_at: i64,
    pub(crate) updated_at: i64,
    /// Of each consumer.
    pub(crate) standings: Vec<Standing>,
    pub(crate) is_discarded: bool,
}

/// What stands in the file.
#[derive(Debug, Clone, Default)]
pub(crate) struct File {
    /// In order of publishing.
    pub(crate) rows: Vec<Row>,
    /// Of transactional handlers (event and consumer) and of the application's transactions (event).
    pub(crate) effects: Vec<(usize, Option<usize>)>,
    dead_letters_off: bool,
    closed_at: i64,
}

#[derive(Debug, Clone)]
pub(crate) struct Model {
    /// Then it is neither closed, backed up nor restored.
    pub(crate) in_memory: bool,
    /// In the order in which they run.
    pub(crate) consumers: Vec<Consumer>,
    pub(crate) file: File,
    pub(crate) backup: Option<File>,
    /// What the application's clock shows, what it has lost by going back, and what the box says.
    pub(crate) wall: i64,
    behind: i64,
    pub(crate) now: i64,
    /// Numbers that have been given out. Of the last step: the events that it published, the handlers that ran (event and
    /// consumer), and how many events were processed.
    pub(crate) given_out: usize,
    pub(crate) published: Vec<usize>,
    pub(crate) ran: Vec<(usize, usize)>,
    pub(crate) processed: usize,
    /// The event that was decided about.
    pub(crate) decided: Option<usize>,
}

impl Model {
    pub(crate) fn new(consumers: Vec<Consumer>, in_memory: bool) -> Self {
        let (file, backup, published, ran) = (File::default(), None, Vec::new(), Vec::new());
        let (wall, now, behind, given_out, processed) = (START, START, 0, 0, 0);
        let decided = None;
        Model {
            in_memory,
            consumers,
            file,
            backup,
            wall,
            behind,
            now,
            given_out,
            published,
            ran,
            processed,
            decided,
        }
    }

    pub(crate) fn apply(&mut self, step: &Step) {
        (self.published, self.ran, self.processed, self.decided) = (Vec::new(), Vec::new(), 0, None);
        match step {
            Step::Publish(new) => self.publish(*new),
            Step::PublishInTransaction(events, true) => {
                for new in events {
                    self.publish(*new);
                }
                self.file.effects.push((self.given_out, None));
            }
            Step::PublishInTransaction(events, false) => self.given_out += events.len(),
            Step::ProcessBatch(outcomes) => drop(self.process_batch(outcomes)),
            Step::Drain(outcomes) => while self.process_batch(outcomes) > 0 {},
            Step::LoseAnAttempt(at) => {
                let mut pending: Vec<_> = self.file.rows.iter_mut().filter(|row| row.is_pending()).collect();
                if let Some(row) = at.checked_rem(pending.len()).map(|at| &mut pending[at]) {
                    row.attempts += 1;
                    (row.status, row.available_at) = (OutboxStatus::Processing, row.created_at);
                }
            }
            Step::MoveClock(by) => self.wall = (self.wall + by).max(0),
            Step::DeadLetters(on) => self.file.dead_letters_off = !on,
            Step::Decide(at, decision) => {
                let is_dead =
                    |row: &&mut Row| matches!(row.status, OutboxStatus::DeadLetter | OutboxStatus::Failed);
                let mut dead: Vec<_> = self.file.rows.iter_mut().filter(is_dead).collect();
                if let Some(row) = at.checked_rem(dead.len()).map(|at| &mut dead[at]) {
                    self.decided = Some(row.number);
                    row.decide(*decision, self.now);
                }
            }
            Step::CloseAndOpen | Step::Backup | Step::Restore if self.in_memory => {}
            Step::CloseAndOpen => {
                self.file.closed_at = self.now;
                self.open();
            }
            Step::Backup => self.backup = Some(self.file.clone()),
            Step::Restore => self.restore(),
        }
        // The box's time never goes back, and goes on at the clock's own pace.
        self.behind += (self.now - self.wall - self.behind).max(0);
        self.now = self.wall + self.behind;
    }

    /// Time starts no earlier than what the last rows, or the last close, show.
    fn open(&mut self) {
        let times = self.file.rows.iter().rev().take(32).map(|row| row.updated_at.max(row.created_at));
        self.now = times.fold(self.file.closed_at, i64::max);
        self.behind = 0;
    }

    /// Whose claims stood in the backup is gone: they are due at once.
    fn restore(&mut self) {
        let Some(backup) = &self.backup else { return };
        self.file = backup.clone();
        for row in self.file.rows.iter_mut().filter(|row| row.status == OutboxStatus::Processing) {
            row.status = OutboxStatus::Pending;
            (row.available_at, row.updated_at) = (row.created_at, row.created_at);
        }
        self.open();
    }

    /// What its key has published already stays as it is.
    fn publish(&mut self, new: New) {
        let known = self.file.rows.iter().find(|row| new.key.is_some() && row.new.key == new.key);
        self.published.push(known.map_or(self.given_out, |row| row.number));
        if known.is_none() {
            let nothing =
                Standing { status: InboxStatus::Received, failures: 0, error: None, gave_up: false };
            self.file.rows.push(Row {
                number: self.given_out,
                new,
                status: OutboxStatus::Pending,
                attempts: 0,
                available_at: self.now + micros(new.delay),
                created_at: self.now,
                updated_at: self.now,
                standings: vec![nothing; self.consumers.len()],
                is_discarded: false,
            });
        }
        self.given_out += 1;
    }

    /// How many were claimed: those that were due first; one whose attempt was lost runs alone.
    fn process_batch(&mut self, outcomes: &Outcomes) -> usize {
        let File { rows, effects, dead_letters_off, .. } = &mut self.file;
        let is_due = |row: &&mut Row| {
            (row.is_pending() || row.status == OutboxStatus::Processing) && row.available_at <= self.now
        };
        let mut due: Vec<_> = rows.iter_mut().filter(is_due).collect();
        due.sort_by_key(|row| row.available_at);
        let lost = due.iter().position(|row| row.status == OutboxStatus::Processing);
        due.truncate(BATCH.min(lost.map_or(BATCH, |at| at.max(1))));
        due.sort_by_key(|row| row.number);
        let claimed = due.len();
        for row in due {
            let begun = self.ran.len();
            row.attempt(&self.consumers, outcomes, self.now, *dead_letters_off, &mut self.ran);
            effects.extend(self.ran[begun..].iter().filter_map(|(number, consumer)| {
                let done = row.standings[*consumer].status == InboxStatus::Processed;
                (done && self.consumers[*consumer].transactional).then_some((*number, Some(*consumer)))
            }));
            self.processed += usize::from(row.status == OutboxStatus::Processed);
        }
        claimed
    }
}

impl Row {
    pub(crate) fn is_pending(&self) -> bool {
        self.status == OutboxStatus::Pending
    }

    /// Of those who had not finished: they begin again, or skip it.
    fn decide(&mut self, decision: Decision, now: i64) {
        for standing in self.standings.iter_mut().filter(|standing| standing.status == InboxStatus::Failed) {
            match decision {
                Decision::Retry => {
                    (standing.status, standing.failures, standing.gave_up) =
                        (InboxStatus::Received, 0, false);
                }
                Decision::Discard => {
                    (standing.status, standing.gave_up) = (InboxStatus::Skipped, false);
                    standing.error = Some("discarded: of no use");
                }
            }
        }
        (self.available_at, self.updated_at) = (now, now);
        match decision {
            Decision::Retry => (self.status, self.attempts) = (OutboxStatus::Pending, 0),
            Decision::Discard => (self.status, self.is_discarded) = (OutboxStatus::Processed, true),
        }
    }

    fn attempt(
        &mut self,
        consumers: &[Consumer],
        outcomes: &Outcomes,
        now: i64,
        dead_letters_off: bool,
        ran: &mut Vec<(usize, usize)>,
    ) {
        let was_lost = self.status == OutboxStatus::Processing;
        self.attempts += 1;
        let mut retry_after = None;
        for (index, consumer) in consumers.iter().enumerate().filter(|(_, c)| c.listens_to[self.new.name]) {
            let standing = &mut self.standings[index];
            if was_lost && standing.is_open() {
                standing.fails(LOST, consumer.attempts_max);
            }
            if !standing.is_open() {
                continue;
            }
            ran.push((self.number, index));
            let backoff = consumer.base * if consumer.doubles { 2_u32.pow(standing.failures) } else { 1 };
            let (error, attempts_max, delay) = match outcomes.of(self.number, index, self.attempts) {
                Outcome::Succeeds => {
                    (standing.status, standing.error) = (InboxStatus::Processed, None);
                    continue;
                }
                Outcome::Skips => {
                    (standing.status, standing.error) = (InboxStatus::Skipped, Some("skips"));
                    continue;
                }
                Outcome::GivesUp => ("gives up", 0, backoff),
                Outcome::Fails => ("fails", consumer.attempts_max, backoff),
                Outcome::FailsFor(delay) => ("fails", consumer.attempts_max, delay),
                Outcome::Panics => ("panicked: panics", consumer.attempts_max, backoff),
            };
            standing.fails(error, attempts_max);
            if standing.is_open() {
                retry_after = retry_after.max(Some(micros(delay)));
            }
        }
        self.status = match retry_after {
            Some(_) => OutboxStatus::Pending,
            None if !self.standings.iter().any(|standing| standing.gave_up) => OutboxStatus::Processed,
            None if dead_letters_off => OutboxStatus::Failed,
            None => OutboxStatus::DeadLetter,
        };
        (self.available_at, self.updated_at) = (now + retry_after.unwrap_or(0), now);
    }
}

impl Standing {
    /// Whether the consumer is asked again.
    fn is_open(&self) -> bool {
        !self.gave_up && !matches!(self.status, InboxStatus::Processed | InboxStatus::Skipped)
    }

    /// Whether it has an inbox row that is not done; one that begins again keeps its error.
    pub(crate) fn is_known_and_open(&self) -> bool {
        match self.status {
            InboxStatus::Failed => true,
            InboxStatus::Received => self.error.is_some(),
            _ => false,
        }
    }

    fn fails(&mut self, error: &'static str, attempts_max: u32) {
        self.failures += 1;
        self.gave_up = self.failures >= attempts_max;
        (self.status, self.error) = (InboxStatus::Failed, Some(error));
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap()
}
