# The builder of packages.nix, in the manner of nixpkgs' stdenv: unpacks a source, and runs the package's own phases.
# shellcheck shell=bash disable=SC2154,SC1090 # variables are the derivation's
set -euo pipefail
export PATH=$cc/bin:$tools/bin:$tools/lib/go-1.24/bin HOME=$NIX_BUILD_TOP TERM=dumb LC_ALL=C SOURCE_DATE_EPOCH=315532800
export CONFIG_SHELL=$tools/bin/bash SHELL=$tools/bin/bash
export PERL5LIB=$tools/lib/perl-base:$tools/lib/perl/5.40:$tools/share/perl/5.40
export GOROOT=$tools/lib/go-1.24 GOPROXY=off GOTOOLCHAIN=local CGO_ENABLED=0
export M4=$tools/bin/m4 BISON_PKGDATADIR=$tools/share/bison

# patch_shebangs FOLDER: scripts name programs of folders that a sandbox has not got.
patch_shebangs() {
    local file
    find "$1" -type f -perm -u+x -exec grep -lIZ -m1 '^#!' {} + | while IFS='' read -r -d '' file; do
        touch -r "$file" time
        sed -i "1s#^\#! */usr/bin/env  *#\#!$tools/bin/#; 1s#^\#! *\(/usr\)\?/bin/#\#!$tools/bin/#" "$file"
        touch -r time "$file"
    done
}

# summary PASSED FAILED SKIPPED: what a test suite's own end says of it.
summary() { printf 'passed %s, failed %s, skipped %s\n' "$1" "$2" "$3" >"$out/tests"; }

# ctest_in FOLDER JOBS
ctest_in() {
    local log
    log=$(cd "$1" && ctest --output-on-failure -j"$2" 2>&1) || true
    echo "$log"
    summary "$(grep -c ' Passed ' <<<"$log" || true)" "$(grep -cE '\*\*\*(Failed|Timeout|Exception|Not Run)' <<<"$log" || true)" \
        "$(grep -c '\*\*\*Skipped' <<<"$log" || true)"
}

mkdir -p "$out"
mkdir source && cd source
[ -z "${src-}" ] || tar -x --strip-components=1 --no-same-owner -f "$src"
patch_shebangs .
jobs=$NIX_BUILD_CORES
[ "$jobs" != 0 ] || jobs=$(nproc)
eval "$build"
[ -z "$check" ] || eval "$check"
