//! The query plans of the library's statements: history must cost nothing.
//!
//! The statements are taken out of the sources, so that none can be forgotten.

use std::fs;
use std::path::Path;

use postbox::rusqlite::Connection;
use postbox::rusqlite::config::DbConfig;

/// verify/audit.rs is not among them: it reads everything, on purpose.
const SOURCES: [(&str, &str); 31] = [
    ("outbox/mod.rs", include_str!("../src/outbox/mod.rs")),
    ("outbox/backlog.rs", include_str!("../src/outbox/backlog.rs")),
    ("outbox/counts.rs", include_str!("../src/outbox/counts.rs")),
    ("outbox/claim.rs", include_str!("../src/outbox/claim.rs")),
    ("outbox/dead.rs", include_str!("../src/outbox/dead.rs")),
    ("outbox/decided.rs", include_str!("../src/outbox/decided.rs")),
    ("outbox/imported.rs", include_str!("../src/outbox/imported.rs")),
    ("outbox/future.rs", include_str!("../src/outbox/future.rs")),
    ("outbox/insert.rs", include_str!("../src/outbox/insert.rs")),
    ("outbox/list.rs", include_str!("../src/outbox/list.rs")),
    ("outbox/live.rs", include_str!("../src/outbox/live.rs")),
    ("outbox/order.rs", include_str!("../src/outbox/order.rs")),
    ("outbox/prune.rs", include_str!("../src/outbox/prune.rs")),
    ("outbox/parked.rs", include_str!("../src/outbox/parked.rs")),
    ("outbox/settle.rs", include_str!("../src/outbox/settle.rs")),
    ("outbox/strays.rs", include_str!("../src/outbox/strays.rs")),
    ("outbox/summary.rs", include_str!("../src/outbox/summary.rs")),
    ("inbox.rs", include_str!("../src/inbox.rs")),
    ("inbox/listing.rs", include_str!("../src/inbox/listing.rs")),
    ("history.rs", include_str!("../src/history.rs")),
    ("history/recent.rs", include_str!("../src/history/recent.rs")),
    ("consumers.rs", include_str!("../src/consumers.rs")),
    ("pauses.rs", include_str!("../src/pauses.rs")),
    ("links/change.rs", include_str!("../src/links/change.rs")),
    ("links/create.rs", include_str!("../src/links/create.rs")),
    ("links/find.rs", include_str!("../src/links/find.rs")),
    ("links/list.rs", include_str!("../src/links/list.rs")),
    ("links/unique.rs", include_str!("../src/links/unique.rs")),
    ("links/walk.rs", include_str!("../src/links/walk.rs")),
    ("sagas/table.rs", include_str!("../src/sagas/table.rs")),
    ("schedule/table.rs", include_str!("../src/schedule/table.rs")),
];

