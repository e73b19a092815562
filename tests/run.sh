#!/usr/bin/env bash
# Formats, lints and tests mailchime, from a fresh clone on a fresh machine with Rust.
#
#   tests/run.sh            changes nothing outside the folder of the build
#   tests/run.sh --install  first installs what the tests need, with apt-get, as root or through sudo, and
#                           with pip, npm and cargo below the folder of the build. The tests start their own
#                           servers: services that the packages bring are stopped and disabled
#
# Without --install the script names what is missing, and the tests that need it say that they are
# skipped; the summary at the end repeats them. Run it from anywhere, as often as you like. The test
# that takes long is apart: tests/soak.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

may_install=
case "$*" in
    '') ;;
    --install) may_install=yes ;;
    *) echo 'usage: tests/run.sh [--install]' >&2; exit 64 ;;
esac

# The one list: what a test calls it : its Debian package : a file or command that shows it is here.
# `cc` builds the cryptography and SQLite; without it there is nothing to test.
needs=(
    cc:build-essential:cc
    dovecot:dovecot-imapd:/usr/lib/dovecot/imap
    dovecot:dovecot-lmtpd:/usr/lib/dovecot/lmtp
    curl:curl:curl
    python3:python3:python3
    openssl:openssl:openssl
    jq:jq:jq
    postgres:postgresql:/usr/lib/postgresql/*/bin/postgres
    mariadb:mariadb-server-core:/usr/sbin/mariadbd
    mariadb:mariadb-client-core:/usr/bin/mariadb
    pgbouncer:pgbouncer:/usr/sbin/pgbouncer
    fail2ban:fail2ban:fail2ban-regex
    promtool:prometheus:promtool
    faketime:libfaketime:/usr/lib/*/faketime/libfaketimeMT.so.1
    imap4d:mailutils-imap4d:imap4d
    cyrus:sasl2-bin:saslpasswd2
    cyrus:libsasl2-modules-db:/usr/lib/*/sasl2/libsasldb.so
    courier:courier-authdaemon:/usr/lib/courier/courier-authlib/authdaemond
    courier:courier-authlib-userdb:makeuserdb
    courier:gamin:/usr/libexec/gam_server
    mbsync:isync:mbsync
    mutt:mutt:mutt
    mutt:bsdutils:script
    imapclient:python3-pip:pip3
    imapflow:nodejs:node
    imapflow:npm:npm
    chromium:chromium:chromium
    firefox-esr:firefox-esr:firefox-esr
    puppeteer-core:nodejs:node
    puppeteer-core:npm:npm
    schemathesis:python3-pip:pip3
    check-jsonschema:python3-pip:pip3
    kubernetes-validate:python3-pip:pip3
    debootstrap:debootstrap:/usr/sbin/debootstrap
    systemd:systemd-container:systemd-nspawn
    systemd:procps:pgrep
    podman:podman:podman
    podman:runc:runc
)

# Packages that conflict with Dovecot's, in the same form. They are unpacked below $servers, and
# only the libraries that they depend on are installed; but not the virus scanner.
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
servers=$target/servers
unpacked=(
    cyrus:cyrus-common:usr/lib/cyrus/bin/master
    cyrus:cyrus-imapd:usr/lib/cyrus/bin/imapd
    courier:courier-base:usr/sbin/couriertcpd
    courier:courier-imap:usr/bin/imapd
)

# Dovecot 2.4, which Debian 12 does not have: the packages of Debian 13 with all that they need, unpacked into a folder
# in which it runs by chroot.
trixie=$servers/trixie

# Mail clients that are libraries, a push service, what drives and judges browsers, what judges an API and files of
# `contrib/`, and what makes the Debian package, each in a folder of its own below
# $clients that bears its version: what a test calls it : its version : what installs it : a file that shows it is here.
clients=$target/clients
libraries=(
    imapclient:4.1.0:pip:imapclient/__init__.py
    imapflow:2.1.2:npm:node_modules/imapflow/package.json
    web-push-testing:1.2.2:npm:node_modules/web-push-testing/package.json
    puppeteer-core:24.43.1:npm:node_modules/puppeteer-core/package.json
    axe-core:4.14.1:npm:node_modules/axe-core/package.json
    schemathesis:4.32.5:pip:schemathesis/__init__.py
    check-jsonschema:0.39.0:pip:check_jsonschema/__init__.py
    kubernetes-validate:1.37.0:pip:kubernetes_validate/__init__.py
    cargo-deb:3.8.0:cargo:bin/cargo-deb
)

log=$(mktemp)
policy=/usr/sbin/policy-rc.d
made_policy=
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
tidy() {
    rm -f "$log"
    if [ -n "$made_policy" ]; then as_root rm -f "$policy" || true; fi
}
trap tidy EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'tests/run.sh: %s\n' "$*" >&2; exit 1; }
# A command, a path or a pattern of paths.
is_here() { command -v "$1" >/dev/null 2>&1 || compgen -G "$1" >/dev/null; }
# A program that is unpacked, with all its libraries.
is_unpacked() {
    [ -x "$servers/$1" ] || return
    local libraries=("$servers"/usr/lib/*-linux-gnu)
    [[ $(LD_LIBRARY_PATH=${libraries[0]} ldd "$servers/$1") != *'not found'* ]]
}

# Prints the packages, or with `names` the names, of what is not here; each once.
missing() {
    local need name package shown_by
    for need in "${needs[@]}"; do
        IFS=: read -r name package shown_by <<<"$need"
        is_here "$shown_by" || if [ "${1-}" = names ]; then echo "$name"; else echo "$package"; fi
    done | sort -u
}
# The same of what is not unpacked.
missing_unpacked() {
    local need name package shown_by
    for need in "${unpacked[@]}"; do
        IFS=: read -r name package shown_by <<<"$need"
        is_unpacked "$shown_by" || if [ "${1-}" = names ]; then echo "$name"; else echo "$package"; fi
    done | sort -u
}

# The same of what is of Debian 13.
missing_trixie() { [ -x "$trixie/usr/sbin/dovecot" ] || echo dovecot24; }

# The same of the libraries.
missing_libraries() {
    local need name version installer shown_by
    for need in "${libraries[@]}"; do
        IFS=: read -r name version installer shown_by <<<"$need"
        [ -e "$clients/$name-$version/$shown_by" ] ||
            if [ "${1-}" = names ]; then echo "$name"; else echo "$need"; fi
    done
}

# The packages that are installed, one a line.
installed() { dpkg-query -W -f '${Status} ${Package}\n' | sed -n 's/.* installed //p' | sort -u; }

# The services that start with the machine or run now, by their units of systemd, one a line. Packages
# make the links of the first also where systemd does not run.
units() {
    {
        find /etc/systemd/system -type l \( -path '*.wants/*' -o -path '*.requires/*' \) -printf '%f\n'
        find /etc/rc[2-5].d -name 'S*' -printf '%f.service\n' | sed 's/^S[0-9]*//'
        ! is_here systemctl || systemctl list-units --state=active,activating,reloading \
            --plain --no-legend --no-pager | awk '{ print $1 }'
    } 2>/dev/null | grep -E '\.(service|socket|timer|path)$' | sort -u || true
}

