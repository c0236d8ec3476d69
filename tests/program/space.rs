//! `prune` and `compact`.

use std::fs;

use crate::incident::incident;
use crate::run;
use crate::support::{assert_bytes, integer, raw};

#[test]
fn without_a_retention_nothing_is_deleted_and_it_is_said_how_to_set_one() {
    let (dir, path) = incident();
    for dry in [&[][..], &["--dry-run"]] {
        let out = run(dir.path(), &[&["prune", "app.db"], dry].concat()).ok();
        assert_eq!(
            out,
            "The file sets no retention: nothing is deleted. To keep processed events for 30 days:\n  \
             postbox settings set app.db retention_ms 2592000000\n"
        );
    }
    let json = run(dir.path(), &["prune", "app.db", "--json"]).json();
    assert_eq!(json.to_string(), r#"{"dry_run":false,"events":0,"retention_by_event":{},"retention_ms":0}"#);
    assert_eq!(integer(&raw(&path), "SELECT count(*) FROM outbox_event"), 6);
}

#[test]
fn what_is_past_its_retention_is_deleted_once_it_is_confirmed() {
    let (dir, path) = incident();
    run(dir.path(), &["settings", "set", "app.db", "retention_by_event", r#"{"order.placed": 1000}"#]).ok();
    let one = run(dir.path(), &["prune", "app.db", "--dry-run", "--json"]).json();
    assert_eq!((&one["events"], &one["retention_by_event"]["order.placed"]), (&1.into(), &1000.into()));
    run(dir.path(), &["settings", "set", "app.db", "retention_ms", "2592000000"]).ok();
    let before = fs::read(&path).unwrap();
    let dry = run(dir.path(), &["prune", "app.db", "--dry-run"]).ok();
    assert_eq!(dry, "dry run: 3 events past the retention\n");
    assert_bytes(&path, &before, "after a dry run");
    let refused = run(dir.path(), &["prune", "app.db"]);
    assert_eq!((refused.code, refused.out.as_str()), (4, ""));
    let said = "postbox: not confirmed: 3 processed events will be deleted.\n  next: give --yes\n";
    assert_eq!(refused.err, said);
    assert_eq!(run(dir.path(), &["prune", "app.db", "--yes"]).ok(), "3 events deleted\n");
    assert_eq!(run(dir.path(), &["prune", "app.db"]).ok(), "0 events deleted\n");
    assert_eq!(run(dir.path(), &["stats", "app.db", "--json"]).json()["total"], 3);
    run(dir.path(), &["verify", "app.db"]).ok();
}

#[test]
fn compact_gives_space_back() {
    let (dir, path) = incident();
    raw(&path)
        .execute_batch(
            "CREATE TABLE app (id INTEGER PRIMARY KEY, filler BLOB);
             INSERT INTO app (filler) VALUES (zeroblob(1000000));
             DELETE FROM app;",
        )
        .unwrap();
    let before = fs::metadata(&path).unwrap().len();
    let done = run(dir.path(), &["compact", "app.db", "--json"]).json();
    let after = fs::metadata(&path).unwrap().len();
    assert_eq!((&done["bytes_before"], &done["bytes_after"]), (&before.into(), &after.into()));
    assert!(after + 900_000 <= before, "{after} after {before}");
    let again = run(dir.path(), &["compact", "app.db"]).ok();
    assert_eq!(again, format!("app.db has {after} bytes now, after {after}\n"));

    raw(&path).execute_batch("CREATE TABLE noted (x)").unwrap();
    let refused = run(dir.path(), &["compact", "app.db"]);
    assert_eq!((refused.code, refused.out.as_str()), (1, ""));
    assert!(
        refused.err.contains("table `noted`") && refused.err.contains("next: nothing is wrong"),
        "{}",
        refused.err
    );
}
