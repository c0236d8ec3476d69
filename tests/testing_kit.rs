//! `postbox::testing`: what applications test themselves with. Needs the feature `testing`.

#[path = "testing_kit/alone.rs"]
mod alone;
#[path = "testing_kit/assertions.rs"]
mod assertions;
#[path = "testing_kit/crashes.rs"]
mod crashes;
#[path = "testing_kit/drains.rs"]
mod drains;
#[path = "testing_kit/patterns.rs"]
mod patterns;
#[path = "testing_kit/recorder.rs"]
mod recorder;
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What `f` panics with: it has to.
#[track_caller]
fn panics<T>(f: impl FnOnce() -> T) -> String {
    let panic = catch_unwind(AssertUnwindSafe(f)).map(drop).expect_err("it was to panic");
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => (*panic.downcast::<&str>().expect("a text")).to_owned(),
    }
}
