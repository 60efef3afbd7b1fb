# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with scripts/bench
# queue.sh: the case queue.

readonly QUEUE_BUILDS=20
# VMs of ours at the most. They wait for their builds more than they compute here.
readonly QUEUE_VMS=6
# What the peer's VM does at a time: as much as it has processors, which is as many as one of ours.
readonly QUEUE_PEER_JOBS=2
readonly QUEUE_LIMIT_S=600

# queued NAME MACHINES SSH_CONFIG FILE: adds the microseconds that builds took which were all asked for at once.
queued() {
    local name expression
    name=$1-$((n_builds += 1))
    expression="builtins.genList (n: derivation {
        name = \"$name-\${toString n}\"; system = \"$cpu-linux\"; builder = \"/bin/sh\"; PATH = \"\${$work/tools}/bin\";
        args = [ \"-c\" \"sleep 1; echo \${toString n} > \$out\" ];
    }) $QUEUE_BUILDS"
    all_built "$name" "$2" "$3" "$4" "$QUEUE_BUILDS" "$QUEUE_LIMIT_S" "$expression"
}

queue_from_nothing() {
    at_rest
    queued ours "$our_machines" "$work/ours/state/ssh_config" "$1"
}
queue_at_peer() { queued peer "$peer_machine" "$work/ssh_config" "$1"; }

bench_queue() {
    n_builds=0
    make_image
    make_tools sleep
    max_vms=$QUEUE_VMS
    installation ours
    peer_with_jobs "$QUEUE_PEER_JOBS"
    serve ours
    our_machines=$(in_installation ours xpool machines --transport "$transport" "$cpu")
    say "warming up"
    queue_from_nothing /dev/null
    queue_at_peer /dev/null
    measure_rounds queue_from_nothing queue_at_peer
    compared="$QUEUE_BUILDS builds of one second, asked for at once"
    ours_is="none to $QUEUE_VMS VMs" peer_is="sshd, one VM, always up"
}
