//! How a turn deals with what something of the application's in the file forbids: a trigger, or a constraint.

use rusqlite::Connection;

use crate::db::{Synchronous, Writer};
use crate::error::{Error, Result};

/// Why a try came to nothing: all of it was rolled back.
pub(super) enum Obstacle {
    /// It has to be synced and is not.
    Unsynced,
    /// Neighbours cannot be settled as one: each has to be looked at by itself.
    BrokenRun,
    /// A piece took the whole transaction with it, as `RAISE(ROLLBACK)` does.
    Ended(Error),
    /// The claim of a row did so, and from now on the row is left alone.
    Row(Error),
    Other(Error),
}

impl Obstacle {
    /// Of a try that has no other.
    pub(super) fn into_error(self) -> Error {
        match self {
            Obstacle::Ended(error) | Obstacle::Row(error) | Obstacle::Other(error) => error,
            // Neither comes of pieces that are apart.
            Obstacle::Unsynced | Obstacle::BrokenRun => Error::Panicked { operation: "process" },
        }
    }
}

impl<E: Into<Error>> From<E> for Obstacle {
    fn from(error: E) -> Self {
        Obstacle::Other(error.into())
    }
}

#[derive(Clone, Copy)]
pub(super) enum Pieces<'w> {
    /// A piece that is refused fails the turn: the usual way, which costs nothing.
    Together,
    /// Each has a savepoint of its own, and fails alone.
    OneByOne,
    /// Each has a transaction of its own, and may even end it.
    Apart(&'w Writer, Synchronous),
}

impl Pieces<'_> {
    /// The outer error ends the try, the inner one is this piece's alone.
    pub(super) fn with<T>(
        self,
        conn: &Connection,
        work: impl FnOnce() -> Result<T>,
    ) -> std::result::Result<Result<T>, Obstacle> {
        let done = match self {
            Pieces::Together => return Ok(Ok(work()?)),
            Pieces::OneByOne => {
                conn.prepare_cached("SAVEPOINT postbox_piece")?.execute([])?;
                let done = work();
                match done {
                    Err(error) if conn.is_autocommit() && !error.is_fault_of_file() => {
                        return Err(Obstacle::Ended(error));
                    }
                    Err(error) if conn.is_autocommit() => return Err(error.into()),
                    Err(_) => {
                        conn.prepare_cached("ROLLBACK TO postbox_piece")?.execute([])?;
                    }
                    Ok(_) => {}
                }
                conn.prepare_cached("RELEASE postbox_piece")?.execute([])?;
                done
            }
            Pieces::Apart(writer, synchronous) => writer.transaction(synchronous, "process", |_| work()),
        };
        match done {
            Err(error) if error.is_fault_of_file() => Err(error.into()),
            done => Ok(done),
        }
    }
}
