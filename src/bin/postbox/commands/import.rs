//! Events of other boxes.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use postbox::{Error, ImportedEvent, Postbox};
use serde_json::json;

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::{envelope, show};

/// Take over events from CloudEvents 1.0, one in a line, as `export` writes them
///
/// An event whose id is there already is left alone, so that an import can be made again. All lines are checked before the first
/// is imported: one that no box could have published refuses all. Attributes that `export` does not write are left out.
///
/// What it means for delivery: imported events are pending and due at once. Every consumer that subscribes receives them, behind
/// all that are there, whoever has received them where they come from. With --as processed they are history: no consumer
/// receives them, until `replay` or `catch-up` asks for it. Attempts, errors and inbox rows stay where they were.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox import test.db events.jsonl --dry-run
  postbox import test.db events.jsonl
  zcat events.jsonl.gz | postbox import archive.db --as processed

With --json, one object:
  imported       how many were new, or would be
  already_there  how many were left alone
  dry_run        true: nothing was imported")]
pub(crate) struct Args {
    /// The application's database
    file: PathBuf,
    /// The events; - is the standard input, which is held in memory
    #[arg(default_value = "-")]
    input: PathBuf,
    /// What they become
    #[arg(long = "as", value_enum, default_value = "pending")]
    become_: Become,
    /// Only check the events, and count
    #[arg(long)]
    dry_run: bool,
    /// Payloads of more bytes than this are refused, as the application refuses them
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    max_payload_bytes: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Become {
    /// To be delivered
    Pending,
    /// History
    Processed,
}

/// So many are imported in one transaction, or fewer of many bytes.
const CHUNK: usize = 200;
const CHUNK_BYTES: usize = 4 << 20;

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let builder = || Postbox::builder().max_payload_bytes(args.max_payload_bytes);
    let read_only = builder().open_read_only(&args.file).map_err(Failure::of(&args.file))?;
    let input = Input::open(&args.input)?;
    // Payload and metadata have so many bytes each, and six times that where each byte is written as `\u0078`.
    let line_bytes_max = args.max_payload_bytes.saturating_mul(12).saturating_add(1 << 16);

    let progress = context::bar("checking", None);
    let (mut lines, mut known) = (0, 0);
    let mut seen = HashSet::new();
    input.each(line_bytes_max, |event, _| {
        read_only.check_import(&event).map_err(|error| error.to_string())?;
        // Of two lines with one id the second is left alone.
        let is_there = || !matches!(read_only.outbox().get(event.id()), Ok(None));
        if args.dry_run && (!seen.insert(event.id()) || is_there()) {
            known += 1;
        }
        lines += 1;
        progress.at(lines);
        Ok(())
    })?;
    drop((progress, read_only));
    let imported = if args.dry_run {
        lines - known
    } else {
        let postbox = builder().open(&args.file).map_err(Failure::of(&args.file))?;
        let imported = import(&postbox, args, &input, line_bytes_max, lines)?;
        postbox.close().map_err(Failure::of(&args.file))?;
        imported
    };
    let there = lines - imported;
    context.show(
        || json!({ "imported": imported, "already_there": there, "dry_run": args.dry_run }),
        || {
            let would = if args.dry_run { "dry run: " } else { "" };
            format!("{would}{} imported, {there} there already\n", show::count_of(imported, "event"))
        },
    )
}

fn import(
    postbox: &Postbox,
    args: &Args,
    input: &Input,
    line_bytes_max: usize,
    total: u64,
) -> Result<u64, Failure> {
    let progress = context::bar("importing", Some(total));
    let (mut chunk, mut bytes, mut imported, mut seen) = (Vec::new(), 0, 0, 0);
    let mut failed = None;
    let mut write = |chunk: &mut Vec<ImportedEvent>| match postbox.import(chunk.drain(..)) {
        Ok(new) => {
            imported += new as u64;
            true
        }
        Err(error) => {
            failed = Some(error);
            false
        }
    };
    let read = input.each(line_bytes_max, |event, length| {
        chunk.push(match args.become_ {
            Become::Pending => event,
            Become::Processed => event.processed(),
        });
        bytes += length;
        seen += 1;
        if chunk.len() == CHUNK || bytes >= CHUNK_BYTES {
            bytes = 0;
            if !write(&mut chunk) {
                return Err("was not imported".to_owned());
            }
            progress.at(seen);
        }
        Ok(())
    });
    let ended = read.is_ok() && write(&mut chunk);
    match failed {
        Some(error) => Err(Failure::of(&args.file)(error)),
        None if ended => Ok(imported),
        None => read.map(|()| imported),
    }
}

/// What can be read twice.
enum Input {
    File(PathBuf),
    Memory { name: PathBuf, bytes: Vec<u8> },
}

impl Input {
    fn open(path: &Path) -> Result<Self, Failure> {
        let name = if path == Path::new("-") { Path::new("standard input") } else { path };
        let mut bytes = Vec::new();
        let read = if path == Path::new("-") {
            io::stdin().lock().read_to_end(&mut bytes).map(drop)
        } else if path.is_file() {
            return Ok(Input::File(path.to_owned()));
        } else {
            // A pipe.
            File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).map(drop)
        };
        read.map_err(|source| cannot_read(name, source))?;
        Ok(Input::Memory { name: name.to_owned(), bytes })
    }

    /// The event of each line, and the line's length. Lines that are blank are none.
    fn each(
        &self,
        line_bytes_max: usize,
        mut f: impl FnMut(ImportedEvent, usize) -> Result<(), String>,
    ) -> Result<(), Failure> {
        let (name, mut input): (_, Box<dyn BufRead + '_>) = match self {
            Input::Memory { name, bytes } => (name, Box::new(Cursor::new(bytes))),
            Input::File(path) => {
                let file = File::open(path).map_err(|source| cannot_read(path, source))?;
                (path, Box::new(BufReader::new(file)))
            }
        };
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let limit = line_bytes_max as u64 + 1;
            let length = input.by_ref().take(limit).read_until(b'\n', &mut line);
            let length = length.map_err(|source| cannot_read(name, source))?;
            if length == 0 {
                break;
            }
            let refused = |reason| Failure::Line { input: name.clone(), number, reason };
            if length > line_bytes_max {
                return Err(refused("is longer than any event of that payload".to_owned()));
            }
            if !line.trim_ascii().is_empty() {
                envelope::read(&line).and_then(|event| f(event, length)).map_err(refused)?;
            }
        }
        Ok(())
    }
}

fn cannot_read(name: &Path, source: io::Error) -> Failure {
    Failure::of(name)(Error::Io { operation: "read", path: name.to_owned(), source })
}
