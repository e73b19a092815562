#!/usr/bin/env bash
# Measures mailchime side by side with its alternatives, and says which targets it reaches.
#
#   benches/compare.sh [--quick] [--growth] [--rounds N] [--only FIGURE,…] [--peers PEER,…]
#
# --quick   few and short rounds, fewer idle sessions: to see whether something moved; 3 minutes
#           instead of 25
# --growth  in place of that, how cost grows with sessions and with the size of messages; plots of that
#           are put into target/
#
# Figures: fetch-1 fetch-4 message-1 message-4 message-4096 message-16384 message-65536 phones append-1
#          append-4 compress noop-1 noop-50 idle login resume login-1 start watched held held-tls
#          dovecot-fetch dovecot-login dovecot-idle; the part before the dash stands for all with it
# Peers:   straight relay haproxy nginx stunnel dovecot-proxy perdition mailchime mailchime-tls
#
# See benches/README.md. Installs the peers with apt-get, as root or through sudo; one that is not
# there is named and left out. All run below a temporary folder, on loopback.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:/usr/sbin

# A peer : its Debian package : a file that shows it is here.
needs=(
    haproxy:haproxy:/usr/sbin/haproxy
    nginx:nginx:/usr/sbin/nginx
    nginx:libnginx-mod-mail:/usr/lib/nginx/modules/ngx_mail_module.so
    stunnel:stunnel4:/usr/bin/stunnel4
    dovecot-proxy:dovecot-imapd:/usr/lib/dovecot/imap
    dovecot:dovecot-imapd:/usr/lib/dovecot/imap
    perdition:perdition:/usr/sbin/perdition.imap4s
)

fail() { printf 'benches/compare.sh: %s\n' "$*" >&2; exit 1; }

# Sessions that each fetch a message every 5 s.
phones=2000
# rounds, seconds a round, idle sessions, rounds of those, and idle sessions where each is a process
full=(5 2 9500 3 1000) quick=(2 0.5 1000 1 100)
plan=("${full[@]}") quick_run= mode=figures only= rounds=
peers=straight,relay,haproxy,nginx,stunnel,dovecot-proxy,perdition,mailchime,mailchime-tls
chosen=
while [ $# -gt 0 ]; do
    case $1 in
        --quick) plan=("${quick[@]}") quick_run=yes ;;
        --growth) mode=growth ;;
        --rounds) rounds=${2:?a number}; shift ;;
        --only) only=${2:?figures}; shift ;;
        --peers) chosen=${2:?peers}; shift ;;
        *) sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 64 ;;
    esac
    shift
done
# Where much is measured of each, the two that matter most.
if [ "$mode" = growth ]; then peers=straight,haproxy,nginx,mailchime; fi
peers=${chosen:-$peers}
rounds=${rounds:-${plan[0]}} seconds=${plan[1]} most=${plan[2]} idle_rounds=${plan[3]} few=${plan[4]}
if [ "$idle_rounds" -gt "$rounds" ]; then idle_rounds=$rounds; fi

# === what it needs ===

policy=/usr/sbin/policy-rc.d made_policy=
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
install() {
    command -v apt-get >/dev/null || { echo 'no apt-get on this machine'; return; }
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null || { echo 'neither root nor sudo'; return; }
    # A package must not start the system's server.
    if [ ! -e "$policy" ]; then
        made_policy=yes
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null || return 0
        as_root chmod 755 "$policy" || return 0
    fi
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120) package
    as_root "${apt[@]}" update || true
    for package in "$@"; do
        as_root "${apt[@]}" install -y --no-install-recommends "$package" || true
    done
}
missing() { # FIELD: 2 for the packages that are not here, 1 for the peers that lack one
    local need peer package file
    for need in "${needs[@]}"; do
        IFS=: read -r peer package file <<<"$need"
        [ -e "$file" ] || cut -d: -f"$1" <<<"$need"
    done | sort -u
}

folder=$(mktemp -d)
groups=()
tidy() {
    local group
    for group in "${groups[@]}"; do kill -KILL -- "-$group" || true; done 2>/dev/null
    rm -rf "$folder"
    if [ -n "$made_policy" ]; then as_root rm -f "$policy" || true; fi
}
trap tidy EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# Servers read their files as another user.
chmod 755 "$folder"

