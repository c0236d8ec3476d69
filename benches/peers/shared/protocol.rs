//! What the driver and the contenders say to each other: one line of JSON for each run.

use serde::{Deserialize, Serialize};

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Column {
    OneByOne,
    AtOnce,
    InBatches,
    Drain,
    Latency,
}

impl Column {
    pub const ALL: [Column; 5] =
        [Column::OneByOne, Column::AtOnce, Column::InBatches, Column::Drain, Column::Latency];

    pub fn key(self) -> &'static str {
        match self {
            Column::OneByOne => "one-by-one",
            Column::AtOnce => "at-once",
            Column::InBatches => "in-batches",
            Column::Drain => "drain",
            Column::Latency => "latency",
        }
    }

    pub fn from_key(key: &str) -> Option<Self> {
        Column::ALL.into_iter().find(|column| column.key() == key)
    }
}

/// What a contender says about itself; the README says the same with sources.
#[derive(Serialize, Deserialize)]
pub struct Description {
    /// The crate, as its lock file names it.
    pub library: String,
    /// The SQLite that it links.
    pub sqlite: String,
    pub variants: Vec<Variant>,
}

/// One way to run a library: a row in the tables.
#[derive(Clone, Serialize, Deserialize)]
pub struct Variant {
    pub name: String,
    /// The columns that it takes part in.
    pub columns: Vec<Column>,
    /// What a commit survives when it has returned.
    pub durability: String,
    /// What the worker is set to.
    pub worker: String,
    /// Commits are not synced: shown on request only.
    pub unsynced: bool,
}

/// One column, done once.
#[derive(Serialize, Deserialize)]
pub struct Outcome {
    /// For the work itself; of no meaning for latency.
    pub seconds: f64,
    /// Events that a handler was given more than once.
    pub repeated: usize,
    /// From the return of the call that stored the event, once it was committed, to the handler's first line. It is
    /// negative where the handler had begun before that.
    pub after_return_us: Vec<f64>,
    /// The same from the call.
    pub after_call_us: Vec<f64>,
}
