//! The rounds.

use crate::contenders::{Contender, Contenders, Failure, Library};
use crate::machine::{self, Machine};
use crate::options::Options;
use crate::protocol::{Column, Variant};
use crate::report::{Report, Row, Table};

/// Each round does each column with every contender, one after the other, so that what is compared was measured within
/// seconds; each round begins with another one, so that nobody is always first.
pub(crate) fn measure(options: &Options, contenders: &Contenders) -> Report {
    let rows: Vec<(&Contender, &Variant)> = contenders
        .built
        .iter()
        .flat_map(|contender| contender.variants.iter().map(move |variant| (contender, variant)))
        .collect();
    let mut report = Report {
        command: std::env::args().collect::<Vec<_>>().join(" "),
        quick: options.quick,
        rounds: options.rounds,
        work: options.work,
        machine: Machine::here(),
        load_before: machine::load(),
        load_after: None,
        synced_append_us: Vec::new(),
        libraries: contenders.built.iter().map(|contender| contender.library.clone()).collect(),
        tables: options.columns.iter().map(|column| empty(*column, options, &rows)).collect(),
        failures: contenders.failures.clone(),
    };
    for round in 0..options.rounds {
        match machine::synced_append_us(&options.dir) {
            Ok(each) => report.synced_append_us.push(each),
            Err(error) => eprintln!("append in {}: {error}", options.dir.display()),
        }
        for table in &mut report.tables {
            eprintln!("round {} of {}: {}", round + 1, options.rounds, table.column.key());
            let count = table.rows.len().max(1);
            for turn in 0..table.rows.len() {
                let row = &mut table.rows[(turn + round) % count];
                if let Err(failure) = run(options, &rows, table.column, row) {
                    eprintln!("{}: {}", failure.what, failure.why);
                    report.failures.push(failure);
                }
            }
        }
    }
    report.load_after = machine::load();
    report
}

fn empty(column: Column, options: &Options, rows: &[(&Contender, &Variant)]) -> Table {
    let taking_part = rows.iter().filter(|(_, variant)| variant.columns.contains(&column));
    let row = |(contender, variant): &(&Contender, &Variant)| {
        let Library { name, .. } = &contender.library;
        Row::new(name.clone(), (*variant).clone())
    };
    Table { column, events: options.work.events(column), rows: taking_part.map(row).collect() }
}

fn run(
    options: &Options,
    rows: &[(&Contender, &Variant)],
    column: Column,
    row: &mut Row,
) -> Result<(), Failure> {
    let Some((contender, variant)) = rows.iter().find(|(_, variant)| variant.name == row.variant.name) else {
        return Ok(());
    };
    let failure = |why| Failure { what: format!("{}, {}", variant.name, column.key()), why };
    let outcome = contender.run(options, variant, column).map_err(failure)?;
    row.add(outcome, options.work.events(column));
    Ok(())
}