/// What a macro puts into statements, or before or behind them.
fn text_of(source: &'static str, name: &str) -> String {
    let (_, after) = source.split_once(&format!("macro_rules! {name}")).unwrap();
    after.split('"').nth(1).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The condition of an `EventFilter`, which several statements share.
fn condition_of_filters() -> String {
    text_of(include_str!("../src/outbox/filter.rs"), "matches_filter")
}

/// The condition of a `LinkFilter`.
fn condition_of_link_filters() -> String {
    text_of(include_str!("../src/links/filter.rs"), "matches_links")
}

/// The beginning that look-ups of links share, each with its condition behind it.
fn beginning_of_links() -> String {
    text_of(include_str!("../src/links/row.rs"), "select_link")
}

/// Which links are superfluous: counted, and deleted.
fn superfluous_links() -> String {
    text_of(include_str!("../src/links/change.rs"), "of_superfluous")
}

/// Every string of a source file that is an SQL statement, up to its unit tests.
fn statements_of(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]").next().unwrap();
    // As `concat!` does with what stands before, in and behind the macro.
    let source = source.split_whitespace().collect::<Vec<_>>().join(" ");
    let source = source
        .replace("\", matches_filter!(), \"", &condition_of_filters())
        .replace("\", matches_filter!()", &format!("{}\"", condition_of_filters()))
        .replace("\", matches_links!(), \"", &condition_of_link_filters())
        .replace(
            "of_superfluous!(\"SELECT count(*)\")",
            &format!("\"SELECT count(*) {}\"", superfluous_links()),
        )
        .replace("of_superfluous!(\"DELETE\")", &format!("\"DELETE {}\"", superfluous_links()));
    let strings = source.split('"').skip(1).step_by(2);
    let strings: Vec<String> =
        strings.map(|text| text.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let whole =
        |sql: &str| ["SELECT ", "INSERT ", "UPDATE ", "DELETE "].iter().any(|verb| sql.starts_with(verb));
    // schedule/table.rs writes the beginning that its look-ups share once, and each one's condition behind it; links/row.rs for others.
    let shared = |sql: &str| sql.starts_with("SELECT seq, name, rule, misfire");
    let beginning = strings.iter().find(|sql| shared(sql)).cloned().unwrap_or_else(beginning_of_links);
    let is_rest = |sql: &str| sql.starts_with("WHERE ") || sql.starts_with("ORDER BY ");
    strings
        .iter()
        .filter(|sql| (whole(sql) && !shared(sql)) || is_rest(sql))
        .map(|sql| if whole(sql) { sql.clone() } else { format!("{beginning} {sql}") })
        .collect()
}

fn all() -> Vec<(&'static str, String)> {
    let statements = |(file, source): &(&'static str, &str)| {
        statements_of(source).into_iter().map(|sql| (*file, sql)).collect()
    };
    SOURCES.iter().flat_map(|source| -> Vec<_> { statements(source) }).collect()
}

/// The schema with some history in it, planned as the library's own connections plan: with stability on.
struct Planner(Connection);

impl Planner {
    /// With the statistics of `ANALYZE`, as an application may have collected them, or without.
    fn new(analyzed: bool) -> Self {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(include_str!("../schema.sql")).unwrap();
        conn.execute_batch(include_str!("../src/outbox/order.sql")).unwrap();
        conn.execute_batch(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
             INSERT INTO outbox_event (id, status, available_at, created_at, event_name, source_module, aggregate_type,
                                       aggregate_id, payload)
             SELECT randomblob(16),
                    CASE WHEN i > 2995 THEN 'processing' WHEN i > 2990 THEN 'pending' WHEN i > 2985 THEN 'dead_letter'
                         ELSE 'processed' END,
                    i, i, 'a', 'm', 'T', 't-' || i, '{}' FROM n;
             INSERT INTO postbox_consumer (number, name) VALUES (1, 'c');
             INSERT INTO inbox_event (id, consumer_name, status, processed_at)
             SELECT seq << 20 | 1, 'c', CASE WHEN seq > 2990 THEN 'failed' ELSE 'processed' END, 1 FROM outbox_event;
             INSERT INTO integration_link (id, source_module, source_entity_type, source_entity_id, target_module,
                                           target_entity_type, target_entity_id, link_type, created_at, updated_at)
             SELECT randomblob(16), 'm', 'T', aggregate_id, 'o', 'U', 'u-' || seq,
                    CASE seq % 3 WHEN 0 THEN 'reference' WHEN 1 THEN 'cascade' ELSE 'aggregate_root' END, 1, 1
             FROM outbox_event;",
        )
        .unwrap();
        assert!(conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).unwrap());
        if analyzed {
            conn.execute_batch("ANALYZE").unwrap();
        }
        Planner(conn)
    }

    fn plan(&self, sql: &str) -> Vec<String> {
        let mut statement = self
            .0
            .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
        for parameter in 1..=statement.parameter_count() {
            statement.raw_bind_parameter(parameter, 1).unwrap();
        }
        let mut rows = statement.raw_query();
        let mut plan = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            plan.push(row.get::<_, String>(3).unwrap().replace("main.", ""));
        }
        plan
    }
}

fn planners() -> [Planner; 2] {
    [Planner::new(false), Planner::new(true)]
}

/// The one statement that holds all of these texts.
#[track_caller]
fn statement(parts: &[&str]) -> String {
    let found: Vec<String> = all()
        .into_iter()
        .map(|(_, sql)| sql)
        .filter(|sql| parts.iter().all(|part| sql.contains(part)))
        .collect();
    assert_eq!(found.len(), 1, "{parts:?} are in {found:#?}");
    found.into_iter().next().unwrap()
}

#[track_caller]
fn assert_plan(parts: &[&str], expected: &[&str]) {
    let sql = statement(parts);
    for planner in planners() {
        assert_eq!(planner.plan(&sql), expected, "{sql}");
    }
}

#[test]
fn the_statements_are_found_in_the_sources() {
    let count = |file| all().iter().filter(|(of, _)| *of == file).count();
    assert!(all().len() >= 40, "{:#?}", all());
    for (file, least) in [
        ("outbox/mod.rs", 6),
        ("outbox/counts.rs", 7),
        ("outbox/claim.rs", 2),
        ("outbox/insert.rs", 1),
        ("outbox/list.rs", 12),
        ("outbox/settle.rs", 11),
        ("outbox/strays.rs", 2),
        ("outbox/summary.rs", 3),
        ("inbox.rs", 11),
        ("inbox/listing.rs", 2),
        ("consumers.rs", 3),
        ("links/change.rs", 6),
        ("links/create.rs", 1),
        ("links/find.rs", 9),
        ("links/list.rs", 8),
        ("links/unique.rs", 3),
        ("links/walk.rs", 2),
        ("pauses.rs", 12),
        ("outbox/order.rs", 10),
        ("outbox/parked.rs", 4),
        ("sagas/table.rs", 11),
        ("schedule/table.rs", 8),
    ] {
        assert!(count(file) >= least, "{file}: {}", count(file));
    }
}

