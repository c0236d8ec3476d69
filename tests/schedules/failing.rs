//! Schedules that cannot tick, and keep nobody from anything.

use postbox::{Misfire, Schedule};

use crate::support::{TestBox, boxes, ends, event, file_box, sql};
use crate::{MINUTE, minutely, note_ticks, seconds, stored};

fn put_both(test: &TestBox) {
    for name in ["bad", "good"] {
        test.bus.schedules().put(name, minutely().misfire(Misfire::All { max: 9 })).unwrap();
    }
}

#[test]
fn what_a_trigger_refuses_waits_with_its_error_and_the_others_tick() {
    for how in ["ABORT, 'no ticks'", "ROLLBACK, 'no ticks'", "IGNORE"] {
        for test in boxes() {
            let calls = note_ticks(&test.bus);
            put_both(&test);
            let trigger = format!(
                "CREATE TRIGGER no_bad BEFORE INSERT ON outbox_event WHEN NEW.metadata LIKE '%\"name\":\"bad\"%'
                 BEGIN SELECT RAISE({how}); END"
            );
            sql(&test.bus, |tx| tx.execute_batch(&trigger));
            for minute in 1..=2 {
                test.clock.advance(MINUTE);
                test.bus.drain().unwrap();
                assert_eq!(calls.take(), [format!("good@{}", minute * 60)], "{} {how}", test.kind);
            }
            let bad = stored(&test.bus, "bad");
            let error = bad.error.as_deref().expect("why");
            assert!(error.contains("no ticks") || error.contains("swallowed"), "{error}");
            assert_eq!((seconds(bad.next_at), bad.last_at), (Some(60), None), "{} {how}", test.kind);
            assert_eq!(stored(&test.bus, "good").error, None);

            sql(&test.bus, |tx| tx.execute_batch("DROP TRIGGER no_bad"));
            test.bus.drain().unwrap();
            assert_eq!(calls.take(), ["bad@60", "bad@120"], "{} {how}: none was lost", test.kind);
            assert_eq!(stored(&test.bus, "bad").error, None);
        }
    }
}

#[test]
fn a_trigger_that_swallows_the_schedule_s_next_tick_lets_no_event_out() {
    for test in boxes() {
        let calls = note_ticks(&test.bus);
        put_both(&test);
        let trigger =
            "CREATE TRIGGER stays BEFORE UPDATE OF next_at ON postbox_schedule WHEN NEW.name = 'bad'
                       BEGIN SELECT RAISE(IGNORE); END";
        sql(&test.bus, |tx| tx.execute_batch(trigger));
        test.clock.advance(MINUTE);
        test.bus.drain().unwrap();
        test.bus.drain().unwrap();
        assert_eq!(calls.all(), ["good@60"], "{}", test.kind);
        assert!(stored(&test.bus, "bad").error.unwrap().contains("postbox_schedule"));
        for refused in [
            test.bus.schedules().put("bad", Schedule::every(MINUTE * 2, event("tick"))).map(drop),
            test.bus.schedules().pause("bad").map(drop),
        ] {
            // The pause does not touch that column.
            if let Err(error) = refused {
                assert!(
                    matches!(error, postbox::Error::NotStored { table: "postbox_schedule", .. }),
                    "{error}"
                );
            }
        }
    }
}

