//! What the command line says.

use std::path::PathBuf;
use std::process::exit;

const USAGE: &str = "\
The library against floors of raw rusqlite.

  WORD ...     the sections whose name contains one of these words; all, where there is none
  --quick      a short form
  --json FILE  the rows and the machine as JSON as well
  --markdown   the table as Markdown";

#[derive(Default)]
pub(crate) struct Options {
    pub(crate) quick: bool,
    pub(crate) markdown: bool,
    pub(crate) json: Option<PathBuf>,
    /// For the harness itself: see `sections::memory`.
    pub(crate) resident: Option<usize>,
    words: Vec<String>,
}

impl Options {
    pub(crate) fn of_this_run() -> Self {
        let mut options = Options::default();
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--markdown" => options.markdown = true,
                "--json" => match arguments.next() {
                    Some(path) => options.json = Some(path.into()),
                    None => refuse("--json needs a file"),
                },
                "--resident" => options.resident = arguments.next().and_then(|rows| rows.parse().ok()),
                "--bench" => {} // Cargo's
                "--help" | "-h" => {
                    println!("{USAGE}");
                    exit(0)
                }
                word if word.starts_with('-') => refuse(&format!("no such option: {word}")),
                word => options.words.push(word.to_owned()),
            }
        }
        options
    }

    pub(crate) fn wants(&self, section: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| section.contains(word.as_str()))
    }
}

fn refuse(why: &str) -> ! {
    eprintln!("{why}\n\n{USAGE}");
    exit(2)
}
