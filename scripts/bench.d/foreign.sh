# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with scripts/bench
# foreign.sh: what the case emulation runs on: a foreign Debian with a compiler, and QEMU's user mode of the very version
# of its system mode. Both are cached.

# The release alone, which never changes under a reader.
readonly FOREIGN_SUITE=trixie
readonly FOREIGN_PACKAGES=base-files,bash,coreutils,dash,diffutils,gcc,grep,libc6-dev,mawk,sed,tar,xz-utils
# Whose sources are configured and compiled.
readonly FOREIGN_SOURCES=(pwgen lua5.4)

# Sets foreign: an archive of a root folder. Its packages are extracted, not configured, so that nothing foreign runs here.
make_foreign_root() {
    local recipe tree=$work/foreign release
    recipe=$(cat scripts/bench.d/{foreign.sh,workloads} | sha256sum | cut -c 1-16)
    foreign=$XPOOL_CACHE_DIR/emulation/$cpu-$recipe.tar
    [ ! -e "$foreign" ] || return 0
    say "a Debian $FOREIGN_SUITE for $cpu with a compiler"
    mkdir -p "$XPOOL_CACHE_DIR/emulation"
    case $cpu in aarch64) release=arm64 ;; *) release=$cpu ;; esac
    # mmdebstrap's shell expands these.
    # shellcheck disable=SC2016
    local only_release='sed -i "/-updates\|-security/d; s/^deb \(.*\)/&\ndeb-src \1/" "$1/etc/apt/sources.list"'
    # shellcheck disable=SC2016
    local sources='cd "$1/usr/src" && APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get source --download-only'
    mmdebstrap --mode=chrootless --variant=extract --format=directory --skip=check/chrootless --components=main \
        --architectures="$release" --include="$FOREIGN_PACKAGES" --aptopt='Acquire::Retries "3"' \
        --aptopt='Acquire::Languages "none"' --setup-hook="$only_release" --extract-hook="$sources ${FOREIGN_SOURCES[*]}" \
        "$FOREIGN_SUITE" "$tree" ${XPOOL_DEBIAN_MIRROR:+"$XPOOL_DEBIAN_MIRROR"} ||
        die "the packages of Debian $FOREIGN_SUITE could not be fetched or unpacked" \
            'check the network, or name a mirror in XPOOL_DEBIAN_MIRROR'
    finish_foreign_root "$tree"
    rm -f "$XPOOL_CACHE_DIR/emulation/$cpu"-*
    tar -c -C "$tree" --owner=0 --group=0 --numeric-owner --sort=name . >"$foreign.new"
    mv "$foreign.new" "$foreign"
    rm -rf "$tree"
}

# What the packages' scripts would have made, the sources unpacked, and nothing that no workload reads.
finish_foreign_root() {
    local source
    rm -rf "${1:?}"/{dev,var/cache,var/lib}/* "$1"/usr/share/{doc,locale,man} "$1"/usr/libexec/gcc/*/*/lto1
    [ -e "$1/usr/bin/sh" ] || ln -s dash "$1/usr/bin/sh"
    ln -sf mawk "$1/usr/bin/awk"
    echo 'root:x:0:0:root:/root:/bin/sh' >"$1/etc/passwd"
    echo 'root:x:0:' >"$1/etc/group"
    for source in "${FOREIGN_SOURCES[@]}"; do
        mkdir "$1/usr/src/$source"
        tar -x -C "$1/usr/src/$source" --strip-components=1 --no-same-owner -f "$1/usr/src/$source"_*.orig.tar.*z
    done
    find "$1/usr/src" -maxdepth 1 -type f -delete
    cp scripts/bench.d/workloads "$1/usr/src/workloads"
}

# Sets qemu_user: user mode, statically linked, out of the same build of the same sources as this machine's system mode.
# The package is only unpacked: installed, it would have this machine run foreign programs.
find_qemu_user() {
    local system package version package_of
    system=$(readlink -f "$(command -v "qemu-system-$cpu")")
    has_apt || die "the case $bench takes QEMU's user mode from Debian's packages" "run it on Debian or Ubuntu"
    package_of=$(dpkg-query -S "$system" 2>/dev/null) || die "$system is of no package, so its user mode is not known"
    version=$(dpkg-query -W -f '${Version}' "${package_of%%:*}")
    qemu_user=$XPOOL_CACHE_DIR/emulation/qemu-$cpu-${version//[^0-9A-Za-z.+~-]/_}
    if [ ! -x "$qemu_user" ]; then
        apt_update
        has_version qemu-user "$version" || enable_backports
        say "QEMU's user mode, $version"
        mkdir -p "$work/qemu-user" "$XPOOL_CACHE_DIR/emulation"
        # Where the second is more than a link to the first, the first is not statically linked.
        for package in qemu-user qemu-user-static; do
            (cd "$work/qemu-user" && apt-get download -qq "$package=$version") ||
                die "the package $package=$version cannot be fetched" "upgrade QEMU to what the package sources have"
            dpkg-deb -x "$work/qemu-user/${package}_"*.deb "$work/qemu-user"
        done
        cp "$work/qemu-user/usr/bin/qemu-$cpu-static" "$qemu_user.new"
        mv "$qemu_user.new" "$qemu_user"
        rm -rf "$work/qemu-user"
    fi
    [ "$(qemu_version "$qemu_user")" = "$(qemu_version "$system")" ] || die "$qemu_user is not of the version of $system"
}

has_version() { apt-cache madison "$1" | awk -v wanted="$2" '$3 == wanted { found = 1 } END { exit !found }'; }
