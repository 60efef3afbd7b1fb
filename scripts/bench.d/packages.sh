# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with scripts/bench
# packages.sh: the case packages.

readonly PACKAGES=(popt bzip2 json-c jsoncpp libuv linux)
# Longer than any of them takes under either emulator on a machine that is busy.
readonly PACKAGE_LIMIT_S=3600
# A package that takes less has three rounds, any other one.
readonly SHORT_PACKAGE_US=120000000

# Sets results: a file that has for each round on this revision: package, microseconds of ours, of the peer, and whether what they built is the same.
open_results() {
    results=$cache/packages/results/$(revision)-$cpu
    mkdir -p "${results%/*}"
    touch "$results"
}

package_store() {
    local program=$1
    shift
    timeout --foreground "$PACKAGE_LIMIT_S" "$program" --store "$package_store" --option substitute false --option build-users-group '' "$@"
}

# Sets drv and out of a package.
instantiate() {
    drv=$(package_store nix-instantiate -E "(import $root/tests/packages/packages.nix
        (import $cache/packages/$cpu-linux.nix // import $cache/packages/sources.nix // import $cache/packages/linux.nix // {
            check = false; cpu = \"$(user_cpu)\"; })).$1" 2>"$work/log") ||
        die "the package $1 cannot be evaluated" "$(<"$work/log")"
    out=$(package_store nix-store -q --outputs "$drv")
}

# timed_package FILE COMMAND...: adds the microseconds that the command took to build the derivation, and sets hash.
timed_package() {
    local file=$1 started ended
    shift
    package_store nix-store --delete "$out" >"$work/log" 2>&1 || [ ! -e "$package_store$out" ] || die "$out cannot be deleted" "$(<"$work/log")"
    started=${EPOCHREALTIME/./}
    "$@" >"$work/out" 2>"$work/log" || die "the build of $drv failed" "$(tail -n 40 "$work/log")"
    ended=${EPOCHREALTIME/./}
    echo $((ended - started)) >"$file"
    hash=$(package_store nix-store -q --hash "$out")
}

our_package() {
    at_rest
    NIX_SSHOPTS="-F $work/ours/state/ssh_config" timed_package "$1" \
        package_store nix-build --no-out-link -j0 --builders "$our_machines" "$drv"
    # All that it is built of is in the store that the VM sees.
    grep -q " copying path .* to 'ssh-ng:" "$work/log" && die "inputs were copied" "$(<"$work/log")"
    return 0
}

# Under user mode, in Nix's sandbox on this machine. The rule of binfmt_misc is known in a user namespace of its own only; in another one
# within that, Nix is not root, who could not have a sandbox there.
peer_package() {
    timed_package "$1" unshare --user --map-root-user --mount --pid --mount-proc --fork --kill-child sh -c "set -e
        mount -t binfmt_misc binfmt_misc '$work/binfmt_misc'
        printf %s '$(binfmt_rule)' >'$work/binfmt_misc/register'
        exec unshare --user --map-user=1000 --map-group=1000 timeout '$PACKAGE_LIMIT_S' nix-build --store '$package_store' --no-out-link \
            --option substitute false --option build-users-group '' --option sandbox true --option sandbox-fallback false \
            --option sandbox-paths '/bin/sh=$sandbox_shell' --option cores 0 --option extra-platforms $cpu-linux --builders '' -j1 '$drv'"
}

# One round of a package, each of the two first in turns.
package_round() {
    local name first hashes=()
    for name in $( (($2 % 2)) && echo our peer || echo peer our); do
        "${name}_package" "$work/$name"
        hashes+=("$hash")
    done
    printf '%s %s %s %s\n' "$1" "$(<"$work/our")" "$(<"$work/peer")" \
        "$([ "${hashes[0]}" = "${hashes[1]}" ] && echo same || echo different)" | tee -a "$results" |
        awk '{ printf "  %-10s ours %8.1f s, peer %8.1f s, ratio %.3f, %s bits\n", $1, $2 / 1e6, $3 / 1e6, $2 / $3, $4 }' >&2
}

bench_packages() {
    local package round
    at_least "$(uname -r | cut -d - -f 1)" 6.7 || die "the case packages needs Linux 6.7, for a binfmt_misc of its own"
    XPOOL_CACHE_DIR=$cache scripts/packages "$cpu-linux" linux
    package_store=$cache/packages/store
    sandbox_shell=$package_store$(sed -n 's/^tools = .*"\(.*\)";/\1/p' "$cache/packages/$cpu-linux.nix")/bin/bash-static
    find_qemu_user
    open_results
    mkdir "$work/binfmt_misc"
    make_image
    installation ours 'reuse = "never"' 'warm = 0' '[store]' "root = \"$package_store\""
    serve ours
    our_machines=$(in_installation ours xpool machines "$cpu")
    : >"$work/nix.conf"
    for package in "${packages[@]}"; do
        instantiate "$package"
        say "$package"
        package_round "$package" 1
        if [ "$(<"$work/our")" -lt $SHORT_PACKAGE_US ]; then
            for round in 2 3; do package_round "$package" "$round"; done
        fi
    done
}

# Sets ratio and fields, from all results on this revision.
print_packages() {
    local package file ours peer sum_ours=0 sum_peer=0
    say "$bench, $cpu, on $(revision): fresh VM, beside QEMU $(qemu_version "$qemu_user") user mode with $(user_cpu)"
    printf '%-12s %8s %8s %8s %7s %s\n' seconds ours peer ratio rounds outputs
    fields='"packages":{'
    for package in "${PACKAGES[@]}"; do
        for file in 2 3; do awk -v p="$package" -v f=$file '$1 == p { print $f }' "$results" >"$work/$file"; done
        [ -s "$work/2" ] || continue
        ours=$(median "$work/2") peer=$(median "$work/3")
        awk -v p="$package" -v ours="$ours" -v peer="$peer" '$1 == p { n++; if ($4 != "same") bits = "different" }
            END { printf "%-12s %8.1f %8.1f %8.3f %7d %s\n", p, ours / 1e6, peer / 1e6, ours / peer, n, bits ? bits : "same" }' "$results" |
            tee -a "$work/rows"
        sum_ours=$((sum_ours + ours)) sum_peer=$((sum_peer + peer))
    done
    fields+=$(awk '{ printf "%s\"%s\":{\"ours_s\":%s,\"peer_s\":%s,\"ratio\":%s,\"rounds\":%s,\"outputs\":\"%s\"}", sep, $1, $2, $3, $4, $5, $6; sep = "," }' "$work/rows")'},'
    ratio=$(awk '{ logs += log($4) } END { printf "%.3f", exp(logs / NR) }' "$work/rows")
    runs=$(awk '{ n += $5 } END { print n }' "$work/rows")
    echo $sum_ours >"$work/ours.us"
    echo $sum_peer >"$work/peer.us"
    printf '%-12s %26s\n\n' "geometric mean" "$ratio"
}
