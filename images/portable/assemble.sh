#!/bin/bash
# assemble.sh ARCH SUITE KEYRING TMP OUT_DIR: packages in, kernel, initrd, disk.qcow2, image.env out.
# Run by build.sh under fakeroot. Packages are extracted, not configured: nothing foreign runs here,
# and what their configuration would have made is made below.
set -euo pipefail

arch=$1 suite=$2 keyring=$3 tmp=$4 out=$5
readonly EX_UNAVAILABLE=69
# A disk is made larger for a VM (`disk-gib`), and there is room for the tables of one of 4 TiB.
readonly DISK_SIZE=16G MOST_BLOCKS=1073741824 BUILD_USERS=32
# Named one by one, so that the host's mke2fs.conf has no say. No journal and no checksums: the disk
# is thrown away, and both are work for an emulated CPU.
readonly EXT4_FEATURES=none,dir_index,dir_nlink,ext_attr,extent,extra_isize,filetype,flex_bg,huge_file,large_file,resize_inode,sparse_super,uninit_bg
# Loaded in the initrd, by two processes: what the disk needs, and the other devices and the store share.
readonly DISK_MODULES=(virtio_blk ext4)
readonly OTHER_MODULES=(virtio_console virtio_net virtio-rng virtio_balloon 9p 9pnet_virtio overlay)
# Loaded on demand, by where they are in the kernel's tree: the power button, and, as on any builder, what test suites ask for by a
# kind of socket, file system, cipher or virtual device.
readonly MORE_MODULES=(drivers/firmware/qemu_fw_cfg.ko drivers/input/{evdev,keyboard/gpio_keys}.ko arch/ crypto/ fs/ kernel/ lib/ mm/ net/ security/
    drivers/{block,crypto,dax,md,vhost}/ drivers/net/'[^/]*$' drivers/net/{bonding,ipvlan,netdevsim,ppp,team,vxlan,wireguard}/
    drivers/net/can/'[^/]*$' drivers/scsi/scsi_debug.ko)

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$tmp/root log=$tmp/mmdebstrap.log
export TMPDIR=$tmp
packages=linux-image-$arch,bash,bash-static,busybox-static,ca-certificates,coreutils,kmod,ncurses-base,netbase,nix-bin,qemu-guest-agent,socat,sqlite3
[ "${XPOOL_GUEST_SSHD-}" = 1 ] && packages+=,openssh-server

unavailable() {
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit $EX_UNAVAILABLE
}

unpack() {
    # Below the new root, too, apt looks where its maker said: that of nixpkgs below /nix/store. mmdebstrap writes for Debian's.
    # shellcheck disable=SC2016 # mmdebstrap's shell expands it
    local dirs='printf "Dir::%s\";\n" "Cache \"var/cache/apt" "Etc \"etc/apt" "Log \"var/log/apt" "State \"var/lib/apt" \
        >>"$MMDEBSTRAP_APT_CONFIG"'
    # The mode chrootless needs neither root nor namespaces; with the variant extract no package
    # script runs, which is what its warning is about.
    mmdebstrap --mode=chrootless --variant=extract --format=directory --skip=check/chrootless \
        --architectures="$arch" --components=main --keyring="$keyring" --include="$packages" \
        --aptopt='Acquire::Retries "3"' --aptopt='Acquire::Languages "none"' --setup-hook="$dirs" \
        "$@" "$suite" "$root" ${XPOOL_DEBIAN_MIRROR:+"$XPOOL_DEBIAN_MIRROR"} 2>&1 | tee "$log"
}