/// These may read whole tables or indexes: each with its reason.
const MAY_SCAN: [(&str, &str); 15] = [
    ("main.postbox_pause", "what is paused: a few rows"),
    ("main.postbox_counter", "one row"),
    ("FROM main.postbox_schedule ORDER BY name", "all schedules, to be shown"),
    (
        "FROM main.postbox_schedule WHERE updated_at",
        "schedules, at each poll: as many as somebody has thought of",
    ),
    ("SELECT max(max(iif(created_at <= ?1", "the newest 32 rows, at open"),
    ("SELECT coalesce(max(clock_mark), 0) FROM main.postbox_schema", "one row"),
    ("UPDATE main.postbox_schema SET clock_mark", "one row"),
    ("SELECT name FROM main.postbox_consumer", "one row for each consumer"),
    ("SELECT consumer_name, count(*) FROM main.inbox_event INDEXED BY inbox_event_open", "what is open"),
    ("FROM main.inbox_event NOT INDEXED ORDER BY id DESC LIMIT ?1", "the newest 10,000 rows, from the end"),
    ("FROM main.postbox_history ORDER BY event DESC, number DESC LIMIT ?1", "10,000 rows, from the end"),
    (
        "SELECT count(*) FROM main.outbox_event AS e NOT INDEXED",
        "a filter is counted one by one, where no index has its statuses",
    ),
    ("FROM main.postbox_saga NOT INDEXED GROUP BY name", "each saga is counted, without its state"),
    ("FROM main.sqlite_schema", "some thirty rows"),
    ("WHERE status = 'processing'", "what is claimed, when a backup is restored or an owner has died"),
];

#[test]
fn no_statement_reads_history() {
    for planner in planners() {
        for (file, sql) in all() {
            let plan = planner.plan(&sql);
            for step in &plan {
                let scans =
                    step.starts_with("SCAN") && !step.contains("VIRTUAL") && !step.contains("CONSTANT");
                let allowed = MAY_SCAN.iter().any(|(part, _)| sql.contains(part))
                    || step.contains("INDEX outbox_event_claimed")
                    || step.contains("INDEX outbox_event_due")
                    || step.contains("INDEX outbox_event_dead")
                    || step.starts_with("SCAN (subquery");
                assert!(!scans || allowed, "{file}: {sql}\n{plan:#?}");
            }
        }
    }
}

/// All of the library's sources, up to their unit tests.
fn sources() -> Vec<(String, String)> {
    fn collect(folder: &Path, files: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = fs::read_to_string(&path).unwrap();
                let code = source.split("#[cfg(test)]").next().unwrap();
                // Without comments and documentation: what they quote is no code.
                let code: Vec<&str> =
                    code.split_inclusive('\n').filter(|line| !line.trim_start().starts_with("//")).collect();
                let code = code.concat();
                files.push((path.strip_prefix(SRC).unwrap().display().to_string(), code));
            }
        }
    }
    const SRC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    let mut files = Vec::new();
    collect(Path::new(SRC), &mut files);
    assert!(files.len() > 30, "{}", files.len());
    files
}

const TABLES: [&str; 11] = [
    "outbox_event",
    "inbox_event",
    "integration_link",
    "postbox_schema",
    "postbox_setting",
    "postbox_counter",
    "postbox_consumer",
    "postbox_pause",
    "postbox_schedule",
    "postbox_saga",
    "sqlite_schema",
];

/// A temporary table of the application's with that name would be taken. Triggers and upgrades are looked at below.
fn unnamed(sql: &str) -> Option<&'static str> {
    let words: Vec<&str> = sql
        .split(|c: char| c.is_whitespace() || "(),;".contains(c))
        .filter(|word| !word.is_empty())
        .collect();
    let names = |at: usize| match words[at] {
        "UPDATE" if words.get(at + 1) == Some(&"OR") => words.get(at + 3),
        "FROM" | "JOIN" | "INTO" | "UPDATE" => words.get(at + 1),
        _ => None,
    };
    (0..words.len()).find_map(|at| TABLES.into_iter().find(|table| names(at) == Some(table)))
}

