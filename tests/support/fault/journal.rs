//! What was written, synced, created, renamed and deleted, in order; and what a power cut leaves of it.
//!
//! A power cut leaves what was synced, and of the rest anything: for each file any of the 512-byte sectors that were written
//! since its last sync, and of the changes of names since the last sync of the folder the first few (file systems journal them
//! in order). What a sync carries was written before it began.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) const SECTOR: usize = 512;

#[derive(Debug, Clone)]
pub(crate) enum Change {
    Write { at: usize, bytes: Arc<[u8]> },
    Truncate { size: usize },
}

/// A file, whatever it is called.
pub(super) type FileId = usize;

#[derive(Debug, Clone)]
pub(super) enum Op {
    Change {
        file: FileId,
        change: Change,
    },
    /// It carries what stands before this place in the journal.
    Sync {
        file: FileId,
        before: usize,
    },
    Names(NameChange),
    SyncFolder,
}

#[derive(Debug, Clone)]
pub(super) enum NameChange {
    Create { path: PathBuf, file: FileId },
    Rename { from: PathBuf, to: PathBuf },
    Delete { path: PathBuf },
}

#[derive(Default)]
pub(crate) struct Journal {
    /// What the files held when it began.
    start: Vec<(PathBuf, Vec<u8>)>,
    ops: Vec<Op>,
    names: HashMap<PathBuf, FileId>,
    files: usize,
}

impl Journal {
    pub(super) fn of(folder: &Path) -> Self {
        let mut journal = Journal::default();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                journal.names.insert(path.clone(), journal.start.len());
                let bytes = fs::read(&path).unwrap();
                journal.start.push((path, bytes));
            }
        }
        journal.files = journal.start.len();
        journal
    }

    pub(crate) fn position(&self) -> usize {
        self.ops.len()
    }

    pub(super) fn add(&mut self, op: Op) {
        self.ops.push(op);
    }

    pub(super) fn file_at(&mut self, path: &Path) -> FileId {
        if let Some(file) = self.names.get(path) {
            return *file;
        }
        self.create(path);
        self.files - 1
    }

    pub(super) fn create(&mut self, path: &Path) {
        let file = self.files;
        self.files += 1;
        self.names.insert(path.to_owned(), file);
        self.add(Op::Names(NameChange::Create { path: path.to_owned(), file }));
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) {
        let file = self.file_at(from);
        self.names.remove(from);
        self.names.insert(to.to_owned(), file);
        self.add(Op::Names(NameChange::Rename { from: from.to_owned(), to: to.to_owned() }));
    }

    pub(super) fn delete(&mut self, path: &Path) {
        if self.names.remove(path).is_some() {
            self.add(Op::Names(NameChange::Delete { path: path.to_owned() }));
        }
    }

    pub(super) fn sync_folder(&mut self) {
        self.add(Op::SyncFolder);
    }
}

/// The disk as it is at one place of a journal: what is safe, and what is not yet.
pub(crate) struct Platter {
    files: Vec<File>,
    names: Names,
    /// Changes of names that a power cut may still take back.
    unsynced_names: Vec<NameChange>,
}

type Names = BTreeMap<PathBuf, FileId>;

#[derive(Default, Clone)]
struct File {
    synced: Vec<u8>,
    unsynced: Vec<(usize, Change)>,
}

impl Platter {
    pub(crate) fn at_the_start_of(journal: &Journal) -> Self {
        let mut files: Vec<File> = journal
            .start
            .iter()
            .map(|(_, bytes)| File { synced: bytes.clone(), unsynced: Vec::new() })
            .collect();
        files.resize(journal.files, File::default());
        let names = journal.start.iter().enumerate().map(|(file, (path, _))| (path.clone(), file)).collect();
        Platter { files, names, unsynced_names: Vec::new() }
    }

    /// Goes on over these places of the journal.
    pub(crate) fn advance(&mut self, journal: &Journal, places: Range<usize>) {
        for place in places {
            match &journal.ops[place] {
                Op::Change { file, change } => self.files[*file].unsynced.push((place, change.clone())),
                Op::Sync { file, before } => self.files[*file].sync(*before),
                Op::Names(change) => self.unsynced_names.push(change.clone()),
                Op::SyncFolder => {
                    for change in self.unsynced_names.drain(..) {
                        apply_name(&mut self.names, &change);
                    }
                }
            }
        }
    }

    /// What is there when the power comes back.
    pub(crate) fn cut(&self, random: &mut Random) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut names = self.names.clone();
        let kept = random.below(self.unsynced_names.len() + 1);
        for change in &self.unsynced_names[..kept] {
            apply_name(&mut names, change);
        }
        // All, nothing, or anything between; by sectors, or what came first.
        let mood = random.below(5);
        names
            .into_iter()
            .map(|(path, file)| {
                let file = &self.files[file];
                let mut bytes = file.synced.clone();
                let first = random.below(file.unsynced.len() + 1);
                for (number, (_, change)) in file.unsynced.iter().enumerate() {
                    let keeps_sector = |random: &mut Random| match mood {
                        0 => true,
                        1 => false,
                        2 => number < first,
                        3 => random.below(2) == 0,
                        _ => random.below(8) > 0,
                    };
                    change.apply_some(&mut bytes, || keeps_sector(random));
                }
                (path, bytes)
            })
            .collect()
    }
}

fn apply_name(names: &mut Names, change: &NameChange) {
    match change {
        NameChange::Create { path, file } => {
            names.insert(path.clone(), *file);
        }
        NameChange::Rename { from, to } => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        NameChange::Delete { path } => {
            names.remove(path);
        }
    }
}

impl File {
    fn sync(&mut self, before: usize) {
        let unsynced = std::mem::take(&mut self.unsynced);
        for (place, change) in unsynced {
            if place < before {
                change.apply_some(&mut self.synced, || true);
            } else {
                self.unsynced.push((place, change));
            }
        }
    }
}

impl Change {
    fn apply_some(&self, to: &mut Vec<u8>, mut keeps_sector: impl FnMut() -> bool) {
        match self {
            Change::Truncate { size } => {
                if keeps_sector() {
                    to.resize(*size, 0);
                }
            }
            Change::Write { at, bytes } => {
                let mut done = 0;
                while done < bytes.len() {
                    let start = at + done;
                    let length = (SECTOR - start % SECTOR).min(bytes.len() - done);
                    if keeps_sector() {
                        if to.len() < start + length {
                            to.resize(start + length, 0);
                        }
                        to[start..start + length].copy_from_slice(&bytes[done..done + length]);
                    }
                    done += length;
                }
            }
        }
    }
}

/// splitmix64: the same cuts at every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    #[expect(clippy::cast_possible_truncation, reason = "it is below `n`")]
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}
