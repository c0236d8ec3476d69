//! What can go wrong, in the words of the caller.

use std::path::PathBuf;
use std::time::Duration;
use std::{fmt, io};

use crate::fault::Fault;

/// The result of an operation of the box.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Says what was attempted and on what. Match on the variants, never on the text.
///
/// No text of an error holds a payload, metadata or an idempotency key. For that reason [`Error::Json`] prints where
/// the JSON did not fit and not what stood there, and has no [`source`](std::error::Error::source); the whole
/// [`serde_json::Error`] is in the variant.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// SQLite refused or failed. What was about to be written was not (of `process_batch` and `drain`: of this batch).
    #[error("SQLite: {}", describe_sqlite(.0))]
    Sqlite(#[from] rusqlite::Error),

    /// SQLite failed while it committed: whether the transaction is in the file is **unknown** until it is looked up,
    /// and may still change in a crash. Publish again under the same idempotency key to be sure of one event.
    #[error(
        "the commit failed and its outcome is unknown ({0}); look the rows up, or repeat under the same idempotency key"
    )]
    CommitUnknown(#[source] rusqlite::Error),

    /// A value was refused before anything was written.
    #[error("invalid {field}: {reason}")]
    Invalid {
        /// The argument or field that was refused.
        field: &'static str,
        /// Why.
        reason: String,
    },

    /// A payload or metadata is larger than the box takes.
    #[error("the payload or metadata takes {size} bytes as JSON, more than the limit of {limit} bytes")]
    PayloadTooLarge {
        /// Its size as JSON, in bytes; where it is far over the limit, the size at which counting stopped.
        size: usize,
        /// The limit, in bytes ([`Builder::max_payload_bytes`](crate::Builder::max_payload_bytes)).
        limit: usize,
    },

    /// A payload does not fit the JSON Schema that was declared for its event's name and version
    /// ([`Catalogue`](crate::Catalogue); feature `schema`). Nothing was written.
    #[error(
        "version {version} of `{event_name}` does not fit its schema: {}: {reason}",
        describe_path(.path)
    )]
    SchemaViolation {
        /// The event's name.
        event_name: String,
        /// The version of the payload's shape.
        version: u32,
        /// What does not fit, as a JSON Pointer into the payload, such as `/lines/1/price`; empty for the whole of it.
        path: String,
        /// Why: what the schema asks for. What stands there is not repeated.
        reason: String,
    },

    /// The consumer is subscribed to that name already.
    #[error("consumer `{consumer}` is subscribed to `{event_name}` already")]
    DuplicateSubscription {
        /// The event name or pattern.
        event_name: String,
        /// The consumer.
        consumer: String,
    },

    /// There is a link with the same ends and type already ([`Links::create_unique`](crate::Links::create_unique)).
    #[error("{from} has a link to {to} of type {link_type} already: {id}")]
    LinkExists {
        /// The id of that link; where there are several, of the oldest.
        id: uuid::Uuid,
        /// Where it starts, as [`EntityRef`](crate::EntityRef) is written.
        from: String,
        /// Where it leads.
        to: String,
        /// Its type, as it is stored.
        link_type: &'static str,
    },

    /// There is no such row.
    #[error("no {what} with id {id}")]
    NotFound {
        /// What was looked for.
        what: &'static str,
        /// Its id.
        id: String,
    },

    /// The file was written by a newer postbox. Nothing was changed.
    #[error(
        "the file holds version {found} of postbox's schema, newer than the {supported} that this release reads"
    )]
    SchemaTooNew {
        /// The version in the file.
        found: u32,
        /// The newest version that this release knows.
        supported: u32,
    },

    /// The file was last written by an older postbox, and is open only to be read. Nothing was changed. Open it for writing once
    /// ([`Postbox::open`](crate::Postbox::open), or `postbox upgrade FILE`): that brings it up to date.
    #[error(
        "the file holds version {found} of postbox's schema, older than the {required} that this release reads: open it for \
         writing once, or run `postbox upgrade` on it"
    )]
    SchemaTooOld {
        /// The version in the file.
        found: u32,
        /// The version that this release needs.
        required: u32,
    },

    /// JSON could not be made from a value, or read into a type.
    #[error("JSON: {}", describe_json(.0))]
    Json(serde_json::Error),

    /// The box was closed.
    #[error("{operation}: the box is closed")]
    Closed {
        /// What was attempted.
        operation: &'static str,
    },

    /// The box was opened only to be read ([`Builder::open_read_only`](crate::Builder::open_read_only)).
    #[error("{operation}: the box was opened read-only")]
    ReadOnly {
        /// What was attempted.
        operation: &'static str,
    },

    /// The write lock, the box's write connection or a read connection could not be had in time. What was about to be
    /// written was not (of `process_batch` and `drain`: of this batch); trying again later is safe.
    #[error("{operation}: busy, gave up after {waited:.1?}{}", describe_detail(.detail))]
    Busy {
        /// What was attempted.
        operation: &'static str,
        /// How long the call waited.
        waited: Duration,
        /// Who is in the way, as far as it is known; may be empty.
        detail: String,
    },

    /// Called on a thread that is inside one of this box's own transactions or handlers, where it would wait for itself.
    #[error("{operation} was called inside {inside} of the same box and would wait for itself; {instead}")]
    Reentrant {
        /// What was attempted.
        operation: &'static str,
        /// Where the thread was.
        inside: &'static str,
        /// What to do.
        instead: &'static str,
    },

    /// The box has a running worker already.
    #[error("the box has a running worker already: shut it down before another is started")]
    WorkerRunning,

    /// The file is no SQLite database (or an encrypted one). It was left as it was.
    #[error("{}: not a SQLite database; left as it was", .path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
    },

    /// A file could not be opened as a box. It was left as it was.
    #[error("cannot open {}: {reason}", .path.display())]
    CannotOpen {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },

    /// The linked SQLite can corrupt a database under postbox's load.
    #[error(
        "SQLite {found} has the WAL-reset bug; postbox needs {required} or newer (feature `bundled` brings one)"
    )]
    UnsupportedSqlite {
        /// The version that is linked.
        found: &'static str,
        /// The oldest version that is sound.
        required: &'static str,
    },

    /// A check of a file found damage.
    #[error("{}: damaged: {report}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The first findings of SQLite's `integrity_check`.
        report: String,
    },

    /// The file cannot be compacted without a risk for the application's own tables.
    #[error("the file is not compacted: {reason}")]
    CannotCompact {
        /// Which, and why.
        reason: String,
    },

    /// The event is not in a status in which this can be done.
    #[error("{operation}: event {id} is {status}, not {expected}")]
    WrongStatus {
        /// What was to be done.
        operation: &'static str,
        /// The event's id.
        id: String,
        /// Its status, as it is stored.
        status: &'static str,
        /// What it would have to be.
        expected: &'static str,
    },

    /// SQLite said that the statement succeeded, but nothing was stored (a trigger of the application swallowed it).
    #[error("{what} was not stored: a trigger on {table} swallowed the write")]
    NotStored {
        /// What was written.
        what: &'static str,
        /// The table.
        table: &'static str,
    },

    /// The greatest number that the box can give to a row is taken: by a row of another program's, since a box does not come
    /// that far. Nothing was written. Delete that row; for events, set `last_deleted` of `postbox_counter` right as well.
    #[error(
        "{what} was not stored: a row of {table} that another program wrote has the last number that there is"
    )]
    NoNumberLeft {
        /// What was to be written.
        what: &'static str,
        /// The table.
        table: &'static str,
    },

    /// This build of postbox lacks a cargo feature that is needed for what was to be done. Nothing was changed.
    #[error("{what} needs the cargo feature `{feature}`, which this build is without")]
    FeatureMissing {
        /// What needs it.
        what: &'static str,
        /// The feature.
        feature: &'static str,
    },

    /// Not possible on a box in memory.
    #[error("{operation}: not possible on a box in memory")]
    InMemory {
        /// What was attempted.
        operation: &'static str,
    },

    /// The operating system refused or failed.
    #[error("{operation} {}: {source}", .path.display())]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// On what; a thread's name where it is no file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },

    /// A read connection could not be had.
    #[error("{operation}: cannot open another connection: {reason}")]
    Pool {
        /// What was attempted.
        operation: &'static str,
        /// Why.
        reason: String,
    },

    /// The file was deleted, moved or replaced while the box had it open. Nothing was written, and nothing is until it is
    /// back: close the box and open the file that is meant. A -wal and -shm of a deleted file may stay beside it.
    #[error("{} was deleted, moved or replaced while it was open", .path.display())]
    FileReplaced {
        /// Where it was.
        path: PathBuf,
    },

    /// The process was made by `fork` from the one that opened the box, and shares its connections, whose locks are the
    /// parent's: SQLite must not be used that way (<https://sqlite.org/howtocorrupt.html>, 2.6), nor may the child open the
    /// same file while the parent's box is open. Open the box after the fork, or have the child run a program by `exec`.
    #[error(
        "{operation}: the file was opened by the process that this one was forked from, and cannot be shared with it"
    )]
    Forked {
        /// What was attempted.
        operation: &'static str,
    },

    /// Code inside the library panicked while it held this call's work; the work was rolled back.
    #[error("{operation}: a thread that was committing this call's work panicked; nothing was written")]
    Panicked {
        /// What was attempted.
        operation: &'static str,
    },
}

