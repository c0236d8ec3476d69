//! Where a box can be made to die as its process might, for `postbox::testing`. Without the feature `testing` nothing of it is
//! left: every call here is empty.

#[cfg(feature = "testing")]
mod armed;

#[cfg(feature = "testing")]
pub(crate) use self::armed::{Crash, Crashed};

/// A step in the life of an event, at which [`TestBox::crash_at`](crate::testing::TestBox::crash_at) ends the box as `kill -9` would
/// end its process.
///
/// | step | what has happened | what the next start finds |
/// |---|---|---|
/// | `BeforePublish` | it is written, and not committed | nothing: it was never published |
/// | `AfterPublish` | it is committed; neither the caller nor the worker has heard | it is due |
/// | `AfterClaim` | it is claimed; no handler has begun | it is due, and no attempt was spent |
/// | `BeforeHandler` | its handler is about to run | an attempt that was lost: it counts, and the event is due again |
/// | `AfterHandler` | its handler has returned; nothing of that is written | the same: a plain handler runs again, a transactional one has done nothing |
/// | `BeforeCommit` | transactional handlers have run, all that they and the box wrote is in the open transaction | the same |
/// | `AfterCommit` | that transaction is committed; nobody has heard | all of it: it does not run again |
/// | `AfterSettle` | what plain handlers came to is committed; nobody has heard | all of it: it does not run again |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(
    not(feature = "testing"),
    expect(unreachable_pub, dead_code, reason = "it is used with the feature `testing`")
)]
#[non_exhaustive]
pub enum CrashPoint {
    /// `publish`, `publish_all` or `transaction` has written, and not committed.
    BeforePublish,
    /// It has committed. Neither the caller nor the worker has heard of it.
    AfterPublish,
    /// Events are claimed. No handler has begun.
    AfterClaim,
    /// A handler is about to run.
    BeforeHandler,
    /// It has returned, or panicked. What it comes to is not written.
    AfterHandler,
    /// Transactional handlers have run, and what became of their events is written. Nothing is committed.
    BeforeCommit,
    /// All of that is committed. Nobody has heard of it.
    AfterCommit,
    /// What became of events with plain handlers is committed. Nobody has heard of it.
    AfterSettle,
}

/// Nothing.
#[cfg(not(feature = "testing"))]
#[derive(Clone, Default)]
pub(crate) struct Crash {}

#[cfg(not(feature = "testing"))]
#[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "as with the feature")]
impl Crash {
    #[inline]
    pub(crate) fn at(&self, _: CrashPoint) {}

    #[inline]
    pub(crate) fn before_commit(&self, _: &'static str) -> crate::error::Result<()> {
        Ok(())
    }

    #[inline]
    pub(crate) fn after_commit(&self, _: &'static str) {}

    #[inline]
    pub(crate) fn refuse_dead(&self, _: &'static str) -> crate::error::Result<()> {
        Ok(())
    }

    #[inline]
    pub(crate) fn note_begun(&self, _: u64, _: i64) {}

    #[inline]
    pub(crate) fn is_dead(&self) -> bool {
        false
    }
}
