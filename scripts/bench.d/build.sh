# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with scripts/bench
# build.sh: the cases build and build --reuse never.

bench_build() {
    n_builds=0
    make_image
    # The peer is the same VM. A paused one would not answer it.
    installation ours 'reuse = "always"' 'template = false' 'pause = false'
    forward_sshd ours
    peer_vm ours
    our_machines=$(in_installation ours xpool machines --transport "$transport" "$cpu")
    say "warming up"
    ours /dev/null
    peer /dev/null
    measure_rounds ours peer
    boots_are 1 "all in one boot of one VM"
    compared="a trivial build on a warm VM"
    ours_is="xpool, $transport" peer_is="sshd in the VM"
}

bench_build_fresh() {
    n_builds=0
    make_image
    installation ours 'reuse = "never"' 'warm = 0'
    installation peer 'reuse = "always"' 'template = false' 'pause = false'
    forward_sshd peer
    peer_vm peer
    serve ours
    our_machines=$(in_installation ours xpool machines --transport "$transport" "$cpu")
    # The first of them makes the template.
    say "warming up"
    fresh /dev/null
    peer /dev/null
    measure_rounds fresh peer
    boots_are $((runs + 2)) "each of ours in a VM of its own, and the peer's in one"
    compared="a trivial build"
    ours_is="fresh VM" peer_is="sshd, VM is up"
}