impl Error {
    pub(crate) fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Error::Invalid { field, reason: reason.into() }
    }

    fn name(&self) -> &'static str {
        match self {
            Error::Sqlite(_) => "Sqlite",
            Error::CommitUnknown(_) => "CommitUnknown",
            Error::Invalid { .. } => "Invalid",
            Error::PayloadTooLarge { .. } => "PayloadTooLarge",
            Error::SchemaViolation { .. } => "SchemaViolation",
            Error::DuplicateSubscription { .. } => "DuplicateSubscription",
            Error::LinkExists { .. } => "LinkExists",
            Error::NotFound { .. } => "NotFound",
            Error::SchemaTooNew { .. } => "SchemaTooNew",
            Error::SchemaTooOld { .. } => "SchemaTooOld",
            Error::Json(_) => "Json",
            Error::Closed { .. } => "Closed",
            Error::ReadOnly { .. } => "ReadOnly",
            Error::Busy { .. } => "Busy",
            Error::Reentrant { .. } => "Reentrant",
            Error::WorkerRunning => "WorkerRunning",
            Error::NotADatabase { .. } => "NotADatabase",
            Error::CannotOpen { .. } => "CannotOpen",
            Error::UnsupportedSqlite { .. } => "UnsupportedSqlite",
            Error::Damaged { .. } => "Damaged",
            Error::CannotCompact { .. } => "CannotCompact",
            Error::WrongStatus { .. } => "WrongStatus",
            Error::NotStored { .. } => "NotStored",
            Error::NoNumberLeft { .. } => "NoNumberLeft",
            Error::FeatureMissing { .. } => "FeatureMissing",
            Error::InMemory { .. } => "InMemory",
            Error::Io { .. } => "Io",
            Error::Pool { .. } => "Pool",
            Error::FileReplaced { .. } => "FileReplaced",
            Error::Forked { .. } => "Forked",
            Error::Panicked { .. } => "Panicked",
        }
    }

    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Error::Io { operation, path: path.into(), source }
    }

    /// What keeps the box from its file, if that is why; `None` for a refusal or a mistake in the work itself, which would
    /// be the same next time.
    ///
    /// ```
    /// # use postbox::{Fault, NewEvent, Postbox};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// # let event = NewEvent::new("a", "b", "c", "d");
    /// match postbox.publish(event) {
    ///     Err(error) if error.fault() == Some(Fault::DiskFull) => println!("make room, then try again: {error}"),
    ///     result => drop(result?),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Error::Sqlite(error) | Error::CommitUnknown(error) => match error.sqlite_error() {
                Some(error) if error.extended_code == rusqlite::ffi::SQLITE_READONLY_DBMOVED => {
                    Some(Fault::FileReplaced)
                }
                error => Fault::of_code(error?.code),
            },
            Error::Busy { .. } => Some(Fault::Busy),
            Error::NotADatabase { .. } | Error::Damaged { .. } => Some(Fault::Damaged),
            Error::FileReplaced { .. } => Some(Fault::FileReplaced),
            Error::Forked { .. } => Some(Fault::Forked),
            Error::Io { source, .. } => Some(Fault::of_io(source.kind())),
            Error::CannotOpen { .. } | Error::Pool { .. } => Some(Fault::Io),
            Error::Panicked { .. } => Some(Fault::Other),
            Error::Invalid { .. }
            | Error::PayloadTooLarge { .. }
            | Error::SchemaViolation { .. }
            | Error::DuplicateSubscription { .. }
            | Error::LinkExists { .. }
            | Error::NotFound { .. }
            | Error::SchemaTooNew { .. }
            | Error::SchemaTooOld { .. }
            | Error::Json(_)
            | Error::Closed { .. }
            | Error::ReadOnly { .. }
            | Error::Reentrant { .. }
            | Error::WorkerRunning
            | Error::UnsupportedSqlite { .. }
            | Error::CannotCompact { .. }
            | Error::WrongStatus { .. }
            | Error::NotStored { .. }
            | Error::NoNumberLeft { .. }
            | Error::FeatureMissing { .. }
            | Error::InMemory { .. } => None,
        }
    }

    /// Whether the file, the machine or other connections are at fault. Otherwise it is the work itself, which would
    /// fail again: a constraint or a trigger of the application.
    pub(crate) fn is_fault_of_file(&self) -> bool {
        !matches!(self, Error::Sqlite(_) | Error::NotStored { .. } | Error::NoNumberLeft { .. })
            || self.fault().is_some()
    }

    /// A second copy, for the followers of a group commit: what SQLite said reaches everyone whose work it was.
    pub(crate) fn replicate(&self) -> Self {
        match self {
            Error::Sqlite(error) => Error::Sqlite(replicate_sqlite(error)),
            Error::CommitUnknown(error) => Error::CommitUnknown(replicate_sqlite(error)),
            Error::Closed { operation } => Error::Closed { operation },
            Error::NoNumberLeft { what, table } => Error::NoNumberLeft { what, table },
            Error::Busy { operation, waited, detail } => {
                Error::Busy { operation, waited: *waited, detail: detail.clone() }
            }
            Error::FileReplaced { path } => Error::FileReplaced { path: path.clone() },
            Error::Forked { operation } => Error::Forked { operation },
            other => Error::Sqlite(other_sqlite(&other.to_string())),
        }
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Error::Json(error)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({self})", self.name())
    }
}