#[test]
fn every_statement_names_its_database() {
    for (file, source) in sources() {
        assert_eq!(unnamed(&source), None, "{file}");
    }
    // The body of a trigger cannot name one, and means its own.
    let upgrades = [include_str!("../src/db/upgrades/2.sql"), include_str!("../src/db/upgrades/3.sql")];
    for upgrade in upgrades {
        let (before, rest) = upgrade.split_once("CREATE TRIGGER").unwrap();
        let (_, after) = rest.split_once("\nEND;").unwrap();
        for statement in before.split(';').chain(after.split(';')) {
            let is_view = statement.contains("CREATE VIEW"); // as a trigger
            assert!(is_view || unnamed(statement).is_none(), "{statement}");
        }
    }
    for bad in [
        "SELECT 1 FROM outbox_event",
        "UPDATE OR FAIL inbox_event SET",
        "INSERT INTO postbox_setting(key)",
        "SELECT (SELECT 1 FROM\n postbox_counter)",
    ] {
        assert!(unnamed(bad).is_some(), "{bad}");
    }
}

/// Names and values are bound. What is put together from pieces stands here, with its reason.
#[test]
fn no_value_is_pasted_into_a_statement() {
    const PASTED: [(&str, &str, &str); 3] = [
        ("outbox/insert.rs", "{sql}, ({})", "the places of parameters"),
        ("db/backup.rs", "PRAGMA main.integrity_check({FINDINGS_MAX})", "a constant"),
        (
            "db/backup.rs",
            "PRAGMA main.integrity_check(\\\"{quoted}\\\")",
            "a table's name, quoted: a pragma takes no parameter",
        ),
    ];
    const VERBS: [&str; 11] = [
        "SELECT ",
        "INSERT ",
        "UPDATE ",
        "DELETE ",
        "PRAGMA ",
        "CREATE ",
        "DROP ",
        "ATTACH ",
        "SAVEPOINT ",
        "{sql}",
        " WHERE ",
    ];
    let mut found = Vec::new();
    for (file, source) in sources() {
        for pieces in source.split("format!(").skip(1) {
            let template = pieces.trim_start().strip_prefix('"').unwrap_or_default();
            let end = template
                .match_indices('"')
                .find(|(at, _)| !template[..*at].ends_with('\\'))
                .map_or(0, |(at, _)| at);
            let template = &template[..end];
            if VERBS.iter().any(|verb| template.contains(verb)) {
                let expected = PASTED.iter().position(|(of, text, _)| file == *of && *text == template);
                found.push(expected.unwrap_or_else(|| panic!("{file}: {template}")));
            }
        }
        for joined in ["push_str(\"SELECT", "+ \" WHERE", "+ \" AND"] {
            assert!(!source.contains(joined), "{file}: {joined}");
        }
    }
    found.sort_unstable();
    assert_eq!(found, [0, 1, 2]);
}

#[test]
fn ticks_are_found_by_the_index_of_those_that_are_to_come() {
    assert_plan(
        &["SELECT seq, next_at FROM main.postbox_schedule"],
        &["SEARCH postbox_schedule USING INDEX postbox_schedule_next (next_at>?)"],
    );
    assert_plan(
        &["SELECT seq FROM main.postbox_schedule", "next_at <= ?1"],
        &["SEARCH postbox_schedule USING INDEX postbox_schedule_next (next_at>? AND next_at<?)"],
    );
    let by_seq = ["SEARCH postbox_schedule USING INTEGER PRIMARY KEY (rowid=?)"];
    assert_plan(&["WHERE seq = ?1 AND paused_at IS NULL"], &by_seq);
    assert_plan(&["UPDATE main.postbox_schedule SET next_at = ?2"], &by_seq);
}

#[test]
fn claiming_reads_the_live_rows_in_order_and_sorts_nothing() {
    assert_plan(
        &["SELECT seq, id, status = 'processing'", "ORDER BY available_at, seq"],
        &[
            "MERGE (UNION ALL)",
            "LEFT",
            "SEARCH outbox_event USING INDEX outbox_event_claimed (available_at<?)",
            "RIGHT",
            "SEARCH outbox_event USING INDEX outbox_event_due (available_at>? AND available_at<?)",
        ],
    );
    assert_plan(
        &[
            "UPDATE OR FAIL main.outbox_event NOT INDEXED SET status = 'processing'",
            "WHERE seq BETWEEN ?1 AND ?2",
        ],
        &["SEARCH outbox_event USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"],
    );
}

