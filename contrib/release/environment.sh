# Sourced by build.sh, and by a test: what a build must not know of the machine that it runs on.
#
# Give the folder of the sources in `root`. Afterwards rustc and the C compiler write /mailchime for it,
# /cargo for that of cargo and /rust for that of the toolchain, whatever they are called here, and nothing
# that this shell has set for other builds counts.

root=$(realpath "$root")
cargo_home=$(realpath -m "${CARGO_HOME:-$HOME/.cargo}")
toolchain=$(realpath "$(cd "$root" && rustc --print sysroot)")

unset CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_RUSTFLAGS RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER CARGO_BUILD_TARGET
for variable in $(compgen -e | grep -E '^(CARGO_PROFILE_|CARGO_TARGET_|((HOST|TARGET)_)?C(XX|PP)?FLAGS)'); do
    unset "$variable"
done
case $root$cargo_home$toolchain in *[[:space:]]*)
    echo 'release: the compilers do not take a folder with a blank in its name' >&2
    exit 1
esac
RUSTFLAGS="--remap-path-prefix=$root=/mailchime --remap-path-prefix=$cargo_home=/cargo"
export RUSTFLAGS="$RUSTFLAGS --remap-path-prefix=$toolchain=/rust"
# aws-lc and SQLite.
CFLAGS="-ffile-prefix-map=$root=/mailchime -ffile-prefix-map=$cargo_home=/cargo"
export CFLAGS CXXFLAGS=$CFLAGS
export CARGO_INCREMENTAL=0 LC_ALL=C TZ=UTC
# When the sources are from: the last commit, for what is written with a date.
if [ -z "${SOURCE_DATE_EPOCH-}" ]; then
    SOURCE_DATE_EPOCH=$(git -C "$root" log -1 --format=%ct 2>/dev/null || echo 315532800)
fi
export SOURCE_DATE_EPOCH
