#!/usr/bin/env bash
# Fuzzes one target: `fuzz/run.sh TARGET [SECONDS] [options of libFuzzer]`; half an hour unless told.
# Wants cargo-fuzz (`cargo install cargo-fuzz`) and a C++ compiler; the toolchain may be stable.
# What it finds is in fuzz/corpus/TARGET, what fails in fuzz/artifacts/TARGET.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=${1:?usage: fuzz/run.sh TARGET [SECONDS] [options of libFuzzer]}
seconds=${2:-1800}
shift $(($# > 1 ? 2 : 1))
corpora=("fuzz/corpus/$target")
mkdir -p "${corpora[@]}"
case $target in
    relay | session) dictionary=imap longest=1800 ;;
    recording) dictionary=imap longest=1800 corpora+=(fuzz/corpus/session) ;;
    login | registration | capability | watcher | command) dictionary=imap longest=1500 ;;
    config)
        dictionary=toml longest=12000
        corpora+=(fixtures/config/valid fixtures/config/invalid)
        ;;
    apns_answer | push_answer | token_answer | doveadm_answer) dictionary=json longest=400 ;;
    intake) dictionary=json longest=1500 ;;
    deflate) dictionary=other longest=4096 ;;
    tls_stream) dictionary=other longest=200 ;;
    *) dictionary=other longest=1500 ;;
esac
# mailchime forbids unsafe code: without the address sanitizer it is several times as quick. The
# checks of a debug build for overflows and assertions stay.
RUSTC_BOOTSTRAP=1 exec nice cargo fuzz run --sanitizer none "$target" "${corpora[@]}" -- \
    -dict="fuzz/dictionaries/$dictionary.dict" -max_len="$longest" -max_total_time="$seconds" \
    -timeout=10 -rss_limit_mb=1500 -print_final_stats=1 "$@"
