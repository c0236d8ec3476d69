//! A span for each run of a handler, where the feature `tracing` is on.

use crate::event::Event;
use crate::handler::HandlerResult;

/// Runs a handler inside the span of its delivery, which lib.rs documents. What it says is not in the span: its error may quote
/// what is nobody else's business.
#[cfg(not(feature = "tracing"))]
pub(crate) fn deliver(
    _event: &Event,
    _consumer_name: &str,
    run: impl FnOnce() -> HandlerResult,
) -> HandlerResult {
    run()
}

#[cfg(feature = "tracing")]
pub(crate) fn deliver(
    event: &Event,
    consumer_name: &str,
    run: impl FnOnce() -> HandlerResult,
) -> HandlerResult {
    use crate::handler::Verdict;

    let span = tracing::info_span!(
        target: "postbox",
        "postbox.deliver",
        event_id = %event.id,
        event_name = event.name,
        consumer = consumer_name,
        attempt = event.attempt,
        correlation_id = event.correlation_id.as_deref(),
        trace_id = tracing::field::Empty,
        parent_id = tracing::field::Empty,
        trace_flags = tracing::field::Empty,
        outcome = tracing::field::Empty,
    );
    if let Some(trace_parent) = event.trace_parent.as_deref().and_then(parts) {
        let [trace_id, parent_id, trace_flags] = trace_parent;
        span.record("trace_id", trace_id);
        span.record("parent_id", parent_id);
        span.record("trace_flags", trace_flags);
    }
    let result = span.in_scope(run);
    let outcome = match result.as_ref().map_err(|error| &error.verdict) {
        Ok(()) => "processed",
        Err(Verdict::Skip) => "skipped",
        Err(Verdict::PauseConsumer(_)) => "paused",
        Err(Verdict::Wait(_)) => "waits",
        Err(Verdict::Retry | Verdict::RetryAfter(_) | Verdict::DeadLetter) => "failed",
    };
    span.record("outcome", outcome);
    result
}

/// Trace id, parent id and flags. `None` for what another program left in the row.
#[cfg(feature = "tracing")]
fn parts(trace_parent: &str) -> Option<[&str; 3]> {
    crate::validate::trace_parent(trace_parent).ok()?;
    let mut parts = trace_parent.split('-').skip(1);
    Some([parts.next()?, parts.next()?, parts.next()?])
}
