# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with scripts/bench
# small.sh: the case small.

readonly SMALL_BUILDS=40
# How many of them can be built at a time: each needs two of those before it.
readonly SMALL_WIDTH=8
# VMs of ours at the most: as many as xpool takes by itself on a machine with two processors.
readonly SMALL_VMS=2
# What Nix gives the peer's VM at a time: the default of NixOS' own linux-builder is one, and that of its manual four.
readonly SMALL_PEER_JOBS=4
readonly SMALL_LIMIT_S=600

# all_small NAME MACHINES SSH_CONFIG FILE: adds the microseconds that builds took which need one another.
all_small() {
    local name expression
    name=$1-$((n_builds += 1))
    expression="let
        build = n: derivation {
            name = \"$name-\${toString n}\"; system = \"$cpu-linux\"; builder = \"/bin/sh\";
            needs = if n < $SMALL_WIDTH then [ ] else map (builtins.elemAt all) [ (n - $SMALL_WIDTH) (n - $SMALL_WIDTH + 1) ];
            args = [ \"-c\" \"for need in \$needs; do read -r line < \$need; done; echo \${toString n} > \$out\" ];
        };
        all = builtins.genList build $SMALL_BUILDS;
    in all"
    all_built "$name" "$2" "$3" "$4" "$SMALL_BUILDS" "$SMALL_LIMIT_S" "$expression"
}

small_from_nothing() {
    at_rest
    all_small ours "$our_machines" "$work/ours/state/ssh_config" "$1"
}
small_at_peer() { all_small peer "$peer_machine" "$work/ssh_config" "$1"; }

bench_small() {
    n_builds=0
    make_image
    max_vms=$SMALL_VMS
    # Its VMs go at once, so that each round begins without any.
    installation ours "reuse = \"${reuse:-never}\"" 'idle-timeout = "1s"' 'scale-down-delay = "1s"' "${settings[@]}"
    peer_with_jobs "$SMALL_PEER_JOBS"
    serve ours
    our_machines=$(in_installation ours xpool machines --transport "$transport" "$cpu")
    fields="\"reuse\":\"${reuse:-never}\",\"slots\":$(wc -l <<<"$our_machines"),"
    say "warming up"
    small_from_nothing /dev/null
    small_at_peer /dev/null
    measure_rounds small_from_nothing small_at_peer
    compared="$SMALL_BUILDS builds of no length that need one another, up to $SMALL_WIDTH at a time"
    ours_is="none to $SMALL_VMS VMs" peer_is="sshd, one VM, always up"
}
