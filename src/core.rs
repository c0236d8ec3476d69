//! What the parts of one open box share.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::Value;
use uuid::Uuid;

use crate::bell::Bell;
use crate::catalogue::CatalogueBook;
use crate::clock::{BoxClock, Clock};
use crate::db::owner::{self, OwnerLock};
use crate::db::{Database, Synchronous, WriteEach};
use crate::error::{Error, Result};
use crate::event::{Event, NewEvent};
use crate::failures::FailureBook;
use crate::health::HealthBook;
use crate::ids::Ids;
use crate::observer::Observer;
use crate::observing::Observing;
use crate::outbox;
use crate::outbox::claim::{Claim, LeaseId, Leases};
use crate::outbox::dead::{self, Dead};
use crate::outbox::insert::{self, Content, InsertJob, Inserted, PreparedEvent};
use crate::outbox::order;
use crate::outbox::settle;
use crate::outbox::strays::{self, Stray};
use crate::pause_book::PauseBook;
use crate::registry::Registry;
use crate::seq_map::SeqMap;
use crate::settings::{self, Settings};
use crate::stored_event::StoredEvent;
use crate::subscription::Subscription;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, RwLock};
use crate::walk::Walk;
use crate::worker::{Handoff, Reserved, Unsettled, WorkerSlot};

/// What a box is opened with.
pub(crate) struct Options {
    pub(crate) settings: Settings,
    pub(crate) clock: Box<dyn Clock>,
    pub(crate) handler_threads: usize,
    pub(crate) payload_bytes_max: usize,
    pub(crate) wait_max: Duration,
    pub(crate) synced_acks: bool,
    pub(crate) observers: Vec<Box<dyn Observer>>,
}

pub(crate) struct Core {
    pub(crate) db: Database<InsertJob>,
    pub(crate) clock: Arc<BoxClock>,
    pub(crate) registry: Registry,
    pub(crate) catalogue: CatalogueBook,
    pub(crate) bell: Bell,
    pub(crate) leases: Leases,
    pub(crate) worker: WorkerSlot,
    pub(crate) handoff: Handoff,
    pub(crate) unsettled: Unsettled,
    pub(crate) health: HealthBook,
    pub(crate) pauses: PauseBook,
    pub(crate) order_walk: Walk,
    pub(crate) limit_walk: Walk,
    pub(crate) newer_walk: Walk,
    /// The same through what is paused, and waits for a newer release as well.
    pub(crate) newer_paused_walk: Walk,
    pub(crate) failures: FailureBook,
    /// This box may have put a schedule. In memory nobody else can have.
    has_schedules: AtomicBool,
    /// `None`: nobody is to be told anything.
    pub(crate) observing: Option<Observing>,
    pub(crate) handler_threads: usize,
    pub(crate) payload_bytes_max: usize,
    /// How settles and transactional handlers commit.
    pub(crate) acks: Synchronous,
    ids: Ids,
    defaults: Settings,
    settings: RwLock<Settings>,
    /// For what held events were last let go: once for each, or what nobody wants after all would be let go again and again.
    released: Mutex<Option<Release>>,
    /// Claims of living owners whose lease was seen to have run out, and when.
    run_out: Mutex<HashMap<i64, (LeaseId, Instant)>>,
    /// The rows that this box has in its hands: it never takes over from itself.
    in_flight: Mutex<SeqMap<LeaseId>>,
    warned_of: Mutex<HashSet<String>>,
    lost_leases: AtomicU64,
    closed: AtomicBool,
    /// Proves to other processes that this box lives. `None` in memory, where nothing is written, and once closed.
    owner_lock: RwLock<Option<OwnerLock>>,
    /// Slots of threads that process by hand; those of the worker's pool come before them.
    slots_by_hand: Mutex<Vec<bool>>,
}

/// A worker looks at its clock once a second.
const OWNER_NOTICES_IN: Duration = Duration::from_secs(2);

const RUN_OUT_MAX: usize = 10_000;

/// So many rows are set aside in one write: others write in between.
const SET_ASIDE_MAX: usize = 500;

/// The registry's generation, and the newest event that was held.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Release {
    generation: u64,
    newest: i64,
}

