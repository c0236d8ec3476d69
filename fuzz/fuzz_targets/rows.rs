//! Rows of the library's tables as another program might have left them. Whatever they hold, the box opens or says why not,
//! a good event is delivered, and what others wrote is kept to the byte.

#![no_main]

mod boxes;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use rusqlite::Connection;
use rusqlite::types::Value;

const CHANGES_MAX: usize = 32;

static TEMPLATE: LazyLock<Vec<u8>> = LazyLock::new(|| boxes::template(4_096));

#[derive(Debug)]
struct Table {
    name: &'static str,
    /// The key comes first.
    columns: &'static str,
    /// The key of one more row.
    next: &'static str,
}

static TABLES: [Table; 7] = [
    Table {
        name: "outbox_event",
        columns: "seq id status attempt_count available_at lease_id created_at changed_at processed_at \
                  payload_version event_name source_module aggregate_type aggregate_id causation_id \
                  correlation_id traceparent deliver_to last_error payload metadata",
        next: "(SELECT max(seq) + 1 FROM outbox_event)",
    },
    Table {
        name: "inbox_event",
        columns: "id consumer_name status attempt_count gave_up last_error processed_at received_at changed_at",
        next: "(SELECT max(id) + 1 FROM inbox_event)",
    },
    Table {
        name: "postbox_consumer",
        columns: "number name",
        next: "(SELECT max(number) + 1 FROM postbox_consumer)",
    },
    Table { name: "postbox_setting", columns: "key value updated_at", next: "key || '.'" },
    Table {
        name: "postbox_counter",
        columns: "singleton processed deleted last_deleted",
        next: "singleton + 1",
    },
    Table { name: "postbox_schema", columns: "singleton version clock_mark", next: "singleton + 1" },
    Table {
        name: "integration_link",
        columns: "seq id source_module source_entity_type source_entity_id target_module \
                  target_entity_type target_entity_id link_type metadata created_at updated_at",
        next: "(SELECT max(seq) + 1 FROM integration_link)",
    },
];

/// What another program did. What SQLite refuses (a blob in a text column, one key twice) has not been done.
#[derive(Debug)]
struct Change {
    kind: Kind,
    table: &'static Table,
    row: u8,
}

#[derive(Debug)]
enum Kind {
    Set(u8, Cell),
    /// One more row, like this one but for one column.
    Add(u8, Cell),
    Delete,
}

/// One byte each for what is done, to which table, row and column; then the cell.
fn change(bytes: &mut Unstructured<'_>) -> Result<Change> {
    let kind = bytes.int_in_range(0..=7_u8)?;
    // Events most of all.
    let table = &TABLES[bytes.int_in_range(0..=TABLES.len() + 4)?.saturating_sub(5)];
    let (row, column) = (bytes.arbitrary()?, bytes.arbitrary()?);
    let kind = match kind {
        0..=4 => Kind::Set(column, cell(bytes)?),
        5 | 6 => Kind::Add(column, cell(bytes)?),
        _ => Kind::Delete,
    };
    Ok(Change { kind, table, row })
}

