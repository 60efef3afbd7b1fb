#!/bin/bash
# namespace.sh PLACE SYSTEM COMMAND...: runs a command in a mount namespace of its own, where / is made of SYSTEM's folders,
# /dev, /proc, /sys and /tmp are this machine's, and /nix is PLACE/nix if there is one.
#
# SYSTEM is / or a folder that scripts/client-root has made; it cannot be written to if it is such a folder. PLACE is below
# /tmp; its empty folder PLACE/root is where the new root is put together. Every step execs the next: the command has the
# number of the process that was started, and what was mounted is gone with the last process in there.
set -euo pipefail
# pivot_root is where an ordinary user's path often does not lead.
export PATH=$PATH:/usr/sbin:/sbin

if [ "$1" != --inside ]; then
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(--map-root-user)
    exec unshare --mount --propagation private "${as_root[@]}" -- "$0" --inside "$PWD" "$@"
fi
cwd=$2 place=$3 system=${4%/}
shift 4

# A folder with all that is mounted below it: an ordinary user may not uncover what a mount hides.
bind() {
    mkdir -p "root/$2"
    mount --rbind "$1" "root/$2"
}

cd "$place"
mount -t tmpfs -o mode=755 none root
# Or /tmp would be bound with its own copy in it.
mount --make-unbindable root
for from in "$system"/*; do
    name=${from##*/}
    case $name in
        dev | lost+found | nix | proc | sys | tmp) ;;
        *)
            if [ -L "$from" ]; then
                cp -P "$from" root/
            elif [ -d "$from" ]; then
                bind "$from" "$name"
                [ -z "$system" ] || mount -o remount,bind,ro "root/$name"
            fi
            ;;
    esac
done
for name in dev proc sys tmp; do bind "/$name" "$name"; done
if [ -d nix ]; then
    bind nix nix
elif [ -d "$system/nix" ]; then
    bind "$system/nix" nix
fi

# Not chroot: in one, Nix could not make the namespaces of its sandbox.
cd root
pivot_root . .
umount --lazy .
mount --make-private /
cd "$cwd"
exec "$@"