impl Core {
    pub(crate) fn open(db: Database<InsertJob>, options: Options) -> Result<Self> {
        options.settings.validate()?;
        let clock = BoxClock::new(options.clock);
        clock.start_at(db.read("open", |conn| outbox::newest_time(conn, clock.latest_sound()))?);
        let leases = Leases::new(|owner| db.path().is_some_and(|path| owner::is_known(path, owner)));
        let owner_lock = match db.path() {
            Some(path) if !db.is_read_only() => OwnerLock::take(path, leases.owner())?,
            _ => None,
        };
        let core = Core {
            db,
            clock: Arc::new(clock),
            registry: Registry::new(),
            catalogue: CatalogueBook::default(),
            bell: Bell::new(),
            leases,
            worker: WorkerSlot::default(),
            handoff: Handoff::default(),
            unsettled: Unsettled::default(),
            health: HealthBook::default(),
            pauses: PauseBook::new(),
            order_walk: Walk::default(),
            limit_walk: Walk::default(),
            newer_walk: Walk::default(),
            newer_paused_walk: Walk::default(),
            failures: FailureBook::default(),
            has_schedules: AtomicBool::new(false),
            observing: Observing::by(options.observers),
            handler_threads: options.handler_threads,
            payload_bytes_max: options.payload_bytes_max,
            acks: if options.synced_acks { Synchronous::Full } else { Synchronous::Normal },
            ids: Ids::new(),
            settings: RwLock::new(options.settings.clone()),
            defaults: options.settings,
            released: Mutex::new(None),
            run_out: Mutex::new(HashMap::new()),
            in_flight: Mutex::new(SeqMap::default()),
            warned_of: Mutex::new(HashSet::new()),
            lost_leases: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            owner_lock: RwLock::new(owner_lock),
            slots_by_hand: Mutex::default(),
        };
        core.db.read("open", |conn| core.reload_settings(conn))?;
        if core.db.is_read_only() {
            return Ok(core);
        }
        if core.db.read("open", outbox::is_off)? {
            match core.db.write("open", outbox::repair) {
                Err(error) if !error.is_fault_of_file() => {
                    log::warn!(target: "postbox::delivery", "the count of processed events cannot be set right, and stats may be off: {error}");
                }
                repaired => repaired?,
            }
        }
        core.take_over_from_the_dead()?;
        core.set_strays_aside("open")?;
        Ok(core)
    }

    /// Rows that no claim would ever find become dead letters.
    pub(crate) fn set_strays_aside(&self, operation: &'static str) -> Result<()> {
        let to = self.settings().dead_status();
        // Those that stay as they are stand before the others at each look.
        let mut refused: HashSet<i64> = HashSet::new();
        loop {
            let limit = refused.len() + SET_ASIDE_MAX;
            let mut found = self.db.read(operation, |conn| strays::find(conn, limit))?;
            found.retain(|row| !refused.contains(&row.seq));
            if found.is_empty() {
                break;
            }
            let now = self.clock.now();
            let done = self.db.write_each(operation, WriteEach::ALL, &found, |conn, row| {
                strays::set_aside(conn, row, to, now)
            })?;
            for (Stray { seq, id, .. }, done) in found.iter().zip(done) {
                if done.is_ok_and(|done| done) {
                    if self.is_observed() {
                        let dead = self.db.read(operation, |conn| dead::read(conn, *seq));
                        self.tell_dead(dead.ok().flatten().as_slice());
                    }
                    log::warn!(
                        target: "postbox::delivery",
                        "event {id} (row {seq}) would never have been claimed and is set aside: its last_error says why"
                    );
                } else {
                    refused.insert(*seq);
                }
            }
        }
        if !refused.is_empty() && self.first_warning_of("rows that cannot be set aside") {
            log::error!(
                target: "postbox::delivery",
                "{} rows that would never be claimed cannot be set aside: a trigger is in the way", refused.len()
            );
        }
        Ok(())
    }

    /// Makes the claims of boxes whose process has died due at once. True when there were any.
    pub(crate) fn take_over_from_the_dead(&self) -> Result<bool> {
        let Some(path) = self.db.path() else { return Ok(false) };
        let mut any = false;
        for dead in owner::find_dead(path) {
            any |= self.take_over(dead.owner, &dead.begun)? > 0;
            dead.bury();
        }
        Ok(any)
    }

