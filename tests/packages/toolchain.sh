# The builder of toolchain.nix.
# shellcheck shell=bash disable=SC2154 # variables are the derivation's
set -euo pipefail
export LC_ALL=C

# output_of PACKAGE: which of the outputs has what is in it. None refers to one that is named after it.
output_of() {
    case $1 in
        libc6 | libc6-dev | libc-dev-bin | linux-libc-dev) echo "$libc" ;;
        gcc-* | g++-* | cpp-* | libgcc-14-dev | libstdc++-14-dev) echo "$gcc" ;;
        binutils*) echo "$binutils" ;;
        # What an interpreter finds beside itself.
        libpython* | libperl* | libstd-rust*) echo "$tools" ;;
        lib* | zlib1g*) echo "$lib" ;;
        *) echo "$tools" ;;
    esac
}

# Has each link in a package's tree say from the root where it leads to, in folders without the triple.
name_targets() {
    local link target
    while read -r link; do
        target=$(readlink "$link")
        [[ $target == /* ]] || target=$(realpath -ms "${link%/*}/$target")
        target=${target#"$PWD/unpacked"}
        target=/usr/${target#/usr/}
        target=${target/#"/usr//"/"/usr/"}
        target=${target/#"/usr/lib/$triple/"/"/usr/lib/"}
        target=${target/#"/usr/include/$triple/"/"/usr/include/"}
        target=${target/#"/usr/sbin/"/"/usr/bin/"}
        ln -sfn "$target" "$link"
    done < <(find unpacked/* -type l)
    # libc's interpreter is a link to itself without the triple.
    for link in unpacked/usr/lib/*; do
        if [ -L "$link" ] && [ "$(readlink "$link")" = "${link#unpacked}" ]; then rm "$link"; fi
    done
}

# place PACKAGE_FILE: its programs, libraries and headers.
place() {
    local out name=${1##*/} folder
    out=$(output_of "${name%%_*}")
    mkdir -p "$out"/{bin,lib,include}
    for folder in lib include; do ln -sfT . "$out/$folder/$triple"; done
    ln -sfT bin "$out/sbin"
    rm -rf unpacked
    mkdir unpacked
    # Nix forbids builds to set what makes a program another user's.
    dpkg-deb --fsys-tarfile "$1" | tar -x -C unpacked --no-same-owner --no-same-permissions
    # base-files has those that a distribution without /usr/bin had.
    find unpacked -maxdepth 1 -type l -delete
    name_targets
    # The last are there already. Where a file is both for any system and for this one, this one's counts.
    for folder in . usr usr/{lib,include}/"$triple"; do
        [ ! -d "unpacked/$folder" ] ||
            tar -c -C "unpacked/$folder" . | tar -x -C "$out/${folder#usr}" --no-same-owner --keep-directory-symlink
    done
    rm -rf "${out:?}"/{usr,etc,var,dev,run,tmp,home,root,opt,srv,media,mnt,boot,proc,sys} "$out"/share/{doc,man,info,locale,lintian,bug}
}

# What the packages' scripts would have made.
link_names() {
    local name
    ln -s gawk "$tools/bin/awk"
    ln -s bash "$tools/bin/sh"
    for name in gcc g++ cpp; do ln -s "$triple-$name-14" "$gcc/bin/$name"; done
}

# Has links lead into the store. One to something that no package here has goes.
mend_links() {
    local link target out
    while read -r link; do
        target=$(readlink "$link")
        for out in "$libc" "$lib" "$gcc" "$binutils" "$tools"; do
            if [ -e "$out/${target#/usr/}" ] || [ -L "$out/${target#/usr/}" ]; then
                ln -sfn "$out/${target#/usr/}" "$link"
                continue 2
            fi
        done
        rm "$link"
    done < <(find "$libc" "$lib" "$gcc" "$binutils" "$tools" -type l -lname '/usr/*')
}

mend_text() {
    local file
    # libc.so and its like are scripts for the linker.
    while read -r file; do
        sed -i "s#\(/usr\)\?/lib/$triple/#$libc/lib/#g; s# /lib\(64\)\?/ld-linux# $libc/lib/ld-linux#g" "$file"
    done < <(find "$libc/lib" -maxdepth 1 -name '*.so' -type f -size -2k)
    while read -r file; do
        sed -i "1s#^\#! */usr/bin/env  *#\#!$tools/bin/#; 1s#^\#! *\(/usr\)\?/bin/#\#!$tools/bin/#" "$file"
    done < <(find "$gcc/bin" "$tools/bin" -type f -exec grep -lI -m1 '^#!' {} +)
}

is_elf() {
    local magic=''
    IFS='' read -r -n 4 magic <"$1" 2>/dev/null || true
    [ "$magic" = $'\x7fELF' ]
}

# libc is its own interpreter's, and is left alone.
mend_programs() {
    local file libraries
    while read -r file; do
        if ! is_elf "$file" || ! patchelf --print-rpath "$file" >/dev/null 2>&1; then continue; fi
        libraries=$lib/lib:$libc/lib
        case $file in "$tools"/*) libraries=$tools/lib:$libraries ;; esac
        if patchelf --print-interpreter "$file" >/dev/null 2>&1; then
            patchelf --set-interpreter "$libc/lib/$interpreter" --set-rpath "$libraries" "$file"
        else
            patchelf --set-rpath "$libraries" "$file"
        fi
    done < <(find "$lib" "$gcc" "$binutils" "$tools" -type f \( -perm -u+x -o -name '*.so*' \))
}

make_wrapper() {
    local name
    mkdir -p "$cc/bin"
    for name in gcc g++ cpp; do
        sed "s#@bash@#$tools/bin/bash#; s#@program@#$gcc/bin/$name#; s#@libc@#$libc#g; s#@lib@#$lib#g; s#@binutils@#$binutils#g
            s#@interpreter@#$interpreter#" "$wrapper" >"$cc/bin/$name"
        chmod +x "$cc/bin/$name"
    done
    ln -s gcc "$cc/bin/cc"
    ln -s g++ "$cc/bin/c++"
    for name in "$binutils/bin/"*; do
        [[ ${name##*/} == "$triple"-* ]] || ln -s "$name" "$cc/bin/"
    done
}

for deb in "$debs"/*.deb; do place "$deb"; done
rm -rf "$libc"/share "$gcc"/share "$tools"/lib/{systemd,udev}
link_names
mend_links
mend_text
mend_programs
make_wrapper
