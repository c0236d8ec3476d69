//! Events for other programs, and other boxes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process;

use postbox::{Error, EventFilter, Page, Postbox};
use serde_json::json;

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::filter::Filter;
use crate::{envelope, show};

/// Write events as CloudEvents 1.0, one in a line (JSON Lines), the oldest first
///
/// With their payloads and metadata: what is exported is the customer's. `import` reads it. Attributes (of CloudEvents 1.0.2,
/// <https://github.com/cloudevents/spec>, and its extensions):
///
/// specversion, id, type (the event's name), source (/postbox/MODULE, percent-encoded), subject (TYPE/ID; / and % of the type are
/// percent-encoded), time (of publishing), datacontenttype, data (the payload), and as extensions correlationid, causationid,
/// traceparent, payloadversion, postboxstatus, postboxmetadata (a text of JSON).
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox export app.db | gzip > events.jsonl.gz
  postbox export app.db --name 'invoice.*' --from 2026-03-01 --output invoices.jsonl
  postbox export customer.db --status dead_letter | postbox import test.db

With --json and --output, one object: {exported, output}. Without --output it is JSON anyway.
Exit code 3 where events had to be left out, since another program has spoilt their rows: stderr names them.")]
pub(crate) struct Args {
    /// The application's database, or a copy of it
    file: PathBuf,
    #[command(flatten)]
    filter: Filter,
    /// Write to this file, for its owner's eyes only (0600), whole or not at all
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the output file where there is such a file already
    #[arg(long)]
    yes: bool,
}

/// So many are looked up at once.
const PAGE: usize = 200;

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let postbox = context::read(&args.file)?;
    let filter = args.filter.filter();
    let Some(output) = &args.output else {
        let mut out = BufWriter::new(io::stdout().lock());
        let done = export(&postbox, &args.file, &filter, &mut out)?;
        out.flush()?;
        return done.ended();
    };
    let refused = |reason: &str| {
        Err(Failure::of(output)(Error::Invalid { field: "output", reason: reason.to_owned() }))
    };
    if is_part_of(&args.file, output) {
        return refused("is the database itself, or belongs to it");
    }
    if output.exists() && !output.is_file() {
        return refused("is no file that could be replaced: without --output it goes to the standard output");
    }
    if output.exists() {
        context::confirm(args.yes, &format!("{} will be replaced.", output.display()))?;
    }
    let done = whole(output, |out| export(&postbox, &args.file, &filter, out))?;
    context.show(
        || json!({ "exported": done.exported, "output": output.to_string_lossy() }),
        || format!("{} in {}\n", show::count_of(done.exported, "event"), show::path(output)),
    )?;
    done.ended()
}

struct Done {
    exported: u64,
    left_out: u64,
}

impl Done {
    fn ended(&self) -> Result<(), Failure> {
        if self.left_out == 0 { Ok(()) } else { Err(Failure::LeftOut { events: self.left_out }) }
    }
}

fn export(
    postbox: &Postbox,
    file: &Path,
    filter: &EventFilter,
    out: &mut impl Write,
) -> Result<Done, Failure> {
    let outbox = postbox.outbox();
    // Counting takes as long as the rest: only for somebody who sees it.
    let total = if io::stderr().is_terminal() { outbox.count(filter).ok() } else { None };
    let progress = context::bar("exporting", total);
    let mut done = Done { exported: 0, left_out: 0 };
    let mut page = outbox.list(filter, &Page::oldest(PAGE)).map_err(Failure::of(file))?;
    loop {
        for summary in &page.events {
            let spoilt = if summary.unreadable.is_empty() {
                match outbox.get(summary.id) {
                    Ok(Some(event)) => {
                        writeln!(out, "{}", show::inert(&envelope::write(&event)))?;
                        done.exported += 1;
                        continue;
                    }
                    Ok(None) => continue, // deleted since it was listed, by a worker that prunes
                    // Of this row: no JSON, or a text that is no UTF-8.
                    Err(error)
                        if matches!(error, Error::Json(_) | Error::Sqlite(_)) && error.fault().is_none() =>
                    {
                        "payload or metadata".to_owned()
                    }
                    Err(error) => return Err(Failure::of(file)(error)),
                }
            } else {
                summary.unreadable.join(", ")
            };
            progress.tell(&format!("postbox: event {} left out: {spoilt} cannot be read\n", summary.id));
            done.left_out += 1;
        }
        progress.at(done.exported);
        let Some(cursor) = page.next else { return Ok(done) };
        page = outbox.list(filter, &Page::oldest(PAGE).after(cursor)).map_err(Failure::of(file))?;
    }
}

/// The file, its -wal and the like: by their names, which a symbolic link does not change.
fn is_part_of(file: &Path, output: &Path) -> bool {
    let (Ok(file), Some(name)) = (file.canonicalize(), output.file_name()) else { return false };
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let target = output.canonicalize().or_else(|_| folder.canonicalize().map(|folder| folder.join(name)));
    target.is_ok_and(|target| {
        ["", "-wal", "-shm", "-journal"].iter().any(|suffix| {
            let mut part = file.clone().into_os_string();
            part.push(suffix);
            target.as_os_str() == part
        })
    })
}

/// Written beside it first, locked for as long as that takes: what a process that died has left is known by a lock that nobody
/// holds.
fn whole<T>(
    output: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    remove_left_behind(output);
    let mut partial = output.as_os_str().to_owned();
    partial.push(format!("{PARTIAL}{}", process::id()));
    let partial = PathBuf::from(partial);
    let io = |source| Failure::of(output)(Error::Io { operation: "write", path: output.to_owned(), source });
    let file = loop {
        let file = private(&partial).map_err(io)?;
        // Where the file system knows no locks, nobody takes it for left behind.
        let _: io::Result<()> = file.lock();
        if partial.exists() {
            break file;
        }
    };
    let mut out = BufWriter::new(file);
    let written = write(&mut out).and_then(|value| {
        let file = out.into_inner().map_err(|error| io(error.into_error()))?;
        file.sync_all().and_then(|()| fs::rename(&partial, output)).map_err(io)?;
        Ok(value)
    });
    written.inspect_err(|_| drop(fs::remove_file(&partial)))
}

const PARTIAL: &str = ".partial-";

/// By exports to the same output. What cannot be removed stays.
fn remove_left_behind(output: &Path) {
    let Some(name) = output.file_name() else { return };
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let prefix = format!("{}{PARTIAL}", name.to_string_lossy());
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_one = name
            .to_str()
            .and_then(|name| name.strip_prefix(&prefix))
            .is_some_and(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()));
        // No link, and no pipe, which would be waited for.
        if !is_one || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let path = entry.path();
        if OpenOptions::new().write(true).open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            drop(fs::remove_file(&path));
        }
    }
}

/// For its owner's eyes only.
fn private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}
