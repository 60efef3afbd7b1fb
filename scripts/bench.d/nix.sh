# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with scripts/bench
# nix.sh: what every case with VMs and Nix needs: an image with OpenSSH, a VM that is reached through it, builds.

# A trivial build takes seconds even on a machine that is busy: more is a hang.
readonly BUILD_LIMIT_S=120
# Copying goes through an emulated sshd and an emulated nix-daemon.
readonly COPY_LIMIT_S=900
# sshd makes its host key at the boot, on an emulated processor.
readonly SSHD_LIMIT_S=120
# What ssh calls the sshd in the guest.
readonly PEER=bench-peer

# Made once. The image has the key pair's public half, so without the pair it is of no use.
make_image() {
    key=$XPOOL_CACHE_DIR/key
    if [ ! -e "$key.pub" ]; then
        rm -rf "$XPOOL_CACHE_DIR/images"
        mkdir -p "$XPOOL_CACHE_DIR"
        ssh-keygen -q -t ed25519 -N '' -C xpool-bench -f "$key"
    fi
    say "an image of $cpu with OpenSSH"
    XPOOL_GUEST_SSHD=1 XPOOL_GUEST_SSHD_KEY=$(<"$key.pub") xpool image build "$cpu"
}

# make_tools TOOL...: the folder $work/tools, as of a package, with what builders call. A guest's sandbox has a shell and nothing else.
make_tools() {
    local tool bin=$work/tools/bin
    mkdir -p "$bin"
    cpio --extract --quiet --to-stdout bin/busybox <"$XPOOL_CACHE_DIR/images/$cpu-linux/initrd" >"$bin/busybox"
    chmod 755 "$bin/busybox"
    for tool in "$@"; do ln -s busybox "$bin/$tool"; done
}

# forward_sshd NAME: the VM that this installation runs is also reached through its own sshd. Its QEMU is given one more
# option, and its kernel's command line asks for sshd.
forward_sshd() {
    local name=$1 profile=vm-configs/$cpu-linux.toml qemu
    qemu=$(command -v "$(sed -n 's/^qemu = "\(.*\)"/\1/p' "$profile")")
    cat >"$work/qemu" <<END
#!/bin/sh
for argument do
    shift
    case \$argument in user,*) argument=\$argument,hostfwd=tcp:127.0.0.1:$sshd_port-:22 ;; esac
    set -- "\$@" "\$argument"
done
exec "$qemu" "\$@"
END
    chmod +x "$work/qemu"
    sed "s|^qemu = .*|qemu = \"$work/qemu\"|; s|^cmdline = \"|&xpool.sshd |" "$profile" >"$work/$name/$profile"
}

# QEMU takes connections from its start on, so only a key shows that sshd answers.
wait_for_sshd() {
    say "waiting for sshd in the guest"
    local deadline=$((SECONDS + SSHD_LIMIT_S)) host_key=''
    until [ -n "$host_key" ]; do
        [ "$SECONDS" -lt "$deadline" ] || die "sshd in the guest does not answer" "its console: $(in_installation peer xpool logs "$cpu-1" 2>&1)"
        host_key=$(ssh-keyscan -T 5 -t ed25519 -p "$sshd_port" 127.0.0.1 2>/dev/null | sed 's/^[^ ]* //') || true
    done
    peer_machine="ssh-ng://root@$PEER $cpu-linux $key 1 1 - - $(base64 -w 0 <<<"$host_key")"
    printf '%s %s\n' "$PEER" "$host_key" >"$work/known_hosts"
}

# The same as xpool gives to its own clients, so that only what answers differs.
write_peer_ssh_config() {
    cat >"$work/ssh_config" <<END
Host $PEER
  HostName 127.0.0.1
  Port $sshd_port
  HostKeyAlias $PEER
  UserKnownHostsFile "$work/known_hosts"
  StrictHostKeyChecking yes
  IdentityFile "$key"
  IdentitiesOnly yes
  ControlMaster no
  Compression no
  ConnectTimeout 20
END
}

