#!/bin/sh
# Makes the folders and files of mailchime's container image: all that is in it.
#
#   contrib/container/rootfs.sh PROGRAM FOLDER
#
# PROGRAM is a static mailchime (contrib/release/build.sh --static). FOLDER must not exist. The image has no
# shell, no package manager and no library; the program and the authorities that this machine trusts are all.
# Containerfile calls the script, and so does a test. Only root can give the folders to the image's user.
set -eu

[ $# = 2 ] || { echo 'usage: contrib/container/rootfs.sh PROGRAM FOLDER' >&2; exit 64; }
program=$1 folder=$2
authorities=/etc/ssl/certs/ca-certificates.crt
[ ! -e "$folder" ] || { echo "rootfs.sh: $folder is there already" >&2; exit 1; }
[ -s "$authorities" ] || { echo "rootfs.sh: no $authorities; install ca-certificates" >&2; exit 1; }
if LC_ALL=C grep -aq '/ld-linux\|/ld-musl' "$program"; then
    echo "rootfs.sh: $program is not static" >&2
    exit 1
fi

# The user of the image, by a number that no user of a machine has.
user=65532
mkdir -p "$folder/usr/bin" "$folder/etc/ssl/certs" "$folder/etc/mailchime"
install -m 755 "$program" "$folder/usr/bin/mailchime"
install -m 644 "$authorities" "$folder$authorities"
printf 'root:x:0:0:root:/:/sbin/nologin\nmailchime:x:%s:%s:mailchime:/var/lib/mailchime:/sbin/nologin\n' \
    $user $user >"$folder/etc/passwd"
printf 'root:x:0:\nmailchime:x:%s:\n' $user >"$folder/etc/group"
printf 'hosts: files dns\n' >"$folder/etc/nsswitch.conf"
install -d -m 1777 "$folder/tmp"
# The database and its key; the socket of [admin].
install -d -m 700 -o $user -g $user "$folder/var/lib/mailchime"
install -d -m 755 -o $user -g $user "$folder/run/mailchime"
