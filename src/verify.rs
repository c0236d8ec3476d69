//! A look at all that is in the file, and what somebody should do something about.

mod audit;
mod findings;

use std::fmt;
use std::fs;

use rusqlite::Connection;
use serde::Serialize;

use self::findings::Findings;
use crate::core::Core;
use crate::db::{backup, schema};
use crate::error::Result;
use crate::fault::Fault;
use crate::schedule::table;
use crate::settings;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know; nothing is wrong.
    Note,
    /// Something is not as it should be, and nothing is lost.
    Warning,
    /// Something is damaged, or will not be delivered.
    Error,
}

impl Severity {
    /// `note`, `warning`, `error`.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing that [`Postbox::verify`](crate::Postbox::verify) came upon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// Which check found it: `integrity`, `schema`, `counters`, `events`, `claims`, `inbox`, `history`, `sagas`, `settings`, `clock`
    /// or `size`. There will be others.
    pub check: &'static str,
    /// What was found. No payload is quoted.
    pub what: String,
    /// What to do about it.
    pub advice: String,
}

/// What [`Postbox::verify`](crate::Postbox::verify) saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Verification {
    /// The version of postbox's schema in the file.
    pub schema_version: u32,
    /// Bytes of the main file; `None` in memory.
    pub file_bytes: Option<u64>,
    /// Bytes of its -wal, which may hold the newest commits; 0 where there is none, `None` in memory.
    pub wal_bytes: Option<u64>,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Pages of the database.
    pub pages: u64,
    /// Those of them that hold nothing.
    pub free_pages: u64,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
}

impl Verification {
    /// Whether nothing is worse than a [`Severity::Note`].
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity == Severity::Note)
    }
}

pub(crate) fn verify(core: &Core) -> Result<Verification> {
    core.db.read_apart("verify", |conn| {
        let mut findings = Findings::default();
        findings.integrity(backup::integrity_findings(conn)?);
        let (page_bytes, pages, free_pages) = audit::pages(conn)?;
        // What a damaged file cannot show any more is not a failure of the look at it.
        match look_at_rows(core, conn, &mut findings) {
            Err(error) if error.fault() == Some(Fault::Damaged) => findings.unreadable(&error),
            looked => looked?,
        }
        let length = |suffix: &str| {
            let path = core.db.beside(suffix)?;
            Some(fs::metadata(path).map_or(0, |metadata| metadata.len()))
        };
        let (file_bytes, wal_bytes) = (length(""), length("-wal"));
        findings.sizes(wal_bytes.unwrap_or(0), page_bytes, pages, free_pages);
        Ok(Verification {
            schema_version: schema::VERSION,
            file_bytes,
            wal_bytes,
            page_bytes,
            pages,
            free_pages,
            findings: findings.worst_first(),
        })
    })
}

/// In one snapshot, so that what is counted can be compared.
fn look_at_rows(core: &Core, conn: &Connection, findings: &mut Findings) -> Result<()> {
    let _snapshot = if conn.is_autocommit() { Some(conn.unchecked_transaction()?) } else { None };
    findings.schema(&schema::differences(conn)?);
    let events = audit::events(conn)?;
    findings.counters(&events, audit::counter(conn)?.as_ref());
    findings.events(&events, &audit::unreadable(conn)?);
    let now = core.clock.now();
    findings.claims(&audit::claims(conn)?, now, |owner| core.db.owner_state(owner));
    findings.inbox(audit::orphaned_inbox_rows(conn)?, audit::misplaced_inbox_rows(conn)?);
    findings.history(audit::orphaned_history(conn)?);
    findings.sagas(&audit::sagas(conn)?);
    findings.settings(&settings::unusable(conn)?);
    findings.schedules(&table::flaws(conn)?);
    findings.clock(events.latest_time, core.clock.of_its_source());
    Ok(())
}