unpack_or_explain() {
    # shellcheck disable=SC2016 # mmdebstrap's shell expands it
    local alone='sed -i "/-updates\|-security/d" "$1/etc/apt/sources.list"'
    unpack && return
    # A mirror in the middle of an update. The release itself rarely changes; and while it does, one of its two names may still
    # have all of it as it was before.
    if grep -qE "Failed to fetch .*$suite-(updates|security)" "$log"; then
        echo "warning: the mirror's $suite-updates or $suite-security is inconsistent, using $suite alone" >&2
        rm -rf "$root"
        unpack --setup-hook="$alone" && return
    fi
    if grep -qE "Failed to fetch .*/$suite/.*(unexpected size|Hash Sum mismatch)" "$log"; then
        echo "warning: the mirror's $suite is inconsistent, looking for it as stable" >&2
        rm -rf "$root"
        # shellcheck disable=SC2016 # mmdebstrap's shell expands it
        unpack --setup-hook="$alone; "'sed -i "s/ '"$suite"' / stable /" "$1/etc/apt/sources.list"' \
            --extract-hook='grep -qx "Codename: '"$suite"'" "$1"/var/lib/apt/lists/*Release' && return
    fi
    if grep -q 'No space left on device' "$log"; then
        unavailable "the disk of $tmp is full" 'free some, or name another folder in XPOOL_BUILD_TMP'
    elif grep -qE 'NO_PUBKEY|is not signed|signatures couldn.t be verified|EXPKEYSIG' "$log"; then
        newer='the package debian-archive-keyring'
        [ -z "${XPOOL_NIXPKGS-}" ] || newer='xpool, whose package has these keys'
        unavailable "the keys in $keyring do not fit Debian $suite" "update $newer"
    elif grep -qE 'Failed to fetch|Could not (resolve|connect)|Temporary failure|Unable to (connect|locate)' "$log"; then
        unavailable 'the Debian packages could not be fetched' \
            'check the network, or name a mirror in XPOOL_DEBIAN_MIRROR'
    fi
    echo 'error: mmdebstrap failed' >&2
    exit 1
}

# What a build guest never reads. Debian's kernel package brings a whole system to configure itself.
prune() {
    cd "$root"
    rm -rf boot dev/* tmp/* usr/games var/cache/* var/lib/apt var/log/* \
        etc/{apt,init.d,initramfs-tools,pam.d,perl,rc?.d,systemd,udev} \
        usr/share/{bash-completion,bug,doc,i18n,info,initramfs-tools,lintian,locale,man,perl*,systemd,zsh} \
        usr/lib/{systemd,udev,initramfs-tools} \
        usr/lib/*-linux-gnu/{gconv,libperl*,perl*,systemd} \
        usr/bin/*perl* usr/bin/systemd-* usr/bin/*ctl
    cd - >/dev/null
}

modules_needed() {
    modprobe -d "$root" -S "$kernel_version" --show-depends "$1" 2>/dev/null | sed -n 's/^insmod \(.*[^ ]\) *$/\1/p'
}

# A module that is built in, or absent on this architecture, has no file and needs none.
keep_modules() {
    local all=$root/usr/lib/modules/$kernel_version kept=$tmp/kept
    depmod -b "$root" "$kernel_version"
    mkdir -p "$tmp/modules" "$initrd/modules"
    take_modules "${DISK_MODULES[@]}" >"$initrd/modules/disk"
    take_modules "${OTHER_MODULES[@]}" >"$initrd/modules/other"
    mv "$tmp/modules"/* "$initrd/modules/"
    more_modules "$all/modules.dep" >"$kept"
    (cd "$all" && find kernel -name '*.ko*' | sort | comm -23 - "$kept" | xargs -d '\n' rm -f)
    find "$all/kernel" -type d -empty -delete
    depmod -b "$root" "$kernel_version"
}

# The files of modules that are loaded on demand, and of those that they need, of a modules.dep.
more_modules() {
    local IFS='|'
    awk -F '[: ]+' -v wanted="^kernel/(${MORE_MODULES[*]})" \
        '$1 ~ wanted { for (i = 1; i <= NF; i++) if ($i != "") print $i }' "$1" | sort -u
}

# Copies modules and what they need, prints the names of the new ones in the order to load them.
take_modules() {
    local module file name
    for module in "$@"; do
        while read -r file; do
            name=$(basename "$file" .xz)
            [ -e "$tmp/modules/$name" ] && continue
            case $file in *.xz) xz -dc "$file" ;; *) cat "$file" ;; esac >"$tmp/modules/$name"
            echo "$name"
        done < <(modules_needed "$module")
    done
}

accounts() {
    local base=$root/usr/share/base-passwd members i
    members=$(seq -s, -f 'nixbld%.0f' $BUILD_USERS)
    {
        cat "$base/passwd.master"
        [ -e "$root/usr/sbin/sshd" ] && echo 'sshd:x:101:65534::/run/sshd:/usr/sbin/nologin'
        for ((i = 1; i <= BUILD_USERS; i++)); do
            echo "nixbld$i:x:$((30000 + i)):30000:Nix build user $i:/var/empty:/usr/sbin/nologin"
        done
    } | sed 's/^\([^:]*\):[^:]*:/\1:x:/' >"$root/etc/passwd"
    {
        sed 's/^\([^:]*\):[^:]*:/\1:x:/' "$base/group.master"
        echo "nixbld:x:30000:$members"
    } >"$root/etc/group"
    # Nobody has a password.
    sed 's/:.*/:*:19000:0:99999:7:::/' "$root/etc/passwd" >"$root/etc/shadow"
    chmod 640 "$root/etc/shadow"
}

