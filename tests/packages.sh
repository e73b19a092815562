#!/usr/bin/env bash
# Installs, configures, starts, upgrades, removes and purges the Debian package, in a Debian of its own.
#
#   tests/packages.sh PROGRAM [CACHE]
#
# PROGRAM is a mailchime for this machine. CACHE, by default target/debian, keeps the Debian that debootstrap made.
# The package is made twice of the same program, as version 0.0.9 and as that of Cargo.toml: there is no earlier
# release yet. Where systemd-nspawn can boot the Debian, its systemd starts the service. Elsewhere the maintainer
# scripts run in a chroot, and this script starts the program as the unit would. The IMAP server and the push service
# are those of `mailchime demo`. Needs root who can mount (in a container: --privileged), debootstrap, cargo-deb, python3
# and binutils; says SKIPPED without one of them, or where MAILCHIME_SKIP names it. With MAY_DOWNLOAD=no it also says so where CACHE has no Debian yet: it brings
# nothing then.
set -euo pipefail

[ $# = 1 ] || [ $# = 2 ] || { echo 'usage: tests/packages.sh PROGRAM [CACHE]' >&2; exit 64; }
program=$(realpath "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache=$(realpath -m "${2:-target/debian}")
skip() { echo "SKIPPED: tests/packages.sh: $*"; exit 0; }
[ "$(id -u)" = 0 ] || skip 'only root can install a package'
# In a mount namespace of its own: what is tried here is gone with it.
unshare -m mount --bind /proc /mnt 2>/dev/null || skip 'nothing can be mounted here; a container needs --privileged'
for needed in debootstrap python3 strip cargo-deb; do
    [[ " ${MAILCHIME_SKIP-} " != *" $needed "* ]] && command -v $needed >/dev/null ||
        skip "$needed is not on this machine"
done
[ "${MAY_DOWNLOAD-yes}" != no ] || [ -e "$cache/bookworm.tar" ] ||
    skip "$cache has no Debian; tests/run.sh --install makes one"

folder=$(mktemp -d)
root=$folder/root
# Processes of this script: the demo, the machine, the first process in it, the service in a chroot.
demo='' machine='' init='' service=''

tidy() {
    status=$?
    trap - EXIT
    set +e
    if [ $status != 0 ]; then
        [ -z "$init" ] || run journalctl -u mailchime -n 20 --no-pager >&2
        tail -n 20 "$folder"/*.log >&2
    fi
    for process in $service $demo; do kill "$process"; wait "$process"; done 2>/dev/null
    if [ -n "$machine" ]; then
        # As systemd wants to be told to halt.
        [ -z "$init" ] || kill -s SIGRTMIN+4 "$init"
        timeout 30 tail --pid="$machine" -f /dev/null || kill -9 "$machine"
        wait "$machine" 2>/dev/null
    fi
    ! mountpoint -q "$root/proc" || umount "$root/proc"
    rm -rf --one-file-system "$folder"
    exit $status
}
trap tidy EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf 'packages: %s\n' "$*"; }
fail() { printf 'tests/packages.sh: line %s: %s\n' "${BASH_LINENO[-2]}" "$*" >&2; exit 1; }
# Waits until a command succeeds: await WHAT COMMAND…
await() {
    local end=$((SECONDS + 120))
    until "${@:2}" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "not in time: $1"
        sleep 0.2
    done
}
# Fails unless two texts are the same: same WHAT FOUND EXPECTED
same() { [ "$2" = "$3" ] || fail "$1: $2 in place of $3"; }

# --- the Debian ---

debian() {
    local tar=$cache/bookworm.tar mirror
    if [ ! -e "$tar" ]; then
        # Where this machine has its packages from.
        mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null | grep -v security | head -1)
        mkdir -p "$cache"
        debootstrap --variant=minbase --include=systemd,ca-certificates,passwd,procps bookworm "$folder/new" \
            "${mirror:-http://deb.debian.org/debian}" >"$folder/debootstrap.log" 2>&1 ||
            { tail -n 3 "$folder/debootstrap.log"; skip 'debootstrap reaches no mirror of Debian'; }
        tar -C "$folder/new" -cf "$tar.new" . && mv "$tar.new" "$tar"
        rm -rf --one-file-system "$folder/new"
    fi
    mkdir "$root"
    tar -C "$root" -xf "$tar"
    # Where debootstrap could mount nothing, it has made this a link to the folder of the machine.
    if [ -L "$root/proc" ]; then rm "$root/proc" && mkdir "$root/proc"; fi
}

# Boots it, if that can be done here, and says so by `init`.
boot() {
    command -v systemd-nspawn >/dev/null || return 0
    systemd-nspawn --quiet --boot --register=no --keep-unit --directory="$root" </dev/null >"$folder/boot.log" 2>&1 &
    machine=$!
    local end=$((SECONDS + 60)) state
    while [ $SECONDS -lt $end ] && kill -0 $machine 2>/dev/null; do
        init=$(pgrep -P $machine -x systemd | head -1) || true
        state=$([ -z "$init" ] || run systemctl is-system-running 2>/dev/null) || true
        case $state in running | degraded) return ;; esac
        sleep 0.2
    done
    init=''
    kill -9 $machine 2>/dev/null || true
    wait $machine 2>/dev/null || true
    machine=''
}

# Runs a command in it.
run() {
    if [ -n "$init" ]; then
        nsenter --all --target "$init" -- env PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C "$@"
    else
        chroot "$root" env PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C "$@"
    fi
}
as_mailchime() { run setpriv --reuid mailchime --regid mailchime --init-groups "$@"; }
mailchime() { as_mailchime mailchime "$@" --config /etc/mailchime/proxy.toml; }

# --- the service ---

start_service() {
    if [ -n "$init" ]; then
        run systemctl enable --quiet --now mailchime
    else
        install -d -m 755 -o "$(stat -c %u "$root/var/lib/mailchime")" "$root/run/mailchime"
        chroot "$root" setpriv --reuid mailchime --regid mailchime --init-groups \
            mailchime serve --config /etc/mailchime/proxy.toml >>"$folder/service.log" 2>&1 &
        service=$!
    fi
    await 'mailchime health' mailchime health
}
stop_service() {
    if [ -n "$service" ]; then
        kill "$service" && wait "$service"
        rmdir "$root/run/mailchime" 2>/dev/null || rm -rf "$root/run/mailchime"
        service=''
    fi
}
process() { if [ -n "$init" ]; then run systemctl show -P MainPID mailchime; else echo "$service"; fi; }
log() { if [ -n "$init" ]; then run journalctl -u mailchime --no-pager; else cat "$folder/service.log"; fi; }
# The port of the last start.
port() { log | grep -w listening | grep -o '127\.0\.0\.1:[0-9]*' | tail -1 | sed 's/.*://'; }

subscriptions() {
    mailchime subscriptions list --json | python3 -c '
import json, sys
for row in json.load(sys.stdin)["subscriptions"]: print(row["account"], row["mailboxes"][0])'
}

# The number of the newest migration of the database.
schema() {
    python3 - "$root/var/lib/mailchime/mailchime.db" <<'END'
import sqlite3, sys
print(*sqlite3.connect(sys.argv[1]).execute("select max(version) from _sqlx_migrations").fetchone())
END
}

# The highest of the numbers with which these files begin.
newest() { printf '%s\n' "${@##*/}" | sed -n 's/^0*\([0-9][0-9]*\).*/\1/p' | sort -n | tail -1; }

# All files and links, and the accounts, but what dpkg, systemd and the system write for themselves.
everything() {
    (cd "$root" && find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./run -o -path ./tmp \
        -o -path ./var/lib/dpkg -o -path ./var/cache -o -path ./var/log -o -path ./var/lib/systemd \
        -o -path ./var/tmp \) -prune -o -print | sort)
    cat "$root/etc/passwd" "$root/etc/group"
}

debian
say 'two packages of one program'
version=$(sed -n '0,/^version = "\(.*\)"/s//\1/p' Cargo.toml)
strip -o "$folder/mailchime" "$program"
export DEB_OPTIONS=--fast
DEB_VERSION=0.0.9-1 contrib/release/deb.sh "$folder/mailchime" "$folder/old" >/dev/null
contrib/release/deb.sh "$folder/mailchime" "$folder/new" >/dev/null
mkdir "$root/packages"
cp "$folder"/old/*.deb "$root/packages/old.deb"
cp "$folder"/new/*.deb "$root/packages/new.deb"
boot
if [ -n "$init" ]; then say 'systemd runs in the Debian'; else
    say 'systemd cannot run in the Debian here: chroot, and the unit is only read'
    mount --bind /proc "$root/proc"
fi
everything >"$folder/before"

say 'install: nothing runs'
run dpkg -i /packages/old.deb >"$folder/dpkg.log" 2>&1
same 'owner and mode of proxy.toml' "$(run stat -c '%U:%G %a' /etc/mailchime/proxy.toml)" 'root:mailchime 640'
same 'owner and mode of the state' "$(run stat -c '%U:%G %a' /var/lib/mailchime)" 'mailchime:mailchime 700'
same 'the state' "$(ls "$root/var/lib/mailchime")" ''
[ ! -e "$root/etc/systemd/system/multi-user.target.wants/mailchime.service" ] || fail 'the service is enabled'
if [ -n "$init" ]; then same 'the service' "$(run systemctl is-active mailchime || true)" inactive; fi
grep -q 'nothing runs yet' "$folder/dpkg.log" || fail 'the package does not say what to do'
[ -s "$root/usr/share/man/man1/mailchime.1.gz" ] || fail 'there is no manual page'
run systemd-analyze verify --man=no mailchime.service
run bash -n /usr/share/bash-completion/completions/mailchime
run mailchime --version >/dev/null
said=$(mailchime check 2>&1) && fail 'check accepts a configuration without a certificate'
[[ $said = *server.pem* ]] || fail "check does not name the certificate that is missing: $said"

say 'configure'
"$program" demo >"$folder/demo.log" 2>&1 &
demo=$!
await 'the demo' grep -q 'openssl s_client' "$folder/demo.log"
backend=$(sed -n 's/.*IMAP server, in memory  *//p' "$folder/demo.log")
apns=$(sed -n 's/.*APNs stand-in, HTTP\/2  *.*:\([0-9]*\)$/\1/p' "$folder/demo.log")
files=$(grep -o '[^ ]*/ca\.pem' "$folder/demo.log" | head -1 | xargs dirname)
(cd "$folder" && "$program" certs dev >/dev/null)
group=$(stat -c %g "$root/etc/mailchime")
install -m 640 -g "$group" "$folder/certs/server.pem" "$folder/certs/server.key" "$root/etc/mailchime/"
install -m 640 -g "$group" "$files/apns.pem" "$files/apns.key" "$root/etc/mailchime/"
install -m 640 -g "$group" "$files/ca.pem" "$root/etc/mailchime/apns-ca.pem"
said=$(run mailchime setup --certificate /etc/mailchime/server.pem --private-key /etc/mailchime/server.key \
    --backend "$backend" 2>&1) && fail 'setup writes over what is there'
[[ $said = *"/etc/mailchime/proxy.toml is the package's, and nobody has changed it"* ]] || fail "setup: $said"
[[ $said = *'mv /etc/mailchime/proxy.toml /etc/mailchime/proxy.toml.before'* ]] || fail "setup: $said"
sed -i 's/"\[::\]:1993"/"127.0.0.1:0"/; s/"127\.0\.0\.1:143"/"'"$backend"'"/' "$root/etc/mailchime/proxy.toml"
cat >>"$root/etc/mailchime/proxy.toml" <<END
[apns]
endpoint = "https://localhost:$apns"
ca = "apns-ca.pem"
certificate = "apns.pem"
private_key = "apns.key"
END
configured=$(sha256sum "$root"/etc/mailchime/*)

say 'check by root looks as mailchime does'
as_root() { status=0; said=$(run mailchime check --config /etc/mailchime/proxy.toml 2>&1) || status=$?; }
as_root
same 'the status of check' "$status" 0
[[ $said = *'ok       user: files are looked at as mailchime does'* ]] || fail "check: $said"
chmod 600 "$root/etc/mailchime/server.key"
as_root
same 'the status of check with a key that root alone can read' "$status" 64
[[ $said = *server.key* && $said = *'cannot be read'* ]] || fail "check: $said"
chmod 640 "$root/etc/mailchime/server.key"

say 'start'
start_service
mailchime health --ready >/dev/null
same 'the user of the process' "$(stat -c %u "/proc/$(
    if [ -n "$init" ]; then pgrep -P "$init" -x mailchime; else echo "$service"; fi)")" \
    "$(stat -c %u "$root/var/lib/mailchime")"
same 'the mode of the key' "$(stat -c %a "$root/var/lib/mailchime/mailchime.key")" 600
register() {
    python3 - "$(port)" "$folder/certs/ca.pem" <<'END'
import imaplib, ssl, sys
imaplib.Commands["XAPPLEPUSHSERVICE"] = ("AUTH", "SELECTED")
context = ssl.create_default_context(cafile=sys.argv[2])
with imaplib.IMAP4_SSL("localhost", int(sys.argv[1]), ssl_context=context) as mail:
    mail.login("alice", "wonder land")
    answer = mail._simple_command(
        "XAPPLEPUSHSERVICE", '"aps-version" "2" "aps-account-id" "0715A26B-CA09-4730-A419-793000CA982E" '
        f'"aps-device-token" "{"ab12" * 16}" "aps-subtopic" "com.apple.mobilemail" "mailboxes" ("INBOX")')
    assert answer[0] == "OK", answer
END
}
register
same 'the subscriptions' "$(subscriptions)" 'alice INBOX'
key=$(sha256sum "$root/var/lib/mailchime/mailchime.key")

say 'upgrade: configuration, database and key stay'
before=$(process)
[ -n "$init" ] || stop_service
run dpkg -i /packages/new.deb </dev/null >"$folder/dpkg.log" 2>&1
[ -n "$init" ] || start_service
await 'mailchime health' mailchime health
same 'the version' "$(run dpkg-query -W -f '${Version}' mailchime)" "$version-1"
[ "$(process)" != "$before" ] || fail 'the old program runs on'
same 'the configuration' "$(sha256sum "$root"/etc/mailchime/*)" "$configured"
same 'the key' "$(sha256sum "$root/var/lib/mailchime/mailchime.key")" "$key"
same 'the subscriptions' "$(subscriptions)" 'alice INBOX'
"$program" demo --deliver "$backend" >/dev/null
await 'a push to the device of before' grep -qi 'POST /3/device/ab12ab12' "$folder/demo.log"

say 'upgrade: a database of the schema before is migrated'
# Both packages have the newest schema. So the database is one that an earlier mailchime left, and nobody has started
# it when the new package comes.
newest=$(newest src/store/sql/migrations/*.sql)
earlier=$(newest fixtures/schemas/*.sqlite.sql)
same 'the newest schema of fixtures/schemas' "$earlier" $((newest - 1))
if [ -n "$init" ]; then run systemctl stop mailchime; else stop_service; fi
run dpkg -i /packages/old.deb </dev/null >"$folder/dpkg.log" 2>&1
rm "$root"/var/lib/mailchime/mailchime.db*
python3 - "$(printf 'fixtures/schemas/%04d.sqlite.sql' "$earlier")" "$root/var/lib/mailchime/mailchime.db" <<'END'
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[2])
database.executescript(open(sys.argv[1]).read())
# What has ended is removed at the start: these are still to end.
now = int(time.time() * 1000)
database.execute("update subscription set expires_at = ? where expires_at is not null", [now + 86400000])
database.execute("update subscription set registered_at = ? where state = 'pending'", [now])
database.commit()
END
chown --reference="$root/var/lib/mailchime" "$root/var/lib/mailchime/mailchime.db"
same 'the schema of before' "$(schema)" "$earlier"
held=$(python3 - "$root/var/lib/mailchime/mailchime.db" <<'END'
import sqlite3, sys
held = {}
for key, account, mailbox in sqlite3.connect(sys.argv[1]).execute(
        "select s.id, a.name, m.name from subscription s join account a on a.id = s.account"
        " join subscription_mailbox l on l.subscription = s.id join mailbox m on m.id = l.mailbox"):
    held.setdefault(key, [account, []])[1].append(mailbox)
print(sorted([account, sorted(mailboxes)] for account, mailboxes in held.values()))
END
)
[[ $held = *Bob*alice@example.org* ]] || fail "there is nothing to keep: $held"
run dpkg -i /packages/new.deb </dev/null >"$folder/dpkg.log" 2>&1
same 'the schema before the start' "$(schema)" "$earlier"
start_service
same 'the schema' "$(schema)" "$newest"
same 'the subscriptions' "$(mailchime subscriptions list --json | python3 -c '
import json, sys
rows = json.load(sys.stdin)["subscriptions"]
print(sorted([row["account"], sorted(row["mailboxes"])] for row in rows))')" "$held"
same 'the owner of the database' "$(run stat -c '%U:%G' /var/lib/mailchime/mailchime.db)" mailchime:mailchime

if [ -n "$init" ]; then
    say 'a configuration that cannot be used: no restarts'
    cp -p "$root/etc/mailchime/proxy.toml" "$folder/proxy.toml"
    echo 'nonsense = 1' >>"$root/etc/mailchime/proxy.toml"
    run systemctl restart mailchime 2>/dev/null || true
    await 'the service fails' run systemctl is-failed mailchime
    same 'the exit code' "$(run systemctl show -P ExecMainStatus mailchime)" 64
    same 'restarts' "$(run systemctl show -P NRestarts mailchime)" 0
    cp -p "$folder/proxy.toml" "$root/etc/mailchime/proxy.toml"
    run systemctl start mailchime
    await 'mailchime health' mailchime health
fi

if [ -n "$init" ]; then
    say 'a certificate of another program is copied by the service of the timer'
    copier=$root/usr/local/lib/mailchime units=$root/etc/systemd/system
    (cd "$root/usr/share/doc/mailchime/examples" &&
        install -D -m 755 certbot/mailchime "$copier/certificate" &&
        install -m 644 certificate/mailchime-certificate.* "$units/")
    mkdir -p "$root/srv/acme/imap"
    echo certificate >"$root/srv/acme/imap/fullchain.pem"
    echo key >"$root/srv/acme/imap/privkey.pem"
    mkdir -m 700 "$root/etc/mailchime/copied"
    printf '%s\n' RENEWED_LINEAGE=/srv/acme/imap LINEAGE=imap FOLDER=/etc/mailchime/copied \
        >"$root/etc/mailchime/certificate.env"
    run systemctl daemon-reload
    run systemctl start mailchime-certificate || fail "$(run journalctl -u mailchime-certificate --no-pager)"
    same 'the copied key' "$(cat "$root/etc/mailchime/copied/server.key")" key
    same 'its owner and mode' "$(run stat -c '%U:%G %a' /etc/mailchime/copied/server.key)" 'root:mailchime 640'
    run systemctl enable --quiet --now mailchime-certificate.timer
    same 'the timer' "$(run systemctl is-active mailchime-certificate.timer)" active
    run systemctl disable --quiet --now mailchime-certificate.timer
    rm -r "$copier" "$units"/mailchime-certificate.* "$root/srv/acme" \
        "$root/etc/mailchime/copied" "$root/etc/mailchime/certificate.env"
    run systemctl daemon-reload
fi

say 'remove: configuration, database and key stay'
stop_service
run dpkg -r mailchime </dev/null >"$folder/dpkg.log" 2>&1
if [ -n "$init" ]; then same 'the service' "$(run systemctl is-active mailchime || true)" inactive; fi
[ ! -e "$root/usr/bin/mailchime" ] || fail 'the program is still there'
same 'the configuration' "$(sha256sum "$root"/etc/mailchime/*)" "$configured"
same 'the key' "$(sha256sum "$root/var/lib/mailchime/mailchime.key")" "$key"
[ -s "$root/var/lib/mailchime/mailchime.db" ] || fail 'the database is gone'

say 'purge: nothing is left, and what the administrator made elsewhere is named'
elsewhere='/etc/dovecot/mailchime.master /etc/dovecot/mailchime.token /etc/letsencrypt/renewal-hooks/deploy/mailchime
    /etc/systemd/system/mailchime-certificate.timer /etc/fail2ban/jail.d/mailchime.conf'
for made in $elsewhere; do
    mkdir -p "$root${made%/*}"
    touch "$root$made"
done
echo 'proxyservers: mailchime' >"$root/etc/imapd.conf"
run dpkg --purge mailchime </dev/null >"$folder/dpkg.log" 2>&1
for made in $elsewhere; do
    grep -q "$made stays" "$folder/dpkg.log" || fail "the purge does not name $made"
done
grep -q 'proxyservers in /etc/imapd.conf' "$folder/dpkg.log" || fail 'the purge does not name the master user of Cyrus'
rm -r "$root/etc/dovecot" "$root/etc/letsencrypt" "$root/etc/fail2ban" "$root/etc/imapd.conf" \
    "$root/etc/systemd/system/mailchime-certificate.timer"
everything >"$folder/after"
diff "$folder/before" "$folder/after" || fail 'what differs from before the package was installed is above'
same 'mentions of it in dpkg' "$(run dpkg-query -W mailchime 2>/dev/null || true)" ''
if [ -n "$init" ]; then same 'failed units' "$(run systemctl list-units --failed --plain --no-legend mailchime\*)" ''; fi

say 'purge beside an installation by hand: nothing of it goes'
run dpkg -i /packages/new.deb >"$folder/dpkg.log" 2>&1
touch "$root/usr/local/bin/mailchime"
run dpkg --purge mailchime </dev/null >"$folder/dpkg.log" 2>&1
[ -s "$root/etc/mailchime/proxy.toml" ] || fail 'the configuration is gone'
run getent passwd mailchime >/dev/null || fail 'the user is gone'
rm "$root/usr/local/bin/mailchime"

say 'install and purge, never configured'
run dpkg -i /packages/new.deb >"$folder/dpkg.log" 2>&1
run dpkg --purge mailchime </dev/null >"$folder/dpkg.log" 2>&1
everything >"$folder/after"
diff "$folder/before" "$folder/after" || fail 'what differs from before the package was installed is above'
say 'all well'
