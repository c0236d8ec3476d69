//! Settings: what may be set, and where it is kept.

#[path = "support/files.rs"]
mod support;
#[path = "support/timing.rs"]
mod timing;

#[path = "settings/noticed.rs"]
mod noticed;

use std::collections::BTreeMap;
use std::path::Path;

use postbox::{Error, Postbox, Settings, UnhandledEvents};

use crate::support::{event, raw, unhurried};

const PREFIX: &str = "core.integration.outbox.";

fn stored(path: &Path) -> Vec<(String, String)> {
    let conn = raw(path);
    let mut statement = conn.prepare("SELECT key, value FROM postbox_setting ORDER BY key").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?))).unwrap();
    rows.map(|row| row.unwrap()).map(|(key, value)| (key.replacen(PREFIX, "~", 1), value)).collect()
}

fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
    pairs.map(|(key, value)| (format!("~{key}"), value.to_owned())).into()
}

/// As an operator with an SQLite shell would.
fn store(path: &Path, key: &str, value: &str) {
    raw(path)
        .execute(
            "INSERT INTO postbox_setting (key, value, updated_at) VALUES (?1, ?2, 0)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            [format!("{PREFIX}{key}"), value.to_owned()],
        )
        .unwrap();
}

#[test]
fn the_defaults_are_those_that_are_documented() {
    let defaults = Settings {
        enabled: true,
        processor_enabled: true,
        startup_drain_enabled: true,
        polling_interval_ms: 5_000,
        idle_polling_interval_ms: 30_000,
        batch_size: 10,
        max_attempts: 3,
        processing_lease_ms: 30_000,
        retry_base_delay_ms: 1_000,
        dead_letter_enabled: true,
        startup_drain_batch_size: 50,
        unhandled_events: UnhandledEvents::Complete,
        retention_ms: 0,
        retention_by_event: BTreeMap::new(),
    };
    assert_eq!(Settings::default(), defaults);
    assert_eq!(Postbox::open_in_memory().unwrap().settings(), defaults);
}

type Change = fn(&mut Settings);

#[test]
fn the_least_values_are_taken_and_anything_less_is_refused_by_name_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let least: [(&str, Change, Change); 7] = [
        ("polling_interval_ms", |s| s.polling_interval_ms = 100, |s| s.polling_interval_ms = 99),
        (
            "idle_polling_interval_ms",
            |s| s.idle_polling_interval_ms = 100,
            |s| s.idle_polling_interval_ms = 99,
        ),
        ("batch_size", |s| s.batch_size = 1, |s| s.batch_size = 0),
        ("max_attempts", |s| s.max_attempts = 1, |s| s.max_attempts = 0),
        ("processing_lease_ms", |s| s.processing_lease_ms = 1_000, |s| s.processing_lease_ms = 999),
        ("retry_base_delay_ms", |s| s.retry_base_delay_ms = 100, |s| s.retry_base_delay_ms = 99),
        ("startup_drain_batch_size", |s| s.startup_drain_batch_size = 1, |s| s.startup_drain_batch_size = 0),
    ];
    for bus in [Postbox::open(&path).unwrap(), Postbox::open_in_memory().unwrap()] {
        for (field, _, too_small) in least {
            let before = bus.settings();
            let refused = bus.update_settings(|settings| {
                settings.dead_letter_enabled = false; // sound by itself, refused with the other
                too_small(settings);
            });
            match refused {
                Err(Error::Invalid { field: named, .. }) => assert_eq!(named, field),
                other => panic!("{field}: {other:?}"),
            }
            assert_eq!(bus.settings(), before);
            let mut defaults = Settings::default();
            too_small(&mut defaults);
            match Postbox::builder().settings(defaults).open_in_memory() {
                Err(Error::Invalid { field: named, .. }) => assert_eq!(named, field),
                other => panic!("{field}: {other:?}"),
            }
        }
        for (_, smallest, _) in least {
            bus.update_settings(smallest).unwrap();
        }
        let mut all = Settings::default();
        for (_, smallest, _) in least {
            smallest(&mut all);
        }
        assert_eq!(bus.settings(), all);
        bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
    }
    let bus = Postbox::open(&path).unwrap();
    assert!(bus.settings().dead_letter_enabled);
}

