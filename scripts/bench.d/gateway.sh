# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with scripts/bench
# gateway.sh: the case gateway.

# What the case gateway sends and gets back, and how long that may take.
readonly ECHO_MIB=256
readonly ECHO_LIMIT_S=120

# Sets sshd. Nobody but this script is to use it, so no service of it stays.
install_sshd() {
    sshd=/usr/sbin/sshd policy=/usr/sbin/policy-rc.d
    [ -x "$sshd" ] && return
    has_apt || die "there is no $sshd" "install OpenSSH's server"
    # What is missing is known to as_root only from install_packages.
    missing=(openssh-server)
    apt_update
    # Debian starts a service as soon as it is installed, unless this program says no.
    if [ -e "$policy" ]; then
        install_packages openssh-server
    else
        printf '#!/bin/sh\nexit 101\n' | as_root install -m 755 /dev/stdin "$policy"
        install_packages openssh-server || { as_root rm -f "$policy" && exit "$EX_UNAVAILABLE"; }
        as_root rm -f "$policy"
    fi
    if have systemctl; then as_root systemctl disable --quiet ssh.service; fi
}

# The program that serves the echo: the gateway's tests, which have guests that are tasks.
build_echo() {
    say "building xpool's gateway with an echo"
    echo_program=$(cargo test --release --locked --no-run --quiet --test gateway --message-format json |
        sed -n '/"kind":\["test"\]/s/.*"executable":"\([^"]*\)".*/\1/p')
}

# comes FILE: waits until the server that was started last has made a file.
comes() {
    local deadline=$((SECONDS + STOP_LIMIT_S))
    until [ -s "$1" ]; do
        kill -0 "${servers[-1]}" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ] && continue
        die "the server that should make $1 does not come" "$(<"$work/log")"
    done
}

# Sets our_ssh.
start_echo() {
    mkdir "$work/echo"
    mkfifo "$work/echo/life"
    # It ends with its standard input, which is with this script however that ends.
    exec 9<>"$work/echo/life"
    XPOOL_TEST_GATEWAY=$work/echo "$echo_program" --exact apart::a_gateway_apart_echoes \
        <"$work/echo/life" >"$work/log" 2>&1 9>&- &
    servers+=($!)
    comes "$work/echo/ssh"
    read -ra our_ssh <"$work/echo/ssh" || true
    our_ssh+=(riscv64-00@127.0.0.1 'nix-daemon --stdio')
}

# An sshd on loopback for who runs this, and nobody else. Sets peer_ssh.
start_sshd() {
    local user
    user=$(id -un)
    [ "$user" != root ] || mkdir -p /run/sshd
    ssh-keygen -q -t ed25519 -N '' -f "$work/host_key"
    ssh-keygen -q -t ed25519 -N '' -f "$work/user_key"
    cat >"$work/sshd_config" <<END
ListenAddress 127.0.0.1:$sshd_port
HostKey $work/host_key
PidFile $work/sshd.pid
AuthorizedKeysFile $work/user_key.pub
AllowUsers $user
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
END
    "$sshd" -D -f "$work/sshd_config" -E "$work/log" 9>&- &
    servers+=($!)
    comes "$work/sshd.pid"
    printf '[127.0.0.1]:%s %s\n' "$sshd_port" "$(<"$work/host_key.pub")" >"$work/known_hosts"
    peer_ssh=(-F/dev/null "-i$work/user_key" "-p$sshd_port" -oIdentitiesOnly=yes -oBatchMode=yes
        "-oUserKnownHostsFile=$work/known_hosts" -oStrictHostKeyChecking=yes "$user@127.0.0.1" cat)
}

# echo_through NAME ANSWER FILE SSH...: adds the microseconds that the bytes took there and back. The login and the answer to
# what is said first come before.
echo_through() {
    local name=$1 answer=$2 file=$3 started ended client feeder
    shift 3
    rm -f "$work/to" "$work/from"
    mkfifo "$work/to" "$work/from"
    timeout --foreground "$ECHO_LIMIT_S" ssh "$@" <"$work/to" >"$work/from" 2>"$work/log" 9>&- &
    client=$!
    # In the order in which the other ends are opened.
    exec 7>"$work/to" 8<"$work/from"
    cat "$work/echo/hello" >&7
    head -c "$(stat -c %s "$answer")" <&8 | cmp -s - "$answer" || die "$name does not echo" "$(<"$work/log")"
    started=${EPOCHREALTIME/./}
    cat "$work/bytes" >&7 8<&- &
    feeder=$!
    "$look" || die "$name did not send back what it was sent" "$(<"$work/log")"
    ended=${EPOCHREALTIME/./}
    wait "$feeder"
    exec 7>&- 8<&-
    # How it ends says nothing: a client of the gateway leaves, and a session ends with it.
    wait "$client" || true
    printf '%s\n' $((ended - started)) >>"$file"
    printf '  %-16s %s s\n' "$name" "$(seconds $((ended - started)))" >&2
}

# Looking at each byte takes time, so that is done in the first round only.
all_bytes() { cmp -s -n $((ECHO_MIB << 20)) - "$work/bytes" <&8; }

as_many_bytes() {
    dd bs=1M iflag=fullblock count="$ECHO_MIB" of=/dev/null <&8 2>&1 | grep -q "^$((ECHO_MIB << 20)) bytes"
}

through_gateway() { echo_through gateway "$work/echo/answer" "$1" "${our_ssh[@]}"; }
through_sshd() { echo_through sshd "$work/echo/hello" "$1" "${peer_ssh[@]}"; }

bench_gateway() {
    cpu=''
    install_sshd
    build_echo
    start_echo
    start_sshd
    head -c $((ECHO_MIB << 20)) /dev/urandom >"$work/bytes"
    say "warming up"
    look=all_bytes
    through_gateway /dev/null
    through_sshd /dev/null
    look=as_many_bytes
    measure_rounds through_gateway through_sshd
    compared="$ECHO_MIB MiB through ssh and back"
    ours_is="xpool's gateway, echo" peer_is="sshd, cat"
}
