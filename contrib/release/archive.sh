#!/usr/bin/env bash
# Puts the files of a release together.
#
#   contrib/release/archive.sh FOLDER BUILD…
#
# Each BUILD is a folder that contrib/release/build.sh has filled for a processor. FOLDER, which may hold Debian
# packages already, gets for each of them
#
#   mailchime-VERSION-linux-PROCESSOR.tar.gz   the program, the licences, the manual and contrib/
#   mailchime-VERSION-linux-PROCESSOR.cdx.json its software bill of materials
#
# and SHA256SUMS of all files. The same inputs give the same bytes.
set -euo pipefail

[ $# -ge 2 ] || { echo 'usage: contrib/release/archive.sh FOLDER BUILD…' >&2; exit 64; }
out=$(realpath -m "$1")
shift
builds=()
for build in "$@"; do builds+=("$(realpath "$build")"); done
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
version=$(sed -n '0,/^version = "\(.*\)"/s//\1/p' Cargo.toml)
date=@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 315532800)}
mkdir -p "$out"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for build in "${builds[@]}"; do
    # The two bytes of e_machine in the head of an ELF file.
    case $(od -An -tx1 -j18 -N2 "$build/mailchime" | tr -d ' ') in
        3e00) processor=x86_64 ;;
        b700) processor=aarch64 ;;
        *) echo "archive.sh: $build/mailchime is neither for x86-64 nor for ARM64" >&2; exit 1 ;;
    esac
    name=mailchime-$version-linux-$processor
    mkdir "$folder/$name"
    install -m 755 "$build/mailchime" "$folder/$name/"
    # What git knows: nothing else that lies here, a key perhaps, gets into a release.
    git ls-files -z README.md CHANGELOG.md SECURITY.md LICENSE-MIT LICENSE-APACHE proxy.toml docs contrib |
        tar --null --files-from=- -cf - | tar -C "$folder/$name" -xf -
    tar --sort=name --owner=0 --group=0 --numeric-owner --mode='u+w,go+rX,go-w' --mtime="$date" \
        -C "$folder" -cf - "$name" | gzip -n >"$out/$name.tar.gz"
    cp "$build/mailchime.cdx.json" "$out/$name.cdx.json"
done
rm -f "$out/SHA256SUMS"
(cd "$out" && sha256sum -- * >SHA256SUMS.new && mv SHA256SUMS.new SHA256SUMS && cat SHA256SUMS)