pub(crate) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked)
    )
}

fn replicate_sqlite(error: &rusqlite::Error) -> rusqlite::Error {
    match error {
        rusqlite::Error::SqliteFailure(code, message) => {
            rusqlite::Error::SqliteFailure(*code, message.clone())
        }
        other => other_sqlite(&other.to_string()),
    }
}

fn other_sqlite(message: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ERROR),
        Some(message.to_owned()),
    )
}

fn describe_sqlite(error: &rusqlite::Error) -> String {
    if error.sqlite_error_code() == Some(rusqlite::ErrorCode::AuthorizationForStatementDenied) {
        format!(
            "{error} (inside a transaction of the box BEGIN, COMMIT, ROLLBACK, savepoints named postbox... and pragmas \
             that change the connection are refused)"
        )
    } else {
        error.to_string()
    }
}

/// serde's own text quotes the value that did not fit, which may be a part of a payload.
pub(crate) fn describe_json(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Io => "reading or writing failed",
        serde_json::error::Category::Syntax if error.to_string() == "key must be a string" => {
            "the keys of a map must be strings"
        }
        serde_json::error::Category::Syntax => "not well-formed, or nested too deeply",
        serde_json::error::Category::Data => return describe_misfit(error),
        serde_json::error::Category::Eof => "it ends too early",
    };
    if error.line() == 0 {
        what.to_owned()
    } else {
        format!("{what}, at line {} column {}", error.line(), error.column())
    }
}

