#!/usr/bin/env bash
# Runs mailchime, built with --release, in front of a real Dovecot for so many minutes, with 300
# phones registered, while mail comes, sessions come and go, and everything is restarted or cut off
# now and then. Prints what happened and what it took; fails if a change was lost, if anything grew
# or if a session read a wrong byte.
#
#     tests/soak.sh MINUTES [--seed N] [--postgres] [--events]
#
# --events  Dovecot tells of its mailboxes, and accounts have no connection of their own
#
# Needs root, and Dovecot with LMTP (and PostgreSQL), which tests/run.sh --install installs. mailchime's log
# is in target/soak.log afterwards. Ctrl-C ends it and all that it has started.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ ${1-} =~ ^[0-9]+$ ]] || { sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 64; }
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")

cargo build --release --locked --bin mailchime
# Each account takes two files, each session too.
ulimit -n 8192
exec cargo test --quiet --locked --test soak -- "$@" \
    --program "$target/release/mailchime" --log "$target/soak.log"
