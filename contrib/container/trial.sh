#!/usr/bin/env bash
# Runs an image of mailchime once, as compose.yaml does, in front of a Dovecot, and looks whether it works.
#
#   contrib/container/trial.sh [IMAGE]
#
# IMAGE, by default mailchime, is on this machine already. The trial listens on PORT of the loopback address, by default
# 9993. Its containers, volumes, networks and files are its own, and are gone afterwards. It needs curl, and Docker with
# Compose or what ENGINE and COMPOSE name:
#
#   ENGINE=podman COMPOSE=podman-compose contrib/container/trial.sh localhost/mailchime
set -euo pipefail

image=${1:-mailchime} port=${PORT:-9993}
read -ra engine <<<"${ENGINE:-docker}"
read -ra compose <<<"${COMPOSE:-docker compose}"
source=$(realpath "$(dirname "${BASH_SOURCE[0]}")")
folder=$(mktemp -d)
project=mailchime-trial-$$
compose+=(-p "$project" -f "$folder/compose.yaml")
export USER_PASSWORD=password

say() { printf '== %s\n' "$*"; }
fail() { printf 'trial.sh: %s\n' "$*" >&2; exit 1; }
id_of() {
    "${engine[@]}" ps -a -q --filter "label=com.docker.compose.project=$project" \
        --filter "label=com.docker.compose.service=$1"
}
of() { "${engine[@]}" inspect --format "$1" "$(id_of mailchime)"; }
inside() { "${engine[@]}" exec "$(id_of mailchime)" "$@"; }
mailchime() { inside /usr/bin/mailchime "$@" --config /etc/mailchime/proxy.toml; }
tidy() {
    code=$?
    trap - EXIT
    if [ $code != 0 ]; then
        for service in mailchime dovecot; do
            say "the log of $service"
            "${engine[@]}" logs "$(id_of $service)" 2>&1 | tail -n 40 || true
        done
    fi
    "${compose[@]}" down -v >/dev/null 2>&1 || true
    rm -rf "$folder"
    exit $code
}
trap tidy EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The files of the repository, but for the port, the name of the image and where pushes go: nowhere.
cp "$source/dovecot.conf" "$folder/"
sed -e 's/^# \(\[apns\]\|certificate = \|private_key = \)/\1/' "$source/proxy.toml" >"$folder/proxy.toml"
echo 'endpoint = "https://localhost:1"' >>"$folder/proxy.toml"
sed -e "s|\"993:1993\"|\"127.0.0.1:$port:1993\"|" -e "s|image: mailchime\$|image: $image|" \
    "$source/compose.yaml" >"$folder/compose.yaml"
grep -q "127.0.0.1:$port:1993" "$folder/compose.yaml" || fail 'compose.yaml publishes another port'
grep -q "image: $image\$" "$folder/compose.yaml" || fail 'compose.yaml has another image'

say 'the image makes a certificate for the trial'
mkdir -m 777 "$folder/tls"
"${engine[@]}" run --rm --network none -v "$folder/tls:/out" "$image" certs dev --out /out >/dev/null
"${engine[@]}" run --rm --network none -v "$folder/tls:/out" --entrypoint /bin/sh "$image" -c true 2>/dev/null &&
    fail 'there is a shell in the image'
ln "$folder/tls/server.pem" "$folder/tls/fullchain.pem"
ln "$folder/tls/server.key" "$folder/tls/privkey.pem"

# Docker looks at the health by itself. Podman leaves that to systemd, which is not everywhere.
healthy() {
    case $("${engine[@]}" --version) in
        podman*) "${engine[@]}" healthcheck run "$(id_of mailchime)" >/dev/null 2>&1 ;;
        *) [ "$(of '{{.State.Health.Status}}')" = healthy ] ;;
    esac
}
start() {
    "${compose[@]}" up -d --no-build >/dev/null
    local end=$((SECONDS + 90))
    until healthy && mailchime health --ready >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail 'it is not healthy within 90 seconds'
        sleep 1
    done
}
say 'mailchime and Dovecot start and are healthy'
start
[ "$(awk '/^Uid:/ { print $2 }' "/proc/$(of '{{.State.Pid}}')/status")" = 65532 ] || fail 'it runs as another user'

say 'a mail goes in and comes out through the port of mailchime, with TLS'
printf 'Subject: trial\r\nFrom: a <a@example.org>\r\n\r\nthrough mailchime\r\n' >"$folder/mail"
imap() { curl -sS --max-time 30 --cacert "$folder/tls/ca.pem" -u alice:password "$@"; }
imap -T "$folder/mail" "imaps://localhost:$port/INBOX"
imap "imaps://localhost:$port/INBOX;MAILINDEX=1" | grep -q 'through mailchime' || fail 'another mail came'
if imap -u alice:wrong "imaps://localhost:$port/INBOX" >/dev/null 2>&1; then fail 'a wrong password was taken'; fi

say 'a phone registers, and its mailbox is watched'
device=$(printf '%064d' 1)
imap "imaps://localhost:$port/" -X "XAPPLEPUSHSERVICE aps-version 2 aps-account-id 0715A26B-CA09-4730-A419-793000CA982E \
aps-device-token $device aps-subtopic com.apple.mobilemail mailboxes (INBOX)"
watched() {
    local end=$((SECONDS + 60))
    until mailchime watchers | tee "$folder/watchers" | grep -q alice; do
        [ $SECONDS -lt $end ] || fail 'the mailbox is not watched'
        sleep 1
    done
    cat "$folder/watchers"
}
watched

say 'a program that hangs is not healthy'
"${engine[@]}" kill --signal STOP "$(id_of mailchime)" >/dev/null
if mailchime health >/dev/null 2>&1; then fail 'it is healthy although it hangs'; fi
"${engine[@]}" kill --signal CONT "$(id_of mailchime)" >/dev/null
mailchime health >/dev/null

say 'it stops in order'
began=$SECONDS
"${compose[@]}" stop mailchime >/dev/null 2>&1
[ "$(of '{{.State.ExitCode}}')" = 0 ] || fail "it ended with $(of '{{.State.ExitCode}}')"
echo "within $((SECONDS - began)) seconds"

say 'its state and the mail outlive the containers'
"${compose[@]}" down >/dev/null 2>&1
start
watched
imap "imaps://localhost:$port/INBOX;MAILINDEX=1" | grep -q 'through mailchime' || fail 'the mail is gone'
say 'all well'