#[test]
fn the_next_due_time_is_the_first_of_the_live_rows() {
    assert_plan(
        &["SELECT seq, available_at FROM main.outbox_event INDEXED BY outbox_event_claimed"],
        &[
            "MERGE (UNION ALL)",
            "LEFT",
            "SCAN outbox_event USING COVERING INDEX outbox_event_claimed",
            "RIGHT",
            "SEARCH outbox_event USING COVERING INDEX outbox_event_due (available_at<?)",
        ],
    );
    assert_plan(
        &[
            "SELECT seq FROM main.outbox_event INDEXED BY outbox_event_claimed WHERE status = 'processing' AND available_at <= ?1",
        ],
        &[
            "COMPOUND QUERY",
            "LEFT-MOST SUBQUERY",
            "SEARCH outbox_event USING COVERING INDEX outbox_event_claimed (available_at<?)",
            "UNION ALL",
            "SEARCH outbox_event USING COVERING INDEX outbox_event_due (available_at<?)",
        ],
    );
    assert_plan(
        &["SELECT min(created_at)"],
        &["CO-ROUTINE (subquery-1)", "SCAN outbox_event USING INDEX outbox_event_due", "SEARCH (subquery-1)"],
    );
}

#[test]
fn settling_and_renewing_go_by_rowid() {
    for parts in [
        [
            "UPDATE OR FAIL main.outbox_event NOT INDEXED SET status = 'processed'",
            "WHERE seq BETWEEN ?1 AND ?2",
        ],
        ["SELECT count(*) FROM main.outbox_event", "WHERE seq BETWEEN ?1 AND ?2"],
        ["INSERT OR FAIL INTO main.inbox_event", "WHERE seq BETWEEN ?1 AND ?2"],
    ] {
        assert_plan(&parts, &["SEARCH outbox_event USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"]);
    }
    let settling: Vec<String> = all()
        .into_iter()
        .map(|(_, sql)| sql)
        .filter(|sql| sql.contains("WHERE seq = ?1 AND lease_id = ?2 AND status = 'processing'"))
        .collect();
    assert!(settling.len() >= 6, "{settling:#?}");
    for planner in planners() {
        for sql in &settling {
            let plan = planner.plan(sql);
            assert_eq!(plan, ["SEARCH outbox_event USING INTEGER PRIMARY KEY (rowid=?)"], "{sql}");
        }
    }
}

#[test]
fn lag_reads_the_live_rows_and_looks_up_their_inbox_rows() {
    let parts = ["SELECT seq, event_name, created_at, deliver_to"];
    let sql = statement(&parts);
    for planner in planners() {
        let plan = planner.plan(&sql);
        let scans: Vec<_> = plan.iter().filter(|step| step.starts_with("SCAN")).collect();
        assert_eq!(
            scans,
            [
                "SCAN outbox_event USING INDEX outbox_event_due",
                "SCAN outbox_event USING INDEX outbox_event_claimed"
            ],
            "{plan:#?}"
        );
        let looks =
            |step: &&String| *step == "SEARCH inbox_event USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)";
        assert_eq!(plan.iter().filter(looks).count(), 2, "{plan:#?}");
    }
}

#[test]
fn backlogs_read_the_indexes_of_what_is_not_finished() {
    let parts = ["SELECT count(*), coalesce(sum(available_at <= ?1), 0)"];
    assert_plan(&parts, &["SCAN outbox_event USING COVERING INDEX outbox_event_due"]);
    let sql = statement(&["SELECT deliver_to, count(*) - sum(is_dead)"]);
    for planner in planners() {
        let plan = planner.plan(&sql);
        let scans: Vec<_> = plan.iter().filter(|step| step.starts_with("SCAN outbox_event")).collect();
        let scan = |index: &str| format!("SCAN outbox_event USING INDEX outbox_event_{index}");
        assert_eq!(scans, [&scan("due"), &scan("claimed"), &scan("dead")], "{plan:#?}");
    }
}

/// The newest rows are taken from the end of the table before anything is sorted.
#[test]
fn recent_failures_are_looked_for_from_the_end_of_the_history() {
    let parts = ["FROM main.postbox_history ORDER BY event DESC, number DESC LIMIT ?1"];
    let sql = statement(&parts);
    for planner in planners() {
        let plan = planner.plan(&sql);
        let scan = plan.iter().position(|step| step == "SCAN postbox_history").unwrap();
        assert!(plan[scan + 1].starts_with("SCAN (subquery"), "{plan:#?}");
        assert!(plan.iter().any(|step| step == "SEARCH o USING INTEGER PRIMARY KEY (rowid=?)"), "{plan:#?}");
    }
}

#[test]
fn counts_read_the_small_indexes() {
    assert_plan(&["SELECT status, count(*)"], &["SCAN outbox_event USING COVERING INDEX outbox_event_dead"]);
    assert_plan(
        &["SELECT count(*) FROM main.outbox_event INDEXED BY outbox_event_claimed"],
        &["SCAN outbox_event USING COVERING INDEX outbox_event_claimed"],
    );
    assert_plan(
        &["SELECT count(*) FROM (SELECT 1", "status = 'pending' LIMIT"],
        &[
            "CO-ROUTINE (subquery-1)",
            "SCAN outbox_event USING COVERING INDEX outbox_event_due",
            "SCAN (subquery-1)",
        ],
    );
    let sql = statement(&["SELECT count(*) FROM main.inbox_event INDEXED BY"]);
    for planner in planners() {
        let plan = planner.plan(&sql);
        assert_eq!(plan.len(), 1, "{plan:#?}");
        assert!(
            plan[0].starts_with("SEARCH inbox_event USING")
                && plan[0].contains("INDEX inbox_event_open (consumer_name=?)"),
            "{plan:#?}"
        );
    }
}