# Stops and disables what packages brought that were not installed before, given the packages and the
# units of before. A unit of another package that began to run meanwhile stays as it is.
disable_brought() {
    local packages=$1 before=$2 unit files package
    for unit in $(comm -13 <(printf '%s\n' "$before") <(units)); do
        # The file of one instance of a unit is that of the unit itself.
        files=("*/systemd/system/${unit/@*./@.}" "/etc/init.d/${unit%.service}")
        package=$(dpkg-query -S "${files[@]}" 2>/dev/null | sed -n '1s/[:,].*//p') || true
        if [ -z "$package" ] || grep -Fxq -- "$package" <<<"$packages"; then continue; fi
        echo "disabled: $unit of $package"
        if is_here systemctl; then
            # Where systemd does not run there is nothing to stop, and only the links go.
            as_root systemctl stop "$unit" >/dev/null 2>&1 || true
            as_root systemctl disable "$unit" >/dev/null 2>&1 || true
        else
            as_root deb-systemd-helper disable "$unit" >/dev/null 2>&1 || true
            as_root update-rc.d "${unit%.service}" disable >/dev/null 2>&1 || true
        fi
    done
}

install() {
    is_here apt-get || { echo 'no apt-get on this machine'; return; }
    [ "$(id -u)" = 0 ] || is_here sudo || { echo 'neither root nor sudo'; return; }
    # The tests run their own servers; a package must not start the system's.
    if [ ! -e "$policy" ]; then
        made_policy=yes
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null || return 0
        as_root chmod 755 "$policy" || return 0
    fi
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120)
    as_root "${apt[@]}" update || true
    local packages_before units_before package
    packages_before=$(installed) units_before=$(units)
    # All at once if that works; else one by one, so that one that fails takes no other with it.
    if ! as_root "${apt[@]}" install -y --no-install-recommends "$@"; then
        for package in "$@"; do
            as_root "${apt[@]}" install -y --no-install-recommends "$package" || true
        done
    fi
    disable_brought "$packages_before" "$units_before"
}

