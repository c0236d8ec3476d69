//! Who subscribes to what.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, PoisonError};

use crate::error::{Error, Result};
use crate::subscription::Subscription;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, RwLock};

/// An event's consumers, in the order in which they run.
pub(crate) type Consumers = Arc<[Arc<Subscription>]>;

/// Names whose consumers are remembered; dynamic names must not fill the memory.
const REMEMBERED_MAX: usize = 1_024;

/// The subscriptions of one box. They live in memory: an application subscribes anew at every start.
pub struct Registry {
    state: RwLock<Vec<Arc<Subscription>>>,
    remembered: Mutex<HashMap<String, Consumers>>,
    generation: AtomicU64,
    /// Whether there is, or was, an ordered consumer.
    has_ordered: AtomicBool,
    /// The same of one with limits.
    has_limits: AtomicBool,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Registry {
            state: RwLock::new(Vec::new()),
            remembered: Mutex::new(HashMap::new()),
            generation: AtomicU64::new(0),
            has_ordered: AtomicBool::new(false),
            has_limits: AtomicBool::new(false),
        }
    }

    /// All or none.
    pub(crate) fn subscribe(&self, new: Vec<Subscription>) -> Result<()> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        check(&state, &new)?;
        if new.iter().any(|subscription| subscription.order.is_some()) {
            self.has_ordered.store(true, Ordering::Release);
        }
        if new.iter().any(|subscription| subscription.limiter.is_some()) {
            self.has_limits.store(true, Ordering::Release);
        }
        state.extend(new.into_iter().map(Arc::new));
        self.changed();
        Ok(())
    }

    /// Refuses what [`subscribe`](Registry::subscribe) would refuse.
    pub(crate) fn check(&self, new: &[Subscription]) -> Result<()> {
        check(&self.state.read().unwrap_or_else(PoisonError::into_inner), new)
    }

    /// Whether anybody subscribes to events of this name, exactly or by a pattern.
    pub fn has_handlers(&self, event_name: &str) -> bool {
        !self.consumers_of(event_name).is_empty()
    }

    /// Whether anybody subscribes to events of this name who may receive this one. `deliver_to`: as its row says it. What is no
    /// such text is the planner's to deal with.
    pub(crate) fn is_wanted(&self, event_name: &str, deliver_to: Option<&str>) -> bool {
        let consumers = self.consumers_of(event_name);
        let Some(deliver_to) = deliver_to else { return !consumers.is_empty() };
        let Ok(names) = serde_json::from_str::<Vec<String>>(deliver_to) else { return true };
        consumers.iter().any(|consumer| names.contains(&consumer.consumer_name))
    }

    /// The names and patterns that are subscribed to, each once, in order of registration. Without aliases.
    pub fn event_names(&self) -> Vec<String> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<String> = Vec::new();
        for subscription in state.iter() {
            if !names.contains(&subscription.event_name) {
                names.push(subscription.event_name.clone());
            }
        }
        names
    }

    /// The name or pattern of each subscription, with its aliases.
    pub(crate) fn names_and_aliases(&self) -> Vec<(String, Vec<String>)> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.iter().map(|of| (of.event_name.clone(), of.aliases.clone())).collect()
    }

    /// How many subscriptions there are.
    pub fn handler_count(&self) -> usize {
        self.state.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The consumers that an event of this name would reach, in the order in which they run.
    pub fn consumers(&self, event_name: &str) -> Vec<String> {
        self.consumers_of(event_name).iter().map(|consumer| consumer.consumer_name.clone()).collect()
    }

    /// Ends the subscriptions of all consumers whose name begins with `prefix`, and says how many. Deliveries that are
    /// under way are finished. An event that waits for a retry by a removed consumer is processed when no other is left.
    pub fn remove_by_consumer_prefix(&self, prefix: &str) -> usize {
        self.remove(|subscription| subscription.consumer_name.starts_with(prefix))
    }

    /// Ends all subscriptions.
    pub fn clear(&self) {
        self.remove(|_| true);
    }

    fn remove(&self, which: impl Fn(&Subscription) -> bool) -> usize {
        let (removed, forgotten) = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let (removed, kept): (Vec<_>, Vec<_>) =
                state.drain(..).partition(|subscription| which(subscription));
            *state = kept;
            (removed, self.changed())
        };
        // The application's destructors run here, outside the locks.
        drop(forgotten);
        removed.len()
    }

    /// Those that have a subscription, each once, by name.
    pub(crate) fn consumer_names(&self) -> BTreeSet<String> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.iter().map(|subscription| subscription.consumer_name.clone()).collect()
    }

    /// With the write lock held.
    fn changed(&self) -> HashMap<String, Consumers> {
        self.generation.fetch_add(1, Ordering::Release);
        std::mem::take(&mut *self.remembered.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes with every subscription and removal.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn has_ordered(&self) -> bool {
        self.has_ordered.load(Ordering::Acquire)
    }

    pub(crate) fn has_limits(&self) -> bool {
        self.has_limits.load(Ordering::Acquire)
    }

    /// Those with limits.
    pub(crate) fn limited(&self) -> Vec<Arc<Subscription>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.iter().filter(|subscription| subscription.limiter.is_some()).cloned().collect()
    }

    pub(crate) fn has_plain_handlers(&self) -> bool {
        self.state.read().unwrap_or_else(PoisonError::into_inner).iter().any(|s| !s.is_transactional())
    }

    pub(crate) fn consumers_of(&self, event_name: &str) -> Consumers {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        // Within the read lock, so that nothing outdated is remembered after a change.
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(consumers) = remembered.get(event_name) {
            return Arc::clone(consumers);
        }
        let consumers = find(&state, event_name);
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(event_name.to_owned(), Arc::clone(&consumers));
        consumers
    }
}