configure() {
    local tool
    mkdir -p "$root"/{etc/nix,nix/store,usr/lib/xpool,var/empty,var/log}
    install -m 755 "$here/init" "$root/usr/lib/xpool/init"
    install -m 755 "$here/../xpool-guest" "$root/usr/bin/xpool-guest"
    install -m 755 "$here/shutdown" "$root/usr/sbin/shutdown"
    ln -s shutdown "$root/usr/sbin/poweroff"
    install -m 644 "$here/nix.conf" "$root/etc/nix/nix.conf"
    install -m 644 "$here/sysctl.conf" "$root/etc/sysctl.conf"
    ln -sf busybox "$root/usr/bin/sh"
    # util-linux's tools are not in the image; the guest agent sets the clock through hwclock.
    for tool in hwclock mount umount; do ln -sf ../bin/busybox "$root/usr/sbin/$tool"; done
    printf 'passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n' >"$root/etc/nsswitch.conf"
    # The name server of QEMU's user network; mmdebstrap left the host's.
    rm -f "$root/etc/resolv.conf"
    echo 'nameserver 10.0.2.3' >"$root/etc/resolv.conf"
    : >"$root/etc/fstab"
    find "$root/usr/share/ca-certificates" -name '*.crt' -print0 | sort -z | xargs -0 cat \
        >"$root/etc/ssl/certs/ca-certificates.crt"
    rm -f "$root"/etc/{hostname,machine-id}
    if [ "${XPOOL_GUEST_SSHD-}" = 1 ]; then configure_sshd; fi
}

# For measuring a peer: OpenSSH as it comes. The host key is made at the first boot.
configure_sshd() {
    rm -f "$root"/etc/ssh/ssh_host_*
    printf 'PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nSubsystem sftp internal-sftp\n' \
        >"$root/etc/ssh/sshd_config"
    install -d -m 700 "$root/root/.ssh"
    echo "${XPOOL_GUEST_SSHD_KEY:?the public key for XPOOL_GUEST_SSHD=1}" >"$root/root/.ssh/authorized_keys"
}

make_initrd() {
    mkdir -p "$initrd"/{bin,dev,root}
    cp "$root/usr/bin/busybox" "$initrd/bin/"
    install -m 755 "$here/initramfs-init" "$initrd/init"
    # Not compressed: QEMU copies it in no time, unpacking it would be the guest's work.
    (cd "$initrd" && find . | sort | cpio --create --format=newc --quiet) >"$out/initrd"
}

make_disk() {
    mke2fs -q -F -t ext4 -O $EXT4_FEATURES -b 4096 -I 256 -i 8192 -m 0 \
        -E lazy_itable_init=1,nodiscard,resize=$MOST_BLOCKS -d "$root" "$tmp/disk.raw" $DISK_SIZE
    qemu-img convert -f raw -O qcow2 "$tmp/disk.raw" "$out/disk.qcow2"
}

write_env() {
    # On a panic the guest restarts at once, and QEMU with -no-reboot ends.
    cat >"$out/image.env" <<END
NIX_VERSION=$nix_version
KERNEL_VERSION=$kernel_version
CMDLINE=quiet loglevel=4 panic=-1 oops=panic
DEBIAN_SUITE=$suite
END
}

# Only steps may reach the caller's stdout.
exec {steps}>&1 1>&2
step() { echo "step: $1" >&"$steps"; }

echo $$ >"$tmp/group"
initrd=$tmp/initrd
step 'fetching and unpacking packages'
unpack_or_explain
nix_version=$(zcat "$root/usr/share/doc/nix-bin/changelog.Debian.gz" | sed -n '1s/^nix (\([0-9.]*\).*/\1/p')
[ -n "$nix_version" ]
kernel_version=$(basename "$root"/usr/lib/modules/*)
cp "$root"/boot/vmlinu[xz]-* "$out/kernel"
step 'removing what a builder does not need'
prune
keep_modules
step 'configuring the guest'
accounts
configure
step 'making the initial RAM disk'
make_initrd
step 'making the disk'
make_disk
write_env