mapfile -t packages < <(missing 2)
if [ ${#packages[@]} -gt 0 ]; then install "${packages[@]}"; fi
absent=" $(missing 1 | tr '\n' ' ')"
if [ "$absent" != ' ' ]; then echo "not installed, left out:$absent"; fi

cargo build --release --locked --bin mailchime
cargo build --release --locked --example load
target=$(realpath "${CARGO_TARGET_DIR:-target}")
mailchime=$target/release/mailchime load=$target/release/examples/load
rows=$target/compare.tsv
if [ "$mode" = growth ]; then rows=$target/compare-growth.tsv; fi
: >"$rows"

# As many files as are allowed; a session takes two of a proxy.
ulimit -n "$(ulimit -Hn)"
room=$((($(ulimit -n) - 1000) / 2))
if [ "$most" -gt "$room" ]; then most=$room; fi

# === the peers ===

# The configuration of each: 127.0.0.1, the port $port, TLS with this certificate, the backend's port.
"$mailchime" certs dev --out "$folder/certs" >/dev/null
certs=$folder/certs
chmod -R a+rX "$certs"
cat "$certs/server.pem" "$certs/server.key" >"$certs/both.pem"
mapfile -t ports < <("$load" ports 6)
port=${ports[0]} plain=${ports[1]} tls=${ports[2]} auth=${ports[3]} dovecot=${ports[4]}
spare=${ports[5]}

# Starts a program in a group of its own; its log is in the folder.
start() { # NAME PROGRAM…
    setsid "${@:2}" >>"$folder/$1.log" 2>&1 </dev/null &
    group=$!
    # The shell has nothing to say about how it ends.
    disown "$group"
    groups[group]=$group
}
# Until no process of the group is left: one that still listens would be in the next one's way.
stop() { # GROUP NAME
    local signal tries
    for signal in TERM KILL; do
        kill -"$signal" -- "-$1" 2>/dev/null || true
        for tries in {1..100}; do
            kill -0 -- "-$1" 2>/dev/null || break 2
            sleep 0.05
        done
    done
    if [ "$signal" = KILL ]; then echo "$2 did not end within 5 s and was killed"; fi
    unset "groups[$1]"
}
listens() { # PORT
    local tries
    for tries in {1..200}; do
        if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return; fi
        sleep 0.05
    done
    return 1
}
serve() { # TLS PLAIN AUTH
    echo "$load" serve --tls "127.0.0.1:$1" --plain "127.0.0.1:$2" --auth-http "127.0.0.1:$3" \
        --certificate "$certs/server.pem" --private-key "$certs/server.key"
}

haproxy_conf() {
    cat <<END
global
    nbthread 2
    maxconn 9900
defaults
    mode tcp
    timeout connect 10s
    timeout client 1h
    timeout server 1h
listen imaps
    bind 127.0.0.1:$port ssl crt $certs/both.pem
    server backend 127.0.0.1:$plain
END
}
nginx_conf() {
    cat <<END
load_module /usr/lib/nginx/modules/ngx_mail_module.so;
daemon off;
worker_processes 2;
worker_rlimit_nofile $(ulimit -n);
pid $folder/nginx.pid;
error_log $folder/nginx.log;
events { worker_connections 20000; }
mail {
    auth_http 127.0.0.1:$auth;
    imap_auth plain login;
    timeout 1h;
    server {
        listen 127.0.0.1:$port ssl;
        protocol imap;
        ssl_certificate $certs/server.pem;
        ssl_certificate_key $certs/server.key;
        ssl_protocols TLSv1.2 TLSv1.3;
    }
}
END
}
stunnel_conf() {
    cat <<END
foreground = yes
pid =
[imaps]
accept = 127.0.0.1:$port
connect = 127.0.0.1:$plain
cert = $certs/server.pem
key = $certs/server.key
END
}
# What Dovecot as a proxy and as a server have in common.
dovecot_conf() { # NAME
    mkdir -p "$folder/$1/run" "$folder/$1/state"
    cat <<END
protocols = imap
listen = 127.0.0.1
base_dir = $folder/$1/run
state_dir = $folder/$1/state
log_path = $folder/$1.log
ssl_cert = <$certs/server.pem
ssl_key = <$certs/server.key
auth_mechanisms = plain login
auth_username_format = %Ln
mail_max_userip_connections = 0
default_client_limit = 20000
END
}
dovecot_proxy_conf() {
    dovecot_conf dovecot-proxy
    cat <<END
ssl = required
passdb {
  driver = static
  args = nopassword=y proxy=y host=127.0.0.1 port=$plain
}
service imap-login {
  # As Dovecot's manual says for high performance: processes that serve many.
  service_count = 0
  process_min_avail = 2
  client_limit = 20000
  vsz_limit = 4 G
  inet_listener imap {
    port = 0
  }
  inet_listener imaps {
    port = $port
    ssl = yes
  }
}
END
}
# As it comes, but for its limits: a process for each login, which stays where it ends TLS.
dovecot_server_conf() {
    local owner='uid=nobody gid=nogroup'
    if [ "$(id -u)" != 0 ]; then owner="uid=$(id -u) gid=$(id -g)"; fi
    dovecot_conf dovecot
    cat <<END
ssl = yes
disable_plaintext_auth = no
mail_location = maildir:$folder/mail/%n
passdb {
  driver = static
  args = nopassword=y
}
userdb {
  driver = static
  args = $owner home=$folder/mail/%n
}
service imap-login {
  process_limit = 2000
  inet_listener imap {
    port = $dovecot
  }
  inet_listener imaps {
    port = $tls_dovecot
    ssl = yes
  }
}
service imap {
  process_limit = 2000
}
END
}
mailchime_conf() { # BACKEND-PORT ITS-TLS
    mkdir -p "$folder/mailchime"
    cat <<END
[[listener]]
address = "127.0.0.1:$port"
[tls]
certificate = "$certs/server.pem"
private_key = "$certs/server.key"
[backend]
address = "127.0.0.1:$1"
$2
[store]
url = "sqlite://$folder/mailchime/mailchime.db"
[credentials]
key_file = "$folder/mailchime/mailchime.key"
[limits]
# All come from one address here.
sessions_per_ip = 20000
login_failures_per_minute = 1000000
dials_per_minute = 1000000
dials_at_once = 1000000
[apns]
endpoint = "https://127.0.0.1:$spare"
ca = "$certs/ca.pem"
certificate = "$certs/apns.pem"
private_key = "$certs/apns.key"
END
}

# Starts a peer on $port; its group is $group then, and its process as well.
start_peer() { # PEER
    case $1 in
        straight)
            # shellcheck disable=SC2046  # words
            start straight $(serve "$port" "$spare" "$spare_auth") ;;
        relay)
            start relay "$load" relay --tls "127.0.0.1:$port" --to "127.0.0.1:$plain" \
                --certificate "$certs/server.pem" --private-key "$certs/server.key" ;;
        haproxy)
            haproxy_conf >"$folder/haproxy.cfg"
            start haproxy haproxy -db -f "$folder/haproxy.cfg" ;;
        nginx)
            nginx_conf >"$folder/nginx.conf"
            start nginx nginx -p "$folder" -c "$folder/nginx.conf" -e "$folder/nginx.log" ;;
        stunnel)
            stunnel_conf >"$folder/stunnel.conf"
            start stunnel stunnel4 "$folder/stunnel.conf" ;;
        dovecot-proxy)
            dovecot_proxy_conf >"$folder/dovecot-proxy.conf"
            start dovecot-proxy dovecot -F -c "$folder/dovecot-proxy.conf" ;;
        perdition)
            start perdition perdition.imap4s --no_daemon --no_lookup --protocol IMAP4S \
                --config_file /dev/null --pid_file '' --bind_address 127.0.0.1 \
                --listen_port "$port" --outgoing_server 127.0.0.1 --outgoing_port "$plain" \
                --ssl_mode ssl_listen --ssl_cert_file "$certs/server.pem" \
                --ssl_key_file "$certs/server.key" --ssl_no_cert_verify ;;
        mailchime|mailchime-tls|mailchime-dovecot)
            case $1 in
                mailchime) mailchime_conf "$plain" 'tls = "none"' ;;
                mailchime-tls) mailchime_conf "$tls" "ca = \"$certs/ca.pem\"" ;;
                mailchime-dovecot) mailchime_conf "$dovecot" 'tls = "none"' ;;
            esac >"$folder/mailchime.toml"
            start mailchime "$mailchime" serve --config "$folder/mailchime.toml" ;;
    esac
    listens "$port" || { stop "$group" "$1"; return 1; }
}

