//! Kills: a life in a process of its own, which dies at its k-th operation on the disk (or in the middle of it), for every k.
//! A fresh process recovers.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use postbox::{EventId, Postbox};

use crate::fault::{Disk, Lasting, Plan, Trouble};
use crate::life::{self, Build, Files, Length, Replaced, Witness};
use crate::oracle::{self, Recovery, Told};
use crate::support::{Process, given, listing};
use crate::{folder, times};

const LENGTH: Length = Length { orders: 8 };

/// Writes down, in files that nobody kills, what a life told.
struct Writing {
    acknowledged: File,
    handled: File,
    folder: PathBuf,
}

impl Writing {
    fn to(folder: &Path) -> Self {
        let open = |name| OpenOptions::new().create(true).append(true).open(folder.join(name)).unwrap();
        Writing { acknowledged: open("acknowledged"), handled: open("handled"), folder: folder.to_owned() }
    }
}

impl Witness for Writing {
    fn acknowledged(&self, id: EventId) {
        (&self.acknowledged).write_all(format!("{id}\n").as_bytes()).unwrap();
    }

    fn handled(&self, id: EventId) {
        (&self.handled).write_all(format!("{id}\n").as_bytes()).unwrap();
    }

    fn replaced(&self, what: Replaced) {
        fs::write(self.folder.join(format!("{what:?}")), "").unwrap();
    }
}

fn written(folder: &Path, name: &str) -> HashSet<String> {
    let text = fs::read_to_string(folder.join(name)).unwrap_or_default();
    // A line that a kill cut off was not told.
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| line.trim().to_owned())
        .collect()
}

/// One life and what is left of it.
struct Scene {
    _whole: tempfile::TempDir,
    /// Of the files that are killed.
    disk: PathBuf,
    /// Of what was told.
    outside: PathBuf,
}

impl Scene {
    fn set() -> Self {
        let whole = folder();
        let (disk, outside) = (whole.path().join("disk"), whole.path().join("outside"));
        fs::create_dir(&disk).unwrap();
        fs::create_dir(&outside).unwrap();
        let files = Files::in_folder(&disk);
        let ids = life::make_file(&files.app);
        for copy in [&files.copy, &files.restored] {
            life::make_file(copy);
        }
        fs::write(outside.join("acknowledged"), ids.join("\n") + "\n").unwrap();
        Scene { _whole: whole, disk, outside }
    }

    fn child(&self, entry: &str, build: Build) -> std::process::Command {
        let mut command = Process::command(&format!("kill_points::{entry}"));
        command.env("DISK", &self.disk).env("OUTSIDE", &self.outside).env("BUILD", format!("{build:?}"));
        command.stdin(std::process::Stdio::null());
        command
    }