#[derive(Debug)]
enum Cell {
    Null,
    Integer(i64),
    Real(f64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

#[rustfmt::skip]
const INTEGERS: [i64; 16] = [
    0, 1, 2, -1, 255, 256, -32_768, 1_048_575, 1_048_576, 4_294_967_295, 4_294_967_296, 1_291_845_633,
    1_700_000_000_000_000, 253_402_300_799_999_999, i64::MIN, i64::MAX,
];

#[rustfmt::skip]
const TEXTS: [&str; 18] = [
    "pending", "processing", "processed", "failed", "dead_letter", "received", "skipped", "good", "plain", "tx", "{}", "[",
    "[\"plain\"]", "\"\\ud800\"", "1e999", "core.integration.outbox.batchSize", "core.integration.outbox.enabled", "false",
];

fn cell(bytes: &mut Unstructured<'_>) -> Result<Cell> {
    Ok(match bytes.int_in_range(0..=7_u8)? {
        0 => Cell::Null,
        1 => Cell::Integer(*bytes.choose(&INTEGERS)?),
        2 => Cell::Integer(bytes.arbitrary()?),
        3 => Cell::Real(bytes.arbitrary()?),
        4 => Cell::Text(bytes.choose(&TEXTS)?.as_bytes().to_vec()),
        5 => Cell::Text(some(bytes)?),
        6 => Cell::Text(vec![b'['; bytes.int_in_range(0..=400)?]),
        _ => Cell::Blob(some(bytes)?),
    })
}

/// Their number comes first.
fn some(bytes: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let length = bytes.int_in_range(0..=255)?.min(bytes.len());
    Ok(bytes.bytes(length)?.to_vec())
}

impl Cell {
    /// How it stands in a statement, and the value for its parameter. Text may be no UTF-8.
    fn bound(&self) -> (&'static str, Value) {
        match self {
            Cell::Null => ("?", Value::Null),
            Cell::Integer(n) => ("?", Value::Integer(*n)),
            Cell::Real(n) => ("?", Value::Real(*n)),
            Cell::Text(bytes) => ("CAST(? AS TEXT)", Value::Blob(bytes.clone())),
            Cell::Blob(bytes) => ("?", Value::Blob(bytes.clone())),
        }
    }
}

impl Change {
    fn make(&self, conn: &Connection) -> rusqlite::Result<usize> {
        let Table { name, columns, next } = self.table;
        let row = at(self.table, self.row);
        match &self.kind {
            Kind::Set(column, cell) => {
                let (text, value) = cell.bound();
                let column = columns.split(' ').cycle().nth((*column).into()).unwrap_or_default();
                conn.execute(&format!("UPDATE {name} SET {column} = {text} WHERE {row}"), [value])
            }
            Kind::Add(column, cell) => {
                let (text, value) = cell.bound();
                let mut cells: Vec<String> = columns.split(' ').map(str::to_owned).collect();
                if cells[1] == "id" {
                    cells[1] = format!("CAST(printf('row %012d', 1 + {next}) AS BLOB)");
                }
                cells[0] = (*next).to_owned();
                let column = usize::from(*column) % cells.len();
                cells[column] = text.to_owned();
                let (into, select) = (columns.replace(' ', ", "), cells.join(", "));
                let sql = format!("INSERT INTO {name} ({into}) SELECT {select} FROM {name} WHERE {row}");
                conn.execute(&sql, [value])
            }
            Kind::Delete => conn.execute(&format!("DELETE FROM {name} WHERE {row}"), []),
        }
    }
}

/// One row of the table, counted round and round.
fn at(Table { name, columns, .. }: &Table, row: u8) -> String {
    let key = columns.split(' ').next().unwrap_or_default();
    format!(
        "{key} = (SELECT {key} FROM {name} ORDER BY {key} LIMIT 1 OFFSET {row} % (SELECT max(count(*), 1) FROM {name}))"
    )
}

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = Unstructured::new(bytes);
    let folder = boxes::folder();
    let path = boxes::put(&folder, &TEMPLATE);
    let before = {
        let conn = Connection::open(&path).unwrap();
        conn.pragma_update(None, "ignore_check_constraints", true).unwrap();
        conn.pragma_update(None, "synchronous", false).unwrap();
        for _ in 0..CHANGES_MAX {
            let Ok(change) = change(&mut bytes) else { break };
            let _ = change.make(&conn);
            if bytes.is_empty() {
                break;
            }
        }
        content(&conn)
    };

    boxes::say("open", work(&path));

    let conn = Connection::open(&path).unwrap();
    let after = content(&conn);
    for (seq, row) in &before {
        assert_eq!(after.get(seq), Some(row), "what stood in event {seq}");
    }
});

fn work(path: &Path) -> postbox::Result<()> {
    let bus = boxes::builder().open(path)?;
    boxes::subscribe(&bus);
    boxes::say("drain", bus.drain());
    boxes::look_at_all(&bus);
    boxes::say("a good event", boxes::deliver_a_good_event(&bus));
    boxes::say("close", bus.close());
    Ok(())
}

/// What an event is, whatever becomes of it: by `seq`, the bytes of its columns.
fn content(conn: &Connection) -> BTreeMap<i64, Vec<Option<Vec<u8>>>> {
    let mut statement = conn
        .prepare(
            "SELECT seq, id, event_name, source_module, aggregate_type, aggregate_id, causation_id, correlation_id,
                    traceparent, deliver_to, payload, metadata
             FROM outbox_event WHERE event_name <> 'good'",
        )
        .unwrap();
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        let cell = |column| Ok(row.get_ref(column)?.as_bytes_or_null()?.map(<[u8]>::to_vec));
        Ok((row.get(0)?, (1..columns).map(cell).collect::<rusqlite::Result<_>>()?))
    });
    rows.unwrap().map(rusqlite::Result::unwrap).collect()
}