# === measuring ===

# Whether --only leaves FIGURE, and --peers PEER.
wanted() { # FIGURE
    [ -z "$only" ] || [[ ,$only, == *,"$1",* ]] || [[ ,$only, == *,"${1%%-*}",* ]]
}
takes_part() { # PEER
    [[ ,$peers, == *,"$1",* ]] && [[ $absent != *" $1 "* ]]
}

# Writes down what `load` says of a figure, by whose name it is.
row() { # FIGURE PEER ROUND COMMAND…
    local said
    if said=$(timeout 150 "${@:4}" 2>>"$folder/load.log"); then
        awk -v head="$1"$'\t'"$2"$'\t'"$3" 'NF == 2 { print head "\t" $0 }' <<<"$said" >>"$rows"
        return
    fi
    printf '%s: %s could not be measured: %s\n' "$2" "$1" "$(tail -n 1 "$folder/load.log")"
    cp "$folder/$2.log" "$target/compare-$2.log" 2>/dev/null || true
}
# Measures one figure of a peer that is started for it and ended thereafter.
measure() { # FIGURE PEER ROUND LOAD…
    takes_part "$2" || return 0
    start_peer "$2" || {
        echo "$2 does not start"
        tail -n 3 "$folder/$2.log"
        return 0
    }
    local peer=$group
    row "$1" "$2" "$3" "$load" measure "${@:4}" --to "127.0.0.1:$port" --pid "$peer"
    stop "$peer" "$2"
}
# The same of many peers, one after the other.
each() { # FIGURE PEERS ROUND LOAD…
    wanted "$1" || return 0
    local peer
    for peer in $2; do measure "$1" "$peer" "${@:3}"; done
}

