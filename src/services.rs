//! Outbox, inbox, links, sagas and schedules as the application sees them: on the box, or inside one of its transactions.

mod inbox;
mod links;
mod outbox;
mod sagas;
mod schedules;

use rusqlite::Connection;

pub use self::inbox::Inbox;
pub use self::links::Links;
pub use self::outbox::Outbox;
pub use self::sagas::Sagas;
pub use self::schedules::Schedules;
use crate::core::Core;
use crate::error::Result;

/// Where a service works.
#[derive(Clone, Copy)]
pub(crate) enum Access<'a> {
    /// On the box: every call stands for itself, writes in a synced commit.
    Apart(&'a Core),
    /// Inside a transaction.
    Within(&'a Core, &'a Connection),
}

impl<'a> Access<'a> {
    fn core(self) -> &'a Core {
        match self {
            Access::Apart(core) | Access::Within(core, _) => core,
        }
    }

    fn read<T>(self, operation: &'static str, f: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        match self {
            Access::Apart(core) => core.db.read(operation, f),
            Access::Within(_, conn) => f(conn),
        }
    }

    /// Reads with several statements what is of one moment.
    fn read_snapshot<T>(
        self,
        operation: &'static str,
        f: impl FnOnce(&Connection) -> Result<T>,
    ) -> Result<T> {
        match self {
            Access::Within(_, conn) => f(conn),
            Access::Apart(core) => core.db.read(operation, |conn| {
                // In memory, a thread that is inside a transaction has its snapshot already.
                let snapshot = if conn.is_autocommit() { Some(conn.unchecked_transaction()?) } else { None };
                let read = f(conn);
                drop(snapshot);
                read
            }),
        }
    }

    /// `f` is given the time as well.
    fn write<T>(self, operation: &'static str, f: impl FnOnce(&Connection, i64) -> Result<T>) -> Result<T> {
        let core = self.core();
        match self {
            Access::Apart(_) => core.db.write(operation, |conn| f(conn, core.clock.now())),
            Access::Within(_, conn) => f(conn, core.clock.now()),
        }
    }
}
