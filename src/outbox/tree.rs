//! What an event came from and what came of it.

use std::collections::{BTreeMap, HashSet};

use rusqlite::Connection;
use serde::Serialize;

use super::seq_of;
use super::summary::{EventSummary, caused_by, summary};
use crate::error::Result;
use crate::event::EventId;

/// So many events are in a tree at the most.
const EVENTS_MAX: usize = 1_000;

/// So many steps from the event that is asked for up to what caused it: the other half is for what came of it.
const STEPS_UP_MAX: usize = 500;

/// An event, what it came from, and what came of that: each event below the one whose handler published it.
///
/// At most 1,000 events: of more, those from the root down to the event that was asked for, and of the others those that were
/// published first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CausationTree {
    /// All of its events, in order of publishing.
    pub nodes: Vec<CausationNode>,
    /// The first cause: an index into `nodes`. Where that event names a cause itself (`causation_id`), this one was deleted, or
    /// is more than 500 steps up from the event that was asked for, or is below it: rows of another program's may name each
    /// other in a circle.
    pub root: usize,
    /// The event that was asked for: an index into `nodes`.
    pub asked: usize,
    /// Whether there is more, above the root or below.
    pub is_cut: bool,
}

/// An event of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CausationNode {
    /// The event.
    pub event: EventSummary,
    /// What caused it: an index into the tree's `nodes`. `None` of the root.
    pub parent: Option<usize>,
    /// What it has caused, in order of publishing: indexes into the tree's `nodes`.
    pub children: Vec<usize>,
}

impl CausationTree {
    /// The events as one would print them, with their depth: the root at 0, and behind each event what it has caused, first
    /// published first.
    pub fn walk(&self) -> impl Iterator<Item = (usize, &CausationNode)> {
        let mut next = vec![(0, self.root)];
        std::iter::from_fn(move || {
            let (depth, index) = next.pop()?;
            let node = self.nodes.get(index)?;
            next.extend(node.children.iter().rev().map(|child| (depth + 1, *child)));
            Some((depth, node))
        })
    }
}

/// For one snapshot or transaction.
pub(crate) fn causation_tree(conn: &Connection, id: EventId) -> Result<Option<CausationTree>> {
    let Some(asked) = event_of(conn, id)? else { return Ok(None) };
    let asked_seq = asked.seq;
    let (path, is_cut_above) = path_up(conn, asked)?;
    let root_seq = path.last().map_or(asked_seq, |root| root.seq);

    // All of the path first, so that none of it is taken for a child of something else.
    let mut growing = Growing::default();
    let mut parent = None;
    for event in path.into_iter().rev() {
        parent = Some(growing.add(event, parent));
    }
    let on_path: Vec<i64> = growing.found.keys().copied().collect();
    for seq in on_path {
        growing.look_below(conn, seq)?;
    }
    while growing.found.len() < EVENTS_MAX
        && let Some((seq, parent)) = growing.next.pop_first()
    {
        if let Some(event) = summary(conn, seq)? {
            growing.add(event, Some(parent));
            growing.look_below(conn, seq)?;
        }
    }
    let is_cut = is_cut_above || !growing.next.is_empty();
    Ok(Some(assemble(growing.found, root_seq, asked_seq, is_cut)))
}

/// The event of this id; none of one whose own id cannot be read.
fn event_of(conn: &Connection, id: EventId) -> Result<Option<EventSummary>> {
    match seq_of(conn, id)? {
        Some(seq) => summary(conn, seq),
        None => Ok(None),
    }
}

/// The event, what caused it, what caused that, and so on; and whether there is more of it.
fn path_up(conn: &Connection, asked: EventSummary) -> Result<(Vec<EventSummary>, bool)> {
    let mut seen = HashSet::from([asked.seq]);
    let mut cause = asked.causation_id;
    let mut path = vec![asked];
    while let Some(id) = cause
        && let Some(event) = event_of(conn, id)?
        && seen.insert(event.seq)
    {
        if path.len() > STEPS_UP_MAX {
            return Ok((path, true));
        }
        cause = event.causation_id;
        path.push(event);
    }
    Ok((path, false))
}

/// Grows in order of publishing: the next event is the first published one of those whose cause is in the tree.
#[derive(Default)]
struct Growing {
    /// By `seq`, with the `seq` of the parent.
    found: BTreeMap<i64, (EventSummary, Option<i64>)>,
    /// What is known to be below, as the `seq` of the event and of its parent: no more than there is room for, and one, which
    /// says that there is more.
    next: BTreeMap<i64, i64>,
}

impl Growing {
    fn add(&mut self, event: EventSummary, parent: Option<i64>) -> i64 {
        let seq = event.seq;
        self.found.insert(seq, (event, parent));
        seq
    }

    fn look_below(&mut self, conn: &Connection, parent: i64) -> Result<()> {
        let Some((event, _)) = self.found.get(&parent) else { return Ok(()) };
        if event.unreadable.contains(&"id") {
            return Ok(()); // what stands for its id is no event's
        }
        for seq in caused_by(conn, event.id, EVENTS_MAX + 1)? {
            if !self.found.contains_key(&seq) {
                self.next.insert(seq, parent);
            }
        }
        while self.next.len() > EVENTS_MAX.saturating_sub(self.found.len()) + 1 {
            self.next.pop_last();
        }
        Ok(())
    }
}

fn assemble(
    found: BTreeMap<i64, (EventSummary, Option<i64>)>,
    root_seq: i64,
    asked_seq: i64,
    is_cut: bool,
) -> CausationTree {
    let seqs: Vec<i64> = found.keys().copied().collect();
    let index_of = |seq: i64| seqs.binary_search(&seq).unwrap_or(0); // every one of them is found
    let mut nodes: Vec<CausationNode> = found
        .into_values()
        .map(|(event, parent)| CausationNode { event, parent: parent.map(index_of), children: Vec::new() })
        .collect();
    for index in 0..nodes.len() {
        if let Some(parent) = nodes[index].parent {
            nodes[parent].children.push(index);
        }
    }
    CausationTree { nodes, root: index_of(root_seq), asked: index_of(asked_seq), is_cut }
}
