#!/bin/bash
# root.sh PLACE CONTROL_GROUP: the first process of a guest without a machine, started in namespaces of its own.
#
# / is the folder PLACE, with this machine's programs and libraries, a /proc of its own and a few devices. What a script in
# there would do to the whole machine goes to files of PLACE instead. CONTROL_GROUP is empty, or a folder that becomes
# /sys/fs/cgroup. Says `up` when all is there and goes when its stdin ends, and everything in there with it.
set -euo pipefail
# pivot_root is where an ordinary user's path often does not lead.
export PATH=$PATH:/usr/sbin:/sbin
place=$1 control_group=$2

# bind FROM: a folder of this machine's, with all that is mounted below it, or a file.
bind() {
    if [ -d "$1" ]; then mkdir -p ".$1"; else : >".$1"; fi
    mount --rbind "$1" ".$1"
}

mount --bind "$place" "$place"
cd "$place"
mkdir -p dev etc proc sys/fs/cgroup tmp
for from in /usr /lib*; do
    if [ -L "$from" ]; then
        cp -P "$from" .
    else
        bind "$from"
        # An ordinary user could not write there, and may not remount.
        [ ! -w "$from" ] || mount -o remount,bind,ro ".$from"
    fi
done
# Where Debian's awk is a link to.
[ ! -d /etc/alternatives ] || bind /etc/alternatives
for device in null pts urandom; do bind "/dev/$device"; done
# Bound by itself, it would not find its terminals.
ln -s pts/ptmx dev/ptmx
mount -t proc proc proc
: >dropped
mount --bind dropped proc/sys/vm/drop_caches
[ -z "$control_group" ] || mount --bind "$control_group" sys/fs/cgroup
pivot_root . .
umount --lazy .
cd /

# What the portable guest's first process powers off at, and so what busybox's own `poweroff` sends.
trap 'echo poweroff >>/calls' USR2
exec 3<&0
cat <&3 >/dev/null &
echo up
while [ -d "/proc/$!" ]; do wait "$!" || :; done