# nix_build MACHINES SSH_CONFIG NAME: a build that is new each time. It writes which boot of which VM it ran in, and the
# marks of its inputs. What Nix says is kept in files.
nix_build() {
    local expression="derivation {
        name = \"$3\"; system = \"$cpu-linux\"; builder = \"/bin/sh\";
        inputs = map builtins.storePath [ $inputs ];
        args = [ \"-c\" \"
            read -r boot < /proc/sys/kernel/random/boot_id; echo \$boot > \$out
            for input in \$inputs; do read -r mark < \$input/mark; echo \$mark >> \$out; done
        \" ];
    }"
    # In the foreground, so that Ctrl-C reaches it.
    NIX_SSHOPTS="-F $2" timeout --foreground "$build_limit_s" nix-build --store "$work/store" --no-out-link \
        --option substitute false --option build-users-group "" --builders "$1" -E "$expression" \
        >"$work/out" 2>"$work/log"
}

# timed NAME MACHINES SSH_CONFIG FILE: adds the microseconds that a build took to the file.
timed() {
    local name started ended path
    name=$1-$((n_builds += 1))
    started=${EPOCHREALTIME/./}
    if ! nix_build "$2" "$3" "$name"; then
        cat "$work/log" >&2
        printf 'error: the build %s failed; nix-build said what is above\n' "$name" >&2
        cat "$work"/ours/log "$work"/ours/state/logs/manager.log >&2 2>/dev/null || true
        exit 1
    fi
    ended=${EPOCHREALTIME/./}
    printf '%s\n' $((ended - started)) >>"$4"
    path=$work/store$(<"$work/out")
    head -n 1 "$path" >>"$work/boots"
    if ! tail -n +2 "$path" | cmp -s - "$work/marks"; then
        printf 'error: the build %s did not read what its inputs are; it wrote:\n%s\n' "$name" "$(<"$path")" >&2
        exit 1
    fi
    printf '  %-16s %s s\n' "$name" "$(seconds $((ended - started)))" >&2
}

# all_built NAME MACHINES SSH_CONFIG FILE COUNT LIMIT_S EXPRESSION: adds the microseconds that so many builds took together.
all_built() {
    local started ended
    started=${EPOCHREALTIME/./}
    NIX_SSHOPTS="-F $3" timeout --foreground "$6" nix-build --store "$work/store" --no-out-link -j0 \
        --option substitute false --option build-users-group "" --builders "$2" -E "$7" \
        >"$work/out" 2>"$work/log" || die "the builds of $1 failed" "$(<"$work/log")"
    ended=${EPOCHREALTIME/./}
    [ "$(wc -l <"$work/out")" = "$5" ] || die "$1 did not build $5 paths" "$(<"$work/out")"
    printf '%s\n' $((ended - started)) >>"$4"
    printf '  %-16s %s s\n' "$1" "$(seconds $((ended - started)))" >&2
}

# peer_with_jobs N: a VM with sshd for the peer, which is given so many builds at a time: the fourth field of its line.
peer_with_jobs() {
    max_vms=1
    installation peer 'reuse = "always"' 'template = false' 'pause = false'
    forward_sshd peer
    peer_vm peer
    peer_machine=$(awk -v jobs="$1" '{ $4 = jobs; print }' <<<"$peer_machine")
}

ours() { timed ours "$our_machines" "$work/ours/state/ssh_config" "$1"; }
peer() { timed peer "$peer_machine" "$work/ssh_config" "$1"; }

# boots_are N WHAT: the builds that were measured ran in N boots of VMs.
boots_are() {
    [ "$(sort -u "$work/boots" | wc -l)" = "$1" ] && return
    printf 'error: the builds did not run %s, so they cannot be compared\n' "$2" >&2
    exit 1
}

# peer_vm NAME: the VM of an installation, reached through its sshd.
peer_vm() {
    say "a VM with sshd"
    in_installation "$1" xpool up "$cpu"
    wait_for_sshd
    write_peer_ssh_config
}

# Waits until the VM of the build before is gone.
at_rest() {
    local deadline=$((SECONDS + STOP_LIMIT_S))
    while in_installation ours xpool status --json | grep -q console-log; do
        [ "$SECONDS" -lt "$deadline" ] || die "the VM does not go after its build" "$(in_installation ours xpool status 2>&1)"
    done
}

fresh() {
    at_rest
    ours "$1"
}

# serve NAME: a manager without VMs.
serve() {
    local deadline=$((SECONDS + STOP_LIMIT_S))
    in_installation "$1" xpool serve 2>"$work/$1/log" &
    until in_installation "$1" xpool status >"$work/log" 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || die "the manager does not come" "$(<"$work/$1/log")"
    done
}