#[test]
fn each_setting_is_stored_under_its_documented_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    let returned = bus
        .update_settings(|settings| {
            *settings = Settings {
                enabled: false,
                processor_enabled: false,
                startup_drain_enabled: false,
                polling_interval_ms: 101,
                idle_polling_interval_ms: 102,
                batch_size: 103,
                max_attempts: 104,
                processing_lease_ms: 1_005,
                retry_base_delay_ms: 106,
                dead_letter_enabled: false,
                startup_drain_batch_size: 107,
                unhandled_events: UnhandledEvents::Hold,
                retention_ms: 1_008,
                retention_by_event: BTreeMap::from([("a".to_owned(), 0), ("b".to_owned(), 1_009)]),
            }
        })
        .unwrap();
    assert_eq!(returned, bus.settings());
    assert_eq!(
        stored(&path),
        pairs([
            ("batchSize", "103"),
            ("deadLetterEnabled", "false"),
            ("enabled", "false"),
            ("idlePollingIntervalMs", "102"),
            ("maxAttempts", "104"),
            ("pollingIntervalMs", "101"),
            ("processingLeaseMs", "1005"),
            ("processor.enabled", "false"),
            ("retentionByEvent", r#"{"a":0,"b":1009}"#),
            ("retentionMs", "1008"),
            ("retryBaseDelayMs", "106"),
            ("startupDrainBatchSize", "107"),
            ("startupDrainEnabled", "false"),
            ("unhandledEvents", "\"hold\""),
        ])
    );
    bus.close().unwrap();
    assert_eq!(Postbox::open(&path).unwrap().settings(), returned);
}

#[test]
fn what_the_file_holds_wins_over_the_applications_defaults_and_the_rest_follows_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let open = |defaults: Settings| Postbox::builder().settings(defaults).open(&path).unwrap();
    let bus = open(Settings { batch_size: 20, max_attempts: 5, ..Settings::default() });
    bus.update_settings(|settings| settings.batch_size = 21).unwrap();
    assert_eq!(stored(&path), pairs([("batchSize", "21")]), "only what was changed");
    bus.update_settings(|settings| settings.batch_size = 21).unwrap();
    bus.update_settings(|_| ()).unwrap();
    assert_eq!(stored(&path), pairs([("batchSize", "21")]));
    bus.close().unwrap();

    let bus = open(Settings { batch_size: 30, max_attempts: 7, ..Settings::default() });
    assert_eq!((bus.settings().batch_size, bus.settings().max_attempts), (21, 7));
    assert_eq!(stored(&path), pairs([("batchSize", "21")]), "opening stores nothing");
    // Back to what is the default now: it was said, and it stays said.
    bus.update_settings(|settings| settings.batch_size = 30).unwrap();
    bus.close().unwrap();
    let bus = open(Settings { batch_size: 40, ..Settings::default() });
    assert_eq!((bus.settings().batch_size, bus.settings().max_attempts), (30, 3));
}

#[test]
fn two_boxes_that_change_different_settings_keep_each_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let (one, other) = (unhurried().open(&path).unwrap(), unhurried().open(&path).unwrap());
    one.update_settings(|settings| settings.batch_size = 11).unwrap();
    let seen = other.update_settings(|settings| settings.max_attempts = 9).unwrap();
    assert_eq!((seen.batch_size, seen.max_attempts), (11, 9));
    std::thread::scope(|scope| {
        for n in 0..8_u32 {
            let bus = if n % 2 == 0 { &one } else { &other };
            scope.spawn(move || {
                bus.update_settings(|settings| match n {
                    0 => settings.polling_interval_ms = 1_000,
                    1 => settings.retry_base_delay_ms = 2_000,
                    2 => settings.dead_letter_enabled = false,
                    3 => settings.startup_drain_batch_size = 77,
                    4 => settings.processing_lease_ms = 4_000,
                    5 => settings.unhandled_events = UnhandledEvents::Hold,
                    6 => settings.startup_drain_enabled = false,
                    _ => settings.idle_polling_interval_ms = 60_000,
                })
                .unwrap();
            });
        }
    });
    assert_eq!(stored(&path).len(), 10, "{:?}", stored(&path));
}

