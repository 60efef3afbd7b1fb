# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with scripts/bench
# emulation.sh: the case emulation.

readonly WORKLOADS=(configure compile compress)
# A workload takes seconds to a minute.
readonly WORKLOAD_LIMIT_S=900
# The peer has as many processors as this machine. The workloads are serial.
readonly EMULATION_VCPUS=1
# Descriptors of what is said to a session of ours and of the peer, and of what it answers.
declare -rA SAY_TO=([ours]=5 [peer]=6) HEAR_FROM=([ours]=7 [peer]=8)

# The first bytes of a program of this system, as the kernel's binfmt_misc wants them. Flags: the name that a program
# was called by is kept, and the interpreter is opened now, outside of the root folder.
binfmt_rule() {
    local machine
    case $cpu in riscv64) machine='\xf3\x00' ;; aarch64) machine='\xb7\x00' ;; esac
    printf ':%s:M::%s%s:%s:%s:PF' "$cpu" '\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00' "$machine" \
        '\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff' "$qemu_user"
}

# enter FOLDER: shell text that does the workloads in a root folder.
enter() {
    cat <<END_OF_TEXT
set -e
mount -t proc proc '$1/proc'
mount --rbind /dev '$1/dev'
mount -t tmpfs tmpfs '$1/tmp'
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp QEMU_CPU='$(user_cpu)' chroot '$1' /bin/bash /usr/src/workloads
END_OF_TEXT
}

# The processor that guests have: without it, user mode has all that it can do, which costs it. It knows nothing of page tables.
user_cpu() { sed -n 's/^cpu = "\(.*\)"/\1/p' "vm-configs/$cpu-linux.toml" | sed 's/,sv57=off//'; }

# session NAME COMMAND...: a command that does workloads, until clean_up ends it.
session() {
    local name=$1
    shift
    mkfifo "$work/$name.to" "$work/$name.from"
    "$@" <"$work/$name.to" >"$work/$name.from" 2>"$work/$name.said" &
    sessions+=($!)
    # Its end at the end is none to be told of.
    disown
    eval "exec ${SAY_TO[$name]}>'$work/$name.to' ${HEAR_FROM[$name]}<'$work/$name.from'"
}

# ask NAME WORKLOAD: does it, and sets answer.
ask() {
    answer=''
    if ! printf '%s\n' "$2" >&"${SAY_TO[$1]}" ||
        ! read -r -t "$WORKLOAD_LIMIT_S" -u "${HEAR_FROM[$1]}" answer; then
        die "$1 did not answer to $2" "$(<"$work/$1.said")"
    fi
}

# emulate NAME WORKLOAD FILE: adds the microseconds that a workload took, by this machine's clock, to the file.
emulate() {
    local started ended
    started=${EPOCHREALTIME/./}
    ask "$1" "$2"
    ended=${EPOCHREALTIME/./}
    [ "$answer" = did ] || die "$1: $answer"
    printf '%s\n' $((ended - started)) >>"$3"
    printf '  %-5s %-10s %s s\n' "$1" "$2" "$(seconds $((ended - started)))" >&2
}

# Workload by workload, so that what else this machine does costs both the same.
emulate_rounds() {
    local round workload name
    say "$runs rounds"
    for ((round = 1; round <= runs; round++)); do
        for workload in "${WORKLOADS[@]}"; do
            for name in $( ((round % 2)) && echo ours peer || echo peer ours); do
                emulate "$name" "$workload" "$work/$name.$workload.us"
            done
        done
    done
}

# A copy of a template, as builds have it.
ours_session() {
    make_image
    installation ours 'reuse = "always"' 'pause = false' 'idle-timeout = "1d"' "vcpus = $EMULATION_VCPUS"
    say "a VM"
    in_installation ours xpool up "$cpu"
    say "unpacking in it what it is to work on"
    in_installation ours xpool ssh "$cpu-1" -- 'mkdir /foreign && tar -x -C /foreign' <"$foreign"
    session ours env XPOOL_STATE_DIR="$work/ours/state" XPOOL_CONFIG="$work/ours/xpool.toml" xpool ssh "$cpu-1" -- "$(enter /foreign)"
}

# The rule is known in a user namespace of this session's own only, so this machine runs nothing foreign. Linux has that from
# 6.7 on. Everything ends with the session, which is the first process of a namespace.
peer_session() {
    local text
    at_least "$(uname -r | cut -d - -f 1)" 6.7 || die "the case emulation needs Linux 6.7, for a binfmt_misc of its own"
    mkdir "$work/peer" "$work/binfmt_misc"
    tar -x -C "$work/peer" --no-same-owner -f "$foreign"
    text="set -e
mount -t binfmt_misc binfmt_misc '$work/binfmt_misc'
printf %s '$(binfmt_rule)' >'$work/binfmt_misc/register'
$(enter "$work/peer")"
    session peer unshare --user --map-root-user --mount --pid --fork --kill-child sh -c "$text"
}

bench_emulation() {
    local digest name workload
    make_foreign_root
    find_qemu_user
    # Who hears a broken session says what it said, instead of ending without a word.
    trap : PIPE
    ours_session
    peer_session
    say "warming up"
    for name in ours peer; do
        ask "$name" prepare
        for workload in "${WORKLOADS[@]}"; do emulate "$name" "$workload" /dev/null; done
    done
    emulate_rounds
    ask ours digest
    digest=$answer
    ask peer digest
    [ "$answer" = "$digest" ] || die "the workloads had other results in the VM than in user mode" "$digest" "$answer"
    compared="QEMU $(qemu_version "$qemu_user"), $(user_cpu)"
    ours_is="VM, vcpus = $EMULATION_VCPUS" peer_is="user mode"
}

# ratio_of WORKLOAD
ratio_of() {
    awk -v ours="$(median "$work/ours.$1.us")" -v peer="$(median "$work/peer.$1.us")" 'BEGIN { printf "%.3f", ours / peer }'
}

# Sets ratio and fields, and writes for print_json what all workloads took together.
print_emulation() {
    local workload name ratios=()
    local -A sum=([ours]=0 [peer]=0)
    fields="\"vcpus\":$EMULATION_VCPUS,"
    say "$bench, $cpu, $runs rounds: $compared"
    printf '%-25s %8s %8s %8s\n' seconds median least most
    for workload in "${WORKLOADS[@]}"; do
        row "$workload, $ours_is" "$work/ours.$workload.us"
        row "$workload, $peer_is" "$work/peer.$workload.us"
        printf '%-25s %8s\n' "$workload, ratio" "$(ratio_of "$workload")"
        ratios+=("$(ratio_of "$workload")")
        for name in ours peer; do sum[$name]=$((sum[$name] + $(median "$work/$name.$workload.us"))); done
        fields+="\"$workload\":${ratios[-1]},"
    done
    for name in ours peer; do echo "${sum[$name]}" >"$work/$name.us"; done
    ratio=$(printf '%s\n' "${ratios[@]}" | awk '{ logs += log($1) } END { printf "%.3f", exp(logs / NR) }')
    printf '%-25s %8s\n\n' "geometric mean" "$ratio"
}