    /// True when it died of the kill, false when it came to its end.
    fn live(&self, build: Build, at: u64, torn: bool) -> bool {
        let mut command = self.child("child_lives", build);
        command.env("KILL_AT", at.to_string()).env("TORN", torn.to_string());
        let output = command.output().unwrap();
        let killed = std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(libc::SIGKILL);
        assert!(killed || output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        killed
    }

    fn recover(&self, build: Build) -> Vec<String> {
        let output = self.child("child_recovers", build).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        fs::read_to_string(self.outside.join("wrong")).unwrap().lines().map(str::to_owned).collect()
    }
}

fn build_given() -> Build {
    match given("BUILD").as_deref() {
        Some("DualWrite") => Build::DualWrite,
        Some("EffectOutside") => Build::EffectOutside,
        _ => Build::Sound,
    }
}

#[test]
#[ignore = "run as a process by another test"]
fn child_lives() {
    let (Some(disk), Some(outside), Some(at)) = (given("DISK"), given("OUTSIDE"), given("KILL_AT")) else {
        return;
    };
    let (disk, outside) = (PathBuf::from(disk), PathBuf::from(outside));
    let watched = Disk::watch(&disk);
    let trouble = if given("TORN").as_deref() == Some("true") { Trouble::KillTorn } else { Trouble::Kill };
    watched.plan(Plan { trouble, at: at.parse().unwrap(), lasting: Lasting::Once });
    let witness: Arc<dyn Witness> = Arc::new(Writing::to(&outside));
    life::live(&Files::in_folder(&disk), build_given(), LENGTH, &witness);
    fs::write(outside.join("operations"), watched.count().to_string()).unwrap();
}

#[test]
#[ignore = "run as a process by another test"]
fn child_recovers() {
    let (Some(disk), Some(outside)) = (given("DISK"), given("OUTSIDE")) else { return };
    let outside = PathBuf::from(outside);
    let told = Told {
        acknowledged: written(&outside, "acknowledged"),
        handled: written(&outside, "handled"),
        replaced: [Replaced::Copy, Replaced::Restored]
            .into_iter()
            .filter(|what| outside.join(format!("{what:?}")).exists())
            .collect(),
    };
    let files = Files::in_folder(Path::new(&disk));
    let mut wrong = oracle::check(&files, &told, build_given(), Recovery::AtOnce);
    // The next backup and the next restore clear away what the dead have left.
    let bus = Postbox::open(&files.app).unwrap();
    bus.backup(&files.copy).unwrap();
    bus.close().unwrap();
    postbox::restore(&files.copy, &files.restored).unwrap();
    let left = listing(Path::new(&disk));
    if left != ["app.db", "copy.db", "restored.db"] {
        wrong.push(format!("left behind: {left:?}"));
    }
    fs::write(outside.join("wrong"), wrong.join("\n")).unwrap();
}

#[derive(Debug, Default)]
struct Tally {
    kills: usize,
    operations: u64,
    bad: usize,
    first: Option<String>,
}

/// Kills so many lives, at points that are spread over all operations, as many at a time as there are cores.
fn kill(build: Build, points: usize) -> Tally {
    let whole = Scene::set();
    assert!(!whole.live(build, u64::MAX, false), "nothing killed it");
    let operations: u64 = fs::read_to_string(whole.outside.join("operations")).unwrap().parse().unwrap();
    let (next, tally) = (AtomicUsize::new(0), Mutex::new(Tally { operations, ..Tally::default() }));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let point = next.fetch_add(1, Ordering::Relaxed);
                    // A life that was over before its kill does not count.
                    if tally.lock().unwrap().kills >= points || point >= 2 * points {
                        break;
                    }
                    // Threads are never twice the same, so that the same operation comes at another place.
                    let at = 1
                        + (point as u64 * operations / points as u64 + (point / points) as u64) % operations;
                    let scene = Scene::set();
                    let killed = scene.live(build, at, point % 3 == 2);
                    let wrong = scene.recover(build);
                    let mut tally = tally.lock().unwrap();
                    tally.kills += usize::from(killed);
                    if !wrong.is_empty() {
                        tally.bad += 1;
                        tally.first.get_or_insert_with(|| {
                            format!("killed at {at} of {operations}: {}", wrong.join("\n"))
                        });
                    }
                }
            });
        }
    });
    tally.into_inner().unwrap()
}

#[test]
fn no_kill_loses_what_was_acknowledged_or_doubles_an_effect() {
    let points = times("POSTBOX_KILLS", 500);
    let tally = kill(Build::Sound, points);
    println!("{} kills at any of {} operations, {} with a finding", tally.kills, tally.operations, tally.bad);
    assert_eq!(tally.bad, 0, "{}", tally.first.unwrap());
    assert!(tally.kills >= points, "only {} of {points} lives were killed", tally.kills);
}

#[test]
fn control_kills_find_a_row_and_an_event_that_are_committed_one_after_the_other() {
    let tally = kill(Build::DualWrite, 60);
    println!("control: {} kills, {} with a finding", tally.kills, tally.bad);
    let first = tally.first.expect("a dual write was never found: the harness sees nothing");
    assert!(first.contains("without its"), "{first}");
}

#[test]
fn control_kills_find_an_effect_that_a_plain_handler_writes() {
    let tally = kill(Build::EffectOutside, 60);
    println!("control: {} kills, {} with a finding", tally.kills, tally.bad);
    let first =
        tally.first.expect("an effect outside of the transaction was never found: the harness sees nothing");
    assert!(first.contains("without its mark") || first.contains("doubled"), "{first}");
}
