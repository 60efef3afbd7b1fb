#!/bin/bash
# machine.sh PLACE: runs a systemd of its own, as the PID 1 of namespaces of its own, until standard input ends.
# machine.sh --in PLACE COMMAND...: runs a command in there, as its root.
#
# Its / is an overlay: what it reads is the root file system of this machine, what it writes is in memory. It starts the journal,
# and what a test puts into its /etc/systemd/system; it has no network but its loopback, and may neither set the clock or
# sysctls nor load modules, which are this machine's. PLACE/pid has the number that its PID 1 has out here. For root. Nothing is
# left of it when this script has ended. One that is killed leaves an empty control group, which the next one removes.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
self=$(realpath "$0")

readonly SYSTEMD=/lib/systemd/systemd
# What of a container's root could change the machine around it.
readonly NOT_ITS_OWN=-sys_module,-sys_rawio,-sys_time,-syslog,-mac_admin,-mac_override

# The first process, among this machine's: waits for the end of what it has started, and tidies up.
outside() {
    local place=$1
    cd "$place"
    mkdir -p root groups
    rm -f pid
    # Or a process in the background would not have it.
    exec 3<&0
    # Not seen by others, and gone with this process and its children.
    [ "${2-}" = mounted ] || exec unshare --mount --propagation private -- "$self" --outside "$place" mounted
    # Where this machine has its own does not matter: there is one hierarchy.
    mount -t cgroup2 none groups
    for group in groups/xpool-test-*; do
        # Of one that was killed.
        [ ! -d "$group" ] || [ -e "/proc/${group##*-}" ] || remove "$group" || true
    done
    group=groups/xpool-test-$$ machine='' asked=''
    mkdir "$group"
    trap end EXIT
    # Its first process dies with this one, and all others with its first one.
    setpriv --pdeathsig KILL -- "$self" --grouped "$group" 3<&- &
    machine=$!
    # It is over when the one who asked for the machine has gone, or the machine itself.
    cat <&3 >/dev/null &
    asked=$!
    wait -n "$machine" "$asked" || true
}

end() {
    # PID 1 itself, since its parent waits for it. Without one it would be left to whoever adopts it, and may not wait.
    ! kill -0 "$machine" 2>/dev/null || kill -KILL "$(cat pid 2>/dev/null || echo "$machine")" || true
    kill -KILL "$asked" 2>/dev/null || true
    wait "$machine" "$asked" 2>/dev/null || true
    local tries
    for ((tries = 0; tries < 200; tries++)); do
        ! grep -qx 'populated 0' "$group/cgroup.events" || break
        sleep 0.05
    done
    remove "$group"
}

# Removes a control group with those in it, which has no processes any more.
remove() { find "$1" -depth -type d -exec rmdir {} +; }

# The second one is in the control group that is to be the root of those in there.
grouped() {
    echo $$ >"$1/cgroup.procs"
    exec unshare --mount --propagation private --pid --fork --kill-child=KILL --uts --ipc --net --cgroup -- "$self" --inside "$PWD"
}

# The third one, PID 1 in there, puts its root together and becomes systemd.
inside() {
    cd "$1"
    local pid
    # /proc is still that of outside.
    read -r pid _ </proc/self/stat
    mount -t tmpfs -o mode=755 none root
    cd root
    mkdir upper work empty new
    mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work none new
    file_systems
    devices
    configuration
    echo "$pid" >../pid.new && mv ../pid.new ../pid
    cd new
    pivot_root . .
    umount --lazy .
    cd /
    exec env --ignore-environment container=xpool-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        setpriv --bounding-set "$NOT_ITS_OWN" -- "$SYSTEMD" --system
}

file_systems() {
    mount -t proc -o nosuid,nodev,noexec none new/proc
    # Their files are this machine's.
    local name
    for name in sys sysrq-trigger; do
        [ -e "new/proc/$name" ] || continue
        mount --bind "new/proc/$name" "new/proc/$name"
        mount -o remount,bind,ro "new/proc/$name"
    done
    mount -t sysfs -o ro,nosuid,nodev,noexec none new/sys
    mount -t cgroup2 -o nosuid,nodev,noexec none new/sys/fs/cgroup
    mount -t tmpfs -o mode=755,nosuid,nodev none new/run
    mount -t tmpfs -o mode=1777,nosuid,nodev none new/tmp
}

devices() {
    local name i=0
    mount -t tmpfs -o mode=755,nosuid none new/dev
    mkdir new/dev/pts new/dev/shm
    mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5,nosuid,noexec none new/dev/pts
    mount -t tmpfs -o mode=1777,nosuid,nodev none new/dev/shm
    for name in null zero full random urandom tty kvm; do
        [ ! -e "/dev/$name" ] || cp -a "/dev/$name" new/dev/
    done
    ln -s pts/ptmx new/dev/ptmx
    ln -s /proc/self/fd new/dev/fd
    for name in stdin stdout stderr; do ln -s "fd/$((i++))" "new/dev/$name"; done
}

# systemd's own units are there, but nothing starts because this machine has it installed or configured.
configuration() {
    local dir wants=new/etc/systemd/system/sysinit.target.wants
    for dir in new/usr/lib/systemd/{system/*.{wants,requires},system-generators} new/usr/local/lib/systemd/system; do
        [ ! -d "$dir" ] || [ -L "$dir" ] || mount --bind empty "$dir"
    done
    mount -t tmpfs -o mode=755 none new/etc/systemd
    mkdir -p "$wants"
    ln -s /lib/systemd/system/systemd-journald.service "$wants/"
    ln -s /lib/systemd/system/multi-user.target new/etc/systemd/system/default.target
    echo xpool-test >new/etc/hostname
    tr -d - </proc/sys/kernel/random/uuid >new/etc/machine-id
}

case $1 in
    --outside) outside "$2" "${3-}" ;;
    --grouped) grouped "$2" ;;
    --inside) inside "$2" ;;
    --in)
        pid=$(<"$2/pid")
        shift 2
        exec nsenter --target "$pid" --mount --pid --uts --ipc --net --cgroup --root --wdns=/ -- "$@"
        ;;
    *) outside "$1" ;;
esac