/// What a filter's own condition looks up: the inbox rows of an event, and one of them by the consumer's number, which is looked up once.
fn assert_filtered(from: &[&str], expected: &str, and_then: &[&str]) {
    let sql = statement(from);
    for planner in planners() {
        let plan = planner.plan(&sql);
        assert_eq!(plan[0], expected, "{sql}");
        let lookups = [
            "CORRELATED SCALAR SUBQUERY 1",
            "SEARCH i USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)",
            "CORRELATED SCALAR SUBQUERY 3",
            "SEARCH i USING INTEGER PRIMARY KEY (rowid=?)",
            "SCALAR SUBQUERY 2",
            "SEARCH c USING COVERING INDEX sqlite_autoindex_postbox_consumer_1 (name=? AND rowid>? AND rowid<?)",
        ];
        assert_eq!(plan[1..], [&lookups, and_then].concat(), "{sql}");
    }
}

#[test]
fn what_is_to_come_is_read_in_the_order_of_its_times() {
    assert_filtered(
        &["ORDER BY e.available_at, e.seq LIMIT"],
        "SEARCH e USING INDEX outbox_event_due (available_at>? AND available_at<?)",
        &[],
    );
}

#[test]
fn pages_of_a_status_read_its_index_and_others_the_table_from_where_they_begin() {
    for order in ["ORDER BY e.seq LIMIT", "ORDER BY e.seq DESC LIMIT"] {
        assert_filtered(
            &["INDEXED BY outbox_event_dead", order],
            "SEARCH e USING INDEX outbox_event_dead (status=? AND rowid>? AND rowid<?)",
            &[],
        );
        assert_filtered(
            &["e INDEXED BY outbox_event_due", order],
            "SCAN e USING INDEX outbox_event_due",
            &["USE TEMP B-TREE FOR ORDER BY"],
        );
        assert_filtered(
            &["e INDEXED BY outbox_event_claimed", order],
            "SCAN e USING INDEX outbox_event_claimed",
            &["USE TEMP B-TREE FOR ORDER BY"],
        );
        assert_filtered(
            &["e NOT INDEXED", order],
            "SEARCH e USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)",
            &[],
        );
    }
    for (from, plan) in [
        ("e INDEXED BY outbox_event_dead", "SEARCH e USING INDEX outbox_event_dead (status=?)"),
        ("e INDEXED BY outbox_event_due", "SCAN e USING INDEX outbox_event_due"),
        ("e INDEXED BY outbox_event_claimed", "SCAN e USING INDEX outbox_event_claimed"),
        ("e NOT INDEXED", "SCAN e"),
    ] {
        assert_filtered(&["SELECT count(*) FROM", from], plan, &[]);
    }
}

#[test]
fn what_is_told_of_an_event_is_looked_up() {
    assert_plan(
        &["WHERE causation_id = ?1"],
        &["SEARCH outbox_event USING COVERING INDEX outbox_event_cause (causation_id=?)"],
    );
    for parts in
        [["octet_length(event_name)", "WHERE seq = ?1"], ["SELECT payload, metadata", "WHERE seq = ?1"]]
    {
        assert_plan(&parts, &["SEARCH outbox_event USING INTEGER PRIMARY KEY (rowid=?)"]);
    }
    assert_plan(
        &["FROM main.inbox_event WHERE id BETWEEN ?1 << 20", "LIMIT ?3"],
        &["SEARCH inbox_event USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"],
    );
}

/// Dead letters may be many, and so may be events that wait: what is looked for stands between and around them.
#[test]
fn rows_that_no_claim_would_find_are_found_without_reading_others() {
    let search = |index, range| format!("SEARCH outbox_event USING INDEX {index} ({range})");
    let expected = [
        "COMPOUND QUERY".to_owned(),
        "LEFT-MOST SUBQUERY".to_owned(),
        search("outbox_event_dead", "status<?"),
        "UNION ALL".to_owned(),
        search("outbox_event_dead", "status>? AND status<?"),
        "UNION ALL".to_owned(),
        search("outbox_event_dead", "status>?"),
        "UNION ALL".to_owned(),
        search("outbox_event_due", "available_at>?"),
        "UNION ALL".to_owned(),
        search("outbox_event_claimed", "available_at>?"),
    ];
    let sql = statement(&["SELECT seq, id, status FROM", "AND status < 'dead_letter' UNION ALL"]);
    for planner in planners() {
        assert_eq!(planner.plan(&sql), expected, "{sql}");
    }
    assert_plan(
        &[
            "SET status = ?2, lease_id = 0, last_error = ?3, available_at = ?4, changed_at = ?4 WHERE seq = ?1 AND (",
        ],
        &["SEARCH outbox_event USING INTEGER PRIMARY KEY (rowid=?)"],
    );
}

