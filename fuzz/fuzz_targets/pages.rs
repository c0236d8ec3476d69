//! Bytes of a box's file that were changed behind SQLite's back, or cut off. It is opened, or refused and left as it was; no
//! panic, no endless loop, and nothing but errors that say what is wrong.

#![no_main]

mod boxes;

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use postbox::Error;

const PAGE: usize = 512;

/// Small pages: a file of few bytes has all kinds of them.
static TEMPLATE: LazyLock<Vec<u8>> = LazyLock::new(|| boxes::template(512));

const CHANGES_MAX: usize = 64;

/// Each change begins with a byte that says what it is.
fn damage(bytes: &mut Unstructured<'_>, file: &mut Vec<u8>) -> Result<()> {
    for _ in 0..CHANGES_MAX {
        if bytes.is_empty() || file.len() < PAGE {
            break;
        }
        let last = file.len() - 1;
        let page = |bytes: &mut Unstructured<'_>| bytes.int_in_range(0..=last / PAGE);
        match bytes.int_in_range(0..=9_u8)? {
            // A byte anywhere.
            0..=2 => file[bytes.int_in_range(0..=last)?] = bytes.arbitrary()?,
            // In a page's header, where it hurts.
            3 | 4 => {
                let at = page(bytes)? * PAGE + bytes.int_in_range(0..=31)?;
                file[at.min(last)] = bytes.arbitrary()?;
            }
            // In the file's.
            5 => file[bytes.int_in_range(0..=99)?] = bytes.arbitrary()?,
            // A page over another.
            6 | 7 => {
                let (from, to) = (page(bytes)? * PAGE, page(bytes)? * PAGE);
                let length = PAGE.min(file.len() - from.max(to));
                file.copy_within(from..from + length, to);
            }
            8 => {
                let at = page(bytes)? * PAGE;
                let end = (at + PAGE).min(file.len());
                file[at..end].fill(0);
            }
            _ => file.truncate(file.len() - bytes.int_in_range(0..=last)?),
        }
    }
    Ok(())
}

fuzz_target!(|bytes: &[u8]| {
    let folder = boxes::folder();
    let mut damaged = TEMPLATE.clone();
    let _ = damage(&mut Unstructured::new(bytes), &mut damaged); // too few bytes for the last change
    let path = boxes::put(&folder, &damaged);
    let Err(error) = work(&path) else { return };
    let is_left = matches!(
        error,
        Error::NotADatabase { .. }
            | Error::Damaged { .. }
            | Error::SchemaTooNew { .. }
            | Error::CannotOpen { .. }
    );
    assert!(!is_left || fs::read(&path).unwrap() == damaged, "{error}, and was changed");
    boxes::say::<()>("open", Err(error));
});

/// The error is that of opening. What an open box says may be any.
fn work(path: &Path) -> postbox::Result<()> {
    let bus = boxes::builder().open(path)?;
    boxes::subscribe(&bus);
    boxes::say("drain", bus.drain());
    boxes::look_at_all(&bus);
    boxes::say("a good event", boxes::deliver_a_good_event(&bus));
    boxes::say("close", bus.close());
    Ok(())
}