/// What another program may leave there.
#[test]
fn a_row_that_cannot_be_understood_is_listed_with_its_error_and_left_alone() {
    let spoilt = [
        ("rule", "'{\"every_us\":0}'"),
        ("rule", "'{'"),
        ("rule", "'{\"at_full_moon\":true}'"),
        ("misfire", "'\"twice\"'"),
        ("misfire", "'{\"all\":{\"max\":0}}'"),
        ("event", "'[]'"),
        ("event", "CAST(x'ff' AS TEXT)"),
        ("event", "json_set(event, '$.later', 1)"),
    ];
    for (column, value) in spoilt {
        let test = file_box();
        let calls = note_ticks(&test.bus);
        put_both(&test);
        let spoil = format!("UPDATE postbox_schedule SET {column} = {value} WHERE name = 'bad'");
        assert_eq!(test.app_connection().execute(&spoil, []).unwrap(), 1);
        test.clock.advance(MINUTE);
        test.bus.drain().unwrap();
        assert_eq!(calls.take(), ["good@60"], "{spoil}");
        let bad = stored(&test.bus, "bad");
        assert!(
            bad.error.as_deref().unwrap().contains(&format!("invalid {column}: ")),
            "{bad:?} {:?}",
            bad.error
        );
        assert_eq!(seconds(bad.next_at), Some(60), "nothing else is changed");
        let verified = test.bus.verify().unwrap();
        assert_eq!(
            verified.findings.iter().filter(|finding| finding.check == "schedules").count(),
            1,
            "{spoil}: {:?}",
            verified.findings
        );

        // Putting it again sets it right.
        put_both(&test);
        assert_eq!(stored(&test.bus, "bad").error, None);
        test.clock.advance(MINUTE * 2);
        test.bus.drain().unwrap();
        assert!(calls.all().contains(&"bad@180".to_owned()), "{spoil}: {:?}", calls.all());
        assert_eq!(test.bus.verify().unwrap().findings.iter().filter(|f| f.check == "schedules").count(), 0);
    }
}

/// A file of a build that has the feature.
#[cfg(not(feature = "cron"))]
#[test]
fn without_the_feature_a_cron_schedule_waits_and_is_shown_and_intervals_tick() {
    let test = file_box();
    let calls = note_ticks(&test.bus);
    put_both(&test);
    let by_cron = "UPDATE postbox_schedule SET rule = '{\"cron\":\"* * * * *\",\"time_zone\":\"UTC\"}' WHERE name = 'bad'";
    test.app_connection().execute(by_cron, []).unwrap();
    test.clock.advance(MINUTE);
    test.bus.drain().unwrap();
    assert_eq!(calls.all(), ["good@60"]);
    let bad = stored(&test.bus, "bad");
    let error = "a schedule by a cron expression needs the cargo feature `cron`, which this build is without";
    assert_eq!((bad.error.as_deref(), seconds(bad.next_at), bad.last_at), (Some(error), Some(60), None));
    assert!(matches!(bad.rule, Some(postbox::ScheduleRule::Cron { .. })));
    let noted: Option<String> = test
        .app_connection()
        .query_row("SELECT last_error FROM postbox_schedule WHERE name = 'bad'", [], |row| row.get(0))
        .unwrap();
    assert_eq!(noted, None, "a build that has the feature sees no error");
    let refused = test.bus.schedules().next_times("bad", 1).unwrap_err();
    assert!(matches!(refused, postbox::Error::FeatureMissing { feature: "cron", .. }));
    test.bus.schedules().pause("bad").unwrap();
    let refused = test.bus.schedules().resume("bad").unwrap_err();
    assert!(matches!(refused, postbox::Error::FeatureMissing { .. }));
    assert!(stored(&test.bus, "bad").paused_at.is_some(), "nothing was changed");
    assert!(test.bus.verify().unwrap().findings.iter().all(|finding| finding.check != "schedules"));
}

/// What was put back was due again and again: a worker published nothing else any more, and could not be stopped.
#[test]
fn a_trigger_that_puts_the_next_tick_back_is_no_reason_to_spin() {
    for test in boxes() {
        let calls = note_ticks(&test.bus);
        put_both(&test);
        let trigger = "CREATE TRIGGER back AFTER UPDATE OF next_at ON postbox_schedule WHEN NEW.name = 'bad'
                       BEGIN UPDATE postbox_schedule SET next_at = OLD.next_at WHERE seq = NEW.seq; END";
        sql(&test.bus, |tx| tx.execute_batch(trigger));
        test.clock.advance(MINUTE);
        let bus = test.bus.clone();
        assert_eq!(ends(move || bus.drain().unwrap()), 1, "{}", test.kind);
        assert_eq!(calls.take(), ["good@60"]);
        assert!(stored(&test.bus, "bad").error.unwrap().contains("postbox_schedule"));
        sql(&test.bus, |tx| tx.execute_batch("DROP TRIGGER back"));
        test.bus.drain().unwrap();
        assert_eq!(calls.all(), ["bad@60"]);
        assert_eq!(stored(&test.bus, "bad").error, None);
    }
}
