//! Commands that change something: a setting, a copy, a file of an older release.

use std::fs;

use postbox::Postbox;

use crate::support::{assert_bytes, integer, listing, raw};
use crate::{customer, publish, run};

#[test]
fn a_setting_is_stored_also_where_it_is_the_default() {
    let (dir, path) = customer();
    assert_eq!(run(dir.path(), &["settings", "set", "app.db", "batch_size", "10"]).ok(), "batch_size = 10\n");
    let set = run(dir.path(), &["settings", "set", "app.db", "unhandled_events", "hold", "--json"]).json();
    assert_eq!(set.to_string(), r#"{"unhandled_events":{"stored":true,"value":"hold"}}"#);
    run(dir.path(), &["settings", "set", "app.db", "dead_letter_enabled", "false"]).ok();
    let bus = Postbox::builder()
        .settings(postbox::Settings { batch_size: 99, ..postbox::Settings::default() })
        .open(&path)
        .unwrap();
    let settings = bus.settings();
    assert_eq!((settings.batch_size, settings.dead_letter_enabled), (10, false));
    assert_eq!(settings.unhandled_events, postbox::UnhandledEvents::Hold);
}

#[test]
fn settings_that_are_milliseconds_take_lengths_of_time() {
    let (dir, path) = customer();
    for (key, value, stored) in [
        ("retention_ms", "90d", "7776000000"),
        ("retention_ms", "1000", "1000"),
        ("idle_polling_interval_ms", "1m30s", "90000"),
        (
            "retention_by_event",
            r#"{"invoice.created": "1h30m", "kept": 0}"#,
            r#"{"invoice.created":5400000,"kept":0}"#,
        ),
    ] {
        let out = run(dir.path(), &["settings", "set", "app.db", key, value]).ok();
        assert_eq!(out, format!("{key} = {stored}\n"));
    }
    let settings = Postbox::open_read_only(&path).unwrap().settings();
    assert_eq!((settings.retention_ms, settings.retention_by_event["invoice.created"]), (1_000, 5_400_000));
}

#[test]
fn settings_that_do_not_fit_are_refused_by_name_and_change_nothing() {
    let (dir, path) = customer();
    let before = fs::read(&path).unwrap();
    for (key, value, said) in [
        ("batch_size", "0", "invalid batch_size: must be from 1 to 100000, not 0"),
        ("batch_size", "many", "invalid batch_size: a value does not fit the type"),
        ("batch_size", "-1", "invalid batch_size: "),
        ("batch_size", "1h", "invalid batch_size: a value does not fit the type"),
        ("retention_ms", "90y", "invalid retention_ms: a value does not fit the type"),
        ("retention_ms", "99999999w", "invalid retention_ms: "),
        ("unhandled_events", "lose", "invalid unhandled_events: "),
        (
            "idle_polling_interval_ms",
            "200",
            "invalid idle_polling_interval_ms: must be at least polling_interval_ms",
        ),
        ("batchsize", "10", "invalid key: must be one of enabled, "),
    ] {
        let refused = run(dir.path(), &["settings", "set", "app.db", key, value]);
        assert_eq!((refused.code, refused.out.as_str()), (1, ""), "{key} {value}");
        assert!(refused.err.starts_with(&format!("postbox: app.db: {said}")), "{}", refused.err);
        assert!(refused.err.contains("\n  next: "), "{}", refused.err);
    }
    let refused = run(dir.path(), &["settings", "get", "app.db", "batchsize"]);
    assert!(refused.code == 1 && refused.err.contains("must be one of "), "{}", refused.err);
    assert_eq!(integer(&raw(&path), "SELECT count(*) FROM postbox_setting"), 1);
    assert_eq!(fs::read(&path).unwrap().len(), before.len());
}

#[test]
fn a_backup_replaces_nothing_without_a_yes() {
    let (dir, _) = customer();
    let out = run(dir.path(), &["backup", "app.db", "copy.db"]).ok();
    assert!(out.starts_with("copy.db is a complete copy of app.db: "), "{out}");
    run(dir.path(), &["verify", "copy.db"]).ok();
    fs::write(dir.path().join("precious.db"), b"precious").unwrap();
    let refused = run(dir.path(), &["backup", "app.db", "precious.db"]);
    assert_eq!((refused.code, refused.out.as_str()), (4, ""));
    assert_eq!(refused.err, "postbox: not confirmed: precious.db will be replaced.\n  next: give --yes\n");
    assert_eq!(fs::read(dir.path().join("precious.db")).unwrap(), b"precious");
    let made = run(dir.path(), &["backup", "app.db", "precious.db", "--yes", "--json"]).json();
    assert_eq!((&made["file"], &made["backup"]), (&"app.db".into(), &"precious.db".into()));
    assert_eq!(made["bytes"], fs::metadata(dir.path().join("precious.db")).unwrap().len());
    assert_eq!(listing(dir.path()), ["app.db", "copy.db", "precious.db"]);
}

#[test]
fn a_restore_is_checked_confirmed_and_then_whole() {
    let (dir, path) = customer();
    run(dir.path(), &["backup", "app.db", "backup.db"]).ok();
    publish(&path, 5);
    let before = fs::read(&path).unwrap();
    let dry = run(dir.path(), &["restore", "backup.db", "app.db", "--dry-run"]).ok();
    assert!(
        dry.starts_with("backup.db is sound (schema version ")
            && dry.ends_with("; app.db would be replaced\n"),
        "{dry}"
    );
    let dry = run(dir.path(), &["restore", "backup.db", "new.db", "--dry-run"]).ok();
    assert!(dry.ends_with("; new.db would be made\n"), "{dry}");
    let refused = run(dir.path(), &["restore", "backup.db", "app.db"]);
    assert_eq!((refused.code, refused.out.as_str()), (4, ""));
    assert_eq!(
        refused.err,
        "postbox: not confirmed: All that is in app.db will be gone.\n  next: give --yes\n"
    );
    assert_bytes(&path, &before, "not restored yet");
    assert_eq!(listing(dir.path()), ["app.db", "backup.db"]);

    let restored = run(dir.path(), &["restore", "backup.db", "app.db", "--yes", "--json"]).json();
    assert_eq!((&restored["restored"], &restored["file"]), (&true.into(), &"app.db".into()));
    let stats = run(dir.path(), &["stats", "app.db", "--json"]).json();
    assert_eq!((&stats["total"], &stats["pending"]), (&3.into(), &0.into()));
    run(dir.path(), &["restore", "backup.db", "new.db"]).ok(); // nothing is lost there
    assert_eq!(listing(dir.path()), ["app.db", "backup.db", "new.db"]);
}

#[test]
fn a_file_that_is_open_is_not_replaced() {
    let (dir, path) = customer();
    run(dir.path(), &["backup", "app.db", "backup.db"]).ok();
    let bus = Postbox::open(&path).unwrap();
    let refused = run(dir.path(), &["restore", "backup.db", "app.db", "--yes"]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("app.db is open: close it everywhere first"), "{}", refused.err);
    assert_eq!(bus.stats().unwrap().total, 3);
}

#[test]
fn a_backup_that_is_damaged_is_not_restored() {
    let (dir, path) = customer();
    publish(&path, 500);
    run(dir.path(), &["backup", "app.db", "backup.db"]).ok();
    let mut bytes = fs::read(dir.path().join("backup.db")).unwrap();
    let end = bytes.len();
    bytes[end / 2..end / 2 + 20_000].fill(0x5a); // pages of events
    fs::write(dir.path().join("backup.db"), bytes).unwrap();
    let before = fs::read(&path).unwrap();
    for args in [&["--dry-run"][..], &["--yes"]] {
        let refused = run(dir.path(), &[&["restore", "backup.db", "app.db"], args].concat());
        assert_eq!(refused.code, 1);
        assert!(refused.err.starts_with("postbox: backup.db: "), "{}", refused.err);
    }
    assert_bytes(&path, &before, "not restored");
    let seen = run(dir.path(), &["verify", "backup.db"]);
    assert!(
        seen.code == 3 && (seen.out + &seen.err).contains("restore the last good backup"),
        "{}",
        seen.err
    );
}

#[test]
fn an_older_file_is_looked_at_once_it_is_upgraded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.db");
    raw(&path).execute_batch(include_str!("../data/schema-1.sql")).unwrap();
    let before = fs::read(&path).unwrap();
    for args in [&["stats", "old.db"][..], &["settings", "set", "old.db", "batch_size", "7"]] {
        let refused = run(dir.path(), args);
        assert_eq!(refused.code, 1);
        let next =
            "\n  next: `postbox upgrade old.db`, once no older release of the application uses the file\n";
        assert!(refused.err.contains("holds version 1") && refused.err.ends_with(next), "{}", refused.err);
    }
    let checked = run(dir.path(), &["restore", "old.db", "new.db", "--dry-run", "--json"]).json();
    assert_eq!(checked["schema_version"], 1);
    assert_bytes(&path, &before, "not upgraded yet");

    let version = postbox::SCHEMA_VERSION;
    let out = run(dir.path(), &["upgrade", "old.db"]).ok();
    assert_eq!(out, format!("old.db has schema version {version} now, after 1\n"));
    let out = run(dir.path(), &["upgrade", "old.db"]).ok();
    assert_eq!(out, format!("old.db is up to date: schema version {version}\n"));
    let again = run(dir.path(), &["upgrade", "old.db", "--json"]).json();
    assert_eq!((&again["from"], &again["to"]), (&version.into(), &version.into()));
    run(dir.path(), &["verify", "old.db"]).ok();
}