/// The type's half of serde's text: what is missing, or what was expected. The other half is the payload's.
fn describe_misfit(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if let Some(name) = text.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
        return format!("the field `{name}` is missing");
    }
    // Of other texts the end may be the payload's as well.
    let of_serde = ["invalid type: ", "invalid value: ", "invalid length "];
    match text.rsplit_once(", expected ") {
        Some((_, expected))
            if of_serde.iter().any(|start| text.starts_with(start)) && !expected.contains('`') =>
        {
            format!("a value does not fit the type: expected {expected}")
        }
        _ => "a value does not fit the type".to_owned(),
    }
}

fn describe_path(path: &str) -> String {
    if path.is_empty() { "the payload".to_owned() } else { format!("at `{path}`") }
}

fn describe_detail(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({detail})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_errors_never_quote_the_value_that_did_not_fit() {
        let inner = serde_json::from_value::<u8>(serde_json::json!("canary-7f3a")).unwrap_err();
        assert!(inner.to_string().contains("canary-7f3a"), "serde itself quotes it");
        let error = Error::from(inner);
        assert!(!format!("{error} {error:?} {error:#?}").contains("canary-7f3a"));
        assert!(std::error::Error::source(&error).is_none());
        assert_eq!(error.to_string(), "JSON: a value does not fit the type: expected u8");
    }
}