figures() {
    local all='straight relay haproxy nginx stunnel dovecot-proxy perdition mailchime' round
    local ours="$all mailchime-tls" four='straight haproxy nginx mailchime'
    local many='relay haproxy nginx stunnel dovecot-proxy mailchime mailchime-tls'
    for ((round = 1; round <= rounds; round++)); do
        echo "round $round of $rounds"
        for count in 1 4; do
            each "fetch-$count" "$ours" "$round" fetch --sessions $count --seconds "$seconds"
            each "append-$count" "$all" "$round" append --sessions $count --seconds "$seconds"
        done
        # In KiB: small ones as clients fetch them, and large ones beside each other.
        for count in 1 4; do
            each "message-$count" "$four" "$round" fetch --message $count --seconds "$seconds"
        done
        for count in 4096 16384 65536; do
            each "message-$count" 'haproxy mailchime' "$round" fetch --message $count --seconds "$seconds"
        done
        if [ -z "$quick_run" ]; then
            each phones 'relay haproxy nginx mailchime' "$round" phones --sessions "$phones" --message 4 \
                --seconds 10
        fi
        each compress mailchime "$round" compress --seconds "$seconds"
        each noop-1 "$all" "$round" noop --seconds "$seconds"
        each noop-50 "$all" "$round" noop --sessions 50 --seconds "$seconds"
        each login "$ours" "$round" login --sessions 64 --seconds "$seconds"
        if [ -z "$quick_run" ]; then
            each resume "$all" "$round" resume --sessions 64 --seconds "$seconds"
            each login-1 "$all" "$round" login --seconds "$seconds"
        fi
        if [ "$round" -le "$idle_rounds" ]; then
            # What the synthetic server itself holds was not thought about.
            each idle "$many" "$round" idle --sessions "$most"
            each idle perdition "$round" idle --sessions "$few"
        fi
        if [[ $absent != *' dovecot '* ]] && takes_part mailchime; then dovecots "$round"; fi
    done
    if wanted watched && takes_part mailchime && [ -z "$quick_run" ]; then watched; fi
    if takes_part mailchime && [ -z "$quick_run" ]; then
        if wanted held; then held; fi
        if wanted held-tls; then held --tls; fi
    fi
    if wanted start && takes_part mailchime; then
        mailchime_conf "$plain" 'tls = "none"' >"$folder/mailchime.toml"
        row start mailchime 1 "$load" start --to "127.0.0.1:$port" --runs $((rounds * 2)) -- \
            "$mailchime" serve --config "$folder/mailchime.toml"
    fi
}

