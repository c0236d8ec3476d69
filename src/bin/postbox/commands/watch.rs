//! The box in numbers, again and again.

mod full;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use postbox::{Postbox, Stats};
use serde_json::{Value, json};

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::screen::Screen;
use crate::show;

/// Show counts and rates once a second, until Ctrl-C
///
/// On a terminal it takes the whole screen, and also shows what waits for what, what is paused, what failed last, what to do, and
/// the consumers; q or Ctrl-C ends it and leaves the terminal as it was. With --lines one line is written anew. Elsewhere there is
/// a line a second. The file is opened for each look and closed again, so that nothing stays behind whenever it ends.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox watch app.db
  postbox watch app.db --lines
  postbox watch app.db --count 60 | tee minute.txt
  postbox watch app.db --json --every 10s | jq -c '{pending, processed_per_s}'

With --json, one object in a line, each time:
  pending, processing, processed, failed, dead_letter, total  numbers of events
  oldest_pending_age_ms             since the oldest pending event was published, or null
  published_per_s, processed_per_s  since the line before, 0 in the first; deleted events count against them")]
pub(crate) struct Args {
    /// The application's database
    file: PathBuf,
    /// One line, and not the whole screen, also on a terminal
    #[arg(long)]
    lines: bool,
    /// End after so many looks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// The time between two looks: 500ms, 1s, 1m; at least 100ms
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    every: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    let every = crate::when::length(text)?;
    if every < Duration::from_millis(100) { Err("must be at least 100ms".to_owned()) } else { Ok(every) }
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    if !args.lines && !context.is_json() && Screen::is_there() {
        return full::run(args);
    }
    let is_rewritten = io::stdout().is_terminal() && !context.is_json();
    let begun = Instant::now();
    let mut last: Option<Look> = None;
    let mut number: u32 = 0;
    loop {
        let look = Look::at(&args.file)?;
        let rates = last.as_ref().map_or(Rates::default(), |last| look.since(last));
        let line =
            if context.is_json() { object(&look, rates).to_string() } else { text(&look.stats, rates) };
        show::print(&if is_rewritten { format!("\r{line}\x1b[K") } else { line + "\n" })?;
        last = Some(look);
        number = number.saturating_add(1);
        if args.count.is_some_and(|count| u64::from(number) >= count) {
            return if is_rewritten { show::print("\n") } else { Ok(()) };
        }
        // Counted from the beginning, so that the looks themselves take no time.
        let next = args.every.checked_mul(number).map(|passed| passed.saturating_sub(begun.elapsed()));
        thread::sleep(next.unwrap_or(args.every));
    }
}

struct Look {
    stats: Stats,
    at: Instant,
}

/// In a second.
#[derive(Clone, Copy, Default)]
struct Rates {
    published: f64,
    processed: f64,
}

impl Look {
    fn at(file: &Path) -> Result<Self, Failure> {
        Look::of(&context::read(file)?, file)
    }

    fn of(postbox: &Postbox, file: &Path) -> Result<Self, Failure> {
        let stats = postbox.stats().map_err(Failure::of(file))?;
        Ok(Look { stats, at: Instant::now() })
    }

    fn since(&self, last: &Look) -> Rates {
        let seconds = (self.at - last.at).as_secs_f64().max(0.001);
        // To the tenth; no file has so many events that a float could not count them.
        #[expect(clippy::cast_precision_loss)]
        let rate = |now: u64, then: u64| (now.saturating_sub(then) as f64 / seconds * 10.0).round() / 10.0;
        Rates {
            published: rate(self.stats.total, last.stats.total),
            processed: rate(self.stats.processed, last.stats.processed),
        }
    }
}

fn text(stats: &Stats, rates: Rates) -> String {
    let oldest = stats.oldest_pending_age_ms.map(Duration::from_millis);
    format!(
        "pending {} (oldest {})  processing {}  processed {}  failed {}  dead letters {}  published {}/s  processed {}/s",
        stats.pending,
        oldest.map_or("-".to_owned(), show::duration),
        stats.processing,
        stats.processed,
        stats.failed,
        stats.dead_letter,
        rates.published,
        rates.processed,
    )
}

fn object(look: &Look, rates: Rates) -> Value {
    let stats = &look.stats;
    json!({
        "pending": stats.pending,
        "processing": stats.processing,
        "processed": stats.processed,
        "failed": stats.failed,
        "dead_letter": stats.dead_letter,
        "total": stats.total,
        "oldest_pending_age_ms": stats.oldest_pending_age_ms,
        "published_per_s": rates.published,
        "processed_per_s": rates.processed,
    })
}
