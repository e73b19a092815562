#!/usr/bin/env bash
# Makes a Debian package of a mailchime that is built already.
#
#   contrib/release/deb.sh PROGRAM [FOLDER]
#
# PROGRAM is for x86-64 or ARM64: that of build.sh, for example. FOLDER, by default target/debian, gets
# mailchime_VERSION-1_ARCHITECTURE.deb. Three variables say otherwise:
#
#   DEB_VERSION=0.1.0-2    the version of the package
#   DEB_OPTIONS=--fast     for cargo deb; this one packs less tightly
#   HELPER=…/mailchime     writes the manual pages and the completions, where PROGRAM does not run here; it must
#                          be built from the same sources
#
# Needs dpkg-deb, and `cargo install cargo-deb --version 3.8.0 --locked`. tests/packages.sh installs, upgrades
# and purges the package.
set -euo pipefail

fail() { printf 'deb.sh: %s\n' "$*" >&2; exit 1; }
[ $# = 1 ] || [ $# = 2 ] || fail 'usage: contrib/release/deb.sh PROGRAM [FOLDER]'
program=$(realpath "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=$(realpath -m "${2:-target/debian}")
[ -x "$program" ] || fail "$program is no program"
cargo deb --version >/dev/null 2>&1 ||
    fail 'cargo-deb is missing; cargo install cargo-deb --version 3.8.0 --locked'

# The two bytes of e_machine in the head of an ELF file.
case $(od -An -tx1 -j18 -N2 "$program" | tr -d ' ') in
    3e00) target=x86_64-unknown-linux-gnu ;;
    b700) target=aarch64-unknown-linux-gnu ;;
    *) fail "$program is neither for x86-64 nor for ARM64" ;;
esac

# Where cargo-deb looks for what cargo built.
export CARGO_TARGET_DIR
CARGO_TARGET_DIR=$(mktemp -d)
trap 'rm -rf "$CARGO_TARGET_DIR"' EXIT
release=$CARGO_TARGET_DIR/$target/release
install -D -m 755 "$program" "$release/mailchime"
"${HELPER:-$program}" package-files "$release/package-files" >/dev/null ||
    fail "${HELPER:-$program} does not run here; name one that does in HELPER"
gzip -9n "$release"/package-files/man/*.1

# The date of what is in the package: that of the sources.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 315532800)}
mkdir -p "$out"
cargo deb --no-build --no-strip --locked --quiet --target "$target" \
    ${DEB_VERSION:+--deb-version "$DEB_VERSION"} ${DEB_OPTIONS-} --output "$out/"