    /// The same for one box, whose handlers had begun these events (their `seq`). How many claims.
    pub(crate) fn take_over(&self, owner: u32, begun: &[i64]) -> Result<usize> {
        let now = self.clock.now();
        let claims = self.db.read("take over", |conn| settle::claims_of(conn, owner))?;
        let done = self.db.write_each("take over", WriteEach::ALL, &claims, |conn, (seq, lease)| {
            settle::take_from_the_dead(conn, *seq, *lease, begun.contains(seq), now)
        })?;
        // Where a trigger is in the way, it is due when its lease runs out.
        let taken = done.into_iter().filter(|done| matches!(done, Ok(true))).count();
        log::info!(target: "postbox::worker", "took {taken} claims over from a box that died");
        Ok(taken)
    }

    /// Whether a claim whose lease has run out is left to its owner a little longer: when its process lives, a jump of the
    /// clock may be all that has happened, and it renews as soon as it notices.
    pub(crate) fn waits_for_owner(&self, seq: i64, lease: LeaseId) -> bool {
        let (Some(path), Some(owner)) = (self.db.path(), lease.owner()) else { return false };
        let mut run_out = self.run_out.lock().unwrap_or_else(PoisonError::into_inner);
        match run_out.get(&seq) {
            Some((known, since)) if *known == lease => since.elapsed() < OWNER_NOTICES_IN,
            _ if owner == self.leases.owner() || !owner::is_alive(path, owner) => false,
            _ => {
                if run_out.len() >= RUN_OUT_MAX {
                    run_out.clear();
                }
                run_out.insert(seq, (lease, Instant::now()));
                true
            }
        }
    }

