# Everyday commands. `just` alone lists them.

default:
    @just --list

# What the gate runs.
ci:
    bash .ci/run

# The tests, as the README says.
test:
    cargo test

# The program's tests; `POSTBOX_BLESS=1 just program` writes what it should print anew.
program:
    cargo test --features cli --bin postbox --test program

# The library's threads under shuttle, in thousands of orders; `POSTBOX_INTERLEAVINGS=100000 just interleavings` for as many of each.
interleavings:
    CARGO_PROFILE_DEV_OPT_LEVEL=1 RUSTFLAGS="--cfg shuttle" cargo test --locked --lib interleavings --target-dir target/shuttle

# Kills, power cuts, I/O errors and files taken away, in their short forms; the long ones are `just soak`.
crash:
    cargo test --test faults

# The long forms of all tests of faults, an hour or so; `just soak cuts kills` for some.
soak *NAMES:
    tests/soak.sh {{NAMES}}

# The main job.
quickstart:
    cargo run --example quickstart

fmt:
    cargo fmt

lint:
    cargo fmt --check
    cargo clippy --all-targets --all-features --locked -- -D warnings

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --all-features --locked --open

# Figures against floors of the same run; `just bench --quick`, `just bench backlog`.
bench *ARGS:
    cargo bench --bench goals -- {{ARGS}}

# A short form, under two minutes.
bench-quick:
    cargo bench --bench goals -- --quick

# The same work through other libraries, half an hour; `just bench-peers --quick`.
bench-peers *ARGS:
    mkdir -p target
    cargo run --release --manifest-path benches/peers/Cargo.toml -- --json target/peers.json {{ARGS}}

# One picture of what `just bench --json target/goals.json` and `just bench-peers` wrote.
bench-chart GOALS="target/goals.json" PEERS="target/peers.json":
    python3 benches/chart.py --goals {{GOALS}} --peers {{PEERS}} --out benches/chart.svg

# What postbox makes of bytes that nobody chose: each target for so many seconds, see fuzz/README.md.
fuzz SECONDS="60" *TARGETS:
    fuzz/run {{SECONDS}} {{TARGETS}}

# Licences, bans and sources of the dependencies (`cargo install cargo-deny --locked`).
deny:
    cargo deny --all-features check licenses bans sources
