//! Power cuts: a life is recorded, and the power fails at any point of it. What was synced is there, of the rest anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use postbox::EventId;

use crate::fault::Disk;
use crate::fault::journal::{Journal, Platter, Random};
use crate::life::{self, Build, Files, Length, Replaced, Witness};
use crate::oracle::{self, Recovery, Told};
use crate::{folder, times};

/// What a recorded life told, and when.
struct Recording {
    folder: PathBuf,
    journal: Journal,
    before: Vec<String>,
    acknowledged: Vec<(usize, String)>,
    handled: Vec<(usize, String)>,
    replaced: Vec<(usize, Replaced)>,
}

/// Notes where the journal was when something was said.
struct Noting {
    disk: Arc<Disk>,
    acknowledged: Mutex<Vec<(usize, String)>>,
    handled: Mutex<Vec<(usize, String)>>,
    replaced: Mutex<Vec<(usize, Replaced)>>,
}

impl Witness for Noting {
    fn acknowledged(&self, id: EventId) {
        let position = self.disk.position();
        self.acknowledged.lock().unwrap().push((position, id.to_string()));
    }

    fn handled(&self, id: EventId) {
        let position = self.disk.position();
        self.handled.lock().unwrap().push((position, id.to_string()));
    }

    fn replaced(&self, what: Replaced) {
        let position = self.disk.position();
        self.replaced.lock().unwrap().push((position, what));
    }
}

fn record(folder: &Path, build: Build) -> Recording {
    let files = Files::in_folder(folder);
    let before = life::make_file(&files.app);
    // Backup and restore put the new file in the place of an old one.
    life::make_file(&files.copy);
    life::make_file(&files.restored);
    let disk = Arc::new(Disk::watch(folder));
    disk.record();
    let witness = Arc::new(Noting {
        disk: Arc::clone(&disk),
        acknowledged: Mutex::default(),
        handled: Mutex::default(),
        replaced: Mutex::default(),
    });
    let seen: Arc<dyn Witness> = Arc::clone(&witness) as _;
    life::live(&files, build, Length { orders: 12 }, &seen);
    drop(seen);
    Recording {
        folder: folder.to_owned(),
        journal: disk.take_journal(),
        before,
        acknowledged: std::mem::take(&mut witness.acknowledged.lock().unwrap()),
        handled: std::mem::take(&mut witness.handled.lock().unwrap()),
        replaced: std::mem::take(&mut witness.replaced.lock().unwrap()),
    }
}

impl Recording {
    /// What had been told by this place of the journal.
    fn told_at(&self, place: usize) -> Told {
        let by_then = |said: &[(usize, String)]| -> Vec<String> {
            said.iter().filter(|(at, _)| *at <= place).map(|(_, id)| id.clone()).collect()
        };
        let acknowledged = self.before.iter().cloned().chain(by_then(&self.acknowledged)).collect();
        Told {
            acknowledged,
            handled: by_then(&self.handled).into_iter().collect(),
            replaced: self.replaced.iter().filter(|(at, _)| *at <= place).map(|(_, what)| *what).collect(),
        }
    }

    /// The power fails here: what is wrong when it is back.
    fn cut(&self, platter: &Platter, place: usize, random: &mut Random, build: Build) -> Vec<String> {
        let back = folder();
        for (path, bytes) in platter.cut(random) {
            let name = path.strip_prefix(&self.folder).unwrap();
            fs::write(back.path().join(name), bytes).unwrap();
        }
        let files = Files::in_folder(back.path());
        if random.below(4) == 0 {
            // The -shm is synced by nobody: whatever it held.
            let rubbish: Vec<u8> = (0..32_768).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
            fs::write(crate::support::beside(&files.app, "-shm"), rubbish).unwrap();
        }
        oracle::check(&files, &self.told_at(place), build, Recovery::Later)
    }
}

#[derive(Debug, Default)]
struct Tally {
    lives: usize,
    cuts: usize,
    /// Cuts after which something was wrong, and the first of it.
    bad: usize,
    first: Option<String>,
}

/// Cuts so often, on as many threads as there are cores.
fn cut_power(build: Build, cuts: usize, seed: u64) -> Tally {
    let lanes = thread::available_parallelism().map_or(2, usize::from);
    let whole = Mutex::new(Tally::default());
    thread::scope(|scope| {
        for lane in 0..lanes {
            let whole = &whole;
            scope.spawn(move || {
                let of_lane = cuts / lanes + usize::from(lane < cuts % lanes);
                let tally = cut_lives(build, of_lane, seed * 1_000 + lane as u64);
                let mut whole = whole.lock().unwrap();
                whole.lives += tally.lives;
                whole.cuts += tally.cuts;
                whole.bad += tally.bad;
                whole.first = whole.first.take().or(tally.first);
            });
        }
    });
    whole.into_inner().unwrap()
}

/// Records lives and cuts each at every place, until it has cut so often.
fn cut_lives(build: Build, cuts: usize, seed: u64) -> Tally {
    let mut tally = Tally::default();
    let mut random = Random(seed);
    while tally.cuts < cuts {
        let living = folder();
        let recording = record(living.path(), build);
        tally.lives += 1;
        let mut platter = Platter::at_the_start_of(&recording.journal);
        let length = recording.journal.position();
        // Spread evenly over the life where there are fewer cuts left than places in it.
        let step = (length / (cuts - tally.cuts)).max(1);
        let mut place = random.below(step);
        let mut done = 0;
        while place <= length && tally.cuts < cuts {
            platter.advance(&recording.journal, done..place);
            done = place;
            tally.cuts += 1;
            let wrong = recording.cut(&platter, place, &mut random, build);
            if !wrong.is_empty() {
                tally.bad += 1;
                tally.first.get_or_insert_with(|| {
                    format!(
                        "seed {seed}, life {}, cut at {place} of {length}: {}",
                        tally.lives,
                        wrong.join("\n")
                    )
                });
            }
            place += step;
        }
    }
    tally
}

#[test]
fn no_power_cut_loses_what_was_acknowledged_or_doubles_an_effect() {
    let cuts = times("POSTBOX_CUTS", 2_000);
    let tally = cut_power(Build::Sound, cuts, 1);
    println!("{} power cuts in {} lives, {} with a finding", tally.cuts, tally.lives, tally.bad);
    assert_eq!(tally.bad, 0, "{}", tally.first.unwrap());
}

#[test]
fn control_power_cuts_find_what_is_published_unsynced() {
    let tally = cut_power(Build::Unsynced, 600, 2);
    println!("control: {} power cuts, {} with a finding", tally.cuts, tally.bad);
    let first = tally.first.expect("unsynced events were never lost: the harness sees nothing");
    assert!(first.contains("lost"), "{first}");
}
