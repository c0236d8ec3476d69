//! A box for tests: in memory, on a clock that only the test moves.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use time::OffsetDateTime;

use super::clock::ManualClock;
use super::drains::expect;
use crate::builder::Builder;
use crate::clock::Clock;
use crate::postbox::Postbox;
use crate::settings::Settings;

/// 2024-01-01T00:00:00Z: so many days after the epoch.
const START: Duration = Duration::from_hours(19_723 * 24);

/// What a test box's clock shows at first.
pub(super) fn start() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + START
}

/// A [`Postbox`] in memory, on a clock that only the test moves. Everything that a box can do, it can: it derefs to one, and is
/// passed as `&Postbox` to the code under test; code that keeps a box of its own is given a [`postbox()`](TestBox::postbox).
///
/// ```
/// use postbox::testing::TestBox;
/// use postbox::{Context, Event, NewEvent, Subscription};
///
/// let postbox = TestBox::new();
/// postbox.subscribe(Subscription::new("invoice.*", "mail", |_: &Event, _: &Context<'_>| Ok(())))?;
/// postbox.publish(NewEvent::new("invoice.created", "finance", "Invoice", "inv-1"))?;
/// assert_eq!(postbox.drain_due(), 1);
/// # Ok::<(), postbox::Error>(())
/// ```
pub struct TestBox {
    postbox: Postbox,
    clock: ManualClock,
    recipe: TestBoxBuilder,
}

impl TestBox {
    /// An empty box with default settings. Its clock shows 2024-01-01T00:00:00Z.
    ///
    /// # Panics
    /// When it cannot be opened: with a SQLite that is too old, for one.
    #[track_caller]
    #[expect(clippy::new_without_default, reason = "a box that is opened in passing is a surprise")]
    pub fn new() -> Self {
        TestBox::builder().open()
    }

    /// Settings, a start time, subscriptions.
    pub fn builder() -> TestBoxBuilder {
        TestBoxBuilder { start: None, options: None, setup: None }
    }

    /// A clone of the box, for code that keeps one, and for threads. One that was made before the test box was
    /// [opened again](TestBox::reopen) is closed.
    pub fn postbox(&self) -> Postbox {
        self.postbox.clone()
    }

    /// Its clock. Clones show the same time.
    pub fn clock(&self) -> &ManualClock {
        &self.clock
    }

    /// What the clock shows.
    pub fn now(&self) -> OffsetDateTime {
        self.clock.now()
    }

    /// Moves the clock forward, and delivers nothing: see [`drain_for`](TestBox::drain_for). A running worker notices at once.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.postbox.notify();
    }

    /// Opens it once more as it was opened at first.
    pub(super) fn recipe(&self) -> Builder {
        self.recipe.recipe(&self.clock)
    }

    /// The box that was opened so.
    pub(super) fn replace(&mut self, postbox: Postbox) {
        self.recipe.set_up(&postbox);
        self.postbox = postbox;
    }

    /// To this time of the box, unless it is past.
    pub(super) fn move_to(&self, at: i64) {
        let left = at.saturating_sub(self.core().clock.now());
        self.advance(Duration::from_micros(u64::try_from(left).unwrap_or(0)));
    }
}

impl Deref for TestBox {
    type Target = Postbox;

    fn deref(&self) -> &Postbox {
        &self.postbox
    }
}

impl fmt::Debug for TestBox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestBox").field("now", &self.clock.now()).finish_non_exhaustive()
    }
}

type Options = Box<dyn Fn(Builder) -> Builder + Send + Sync>;
type Setup = Box<dyn Fn(&Postbox) + Send + Sync>;

/// How a [`TestBox`] is opened.
#[must_use = "a builder does nothing until it opens a box"]
pub struct TestBoxBuilder {
    start: Option<OffsetDateTime>,
    options: Option<Options>,
    setup: Option<Setup>,
}

impl TestBoxBuilder {
    /// What the clock shows at first. Defaults to 2024-01-01T00:00:00Z.
    pub fn starting_at(self, start: OffsetDateTime) -> Self {
        TestBoxBuilder { start: Some(start), ..self }
    }

    /// The application's default settings; called again, with options as well. Defaults to [`Settings::default`].
    pub fn settings(self, settings: Settings) -> Self {
        self.options(move |builder| builder.settings(settings.clone()))
    }

    /// Whatever else a [`Builder`] takes, such as an observer. The clock stays the test's. Called again, it adds to what was said
    /// before.
    pub fn options(mut self, options: impl Fn(Builder) -> Builder + Send + Sync + 'static) -> Self {
        let before = self.options.take();
        let all = move |builder| options(before.iter().fold(builder, |builder, before| before(builder)));
        TestBoxBuilder { options: Some(Box::new(all)), ..self }
    }

    /// What an application does at each start: it makes its tables, if they are not there, and subscribes. Run when the box is
    /// opened, and [opened again](TestBox::reopen). Called again, it adds to what was said before.
    pub fn setup(mut self, setup: impl Fn(&Postbox) + Send + Sync + 'static) -> Self {
        let before = self.setup.take();
        let all = move |postbox: &Postbox| {
            if let Some(before) = &before {
                before(postbox);
            }
            setup(postbox);
        };
        TestBoxBuilder { setup: Some(Box::new(all)), ..self }
    }

    /// Opens it.
    ///
    /// # Panics
    /// When it cannot be opened, as for an option out of its range.
    #[track_caller]
    pub fn open(self) -> TestBox {
        let start = self.start.unwrap_or_else(start);
        let clock = ManualClock::new(start);
        let postbox = expect(self.recipe(&clock).open_in_memory(), "open a test box");
        self.set_up(&postbox);
        TestBox { postbox, clock, recipe: self }
    }

    fn recipe(&self, clock: &ManualClock) -> Builder {
        let builder = Postbox::builder();
        let builder = self.options.iter().fold(builder, |builder, options| options(builder));
        builder.clock(clock.clone())
    }

    fn set_up(&self, postbox: &Postbox) {
        self.setup.iter().for_each(|setup| setup(postbox));
    }
}

impl fmt::Debug for TestBoxBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestBoxBuilder").field("start", &self.start).finish_non_exhaustive()
    }
}
