#!/usr/bin/env bash
# Builds a release of mailchime, and a list of what is in it.
#
#   contrib/release/build.sh [--static x86_64|aarch64] [--without-list] [FOLDER]
#
# FOLDER, by default target/release-files, gets
#
#   mailchime            the program, which names no folder of this machine
#   mailchime.cdx.json   its software bill of materials (CycloneDX 1.5): all crates with versions, licences
#                        and checksums
#   SHA256SUMS           of both
#
# With --static the program is for this processor, needs no library of the machine and runs on any Linux. That
# takes `rustup target add x86_64-unknown-linux-musl` (or aarch64-…), and
# `pip install ziglang==0.17.1 cargo-zigbuild==0.24.1` in a venv, whose C compiler brings its own C library, for both
# processors on either. --without-list leaves the second file out.
#
# The same sources give the same bytes in any folder, for the same versions of Rust, the C compiler and the
# linker. Needs what any build needs, and `cargo install cargo-cyclonedx --version 0.5.9 --locked`.
set -euo pipefail

root=$(dirname "${BASH_SOURCE[0]}")/../..
# shellcheck source=environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
fail() { printf 'build.sh: %s\n' "$*" >&2; exit 1; }
processor='' list=yes
while [[ ${1-} = --* ]]; do
    case $1 in
        --static)
            # The names of Docker are the same processors.
            case ${2-} in
                x86_64 | amd64) processor=x86_64 ;;
                aarch64 | arm64) processor=aarch64 ;;
                *) fail '--static takes x86_64 or aarch64' ;;
            esac
            shift ;;
        --without-list) list='' ;;
        *) fail "unknown option $1" ;;
    esac
    shift
done
out=$(realpath -m "${1:-$root/target/release-files}")
target=$root/target/reproducible
cd "$root"

[ -z "$list" ] || cargo cyclonedx --version >/dev/null 2>&1 ||
    fail 'cargo-cyclonedx is missing; cargo install cargo-cyclonedx --version 0.5.9 --locked'

build=(--release --locked --bin mailchime --target-dir "$target")
if [ -n "$processor" ]; then
    triple=$processor-unknown-linux-musl
    "${CARGO:-cargo}" zigbuild "${build[@]}" --target "$triple"
    program=$target/$triple/release/mailchime
else
    "${CARGO:-cargo}" build "${build[@]}"
    program=$target/release/mailchime
fi

# What is found in a file counts only if the same search finds what must be there.
has() { grep -aqF -- "$1" "$program"; }
has /cargo/registry/src/ || fail 'the program names no sources: nothing can be checked by them'
for folder in "$root/" "$cargo_home/" "$toolchain/" "$HOME/."; do
    ! has "$folder" || fail "the program names $folder"
done
# SECURITY.md: what a2 brings into Cargo.lock must not be in the program. It goes by names of sources, for a static
# program has no symbols.
for present in /rustls-0.23. /rustls-webpki-0.103. /aws-lc-rs-1.; do
    has "$present" || fail "the program has no $present: the search below would find nothing"
done
for absent in ring_core_0_ /ring-0. /rustls-0.22. /rustls-webpki-0.102. /rustls-pemfile- /hyper-rustls-; do
    ! has "$absent" || fail "the program has $absent, see SECURITY.md"
done

if [ -n "$processor" ] && has /ld-musl; then fail 'the program is not static'; fi

mkdir -p "$out"
install -m 755 "$program" "$out/mailchime"
[ -n "$list" ] || exit 0
bom=mailchime.cdx
cargo cyclonedx --quiet --format json --spec-version 1.5 --override-filename "$bom"
# It names the package by the folder.
sed "s#$root#/mailchime#g" "$bom.json" >"$out/$bom.json"
rm "$bom.json"
(cd "$out" && sha256sum mailchime "$bom.json" >SHA256SUMS && cat SHA256SUMS)
