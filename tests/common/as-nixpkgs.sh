#!/bin/bash
# as-nixpkgs.sh PLACE COMMAND…: runs the command where programs are as nixpkgs has them. They are in folders of their own, PLACE/own
# before the others; /usr/bin has what NixOS has there, sh in the place of /bin/sh, and what Debian's fakeroot and apt look for by full names.
# perl has no headers of C, and nothing is there of Debian's apt and dpkg but the programs.
set -euo pipefail
if [ "${1-}" != --inside ]; then
    mapping=()
    [ "$(id -u)" = 0 ] || mapping=(--map-root-user)
    exec unshare "${mapping[@]}" --mount "$0" --inside "$@"
fi
shift
place=$1
shift

headers=$(perl -e 'for (@INC) { if (-e "$_/sys/ioctl.ph") { print; exit } }')
mkdir -p "$place/usr-bin" "$place/usr-sbin" "$place/tools"
mount --bind /usr/bin "$place/usr-bin"
mount --bind /usr/sbin "$place/usr-sbin"
# By their last names: in between are links with full names, of Debian's alternatives.
for folder in /usr/sbin /usr/bin; do
    paste <(readlink -m "$folder"/*) <(printf '%s\n' "$folder"/*) | while read -r real name; do
        case $real in
            /usr/bin/* | /usr/sbin/*) ln -sf "$place/usr-${real#/usr/}" "$place/tools/${name##*/}" ;;
        esac
    done
done

if [ -n "$headers" ]; then
    mount -t tmpfs none "$headers/sys"
    [ ! -e "$headers/syscall.ph" ] || mount --bind /dev/null "$headers/syscall.ph"
fi
[ ! -e /usr/lib/apt/apt-helper ] || mount --bind /dev/null /usr/lib/apt/apt-helper
for folder in /etc/apt /var/lib/apt /var/cache/apt /var/lib/dpkg /usr/sbin; do
    [ ! -d "$folder" ] || mount -t tmpfs none "$folder"
done
mkdir "$place/new"
for name in sh env faked-sysv faked-tcp apt-key gpgv sqv; do [ ! -e "$place/usr-bin/$name" ] || ln -s "$place/usr-bin/$name" "$place/new"; done
mount --bind "$place/new" /usr/bin
PATH=$place/own:$place/tools exec "$@"
