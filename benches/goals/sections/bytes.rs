//! What a processed event leaves in the file, its consumer's row included.

use std::fs;

use crate::Bench;
use crate::measure::as_f64;
use crate::report::{Goal, Report, Row};
use crate::work::{
    MODULE, NAME, NAME_BYTES, PAYLOAD_BYTES, TYPE, aggregate, drain_by_worker, fill, open, payload, subscribe,
};

pub(crate) fn bytes_on_disk(bench: &Bench, report: &mut Report) {
    let count = bench.scale.backlog;
    for number in [0, count - 1] {
        assert_eq!(payload(number).to_string().len(), PAYLOAD_BYTES);
        assert_eq!(NAME.len() + MODULE.len() + TYPE.len() + aggregate(number).len(), NAME_BYTES);
    }
    let path = bench.path("box.db");
    let postbox = open(&path);
    subscribe(&postbox);
    fill(&postbox, count);
    drain_by_worker(&postbox);
    postbox.close().expect("closed"); // and with it the -wal is gone
    let bytes = fs::metadata(&path).expect("the file").len();
    let each = as_f64(usize::try_from(bytes).expect("a size")) / as_f64(count);
    report
        .add(Row::figure("bytes on disk for each processed event", "bytes", each).goal(Goal::AtMost(420.0)));
}
