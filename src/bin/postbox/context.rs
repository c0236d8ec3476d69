//! What every command is given: how to open the file, how to show something, how to ask.

use std::io::{self, BufRead, IsTerminal};
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use postbox::Postbox;
use serde_json::Value;

use crate::failure::Failure;
use crate::show;

pub(crate) struct Context {
    json: bool,
}

impl Context {
    pub(crate) fn new(json: bool) -> Self {
        Context { json }
    }

    /// For what is printed again and again, each time in a line.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints the one or the other.
    pub(crate) fn show(
        &self,
        json: impl FnOnce() -> Value,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        if self.json { show::print(&show::json(&json())) } else { show::print(&text()) }
    }
}

/// For commands that only look: nothing is written, whatever happens.
pub(crate) fn read(file: &Path) -> Result<Postbox, Failure> {
    Postbox::open_read_only(file).map_err(Failure::of(file))
}

/// For commands that change something. A file that is not there is not made, one that is no box does not become one, and
/// one of an older version is not upgraded: an application of that release may be running.
pub(crate) fn write(file: &Path) -> Result<Postbox, Failure> {
    drop(read(file)?);
    Postbox::open(file).map_err(Failure::of(file))
}

/// Whether a consumer of this name has ever had to do with events of this file. One that is only about to, has not.
pub(crate) fn knows_consumer(postbox: &Postbox, name: &str) -> postbox::Result<bool> {
    Ok(postbox.inbox().consumers()?.iter().any(|known| known.name == name))
}

/// Before something is destroyed. `yes`: the command line says so already.
pub(crate) fn confirm(yes: bool, question: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let question = show::printable(question);
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(Failure::NotConfirmed { question });
    }
    show::tell(&format!("{question} Type yes to go on: "));
    let mut answer = String::new();
    match io::stdin().lock().read_line(&mut answer) {
        Ok(_) if answer.trim().eq_ignore_ascii_case("yes") => Ok(()),
        _ => Err(Failure::NotConfirmed { question }),
    }
}

/// Those that are shown at the same time stand below each other.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Shows on a terminal's stderr that something long goes on, until it is dropped.
pub(crate) fn progress(what: String) -> Progress {
    let bar = BARS.add(ProgressBar::new_spinner());
    bar.set_message(what);
    bar.enable_steady_tick(Duration::from_millis(120));
    Progress(bar)
}

/// The same with how far it is; `total`, where that is known.
pub(crate) fn bar(what: &'static str, total: Option<u64>) -> Progress {
    let bar = BARS.add(total.map_or_else(ProgressBar::new_spinner, ProgressBar::new));
    let template = if total.is_some() { "{msg} {wide_bar} {pos}/{len}" } else { "{spinner} {msg} {pos}" };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what);
    Progress(bar)
}

pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn at(&self, position: u64) {
        self.0.set_position(position);
    }

    /// On stderr, above it.
    pub(crate) fn tell(&self, text: &str) {
        self.0.suspend(|| show::tell(text));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
