//! What a test asserts about the events of a box, and what it says where that is not so.

mod expected;
mod report;

pub use self::expected::{Expected, Many, One, Subject};

/// An event was published: with this name (or a pattern such as `invoice.*`, or an [`EventId`](crate::EventId)), a payload that
/// looks like this (see [`json_pattern!`](crate::testing::json_pattern)), and whatever else is asked for, by the names of the methods
/// of [`Expected`]. Published means: it is in the file, whatever has become of it since. Works on every
/// [`Postbox`](crate::Postbox).
///
/// Gives the event, the first published where there are several; with `count = n` all of them, which have to be so many.
///
/// ```
/// use postbox::serde_json::json;
/// use postbox::testing::{TestBox, assert_published, that};
/// use postbox::NewEvent;
///
/// let postbox = TestBox::new();
/// let invoice = |n: u32| NewEvent::new("invoice.created", "finance", "Invoice", format!("inv-{n}"));
/// postbox.publish(invoice(1).payload(json!({ "total": 12.5, "lines": [{ "sku": "pen" }] })))?;
/// postbox.publish(invoice(2).payload(json!({ "total": 99 })))?;
///
/// assert_published!(postbox, "invoice.created");
/// assert_published!(postbox, "invoice.created", { "lines": [{ "sku": "pen" }] });
/// let large = assert_published!(postbox, "invoice.*", { "total": that(|total| total.as_f64() > Some(50.0)) });
/// assert_eq!(large.aggregate_id, "inv-2");
/// let both = assert_published!(postbox, "invoice.created", count = 2, source_module = "finance");
/// assert_eq!(both[1].id, large.id);
/// # Ok::<(), postbox::Error>(())
/// ```
///
/// # Panics
/// When there is no such event, or not so many: with what was asked for, and the events that there are, the closest first, each with
/// what is different about it and the first place in the payload that is.
#[macro_export]
macro_rules! assert_published {
    ($postbox:expr, $($wanted:tt)+) => {
        $crate::__expected!($($wanted)+).assert_published(&$postbox)
    };
}

/// No such event was published: arguments as for [`assert_published!`](crate::testing::assert_published). Ask for as little as
/// possible: whatever is asked for is one more reason for no event to be like it.
///
/// ```
/// # use postbox::testing::{TestBox, refute_published};
/// # let postbox = TestBox::new();
/// refute_published!(postbox, "invoice.cancelled");
/// refute_published!(postbox, "invoice.*", aggregate_id = "inv-3");
/// ```
///
/// # Panics
/// When there is one: with all that there are.
#[macro_export]
macro_rules! refute_published {
    ($postbox:expr, $($wanted:tt)+) => {
        $crate::__expected!($($wanted)+).refute_published(&$postbox)
    };
}

/// An event was processed: every consumer is done with it. With `by = "consumer"`: this consumer is, whatever others are. Otherwise
/// as [`assert_published!`](crate::testing::assert_published).
///
/// ```
/// # use postbox::testing::{TestBox, assert_processed};
/// # use postbox::{Context, Event, NewEvent, Subscription};
/// # let postbox = TestBox::new();
/// # postbox.subscribe(Subscription::new("invoice.*", "mail", |_: &Event, _: &Context<'_>| Ok(())))?;
/// let id = postbox.publish(NewEvent::new("invoice.created", "finance", "Invoice", "inv-1"))?;
/// postbox.drain_due();
/// assert_processed!(postbox, id);
/// assert_processed!(postbox, "invoice.created", aggregate_id = "inv-1", by = "mail");
/// # Ok::<(), postbox::Error>(())
/// ```
///
/// # Panics
/// As [`assert_published!`](crate::testing::assert_published): what has become of each event is said as well.
#[macro_export]
macro_rules! assert_processed {
    ($postbox:expr, $($wanted:tt)+) => {
        $crate::__expected!($($wanted)+).assert_processed(&$postbox)
    };
}

/// An event is a dead letter, or failed for good where dead letters are off. With `by = "consumer"`: this consumer has failed it.
/// With `error = "text"`: its last error has this text in it. Otherwise as
/// [`assert_published!`](crate::testing::assert_published).
///
/// ```
/// # use postbox::testing::{TestBox, assert_dead_lettered};
/// # use postbox::{Context, Event, HandlerError, NewEvent, Subscription};
/// # let postbox = TestBox::new();
/// let refuse = |_: &Event, _: &Context<'_>| Err(HandlerError::dead_letter("no such customer"));
/// postbox.subscribe(Subscription::new("invoice.*", "mail", refuse))?;
/// postbox.publish(NewEvent::new("invoice.created", "finance", "Invoice", "inv-1"))?;
/// postbox.drain_due();
/// assert_dead_lettered!(postbox, "invoice.created", by = "mail", error = "no such customer");
/// # Ok::<(), postbox::Error>(())
/// ```
///
/// # Panics
/// As [`assert_published!`](crate::testing::assert_published): what has become of each event is said as well.
#[macro_export]
macro_rules! assert_dead_lettered {
    ($postbox:expr, $($wanted:tt)+) => {
        $crate::__expected!($($wanted)+).assert_dead_lettered(&$postbox)
    };
}

/// The arguments of the assertions, as an [`Expected`].
#[doc(hidden)]
#[macro_export]
macro_rules! __expected {
    ($subject:expr $(, $option:ident = $value:expr)* $(,)?) => {
        $crate::testing::Expected::event($subject)$(.$option($value))*
    };
    ($subject:expr, { $($pattern:tt)* } $(, $option:ident = $value:expr)* $(,)?) => {
        $crate::testing::Expected::event($subject)
            .payload($crate::json_pattern!({ $($pattern)* }))$(.$option($value))*
    };
    ($subject:expr, [ $($pattern:tt)* ] $(, $option:ident = $value:expr)* $(,)?) => {
        $crate::testing::Expected::event($subject)
            .payload($crate::json_pattern!([ $($pattern)* ]))$(.$option($value))*
    };
    ($subject:expr, $pattern:expr $(, $option:ident = $value:expr)* $(,)?) => {
        $crate::testing::Expected::event($subject).payload($pattern)$(.$option($value))*
    };
}
