//! Which sagas a list is to hold.

use serde::Serialize;

use super::{SagaStatus, SagaSummary};
use crate::cursor::Cursor;
use crate::error::Result;
use crate::validate;

/// Which sagas are meant: all, but for what is asked here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a filter does nothing by itself"]
pub struct SagaFilter {
    pub(crate) name: Option<String>,
    pub(crate) status: Option<SagaStatus>,
}

impl SagaFilter {
    /// All of them.
    pub fn new() -> Self {
        SagaFilter::default()
    }

    /// Those of the saga of this name.
    pub fn name(self, name: impl Into<String>) -> Self {
        SagaFilter { name: Some(name.into()), ..self }
    }

    /// Those in this status.
    pub fn status(self, status: SagaStatus) -> Self {
        SagaFilter { status: Some(status), ..self }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        self.name.as_deref().map_or(Ok(()), |name| validate::name("name", name, validate::EVENT_NAME_MAX))
    }
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SagaPage {
    /// Its sagas, in the page's order.
    pub sagas: Vec<SagaSummary>,
    /// Where the next page begins; `None` when there was nothing more.
    pub next: Option<Cursor>,
}
