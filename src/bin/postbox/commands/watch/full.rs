//! The whole screen: what `stats` and `consumers` say, and rates.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use postbox::time::OffsetDateTime;
use postbox::{Backlog, Pause, Postbox, RecentFailure};

use super::{Args, Look, Rates};
use crate::advice::{self, Step};
use crate::commands::consumers::{self, Consumer};
use crate::context;
use crate::failure::Failure;
use crate::screen::{Screen, Woken};
use crate::show::{self, Table};

/// So many of the last failures are shown.
const FAILURES: usize = 5;

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    // Before the screen is taken: a file that cannot be read is told on the terminal as it is.
    let mut watched = Watched::begin(&args.file)?;
    let mut screen = Screen::open()?;
    let ended = show_on(&mut screen, &mut watched, args);
    screen.close();
    ended
}

fn show_on(screen: &mut Screen, watched: &mut Watched<'_>, args: &Args) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut number: u32 = 0;
    loop {
        screen.draw(&watched.shown(args.every))?;
        number = number.saturating_add(1);
        let next = args.every.checked_mul(number).and_then(|passed| begun.checked_add(passed));
        if wait(screen, watched, args, next.unwrap_or_else(Instant::now))? == Woken::Quit
            || args.count.is_some_and(|count| u64::from(number) >= count)
        {
            return Ok(());
        }
        watched.look()?;
    }
}

fn wait(screen: &mut Screen, watched: &Watched<'_>, args: &Args, until: Instant) -> io::Result<Woken> {
    loop {
        match screen.wait(until)? {
            Woken::Resized => screen.draw(&watched.shown(args.every))?,
            woken => return Ok(woken),
        }
    }
}

struct Watched<'a> {
    file: &'a Path,
    look: Look,
    rates: Rates,
    details: Details,
    /// Details are looked for again only then: what they cost grows with what waits.
    details_due: Instant,
}

/// What takes longer than a look at the numbers.
struct Details {
    backlog: Backlog,
    pauses: Vec<Pause>,
    consumers: Vec<Consumer>,
    failures: Vec<RecentFailure>,
}

impl Details {
    fn of(postbox: &Postbox) -> postbox::Result<Self> {
        Ok(Details {
            backlog: postbox.outbox().backlog()?,
            pauses: postbox.pauses()?,
            consumers: consumers::all(postbox)?,
            failures: postbox.outbox().recent_failures(FAILURES)?,
        })
    }
}

impl<'a> Watched<'a> {
    fn begin(file: &'a Path) -> Result<Self, Failure> {
        let postbox = context::read(file)?;
        let look = Look::of(&postbox, file)?;
        let begun = Instant::now();
        let details = Details::of(&postbox).map_err(Failure::of(file))?;
        let details_due = Instant::now() + begun.elapsed() * 10;
        Ok(Watched { file, look, rates: Rates::default(), details, details_due })
    }

    fn look(&mut self) -> Result<(), Failure> {
        let postbox = context::read(self.file)?;
        let look = Look::of(&postbox, self.file)?;
        self.rates = look.since(&self.look);
        self.look = look;
        let begun = Instant::now();
        if begun >= self.details_due {
            self.details = Details::of(&postbox).map_err(Failure::of(self.file))?;
            // At most a tenth of the time is spent on them.
            self.details_due = Instant::now() + begun.elapsed() * 10;
        }
        Ok(())
    }

    fn shown(&self, every: Duration) -> String {
        let now = show::time(OffsetDateTime::now_utc());
        let mut text =
            format!("{}  {now}  every {}, q quits\n\n", show::path(self.file), show::duration(every));
        self.numbers(&mut text);
        let Details { backlog, pauses, consumers, failures } = &self.details;
        section(&mut text, "paused", pauses.iter().map(advice::paused));
        section(&mut text, "last failures", failures.iter().map(advice::failure));
        let steps = advice::steps(self.file, &self.look.stats, backlog, pauses);
        section(
            &mut text,
            "next",
            steps.into_iter().map(|Step { what, command }| format!("{what}: {command}")),
        );
        let table = Table::bare(["consumer", "open", "to replay", "last processed"]);
        text.push('\n');
        text.push_str(&consumers::table(table, consumers));
        text
    }

    fn numbers(&self, text: &mut String) {
        let (stats, rates, backlog) = (&self.look.stats, self.rates, &self.details.backlog);
        let oldest = stats.oldest_pending_age_ms.map(Duration::from_millis);
        let oldest = oldest.map_or("-".to_owned(), show::duration);
        let mut row = |name: &str, count: u64, more: &str| {
            let line = format!("{name:<13}{count:>10}  {more}");
            let _ = writeln!(text, "{}", line.trim_end());
        };
        row("pending", stats.pending, &format!("oldest {oldest}"));
        row("  due", backlog.due, "");
        row("  later", backlog.later, "");
        row("  paused", backlog.paused, "");
        row("  behind", backlog.behind, "");
        row("  limited", backlog.limited, "");
        row("  newer", backlog.newer, "");
        row("  held", backlog.held, "");
        row("processing", stats.processing, "");
        row("processed", stats.processed, &format!("{}/s", rates.processed));
        row("failed", stats.failed, "");
        row("dead letters", stats.dead_letter, "");
        row("total", stats.total, &format!("published {}/s", rates.published));
        if let (Some(file), Some(wal)) = (stats.file_bytes, stats.wal_bytes) {
            let _ = writeln!(text, "{file} bytes, and {wal} in the -wal");
        }
    }
}

/// Nothing where there are no lines.
fn section(text: &mut String, heading: &str, lines: impl IntoIterator<Item = String>) {
    let mut heading = Some(heading);
    for line in lines {
        if let Some(heading) = heading.take() {
            let _ = writeln!(text, "\n{heading}:");
        }
        // Of one event's name or error, no line of its own is made.
        let _ = writeln!(text, "  {}", show::printable(&line));
    }
}