    /// After the file is closed.
    pub(crate) fn let_go_of_ownership(&self) {
        drop(self.owner_lock.write().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Before a handler starts: if the process dies in it, this event is the one to blame.
    pub(crate) fn note_begun(&self, slot: u64, claim: Claim) {
        self.db.crash().note_begun(slot, claim.seq);
        if let Some(lock) = &*self.owner_lock.read().unwrap_or_else(PoisonError::into_inner) {
            lock.note_begun(slot, claim.seq);
        }
    }

    /// A slot for a thread that processes by hand, until it is given back.
    pub(crate) fn take_slot(&self) -> u64 {
        let mut taken = self.slots_by_hand.lock().unwrap_or_else(PoisonError::into_inner);
        let free = taken.iter().position(|taken| !taken).unwrap_or(taken.len());
        if free == taken.len() {
            taken.push(true);
        } else {
            taken[free] = true;
        }
        (self.handler_threads + free) as u64
    }

    pub(crate) fn give_slot_back(&self, slot: u64) {
        let mut taken = self.slots_by_hand.lock().unwrap_or_else(PoisonError::into_inner);
        let index = usize::try_from(slot).unwrap_or(usize::MAX).saturating_sub(self.handler_threads);
        if let Some(taken) = taken.get_mut(index) {
            *taken = false;
        }
    }

    pub(crate) fn new_id(&self) -> Uuid {
        self.ids.new_id(self.clock.now())
    }

    pub(crate) fn prepare(&self, event: NewEvent, cause: Option<&Event>) -> Result<(PreparedEvent, Content)> {
        self.prepare_as(event, cause, || self.new_id())
    }

    /// The same under an id of the caller's, unless the event has a key.
    pub(crate) fn prepare_as(
        &self,
        event: NewEvent,
        cause: Option<&Event>,
        id: impl FnOnce() -> Uuid,
    ) -> Result<(PreparedEvent, Content)> {
        let prepared = insert::prepare(event, self.payload_bytes_max, cause, id)?;
        self.catalogue.check(prepared.0.name(), prepared.0.version(), prepared.1.payload())?;
        Ok(prepared)
    }

    /// Checked as if it were published, and published later.
    pub(crate) fn store(&self, event: NewEvent) -> Result<StoredEvent> {
        let stored = StoredEvent::of(event, self.payload_bytes_max)?;
        self.check_schema(&stored)?;
        Ok(stored)
    }

    /// When it is handed over, and a schedule's at each tick: schemas may have come in between.
    pub(crate) fn check_schema(&self, event: &StoredEvent) -> Result<()> {
        self.catalogue.check(event.name(), event.version(), event.payload())
    }

    /// All or none.
    pub(crate) fn subscribe(&self, subscriptions: Vec<Subscription>) -> Result<()> {
        const OPERATION: &str = "subscribe";
        self.registry.check(&subscriptions)?;
        let asks_for_order = subscriptions.iter().any(|subscription| subscription.order.is_some());
        if asks_for_order && !self.db.is_read_only() && !self.db.read(OPERATION, order::has_index)? {
            self.db.write(OPERATION, order::make_index)?;
        }
        self.registry.subscribe(subscriptions)
    }

    /// Publishes together, in a synced commit. `content` is that of the first event, where it is at hand.
    pub(crate) fn publish(
        &self,
        operation: &'static str,
        events: Arc<[PreparedEvent]>,
        content: Option<Content>,
    ) -> Result<Vec<Inserted>> {
        let reserved = self.handoff.reserve(self, &events);
        let lease = reserved.as_ref().map(Reserved::lease);
        let observed = self.observing.as_ref().map(|observing| (observing, Arc::clone(&events)));
        let inserted = self.db.submit(operation, InsertJob { events, clock: Arc::clone(&self.clock), lease });
        match (reserved, &inserted) {
            (Some(reserved), Ok(inserted)) => reserved.hand_over(inserted, content),
            (Some(reserved), Err(error)) => reserved.failed(error),
            (None, _) => self.bell.ring(),
        }
        // Last, so that no delivery waits for an observer.
        if let (Some((observing, events)), Ok(inserted)) = (observed, &inserted) {
            observing.tell_inserted(&self.db, &events, inserted);
        }
        inserted
    }

    /// Publishes inside a transaction of the box's own.
    pub(crate) fn publish_within(&self, conn: &Connection, event: &PreparedEvent) -> Result<Inserted> {
        self.db.note_event_written(conn);
        let inserted = insert::insert(conn, event, self.clock.now())?;
        if let Some(observing) = &self.observing {
            observing.note_published(event, inserted);
        }
        Ok(inserted)
    }

    /// The table of schedules is about to be written to.
    pub(crate) fn note_schedules(&self) {
        self.has_schedules.store(true, Ordering::Relaxed);
    }

    /// Whether the table of schedules is worth a look: in a file it always is, once anything has changed.
    pub(crate) fn may_have_schedules(&self) -> bool {
        self.db.path().is_some() || self.has_schedules.load(Ordering::Relaxed)
    }

    pub(crate) fn is_observed(&self) -> bool {
        self.observing.is_some()
    }

    /// Never while anything is locked, but for the gate where it cannot be helped.
    pub(crate) fn tell(&self, what: impl Fn(&dyn Observer)) {
        if let Some(observing) = &self.observing {
            observing.tell(&self.db, what);
        }
    }

    /// After the commit.
    pub(crate) fn tell_dead(&self, dead: &[Dead]) {
        if let Some(observing) = &self.observing {
            observing.tell_dead(&self.db, dead);
        }
    }

    pub(crate) fn settings(&self) -> Settings {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over what the file says now, of the pauses as well. `conn` reads what is committed.
    pub(crate) fn reload_settings(&self, conn: &Connection) -> Result<Settings> {
        self.pauses.reload(conn, self.clock.now())?;
        let mut current = self.settings.write().unwrap_or_else(PoisonError::into_inner);
        *current = settings::load(conn, &self.defaults, |key| self.first_warning_of(key))?;
        Ok(current.clone())
    }

    pub(crate) fn update_settings(&self, change: impl FnOnce(&mut Settings)) -> Result<Settings> {
        const OPERATION: &str = "update_settings";
        // Inside the write transaction, so that changes by others, of this process or another, come before or after.
        self.db.write(OPERATION, |conn| {
            let before = settings::load(conn, &self.defaults, |_| false)?;
            let mut wanted = before.clone();
            change(&mut wanted);
            wanted.validate()?;
            settings::store(conn, &before, &wanted, self.clock.now())
        })?;
        let settings = self.db.read(OPERATION, |conn| self.reload_settings(conn))?;
        self.bell.ring();
        Ok(settings)
    }

    /// One setting by its name, stored also where it is the default.
    pub(crate) fn set_setting(&self, field: &str, value: Value) -> Result<Settings> {
        const OPERATION: &str = "set_setting";
        self.db.write(OPERATION, |conn| {
            settings::store_one(conn, &self.defaults, field, value, self.clock.now())
        })?;
        let settings = self.db.read(OPERATION, |conn| self.reload_settings(conn))?;
        self.bell.ring();
        Ok(settings)
    }

    pub(crate) fn in_flight(&self) -> MutexGuard<'_, SeqMap<LeaseId>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to let go of, if events that were held may have found a subscriber since the last release. A read, which goes
    /// through all that are held where anything is new, so that the write lock is not taken for nothing.
    pub(crate) fn release_held_for(&self, conn: &Connection) -> Result<Option<Release>> {
        let release = Release {
            generation: self.registry.generation(),
            newest: settle::newest_held(conn)?.unwrap_or(0),
        };
        let done = *self.released.lock().unwrap_or_else(PoisonError::into_inner);
        if done.is_some_and(|done| done.generation == release.generation && done.newest >= release.newest) {
            return Ok(None);
        }
        let wanted = |name: &str, to: Option<&str>| self.registry.is_wanted(name, to);
        if release.newest > 0 && !settle::held_groups(conn, 1, wanted)?.is_empty() {
            return Ok(Some(release));
        }
        self.held_are_released(release);
        Ok(None)
    }

    pub(crate) fn held_are_released(&self, release: Release) {
        *self.released.lock().unwrap_or_else(PoisonError::into_inner) = Some(release);
    }

    /// This box holds an event itself: nobody subscribes to it.
    pub(crate) fn note_held(&self, claim: Claim) {
        if let Some(done) = &mut *self.released.lock().unwrap_or_else(PoisonError::into_inner) {
            done.newest = done.newest.max(claim.seq);
        }
    }

    pub(crate) fn release_held_again(&self) {
        *self.released.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn no_longer_in_flight(&self, claim: Claim) {
        let mut in_flight = self.in_flight();
        // A later claim of the same row is another matter.
        if in_flight.get(&claim.seq) == Some(&claim.lease) {
            in_flight.remove(&claim.seq);
        }
    }

    /// Events have reached `processed` in this transaction.
    pub(crate) fn count_processed(&self, conn: &Connection, more: usize) -> Result<()> {
        if !settle::count_processed(conn, more)? && self.first_warning_of("postbox_counter") {
            log::warn!(target: "postbox::delivery", "a trigger on postbox_counter swallows what is counted: stats may be off");
        }
        Ok(())
    }

    /// True the first time for each name.
    pub(crate) fn first_warning_of(&self, event_name: &str) -> bool {
        const NAMES_MAX: usize = 10_000;
        let mut warned_of = self.warned_of.lock().unwrap_or_else(PoisonError::into_inner);
        warned_of.len() < NAMES_MAX && warned_of.insert(event_name.to_owned())
    }

    /// Outcomes that were refused, once the refusal is committed.
    pub(crate) fn count_lost_leases(&self, more: usize) {
        self.lost_leases.fetch_add(more as u64, Ordering::Relaxed);
    }

    pub(crate) fn lost_leases(&self) -> u64 {
        self.lost_leases.load(Ordering::Relaxed)
    }

    pub(crate) fn refuse_closed(&self, operation: &'static str) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed { operation }) } else { Ok(()) }
    }

    /// True for the one caller that closes it.
    pub(crate) fn begin_closing(&self) -> bool {
        !self.closed.swap(true, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Postbox;

    #[test]
    fn names_that_were_warned_of_are_no_more_than_ten_thousand() {
        let postbox = Postbox::open_in_memory().unwrap();
        let core = postbox.core();
        let warnings = (0..25_000).filter(|n| core.first_warning_of(&format!("name.{n}"))).count();
        assert_eq!((warnings, core.warned_of.lock().unwrap().len()), (10_000, 10_000));
    }

    #[test]
    fn claims_of_the_living_that_ran_out_are_forgotten_after_ten_thousand() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Postbox::open(dir.path().join("app.db")).unwrap();
        let (postbox, living) = (open(), open());
        let lease = living.core().leases.next();
        for seq in 0..25_000 {
            assert!(postbox.core().waits_for_owner(seq, lease));
            assert!(postbox.core().run_out.lock().unwrap().len() <= RUN_OUT_MAX);
        }
    }
}