unpack() {
    is_here apt-get && is_here dpkg-deb || { echo 'no apt-get on this machine'; return; }
    local folder package file
    folder=$(mktemp -d)
    mkdir -p "$servers"
    for package in "$@"; do
        # A package list that names a version which the mirror no longer has is brought up to date.
        (cd "$folder" && apt-get -q download "$package" 2>/dev/null) ||
            { as_root apt-get -q update && (cd "$folder" && apt-get -q download "$package"); } || true
    done
    local libraries=()
    for file in "$folder"/*.deb; do
        [ -e "$file" ] || continue
        dpkg-deb -x "$file" "$servers"
        mapfile -t -O ${#libraries[@]} libraries < <(
            dpkg-deb -f "$file" Depends | tr ',' '\n' | sed 's/^ *\([^ ]*\).*/\1/' |
                grep '^lib' | grep -v '^libclamav'
        )
    done
    rm -rf "$folder"
    # apt-get would bring those that are here up to date, and what depends on them.
    local absent=() library
    for library in "${libraries[@]}"; do
        [[ $(dpkg-query -W -f '${Status}' "$library" 2>&1) = *' installed'* ]] || absent+=("$library")
    done
    [ ${#absent[@]} = 0 ] || install "${absent[@]}"
}

# Whole or not at all, as the libraries.
unpack_trixie() {
    is_here apt-get && is_here dpkg-deb || { echo 'no apt-get on this machine'; return; }
    local work file name keys=/usr/share/keyrings/debian-archive-keyring.gpg
    mkdir -p "$servers"
    work=$(mktemp -d -p "$servers" .unpacking-XXXXXX)
    mkdir -p "$work"/{lists/partial,archives/partial,etc/apt/preferences.d,root}
    touch "$work/status"
    echo "deb [signed-by=$keys] http://deb.debian.org/debian trixie main" >"$work/sources.list"
    cat >"$work/apt.conf" <<END
Dir "$work";
Dir::State::Lists "$work/lists";
Dir::State::status "$work/status";
Dir::Cache::archives "$work/archives";
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "/dev/null";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
END
    apt-get -q -c "$work/apt.conf" update &&
        apt-get -qq -y -c "$work/apt.conf" --download-only install dovecot-imapd dovecot-lmtpd || true
    for file in "$work"/archives/*.deb; do
        [ ! -e "$file" ] || dpkg-deb -x "$file" "$work/root"
    done
    for name in bin lib lib64 sbin; do
        mkdir -p "$work/root/usr/$name"
        [ -e "$work/root/$name" ] || ln -s "usr/$name" "$work/root/$name"
    done
    mkdir -p "$work"/root/{dev,etc,proc,srv,tmp}
    printf '%s:x:%s:%s::/nonexistent:/usr/sbin/nologin\n' root 0 0 dovecot 140 140 dovenull 141 141 \
        nobody 65534 65534 >"$work/root/etc/passwd"
    printf '%s:x:%s:\n' root 0 dovecot 140 dovenull 141 nogroup 65534 >"$work/root/etc/group"
    if [ -x "$work/root/usr/sbin/dovecot" ]; then rm -rf "$trixie" && mv "$work/root" "$trixie"; fi
    rm -rf "$work"
}

# Whole or not at all, so that a folder which is there can be relied on.
install_library() {
    local name version installer folder
    IFS=: read -r name version installer _ <<<"$1"
    mkdir -p "$clients"
    folder=$(mktemp -d -p "$clients" .installing-XXXXXX)
    case $installer in
        pip) python3 -m pip install -qq --disable-pip-version-check \
            --target "$folder" "$name==$version" ;;
        npm) npm install --prefix "$folder" --ignore-scripts --no-audit --no-fund --loglevel error \
            "$name@$version" ;;
        cargo) cargo install --quiet --locked --root "$folder" "$name@$version" ;;
    esac && rm -rf "$clients/$name-$version" && mv "$folder" "$clients/$name-$version" ||
        { rm -rf "$folder"; echo "$name $version could not be installed"; }
}

install_all() {
    local packages package
    mapfile -t packages < <(missing)
    if [ ${#packages[@]} -gt 0 ]; then
        say "install: ${packages[*]}"
        install "${packages[@]}"
    fi
    mapfile -t packages < <(missing_unpacked)
    if [ ${#packages[@]} -gt 0 ]; then
        say "unpack: ${packages[*]}"
        unpack "${packages[@]}"
    fi
    if [ -n "$(missing_trixie)" ]; then
        say 'unpack: Dovecot 2.4 of Debian 13'
        unpack_trixie
    fi
    mapfile -t packages < <(missing_libraries)
    for package in "${packages[@]}"; do
        say "install: ${package%%:*}"
        install_library "$package"
    done
}

is_here cargo || fail 'Rust is missing; see https://rustup.rs'
cargo fmt --version >/dev/null 2>&1 || fail 'rustfmt is missing; rustup component add rustfmt'
cargo clippy --version >/dev/null 2>&1 || fail 'clippy is missing; rustup component add clippy'

if [ -n "$may_install" ]; then install_all; fi
export MAILCHIME_SERVERS=$servers MAILCHIME_CLIENTS=$clients
is_here cc || fail 'a C compiler is missing; apt-get install build-essential, or tests/run.sh --install'

# Names given from outside are skipped too: MAILCHIME_SKIP=dovecot tests/run.sh
MAILCHIME_SKIP="${MAILCHIME_SKIP-} $({ missing names; missing_unpacked names; missing_trixie
    missing_libraries names; } | sort -u | tr '\n' ' ')"
export MAILCHIME_SKIP
mapfile -t absent < <(missing; missing_unpacked; missing_trixie; missing_libraries names)
if [ ${#absent[@]} -gt 0 ]; then
    say "not here, their tests will be skipped: ${absent[*]}"
    if [ -z "$may_install" ]; then echo 'tests/run.sh --install installs what it can.'; fi
fi

# A terminal still gets colours although the output passes through tee.
if [ -t 1 ]; then export CARGO_TERM_COLOR=always; fi

# Each cell of the matrix of servers and clients leaves its rows there; the last one counts.
matrix=$target/matrix.tsv
rm -f "$matrix"

failed=()
step() {
    say "$*"
    if ! "$@" 2>&1 | tee -a "$log"; then failed+=("$*"); fi
}
step cargo fmt --check
step cargo fmt --check --manifest-path fuzz/Cargo.toml
step cargo clippy --all-targets --locked -- -D warnings
# Not among all targets, for it is run by tests/soak.sh alone, with the minutes that it is to take.
step cargo clippy --test soak --locked -- -D warnings
step env RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --locked --document-private-items
step cargo test --locked --no-fail-fast
step env PATH="$PATH:$clients/cargo-deb-3.8.0/bin" MAY_DOWNLOAD="${may_install:-no}" \
    tests/packages.sh "$target/debug/mailchime" "$target/debian"
# It has dependencies and a lock of its own; that it compiles is all that is looked at here.
step cargo clippy --manifest-path fuzz/Cargo.toml --target-dir "$target" --locked -- -D warnings

say 'real servers by real clients, through mailchime and directly'
if [ -e "$matrix" ]; then
    awk -F '\t' '{ rows[$1] = sprintf("%-32s %-8s %s", $1, $2, $3) }
        END { for (name in rows) print rows[name] }' "$matrix" | sort
else
    echo 'no cell was run'
fi

say 'summary'
# The line of a skipped test may stand behind what the harness printed before it.
skipped=$(grep -o 'SKIPPED: .*' "$log" | sort -u || true)
passed=$(sed -n 's/.*test result: .* \([0-9][0-9]*\) passed;.*/\1/p' "$log" | paste -sd+ - | sed 's/^$/0/')
if [ -n "$skipped" ]; then printf '%s\n' "$skipped"; fi
echo "tests: $((passed)) passed, $(printf '%s' "$skipped" | grep -c . || true) of them skipped"
if [ ${#failed[@]} -gt 0 ]; then
    # Why, once more, for those who see the end alone: what cargo test prints between its two lists.
    awk '/^failures:$/ { on = !on; next } on' "$log" | grep -aE -A4 '^---- |panicked at' | cut -c1-300 | head -200 || true
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
echo 'all well'
