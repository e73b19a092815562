#!/usr/bin/env bash
# Measures what watching many accounts costs, how long a change takes to its push, and the start, and
# says which targets are reached.
#
#   benches/watching.sh [--accounts N] [--tls] [--help: the other options]
#
# Builds the program and what measures it with --release. With `--store postgres` it starts a PostgreSQL of its own, from
# Debian's package. See benches/README.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A connection for each account at either end: the program and its measurer have as many each.
ulimit -n 20000 2>/dev/null || echo "only $(ulimit -n) open files: fewer accounts can be watched"
# One after the other: the example's features are not those of the program.
cargo build --release --locked --bin mailchime
cargo build --release --locked --example watching
measure="${CARGO_TARGET_DIR:-target}/release/examples/watching"

# The URL of an empty database; the server ends with this script.
postgres() {
    local programs as=()
    programs=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
    folder=$(mktemp -d)
    if [[ $EUID == 0 ]]; then
        chown nobody "$folder"
        as=(setpriv --reuid=nobody --regid=nogroup --clear-groups)
    fi
    # shellcheck disable=SC2064
    trap "${as[*]} $programs/pg_ctl -m fast -D $folder/data stop >/dev/null; rm -rf $folder" EXIT
    port=$(shuf -i 20000-30000 -n 1)
    (
        cd "$folder"
        "${as[@]}" "$programs/initdb" -U mailchime -E UTF8 --locale=C.UTF-8 -A trust -D "$folder/data"
        "${as[@]}" "$programs/pg_ctl" -w -D "$folder/data" -l "$folder/log" \
            -o "-k $folder -h 127.0.0.1 -p $port" start
    ) >/dev/null
}

arguments=("$@")
for place in "${!arguments[@]}"; do
    if [[ ${arguments[place]} == --store && ${arguments[place + 1]:-} == postgres ]]; then
        postgres
        # No pooler stands between.
        arguments[place + 1]="postgres://mailchime@127.0.0.1:$port/postgres?statement-cache-capacity=100"
    fi
done
"$measure" "${arguments[@]}"