/// The greatest number that a box has given: other programs' rows may stand behind it.
#[test]
fn the_next_number_is_one_look_at_the_end_of_the_table() {
    let sql = statement(&["INSERT INTO main.outbox_event", "'none left'"]);
    for planner in planners() {
        let plan = planner.plan(&sql);
        let of_events: Vec<&String> = plan.iter().filter(|step| step.contains("outbox_event")).collect();
        assert_eq!(of_events, ["SEARCH outbox_event USING INTEGER PRIMARY KEY (rowid<?)"], "{plan:#?}");
    }
}

#[test]
fn an_aggregates_unfinished_events_are_found_in_order_by_their_index() {
    let of_aggregates: Vec<String> =
        all().into_iter().map(|(_, sql)| sql).filter(|sql| sql.contains("processed_at IS NULL")).collect();
    assert_eq!(of_aggregates.len(), 4, "{of_aggregates:#?}");
    for planner in planners() {
        for sql in &of_aggregates {
            let plan = planner.plan(sql).join("\n");
            assert!(plan.contains("INDEX outbox_event_order ("), "{sql}\n{plan}");
            assert!(!plan.contains("TEMP B-TREE"), "{sql}\n{plan}");
        }
    }
}

#[test]
fn events_that_are_held_or_wait_for_a_pause_are_found_among_the_live_rows() {
    let (by_number, held): (Vec<String>, Vec<String>) = all()
        .into_iter()
        .map(|(_, sql)| sql)
        .filter(|sql| {
            let of_one = sql.contains("WHERE seq = ?") && sql.contains("AND available_at BETWEEN ?");
            (of_one || sql.contains("AND available_at = ?")) && !sql.contains("processed_at IS NULL")
        })
        .partition(|sql| sql.contains("WHERE seq = ?"));
    assert!(held.len() >= 4 && by_number.len() == 3, "{held:#?} {by_number:#?}");
    for planner in planners() {
        for sql in &held {
            let plan = planner.plan(sql).join("\n");
            assert!(plan.contains("INDEX outbox_event_due (available_at=?"), "{sql}\n{plan}");
            assert!(!plan.contains("TEMP B-TREE FOR ORDER BY"), "{sql}\n{plan}");
        }
        for sql in &by_number {
            assert_eq!(
                planner.plan(sql),
                ["SEARCH outbox_event USING INTEGER PRIMARY KEY (rowid=?)"],
                "{sql}"
            );
        }
    }
    // In the order of their numbers, from where the last look ended.
    assert_plan(
        &[
            "SELECT seq, event_name, deliver_to, payload_version FROM main.outbox_event",
            "AND seq > ?2 ORDER BY seq LIMIT ?3",
        ],
        &["SEARCH outbox_event USING INDEX outbox_event_due (available_at=? AND rowid>?)"],
    );
}

#[test]
fn sagas_are_found_by_their_conversation_and_those_that_are_stuck_or_over_by_their_age() {
    let by_conversation =
        "SEARCH postbox_saga USING INDEX sqlite_autoindex_postbox_saga_1 (name=? AND correlation_id=?)";
    assert_plan(
        &["SELECT seq, status, reason, timeouts, undo, state FROM main.postbox_saga"],
        &[by_conversation],
    );
    assert_plan(&["reason, timeouts, undo, state", "created_at", "SELECT seq, name"], &[by_conversation]);
    assert_plan(
        &["INDEXED BY postbox_saga_running"],
        &["SEARCH postbox_saga USING INDEX postbox_saga_running (updated_at<?)"],
    );
    assert_plan(
        &["INDEXED BY postbox_saga_ended"],
        &["SEARCH postbox_saga USING INDEX postbox_saga_ended (updated_at<?)"],
    );
    let by_number = "SEARCH postbox_saga USING INTEGER PRIMARY KEY (rowid=?)";
    for parts in [
        &["UPDATE main.postbox_saga", "state = ?8"],
        &["UPDATE main.postbox_saga", "timeouts = NULL"],
        &["DELETE FROM main.postbox_saga", "updated_at <= ?2"],
    ] {
        assert_plan(parts, &[by_number]);
    }
    for order in ["ORDER BY seq LIMIT ?5", "ORDER BY seq DESC LIMIT ?5"] {
        assert_plan(&[order], &["SEARCH postbox_saga USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"]);
    }
}

