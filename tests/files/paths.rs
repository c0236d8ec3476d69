//! A path is a path.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use postbox::rusqlite::Connection;
use postbox::{Error, Postbox};

use crate::support::{beside, event};

/// Publishes through the path in every way that looks at it, and finds one file of that name.
fn use_path(folder: &Path, path: &Path, name: &std::ffi::OsStr) {
    let what = path.display();
    let bus = Postbox::open(path).unwrap_or_else(|error| panic!("{what}: {error}"));
    bus.publish(event("a")).unwrap();
    let mut conn = Connection::open(path).unwrap();
    let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    bus.publish_in(&tx, event("b")).unwrap_or_else(|error| panic!("{what}: {error}"));
    tx.commit().unwrap();
    drop(conn);
    let own = bus.backup(path);
    assert!(matches!(own, Err(Error::Invalid { field: "dest", .. })), "{what}: {own:?}");
    bus.with_quiesced_file(|file| fs::metadata(file).map(|_| ())).unwrap();
    bus.close().unwrap();
    let files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(files, [name], "{what}");
    let bus = Postbox::open(path).unwrap();
    assert_eq!(bus.stats().unwrap().pending, 2, "{what}");
    bus.close().unwrap();
}

#[test]
fn a_path_is_a_path_whatever_its_characters() {
    use std::os::unix::ffi::OsStrExt;
    let names: [&[u8]; 9] = [
        b"with a space.db",
        b"100%41.db",
        b"what?mode=memory",
        b"a#b&c=d.db",
        b"file:x.db?mode=ro",
        "größe-データ.db".as_bytes(),
        b"quote'd\"and\\back.db",
        b"no-extension",
        b"not-utf8-\xff.db",
    ];
    for name in names {
        let dir = tempfile::tempdir().unwrap();
        let name = std::ffi::OsStr::from_bytes(name);
        use_path(dir.path(), &dir.path().join(name), name);
    }
}

#[test]
fn relative_paths_and_symlinks_lead_to_the_one_file() {
    let outer = tempfile::tempdir().unwrap();
    let folder = |name: &str| -> PathBuf {
        let folder = outer.path().join(name);
        fs::create_dir(&folder).unwrap();
        folder.canonicalize().unwrap()
    };
    let name = std::ffi::OsStr::new("app.db");

    let depth = std::env::current_dir().unwrap().components().count();
    let relative = folder("relative");
    let up: PathBuf = std::iter::repeat_n("..", depth - 1).collect();
    use_path(&relative, &up.join(relative.strip_prefix("/").unwrap()).join("app.db"), name);

    let real = folder("real");
    symlink(&real, outer.path().join("link")).unwrap();
    use_path(&real, &outer.path().join("link/../link/./app.db"), name);

    let target = folder("target");
    fs::write(target.join("app.db"), b"").unwrap();
    symlink(target.join("app.db"), outer.path().join("link.db")).unwrap();
    use_path(&target, &outer.path().join("link.db"), name);
    assert!(!beside(&outer.path().join("link.db"), "-wal").exists());
}
