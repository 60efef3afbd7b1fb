# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with scripts/bench
# idle.sh: the case idle, which has no peer.

readonly IDLE_S=60

# Processor time of a process so far, in clock ticks: user and system, the 14th and 15th field. The second, its name, has
# no blanks here.
ticks() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }

# Prints what a manager takes that has nothing to do. On stdout, as JSON if that is asked for.
bench_idle() {
    local pid before after rss_kib
    installation ours
    serve ours
    pid=$(in_installation ours xpool status --json | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' | head -n 1)
    [ -r "/proc/$pid/stat" ] || die "xpool status does not say which process the manager is"
    say "$IDLE_S seconds with nothing to do" >&2
    before=$(ticks "$pid")
    # It is what is measured: time in which nothing happens.
    sleep "$IDLE_S"
    after=$(ticks "$pid")
    rss_kib=$(sed -n 's/^VmRSS:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/$pid/status")
    awk -v json="$json" -v kib="$rss_kib" -v ticks=$((after - before)) -v hz="$(getconf CLK_TCK)" -v s="$IDLE_S" 'BEGIN {
        form = json ? "{\"case\":\"idle\",\"resident_mib\":%.1f,\"cpu_s\":%.2f,\"seconds\":%d}\n" \
                    : "manager without VMs: %.1f MiB resident, %.2f s of processor time in %d s\n"
        printf form, kib / 1024, ticks / hz, s }'
}