/// Both are refused together: neither may end up beside a value that it is not sound with.
#[test]
fn settings_that_bound_each_other_stay_sound_when_two_boxes_change_them_at_once() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let (one, other) = (Postbox::open(&path).unwrap(), Postbox::open(&path).unwrap());
        let barrier = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                let _ = one.update_settings(|settings| settings.polling_interval_ms = 20_000);
            });
            scope.spawn(|| {
                barrier.wait();
                let _ = other.update_settings(|settings| settings.idle_polling_interval_ms = 10_000);
            });
        });
        let held: Vec<u64> = stored(&path).iter().map(|(_, value)| value.parse().unwrap()).collect();
        assert_eq!(held.len(), 1, "one of the two came second and must be refused: {:?}", stored(&path));
    }
}

#[test]
fn unknown_keys_and_values_that_cannot_be_used_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    for bad in ["abc", "0", "-1", "\"x\"", "", "null", "1e99", "[]", "10.5", "\0"] {
        let path = dir.path().join(format!("{}.db", bad.len() + bad.bytes().map(usize::from).sum::<usize>()));
        Postbox::open(&path).unwrap().close().unwrap();
        store(&path, "batchSize", bad);
        store(&path, "maxAttempts", "8");
        store(&path, "pollingIntervalMs", "200");
        store(&path, "aLaterReleasesKey", "17");
        store(&path, "processor.enabled.too", "false");
        let bus = Postbox::open(&path).unwrap();
        let expected = Settings { max_attempts: 8, polling_interval_ms: 200, ..Settings::default() };
        assert_eq!(bus.settings(), expected, "{bad:?}");
        // What could not be used can still be set, and what is unknown is kept.
        bus.update_settings(|settings| settings.batch_size = 5).unwrap();
        assert_eq!(bus.settings().batch_size, 5);
        assert!(stored(&path).contains(&("~aLaterReleasesKey".to_owned(), "17".to_owned())));
        bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
    }
}

/// They are sound only beside each other, and a third one is not sound at all.
#[test]
fn one_value_that_cannot_be_used_takes_no_sound_ones_with_it() {
    for (polling, idle) in [("100", "200"), ("50000", "60000")] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        Postbox::open(&path).unwrap().close().unwrap();
        store(&path, "batchSize", "abc");
        store(&path, "pollingIntervalMs", polling);
        store(&path, "idlePollingIntervalMs", idle);
        let settings = Postbox::open(&path).unwrap().settings();
        assert_eq!(settings.polling_interval_ms.to_string(), polling);
        assert_eq!(settings.idle_polling_interval_ms.to_string(), idle);
        assert_eq!(settings.batch_size, 10);
    }
}

#[test]
fn a_setting_that_is_no_text_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    Postbox::open(&path).unwrap().close().unwrap();
    // STRICT keeps other types out; text that is not UTF-8 it does not.
    raw(&path)
        .execute(
            "INSERT INTO postbox_setting VALUES ('core.integration.outbox.batchSize', CAST(x'ff41' AS TEXT), 0)",
            [],
        )
        .unwrap();
    store(&path, "maxAttempts", "8");
    let bus = Postbox::open(&path).unwrap();
    assert_eq!((bus.settings().batch_size, bus.settings().max_attempts), (10, 8));
    bus.publish(event("a")).unwrap();
}
