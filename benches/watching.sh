#!/usr/bin/env bash
# Measures what watching many accounts costs, how long a change takes to its push, and the start, and
# says which targets are reached.
#
#   benches/watching.sh [--accounts N] [--tls] [--help: the other options]
#
# Builds the program and what measures it with --release. See benches/README.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A connection for each account at either end: the program and its measurer have as many each.
ulimit -n 20000 2>/dev/null || echo "only $(ulimit -n) open files: fewer accounts can be watched"
# One after the other: the example's features are not those of the program.
cargo build --release --locked --bin mailchime
cargo build --release --locked --example watching
exec "${CARGO_TARGET_DIR:-target}/release/examples/watching" "$@"
