# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with scripts/bench
# inputs.sh: the case inputs.

# What one input has, as folder, files, and bytes of each: 6 MB, most of them in few files, and most files small, as in real
# ones. With its mark, which is what a build reads, these are 100 files.
readonly N_INPUTS=50
readonly INPUT_PARTS=("include 59 2000" "share 30 20000" "bin 9 300000" "lib 1 2582000")

# Random, as nothing that compresses or repeats would be like real inputs.
make_input_folders() {
    say "$N_INPUTS inputs"
    local input part file folder count size
    for ((input = 1; input <= N_INPUTS; input++)); do
        for part in "${INPUT_PARTS[@]}"; do
            read -r folder count size <<<"$part"
            mkdir -p "$work/inputs/input-$input/$folder"
            for ((file = 1; file <= count; file++)); do
                head -c "$size" /dev/urandom >"$work/inputs/input-$input/$folder/$file"
            done
        done
    done
}

# client_store OPERATION...: on the store that builds get their inputs from.
client_store() {
    nix-store --store "$work/store" --option build-users-group "" "$@" >"$work/out" 2>"$work/log" ||
        die "nix-store $1 failed" "$(<"$work/log")"
}

# The inputs of the round before, and what was built of them.
forget_inputs() {
    # As long as the VM is there, its manager holds them.
    at_rest
    client_store --gc
    ssh -F "$work/ssh_config" "root@$PEER" nix-store --gc >"$work/out" 2>"$work/log" ||
        die "the peer's store cannot be emptied" "$(<"$work/log")"
}

# Sets inputs: paths that neither has seen, as each has a file that is new. All of them are copied by whoever copies.
new_inputs() {
    local folder
    forget_inputs
    n_inputs_made=$((n_inputs_made + 1))
    for folder in "$work"/inputs/*; do
        printf '%s, made %s\n' "${folder##*/}" "$n_inputs_made" | tee "$folder/mark"
    done >"$work/marks"
    client_store --add "$work"/inputs/*
    inputs=$(sed 's/.*/"&"/' "$work/out")
}

# n_given [COUNTS]: how many sessions with ours were given inputs, or so many of them.
n_given() { grep -c " inputs session=[0-9]* ${1-}" "$work/ours/log" || true; }

# fresh, and no input was copied.
fresh_shared() {
    local before
    before=$(n_given)
    fresh "$1"
    [ "$(n_given)" = $((before + 1)) ] && [ "$(n_given "asked=$N_INPUTS shared=$N_INPUTS\$")" = $((before + 1)) ] && return
    printf 'error: not all inputs were shared; the log of xpool:\n%s\n' "$(<"$work/ours/log")" >&2
    exit 1
}

bench_inputs() {
    n_builds=0 n_inputs_made=0 build_limit_s=$COPY_LIMIT_S
    make_image
    installation ours 'reuse = "never"' 'warm = 0' '[store]' "root = \"$work/store\""
    installation peer 'reuse = "always"' 'template = false' 'pause = false' 'store.share = "none"'
    forward_sshd peer
    peer_vm peer
    make_input_folders
    # A VM sees the store that is there when it starts.
    mkdir -p "$work/store/nix/store"
    serve ours
    our_machines=$(in_installation ours xpool machines --transport "$transport" "$cpu")
    say "warming up"
    new_inputs
    fresh_shared /dev/null
    peer /dev/null
    measure_rounds fresh_shared peer new_inputs
    boots_are $((runs + 2)) "each of ours in a VM of its own, and the peer's in one"
    compared="a build with $N_INPUTS inputs, 5,000 files and 300 MB in all"
    ours_is="fresh VM, inputs shared" peer_is="sshd, VM is up, copied"
}
