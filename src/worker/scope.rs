//! Which boxes' handlers this thread is inside: what would wait for the handler itself is an error there.

use std::cell::RefCell;

use crate::core::Core;
use crate::error::{Error, Result};
use crate::sync::thread_local;

thread_local! {
    /// Addresses of cores: compared, never followed.
    static INSIDE: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Marks the thread as inside a handler of this box until it is dropped.
pub(crate) struct HandlerScope;

impl HandlerScope {
    pub(crate) fn enter(core: &Core) -> Self {
        let _ = INSIDE.try_with(|inside| inside.borrow_mut().push(address(core)));
        HandlerScope
    }
}

impl Drop for HandlerScope {
    fn drop(&mut self) {
        let _ = INSIDE.try_with(|inside| inside.borrow_mut().pop());
    }
}

pub(crate) fn refuse_inside_handler(core: &Core, operation: &'static str) -> Result<()> {
    // A thread that ends has no such list any more: it is in nobody's handler.
    if INSIDE.try_with(|inside| inside.borrow().contains(&address(core))) == Ok(true) {
        return Err(Error::Reentrant {
            operation,
            inside: "a handler",
            instead: "let the handler return first",
        });
    }
    Ok(())
}

fn address(core: &Core) -> usize {
    std::ptr::from_ref(core).addr()
}