# The start with 100,000 accounts, which the other measurement fills a database with.
watched() {
    watching --accounts 100000 --devices 2 --on-demand --start-only \
        --rows "$rows"
}

# What a watched account takes that has a connection.
held() { # [--tls]
    watching --accounts "$most" --seconds 1 --rows "$rows" "$@"
}

watching() { # OPTIONS
    cargo build --release --locked --example watching
    "$target/release/examples/watching" "$@" 2>&1 | grep -v 'mailchime::'
}

# Dovecot as a server, which ends TLS itself or leaves it to mailchime. CPU and memory are those of
# both together.
dovecots() { # ROUND
    local server figure of
    for figure in fetch login idle; do
        wanted "dovecot-$figure" || continue
        case $figure in
            fetch) of=(fetch --message 1 --seconds "$seconds") ;;
            login) of=(login --sessions 64 --seconds "$seconds") ;;
            idle) of=(idle --sessions "$few") ;;
        esac
        start dovecot dovecot -F -c "$folder/dovecot.conf"
        server=$group
        listens "$dovecot"
        # Its first login is slower.
        row "dovecot-$figure" dovecot "$1" "$load" measure "${of[@]}" \
            --to "127.0.0.1:$tls_dovecot" --pid "$server"
        stop "$server" dovecot
        start dovecot dovecot -F -c "$folder/dovecot.conf"
        server=$group
        listens "$dovecot"
        start_peer mailchime-dovecot
        row "dovecot-$figure" mailchime "$1" "$load" measure "${of[@]}" \
            --to "127.0.0.1:$port" --pid "$group" --pid "$server"
        stop "$group" mailchime
        stop "$server" dovecot
    done
}
# A mailbox with a message of 4 MiB.
lay_out_mail() {
    mkdir -p "$folder"/mail/user0/{cur,new,tmp}
    { printf 'Subject: large\r\n\r\n'; yes $'The quick brown fox jumps over the lazy dog.\r' || true
    } | head -c 4194304 >"$folder/mail/user0/cur/1.large.localhost:2,S" || true
    if [ "$(id -u)" = 0 ]; then chown -R nobody:nogroup "$folder/mail"; fi
}

growth() {
    local all='straight haproxy nginx mailchime' round count
    for ((round = 1; round <= rounds; round++)); do
        echo "round $round of $rounds"
        for count in 1 4 16 50 200; do
            each "growth-noop-$count" "$all" "$round" noop --sessions $count --seconds "$seconds"
        done
        for count in 1 4 16 64 256 1024 4096 16384 65536; do
            each "growth-fetch-$count" "$all" "$round" fetch --message $count --seconds "$seconds"
        done
        if [ "$round" -gt "$idle_rounds" ]; then continue; fi
        for count in 1000 4000 9500; do
            if [ "$count" -gt "$most" ]; then continue; fi
            each "growth-idle-$count" "$all" "$round" idle --sessions $count
        done
    done
}

mapfile -t ports < <("$load" ports 2)
tls_dovecot=${ports[0]} spare_auth=${ports[1]}
lay_out_mail
dovecot_server_conf >"$folder/dovecot.conf"
# shellcheck disable=SC2046  # words
start backend $(serve "$tls" "$plain" "$auth")
listens "$plain" || fail 'the synthetic server does not start'
began=$SECONDS
"$mode"
plots=()
if [ "$mode" = growth ]; then plots=(--plots "$target"); fi
"$load" report "$rows" "${plots[@]}"
printf '\n%s processors; load average %s; took %d s; the rows are in %s\n' \
    "$(nproc)" "$(cut -d' ' -f1-3 /proc/loadavg)" $((SECONDS - began)) "$rows"
