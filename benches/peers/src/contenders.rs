//! The programs that do the work: one for each library, built here and run one at a time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::options::Options;
use crate::protocol::{Column, Description, Outcome, Variant};

/// In the order of the tables.
const LIBRARIES: [&str; 5] = ["postbox", "honker", "effectum", "apalis-sqlite", "fang"];

pub(crate) struct Contenders {
    pub(crate) built: Vec<Contender>,
    /// Libraries that could not be built or do not answer, and why.
    pub(crate) failures: Vec<Failure>,
}

pub(crate) struct Contender {
    pub(crate) program: PathBuf,
    pub(crate) library: Library,
    pub(crate) variants: Vec<Variant>,
}

#[derive(Clone, Serialize)]
pub(crate) struct Library {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) sqlite: String,
}

#[derive(Clone, Serialize)]
pub(crate) struct Failure {
    pub(crate) what: String,
    pub(crate) why: String,
}

/// Builds what was asked for.
pub(crate) fn build(options: &Options) -> Result<Contenders, String> {
    if let Some(unknown) = options.only.iter().flatten().find(|name| !LIBRARIES.contains(&name.as_str())) {
        return Err(format!("{unknown} is not among {}", LIBRARIES.join(", ")));
    }
    let mut contenders = Contenders { built: Vec::new(), failures: Vec::new() };
    for name in LIBRARIES {
        if options.only.as_ref().is_some_and(|only| only.iter().all(|one| one != name)) {
            continue;
        }
        eprintln!("building {name}");
        match build_one(options, name) {
            Ok(contender) => contenders.built.push(contender),
            Err(why) => {
                eprintln!("{name}: {why}");
                contenders.failures.push(Failure { what: name.to_owned(), why });
            }
        }
    }
    Ok(contenders)
}

fn build_one(options: &Options, name: &str) -> Result<Contender, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("contenders").join(name);
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--quiet", "--manifest-path"]).arg(folder.join("Cargo.toml"));
    cargo.arg("--target-dir").arg(&options.target);
    if name != "postbox" {
        // The peers are what their lock files say. Ours follows the library when its dependencies change.
        cargo.arg("--locked");
    }
    let status = cargo.status().map_err(|error| format!("cargo: {error}"))?;
    if !status.success() {
        return Err(format!("cargo build ended with {status}"));
    }
    let program = options.target.join("release").join(format!("peer-{name}{}", std::env::consts::EXE_SUFFIX));
    let description: Description = answer(Command::new(&program).arg("describe"))?;
    let mut variants = description.variants;
    variants.retain(|variant| options.unsynced || !variant.unsynced);
    let version = locked_version(&folder.join("Cargo.lock"), &description.library)?;
    let library = Library { name: description.library, version, sqlite: description.sqlite };
    Ok(Contender { program, library, variants })
}

fn locked_version(lock: &Path, package: &str) -> Result<String, String> {
    let text = fs::read_to_string(lock).map_err(|error| format!("{}: {error}", lock.display()))?;
    let name = format!("name = \"{package}\"");
    let mut lines = text.lines().skip_while(|line| *line != name).skip(1);
    let version = lines.next().and_then(|line| line.strip_prefix("version = \"")?.strip_suffix('"'));
    version.map(str::to_owned).ok_or_else(|| format!("{} has no {package}", lock.display()))
}

impl Contender {
    pub(crate) fn run(
        &self,
        options: &Options,
        variant: &Variant,
        column: Column,
    ) -> Result<Outcome, String> {
        answer(&mut self.command(options, variant, column, options.work.events(column)))
    }

    pub(crate) fn command(
        &self,
        options: &Options,
        variant: &Variant,
        column: Column,
        events: usize,
    ) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["run", "--variant", &variant.name, "--column", column.key()]);
        command.args(["--events", &events.to_string()]);
        command.args(["--threads", &options.work.threads.to_string()]);
        command.args(["--batch", &options.work.batch.to_string()]);
        command.arg("--dir").arg(options.dir.join("contender"));
        command
    }
}

/// What a program prints, as JSON.
fn answer<T: DeserializeOwned>(command: &mut Command) -> Result<T, String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    if !output.status.success() {
        return Err(format!("it ended with {}", output.status));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("its answer: {error}"))
}
