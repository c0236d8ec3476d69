#!/usr/bin/env bash
# The long forms of the tests of faults, an hour or so on two cores; RELIABILITY.md has the figures of a run. `soak.sh NAME...`
# runs only these. The short forms are in `cargo test` and in .ci/run.
set -euo pipefail
cd "$(dirname "$0")/.."

long() { cargo test --locked --release --test "$@" -- --nocapture; }

cuts() { POSTBOX_CUTS=100000 long faults power_cuts; }
kills() { POSTBOX_KILLS=10000 long faults kill_points; }
errors() { POSTBOX_FAULT_STRIDE=1 long faults io_errors; }
worker() { POSTBOX_FAULT_STRIDE=1 long faults waiting_worker; }
model() { POSTBOX_SEQUENCES=10000 long model; }
processes() { POSTBOX_EVENTS=20000 long concurrency processes; }
locks() { POSTBOX_ROUNDS=60 long concurrency locked_out; }
readers() { POSTBOX_ROUNDS=20 long concurrency long_readers; }
at_once() { POSTBOX_ROUNDS=1000 long concurrency all_at; }
memory() { POSTBOX_EVENTS=1000000 POSTBOX_LARGE=1000 long memory; }
interleavings() {
    POSTBOX_INTERLEAVINGS=20000 CARGO_PROFILE_DEV_OPT_LEVEL=1 RUSTFLAGS="--cfg shuttle" \
        cargo test --locked --lib interleavings --target-dir target/shuttle -- --nocapture
}
fuzz() { fuzz/run "${POSTBOX_FUZZ_SECONDS:-600}"; }

ALL=(cuts kills errors worker model processes locks readers at_once memory interleavings fuzz)
[ $# -gt 0 ] || set -- "${ALL[@]}"
for name in "$@"; do
    printf '\n== %s\n' "$name"
    started=$SECONDS
    "$name"
    printf '== %s took %s s\n' "$name" "$((SECONDS - started))"
done
