# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with scripts/bench
# start.sh: the case start.

# start_vm NAME FILE: adds the microseconds from no VM to one that serves.
start_vm() {
    local started ended
    in_installation "$1" xpool down "$cpu" --now 2>"$work/log"
    started=${EPOCHREALTIME/./}
    in_installation "$1" xpool up "$cpu" 2>"$work/log" || die "no VM started" "$(<"$work/log")"
    ended=${EPOCHREALTIME/./}
    printf '%s\n' $((ended - started)) >>"$2"
    printf '  %-16s %s s\n' "$1" "$(seconds $((ended - started)))" >&2
}

clone() { start_vm clone "$1"; }
boot() { start_vm boot "$1"; }

bench_start() {
    make_image
    installation clone 'template = true'
    installation boot 'template = false'
    say "warming up"
    in_installation clone xpool up "$cpu"
    in_installation boot xpool up "$cpu"
    clone /dev/null
    boot /dev/null
    measure_rounds clone boot
    compared="from no VM to one that serves"
    ours_is="clone" peer_is="boot"
}
