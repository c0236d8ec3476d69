//! What kind of fault keeps a box from its file.

use std::io::ErrorKind;

use rusqlite::ErrorCode as Code;
use serde::Serialize;

/// What keeps the box from its file: of an error ([`Error::fault`](crate::Error::fault)), or of a worker that waits
/// ([`Health`](crate::Health)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Fault {
    /// Another connection holds the file for longer than the busy timeout.
    Busy,
    /// The disk, or a quota, is full.
    DiskFull,
    /// The file, or its folder, may not be written to.
    ReadOnly,
    /// The system cannot open, read, write or sync it.
    Io,
    /// A page of the file is not what it should be, or the file is no SQLite database any more. Nothing repairs it by itself:
    /// restore a backup.
    Damaged,
    /// The file was deleted, moved or replaced while it was open.
    FileReplaced,
    /// This process was made by `fork` from the one that opened the box.
    Forked,
    /// Memory is short, or something else that is not the work's own fault.
    Other,
}

impl Fault {
    /// As it is shown: `busy`, `disk_full`, `read_only`, `io`, `damaged`, `file_replaced`, `forked`, `other`.
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::Busy => "busy",
            Fault::DiskFull => "disk_full",
            Fault::ReadOnly => "read_only",
            Fault::Io => "io",
            Fault::Damaged => "damaged",
            Fault::FileReplaced => "file_replaced",
            Fault::Forked => "forked",
            Fault::Other => "other",
        }
    }

    /// `None`: the statement or its values are at fault, and would be again.
    pub(crate) fn of_code(code: Code) -> Option<Self> {
        match code {
            Code::DatabaseBusy | Code::DatabaseLocked => Some(Fault::Busy),
            Code::DiskFull => Some(Fault::DiskFull),
            Code::ReadOnly | Code::PermissionDenied => Some(Fault::ReadOnly),
            Code::SystemIoFailure
            | Code::CannotOpen
            | Code::FileLockingProtocolFailed
            | Code::NoLargeFileSupport => Some(Fault::Io),
            Code::DatabaseCorrupt | Code::NotADatabase => Some(Fault::Damaged),
            Code::OutOfMemory | Code::OperationInterrupted => Some(Fault::Other),
            _ => None,
        }
    }

    pub(crate) fn of_io(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Fault::DiskFull,
            ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => Fault::ReadOnly,
            _ => Fault::Io,
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
