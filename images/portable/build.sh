#!/bin/bash
# build.sh SYSTEM OUT_DIR: makes the portable guest of one system from Debian packages.
# Checks the host and keeps it clean; assemble.sh does the work, under fakeroot, so that neither
# root nor user namespaces are needed and the files still belong to root in the image.
# Steps go to stdout, everything else to stderr.
set -euo pipefail

readonly SUITE=trixie
readonly EX_USAGE=2 EX_UNAVAILABLE=69
# Unpacked packages 0.5 GiB, their archives, the raw disk; then the finished files.
readonly TMP_NEED_KIB=$((1536 * 1024)) OUT_NEED_KIB=$((512 * 1024))

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

die() {
    local status=$1 line
    shift
    printf 'error: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf 'hint: %s\n' "$line" >&2; done
    exit "$status"
}

check_tools() {
    local missing=() packages=() tool package
    while read -r tool package; do
        command -v "$tool" >/dev/null && continue
        missing+=("$tool")
        packages+=("$package")
    done <<'END'
apt-get apt
cpio cpio
depmod kmod
dpkg-deb dpkg
fakeroot fakeroot
mke2fs e2fsprogs
mmdebstrap mmdebstrap
modprobe kmod
qemu-img qemu-utils
setsid util-linux
xz xz-utils
END
    [ ${#missing[@]} -eq 0 ] && return
    mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
    # `qemu-utils` is in `qemu`, and `xz-utils` is `xz`.
    if [ -n "${XPOOL_NIXPKGS-}" ]; then
        die $EX_UNAVAILABLE "missing tools: ${missing[*]}" \
            "xpool's own package should have them: please report it; until then: nix-shell -p ${packages[*]%-utils}"
    fi
    die $EX_UNAVAILABLE "missing tools: ${missing[*]}" \
        "install the Debian or Ubuntu packages: apt-get install ${packages[*]}"
}

find_keyring() {
    local dir=${XPOOL_DEBIAN_KEYRINGS:-/usr/share/keyrings} suffix
    for suffix in gpg pgp; do
        [ -r "$dir/debian-archive-keyring.$suffix" ] && echo "$dir/debian-archive-keyring.$suffix" && return
    done
    if [ -n "${XPOOL_NIXPKGS-}" ]; then
        die $EX_UNAVAILABLE "the keys that sign the Debian archive are not in $dir" \
            "xpool's own package should have them: please report it"
    fi
    die $EX_UNAVAILABLE 'the keys that sign the Debian archive are not on this machine' \
        'install the package debian-archive-keyring (Debian and Ubuntu have it)'
}

check_space() {
    local dir=$1 need=$2 free
    free=$(df -Pk "$dir" | awk 'NR == 2 { print $4 }')
    [ "$free" -ge "$need" ] && return
    die $EX_UNAVAILABLE \
        "not enough space in $dir: $((need / 1024)) MiB needed, $((free / 1024)) MiB available" \
        'free some, or name another folder in XPOOL_BUILD_TMP'
}

case ${1-} in
    riscv64-linux) arch=riscv64 ;;
    aarch64-linux) arch=arm64 ;;
    *) die $EX_USAGE 'usage: build.sh riscv64-linux|aarch64-linux OUT_DIR' ;;
esac
if [ $# -ne 2 ] || [ ! -d "$2" ]; then die $EX_USAGE 'usage: build.sh riscv64-linux|aarch64-linux OUT_DIR'; fi
out=$(cd "$2" && pwd)
[ -z "$(ls -A "$out")" ] || die $EX_USAGE "$out is not empty"

echo 'step: checking tools and space'
# An ordinary user's path often lacks them, and depmod and mke2fs are there.
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin LC_ALL=C.UTF-8
umask 022
check_tools
keyring=$(find_keyring)
tmp=$(mktemp -d "${XPOOL_BUILD_TMP:-${TMPDIR:-/var/tmp}}/xpool-build.XXXXXX")

# In a session of its own, so that killing the caller's whole group leaves somebody to clean up.
exec {lease}> >(exec setsid bash "$here/janitor.sh" "$tmp")
janitor=$!
finish() {
    exec {lease}>&-
    wait "$janitor" || true
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

check_space "$tmp" $TMP_NEED_KIB
check_space "$out" $OUT_NEED_KIB

# In the background, because a shell handles a signal only between commands or while it waits.
# The outer session keeps fakeroot from the signals of this group, the inner one lets the janitor
# end everything but fakeroot, which then ends its daemon itself.
setsid --wait fakeroot -- setsid --wait \
    bash "$here/assemble.sh" "$arch" $SUITE "$keyring" "$tmp" "$out" {lease}>&- &
worker=$!
echo $worker >&"$lease"
wait $worker
