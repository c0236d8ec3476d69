//! What goes wrong: the file, the cause and the next step on stderr, nothing on stdout, and the exit code.

use std::fmt::Write;
use std::fs;

use crate::support::{listing, raw};
use crate::{customer, expect, run};

#[test]
fn errors_say_the_file_the_cause_and_the_next_step() {
    let (dir, path) = customer();
    fs::write(dir.path().join("diary.txt"), b"Dear diary, this is no database.\n".repeat(100)).unwrap();
    raw(&dir.path().join("other.db")).execute_batch("CREATE TABLE t (x)").unwrap();
    fs::copy(&path, dir.path().join("newer.db")).unwrap();
    raw(&dir.path().join("newer.db")).execute("UPDATE postbox_schema SET version = 99", []).unwrap();
    let names = listing(dir.path());
    let mut said = String::new();
    for args in [
        &["stats", "missing.db"][..],
        &["settings", "set", "missing.db", "batch_size", "7"],
        &["upgrade", "missing.db"],
        &["restore", "missing.db", "app.db", "--yes"],
        &["stats", "."],
        &["stats", "diary.txt"],
        &["verify", "other.db"],
        &["upgrade", "other.db"],
        &["stats", "newer.db"],
        &["backup", "app.db", "nowhere/copy.db"],
        &["backup", "app.db", "app.db", "--yes"],
    ] {
        let refused = run(dir.path(), args);
        assert_eq!((refused.code, refused.out.as_str()), (1, ""), "{args:?}: {}", refused.err);
        write!(said, "$ postbox {}\n{}", args.join(" "), refused.err).unwrap();
        assert_eq!(listing(dir.path()), names, "{args:?}");
    }
    let folder = dir.path().canonicalize().unwrap();
    let version = format!("than the {}", postbox::SCHEMA_VERSION);
    expect(
        "errors.txt",
        &said.replace(&*folder.to_string_lossy(), "FOLDER").replace(&version, "than the VERSION"),
    );
}

#[test]
fn a_wrong_command_line_ends_with_code_2() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &[][..],
        &["stats"],
        &["sttas", "app.db"],
        &["stats", "app.db", "--jsno"],
        &["links", "app.db", "finance"],
        &["links", "app.db", "finance", "Invoice", "inv-1", "--type", "casacde"],
        &["links", "app.db", "finance", "Invoice", "inv-1", "--outbound", "--inbound"],
        &["links", "app.db", "finance", "Invoice", "inv-1", "--walk", "0"],
        &["links", "app.db", "finance", "Invoice", "inv-1", "--walk", "1", "--module", "operations"],
        &["settings", "app.db"],
        &["completions", "cobol"],
    ] {
        let refused = run(dir.path(), args);
        assert_eq!((refused.code, refused.out.as_str()), (2, ""), "{args:?}");
        assert!(refused.err.contains("--help") || refused.err.contains("Usage: postbox"), "{}", refused.err);
    }
    assert!(listing(dir.path()).is_empty());
}

/// What an operator pastes into a ticket holds nobody's data.
#[test]
fn no_payload_metadata_or_error_text_is_printed() {
    let (dir, path) = customer();
    raw(&path)
        .execute_batch(
            "UPDATE outbox_event SET payload = '{\"n\":\"canary-7f3a\"}', metadata = '\"canary-7f3a\"';
             UPDATE integration_link SET metadata = '\"canary-7f3a\"';
             UPDATE outbox_event SET payload = 'canary-7f3a' WHERE seq = 1;",
        )
        .unwrap();
    for args in [
        &["stats", "app.db"][..],
        &["consumers", "app.db"],
        &["links", "app.db", "finance", "Invoice", "inv-1"],
        &["links", "app.db", "finance", "Invoice", "inv-1", "--walk", "3"],
        &["verify", "app.db"],
        &["settings", "get", "app.db"],
    ] {
        for args in [args.to_vec(), [args, &["--json"]].concat()] {
            let run = run(dir.path(), &args);
            assert!(!format!("{}{}", run.out, run.err).contains("canary"), "{args:?}: {}", run.out);
        }
    }
}
