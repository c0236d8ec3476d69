//! Talking to real processes, which are this test binary again.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdout, Command};

use crate::support::Process;

pub(crate) fn child(entry: &str, file: &Path) -> Command {
    let mut command = Process::command(entry);
    command.env("FILE", file);
    command
}

pub(crate) fn lines_of(process: &mut Process) -> BufReader<ChildStdout> {
    BufReader::new(process.0.stdout.take().unwrap())
}

/// The next thing that a child says under this mark; `None` once it is gone.
pub(crate) fn next_said(lines: &mut impl BufRead, mark: &str) -> Option<String> {
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line).unwrap() == 0 || !line.ends_with('\n') {
            return None;
        }
        // The test harness writes on the same pipe.
        if let Some(at) = line.find(mark) {
            return Some(line[at + mark.len()..].trim().to_owned());
        }
    }
}

pub(crate) fn say(what: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{what}").unwrap();
    out.flush().unwrap();
}

/// What is said to a child, a line at a time.
pub(crate) fn tell(process: &mut Process, what: &str) {
    let stdin = process.0.stdin.as_mut().unwrap();
    writeln!(stdin, "{what}").unwrap();
    stdin.flush().unwrap();
}