fn check(present: &[Arc<Subscription>], new: &[Subscription]) -> Result<()> {
    for subscription in new {
        subscription.validate()?;
    }
    for (index, one) in new.iter().enumerate() {
        let others = present.iter().map(|other| &**other).chain(&new[..index]);
        for other in others.filter(|other| other.consumer_name == one.consumer_name) {
            if let Some(event_name) = one.shared_name(other) {
                return Err(Error::DuplicateSubscription {
                    event_name: event_name.clone(),
                    consumer: one.consumer_name.clone(),
                });
            }
        }
    }
    Ok(())
}

fn find(subscriptions: &[Arc<Subscription>], event_name: &str) -> Consumers {
    let mut found: Vec<(usize, &Arc<Subscription>)> = Vec::new();
    for subscription in subscriptions {
        let Some(closeness) = subscription.closeness(event_name) else { continue };
        match found.iter_mut().find(|(_, other)| other.consumer_name == subscription.consumer_name) {
            Some(other) if other.0 < closeness => *other = (closeness, subscription),
            Some(_) => {}
            None => found.push((closeness, subscription)),
        }
    }
    let order = |one: &Arc<Subscription>| subscriptions.iter().position(|other| Arc::ptr_eq(one, other));
    found.sort_by_key(|(_, subscription)| (std::cmp::Reverse(subscription.priority), order(subscription)));
    found.into_iter().map(|(_, subscription)| Arc::clone(subscription)).collect()
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_list().entries(state.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::handler::Context;

    fn to(event: &str, consumer: &str) -> Subscription {
        Subscription::new(event, consumer, |_: &Event, _: &Context<'_>| Ok(()))
    }

    #[test]
    fn no_more_names_are_remembered_than_a_thousand_and_some() {
        let registry = Registry::new();
        registry.subscribe(vec![to("*", "c")]).unwrap();
        for n in 0..5_000 {
            assert_eq!(registry.consumers_of(&format!("name.{n}")).len(), 1);
            assert!(registry.remembered.lock().unwrap().len() <= REMEMBERED_MAX);
        }
    }

    #[test]
    fn higher_priority_first_and_ties_in_order_of_registration() {
        let registry = Registry::new();
        registry
            .subscribe(vec![
                to("a", "one"),
                to("a", "two").priority(5),
                to("*", "three"),
                to("a", "four").priority(5),
            ])
            .unwrap();
        assert_eq!(registry.consumers("a"), ["two", "four", "one", "three"]);
        assert_eq!(registry.consumers("b"), ["three"]);
    }

    #[test]
    fn a_consumer_that_matches_twice_runs_once_by_the_closest_match() {
        let registry = Registry::new();
        registry
            .subscribe(vec![
                to("invoice.*", "c").priority(1),
                to("invoice.line.*", "c").priority(2),
                to("invoice.line.added", "c").priority(3),
                to("*", "c").priority(4),
            ])
            .unwrap();
        let priority =
            |name: &str| registry.consumers_of(name).iter().map(|s| s.priority).collect::<Vec<_>>();
        assert_eq!(priority("invoice.line.added"), [3]);
        assert_eq!(priority("invoice.line.removed"), [2]);
        assert_eq!(priority("invoice.created"), [1]);
        assert_eq!(priority("invoice"), [4]);
        assert_eq!(priority("invoice."), [4]);
    }

    #[test]
    fn a_duplicate_refuses_the_whole_list() {
        let registry = Registry::new();
        let twice = registry.subscribe(vec![to("a", "c"), to("b", "c"), to("a", "c")]);
        assert!(matches!(twice, Err(Error::DuplicateSubscription { .. })));
        assert_eq!(registry.handler_count(), 0);
    }

    #[test]
    fn removal_is_by_prefix_and_answers_at_once() {
        let registry = Registry::new();
        registry.subscribe(vec![to("a", "ops.one"), to("a", "ops.two"), to("a", "fin.one")]).unwrap();
        assert_eq!(registry.consumers("a").len(), 3);
        assert_eq!(registry.remove_by_consumer_prefix("ops."), 2);
        assert_eq!(registry.consumers("a"), ["fin.one"]);
        assert_eq!(registry.event_names(), ["a"]);
        registry.clear();
        assert!(!registry.has_handlers("a"));
    }
}
