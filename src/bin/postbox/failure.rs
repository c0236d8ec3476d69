//! What goes wrong: on stderr with the file, the cause and the next step, and as an exit code.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use postbox::{Error, Fault};

use crate::show;

pub(crate) enum Failure {
    /// Exit code 1.
    OfFile { file: PathBuf, error: Error },
    /// Exit code 1.
    Output(io::Error),
    /// Whoever read the output wants no more of it: no failure.
    ClosedPipe,
    /// `verify` has shown what. Exit code 3.
    Problems,
    /// `export` could not read them. Exit code 3.
    LeftOut { events: u64 },
    /// Of what is to be imported. Exit code 1.
    Line { input: PathBuf, number: u64, reason: String },
    /// What clap cannot see. Exit code 2.
    Usage(&'static str),
    /// Exit code 4.
    NotConfirmed { question: String },
}

impl Failure {
    /// For `map_err`.
    pub(crate) fn of(file: &Path) -> impl FnOnce(Error) -> Failure {
        let file = file.to_owned();
        move |error| Failure::OfFile { file, error }
    }

    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, Failure::OfFile { error: Error::Damaged { .. }, .. })
    }

    pub(crate) fn report(self) -> ExitCode {
        match self {
            Failure::ClosedPipe => ExitCode::SUCCESS,
            Failure::Problems => ExitCode::from(3),
            Failure::NotConfirmed { question } => {
                show::tell(&format!("postbox: not confirmed: {question}\n  next: give --yes\n"));
                ExitCode::from(4)
            }
            Failure::LeftOut { events } => {
                let events = show::count_of(events, "event");
                show::tell(&format!(
                    "postbox: {events} left out, since another program has spoilt what stands in the file\n  \
                     next: `postbox verify` says what is wrong\n"
                ));
                ExitCode::from(3)
            }
            Failure::Line { input, number, reason } => {
                let (input, reason) = (show::path(&input), show::printable(&reason));
                show::tell(&format!(
                    "postbox: {input}: line {number}: {reason}\n  next: set it right or take it out, and import all again\n"
                ));
                ExitCode::FAILURE
            }
            Failure::Usage(what) => {
                show::tell(&format!("postbox: {what}\n  next: `postbox COMMAND --help` has examples\n"));
                ExitCode::from(2)
            }
            Failure::Output(error) => {
                show::tell(&format!("postbox: cannot write the output: {error}\n"));
                ExitCode::FAILURE
            }
            Failure::OfFile { file, error } => {
                let (cause, next) = (show::printable(&cause(&error)), next_step(&error, &file));
                show::tell(&format!("postbox: {}: {cause}\n  next: {next}\n", show::path(&file)));
                ExitCode::FAILURE
            }
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Failure::ClosedPipe } else { Failure::Output(error) }
    }
}

/// Without the file, which is named already.
fn cause(error: &Error) -> String {
    match error {
        Error::CannotOpen { reason, .. } => format!("cannot open it: {reason}"),
        Error::NotADatabase { .. } => "it is no SQLite database".to_owned(),
        Error::Damaged { report, .. } => format!("it is damaged: {report}"),
        Error::Io { operation, path, source } => format!("cannot {operation} {}: {source}", path.display()),
        error => error.to_string(),
    }
}

fn next_step(error: &Error, file: &Path) -> String {
    let file = show::path(file);
    match error {
        Error::SchemaTooOld { .. } => {
            format!("`postbox upgrade {file}`, once no older release of the application uses the file")
        }
        Error::SchemaTooNew { .. } => {
            "use the `postbox` of the application's release, or a newer one".to_owned()
        }
        Error::NotADatabase { .. } => {
            "look at the path: a box is a SQLite file that is not encrypted".to_owned()
        }
        Error::Damaged { .. } => {
            format!("keep a copy, then restore the last good backup: `postbox restore BACKUP {file}`")
        }
        Error::CannotOpen { .. } => {
            "see that it is the application's own database, and that you may read it and its folder"
                .to_owned()
        }
        Error::NotFound { what: "event", .. } => {
            format!("`postbox list {file}` lists the events that are there")
        }
        Error::NotFound { what: "schedule", .. } => {
            format!("`postbox schedules list {file}` lists the schedules that are there")
        }
        Error::NotFound { what: "saga", .. } => {
            format!("`postbox sagas list {file}` lists the sagas that are there")
        }
        Error::WrongStatus { id, .. } => {
            format!("`postbox show {file} {id}` tells how it came to this")
        }
        Error::CannotCompact { .. } => {
            "nothing is wrong with the file: the space is used again by what comes".to_owned()
        }
        Error::Invalid { .. } => "`postbox help COMMAND` says what is possible".to_owned(),
        Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            "look at the path: there is no such file or folder".to_owned()
        }
        Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            "run it as the user who owns the file".to_owned()
        }
        error => of_fault(error.fault()).to_owned(),
    }
}

fn of_fault(fault: Option<Fault>) -> &'static str {
    match fault {
        Some(Fault::Busy) => {
            "try again; if it stays so, look for a program that keeps a transaction open, or has the file for itself"
        }
        Some(Fault::DiskFull) => "make room on the disk, then try again",
        Some(Fault::Damaged) => "`postbox verify` says what is damaged; restore the last good backup",
        Some(Fault::FileReplaced) => "somebody has just put another file in its place: try again",
        _ => "look at the file's disk and permissions; `postbox verify` looks at the file itself",
    }
}
