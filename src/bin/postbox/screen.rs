//! A terminal's whole screen, for as long as this is there. Whatever ends it, the terminal is as it was.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::time::{Duration, Instant};

use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use crossterm::terminal::{self, Clear, ClearType};
use crossterm::{cursor, execute, queue};

use crate::show;

pub(crate) struct Screen {
    signals: Signals,
    out: BufWriter<io::Stdout>,
}

/// What ends a wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The time is over.
    InTime,
    /// The screen has another size: it is to be drawn anew.
    Resized,
    /// Somebody wants to leave.
    Quit,
}

/// A signal is looked for so often.
const LOOK: Duration = Duration::from_millis(100);

impl Screen {
    /// Whether there is one: keys to be read, and a terminal that can more than lines.
    pub(crate) fn is_there() -> bool {
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        io::stdin().is_terminal() && io::stdout().is_terminal() && !is_dumb
    }

    pub(crate) fn open() -> io::Result<Self> {
        // First, so that nothing is left behind by a signal that comes in between.
        let mut screen = Screen { signals: Signals::catch()?, out: BufWriter::new(io::stdout()) };
        terminal::enable_raw_mode()?;
        // Long lines are cut by the terminal, which knows how wide a character is.
        execute!(screen.out, terminal::EnterAlternateScreen, terminal::DisableLineWrap, cursor::Hide)?;
        Ok(screen)
    }

    /// Draws the lines from the top, as many as there is room for.
    pub(crate) fn draw(&mut self, text: &str) -> io::Result<()> {
        let rows = terminal::size()?.1;
        let out = &mut self.out;
        queue!(out, cursor::MoveTo(0, 0))?;
        for (number, line) in text.lines().take(rows.into()).enumerate() {
            // None behind the last: it would scroll.
            out.write_all(if number > 0 { b"\r\n" } else { b"" })?;
            out.write_all(show::printable(line).as_bytes())?;
            queue!(out, Clear(ClearType::UntilNewLine))?;
        }
        queue!(out, Clear(ClearType::FromCursorDown))?;
        out.flush()
    }

    pub(crate) fn wait(&self, until: Instant) -> io::Result<Woken> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if self.signals.has_come() {
                return Ok(Woken::Quit);
            }
            if event::poll(left.min(LOOK))? {
                match event::read()? {
                    Event::Resize(..) => return Ok(Woken::Resized),
                    Event::Key(key)
                        if key.kind != KeyEventKind::Release && is_quit(key.code, key.modifiers) =>
                    {
                        return Ok(Woken::Quit);
                    }
                    _ => {}
                }
            } else if left <= LOOK {
                return Ok(Woken::InTime);
            }
        }
    }

    /// Gives the terminal back, and lets a signal that has come do what it does otherwise.
    pub(crate) fn close(self) {
        let came = self.signals.came();
        drop(self);
        Signals::obey(came);
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Each of them, also where another cannot be done.
        let _ = execute!(self.out, cursor::Show, terminal::EnableLineWrap, terminal::LeaveAlternateScreen);
        let _ = terminal::disable_raw_mode();
    }
}

fn is_quit(code: KeyCode, modifiers: KeyModifiers) -> bool {
    match code {
        KeyCode::Esc | KeyCode::Char('q' | 'Q') => true,
        KeyCode::Char('c' | 'd') => modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}

#[cfg(unix)]
struct Signals(std::sync::Arc<std::sync::atomic::AtomicUsize>);

#[cfg(unix)]
impl Signals {
    fn catch() -> io::Result<Self> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let signals = Signals(std::sync::Arc::default());
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            let number = usize::try_from(signal).unwrap_or_default();
            signal_hook::flag::register_usize(signal, std::sync::Arc::clone(&signals.0), number)?;
        }
        Ok(signals)
    }

    /// The signal's number; 0 for none.
    fn came(&self) -> usize {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }

    fn has_come(&self) -> bool {
        self.came() > 0
    }

    fn obey(came: usize) {
        if let Some(signal) = i32::try_from(came).ok().filter(|signal| *signal > 0) {
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "as on Unix")]
impl Signals {
    fn catch() -> io::Result<Self> {
        Ok(Signals)
    }

    fn came(&self) -> usize {
        0
    }

    fn has_come(&self) -> bool {
        false
    }

    fn obey(_came: usize) {}
}