#[test]
fn events_are_looked_up_by_id_and_inbox_rows_by_event_and_consumer() {
    let by_id = "SEARCH outbox_event USING INDEX sqlite_autoindex_outbox_event_1 (id=?)";
    assert_plan(&["payload, metadata, status, attempt_count, last_error", "WHERE id = ?1"], &[by_id]);
    assert_plan(
        &["SELECT seq FROM main.outbox_event WHERE id = ?1"],
        &["SEARCH outbox_event USING COVERING INDEX sqlite_autoindex_outbox_event_1 (id=?)"],
    );
    assert_plan(
        &["attempt_count, gave_up, last_error FROM main.inbox_event WHERE id BETWEEN ?1 << 20"],
        &["SEARCH inbox_event USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"],
    );
    let sql = statement(&["SELECT EXISTS (SELECT 1 FROM main.outbox_event o"]);
    for planner in planners() {
        let plan = planner.plan(&sql).join("\n");
        assert!(plan.contains("SEARCH i USING INTEGER PRIMARY KEY (rowid=?)"), "{plan}");
        assert!(
            plan.contains("SEARCH o USING COVERING INDEX sqlite_autoindex_outbox_event_1 (id=?)"),
            "{plan}"
        );
    }
}

#[test]
fn links_are_found_from_either_end_and_by_type() {
    for (parts, index) in [
        ("WHERE source_module = ?1 AND source_entity_type = ?2", "integration_link_source"),
        ("WHERE target_module = ?1 AND target_entity_type = ?2", "integration_link_target"),
        ("WHERE link_type = ?1", "integration_link_type"),
        ("WHERE (source_module = ?1", "integration_link_"), // either end will do
        ("count(*)", "integration_link_source"),
        ("SELECT seq, target_module = ?4", "integration_link_source ("),
        ("SELECT seq, source_module = ?1", "integration_link_target ("),
        ("INDEXED BY integration_link_source WHERE", "integration_link_source ("),
        ("INDEXED BY integration_link_target WHERE", "integration_link_target ("),
        ("INDEXED BY integration_link_type WHERE", "integration_link_type ("),
        ("NOT INDEXED WHERE", "SEARCH l USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
    ] {
        let found: Vec<String> = all()
            .into_iter()
            .filter(|(file, sql)| {
                file.starts_with("links/") && sql.starts_with("SELECT") && sql.contains(parts)
            })
            .map(|(_, sql)| sql)
            .collect();
        assert!(!found.is_empty(), "{parts}");
        for planner in planners() {
            for sql in &found {
                let plan = planner.plan(sql).join("\n");
                assert!(plan.contains(index) && !plan.contains("SCAN integration_link"), "{sql}\n{plan}");
            }
        }
    }
}

/// An entity may have many links, and so may a type: each page, and each link that is to be the only one, begins where it is.
#[test]
fn pages_and_look_ups_of_links_read_in_order_and_sort_nothing() {
    let in_order: Vec<String> = all()
        .into_iter()
        .filter(|(file, _)| ["links/list.rs", "links/unique.rs", "links/walk.rs"].contains(file))
        .map(|(_, sql)| sql)
        .filter(|sql| sql.contains("ORDER BY"))
        .collect();
    assert_eq!(in_order.len(), 12, "{in_order:#?}");
    for planner in planners() {
        for sql in &in_order {
            let plan = planner.plan(sql);
            assert_eq!(plan.len(), 1, "{sql}\n{plan:#?}");
            assert!(
                !sql.contains("l.seq BETWEEN") || plan[0].contains("rowid>? AND rowid<?)"),
                "{sql}\n{plan:#?}"
            );
        }
    }
}

#[test]
fn the_links_of_an_entity_are_deleted_and_moved_by_the_indexes_of_both_ends() {
    for parts in [
        &["DELETE FROM main.integration_link WHERE (source_module"][..],
        &["UPDATE main.integration_link SET source_module"],
        &["SELECT EXISTS (SELECT 1 FROM main.integration_link"],
        &["SELECT count(*) FROM main.integration_link WHERE seq IN ("],
        &["DELETE FROM main.integration_link WHERE seq IN ("],
    ] {
        let sql = statement(parts);
        for planner in planners() {
            let plan = planner.plan(&sql).join("\n");
            for index in ["INDEX integration_link_source (", "INDEX integration_link_target ("] {
                assert!(plan.contains(index), "{sql}\n{plan}");
            }
            assert!(!plan.contains("CORRELATED") && !plan.contains("SCAN integration_link"), "{sql}\n{plan}");
        }
    }
}
