#!/usr/bin/env bash
# check.sh: everything that can be checked without a VM: format, lints, tests, dependencies, Nix, shell scripts.
# Runs all of it and says at the end what failed.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

failed=()
check() {
    local name=$1
    shift
    say "$name"
    "$@" || failed+=("$name")
}

format() {
    local package
    for package in . tests/fuzz tests/pool; do cargo fmt --check --manifest-path "$package/Cargo.toml" || return; done
}

# Those without VMs; built with the feature that the others need, so that scripts/test builds xpool once for both. nextest ends one that
# hangs and names it.
tests() {
    cargo nextest run --profile check --locked --features real-vm --lib --bins --test it --test gateway --no-input-handler &&
        cargo test --quiet --locked --features real-vm --doc
}

shell_scripts() {
    grep -lrE '^#!(/usr)?/bin/(env |busybox )?(ba)?sh|^# shellcheck shell=' scripts images tests .ci
}

# The tests parse and evaluate what is written in Nix's language; these are for its style. deadnix is installed; nixfmt and statix run
# where they are there, since cargo cannot install them: what it knows as statix is something else.
nix_style() {
    local files file status=0
    mapfile -t files < <(find flake.nix nixos-module.nix images tests/nix -name '*.nix')
    if have nixfmt; then nixfmt --check "${files[@]}" || status=1; fi
    deadnix --fail "${files[@]}" || status=1
    if have statix; then
        for file in "${files[@]}"; do statix check "$file" || status=1; done
    fi
    return $status
}

# cargo-deny reads its list of advisories from the network; without it the rest is still checked.
deny() {
    cargo deny --config .deny.toml --log-level error check bans licenses sources || return
    if timeout 60 cargo deny --config .deny.toml --log-level error fetch db >/dev/null 2>&1; then
        cargo deny --config .deny.toml --log-level error check advisories
    else
        printf 'not checked: the list of security advisories cannot be fetched from here\n'
    fi
}

install_rust
install_check_tools
install_nextest
check format format
check clippy cargo clippy --quiet --all-targets --all-features --locked -- -D warnings
check tests tests
check deny deny
check nix nix_style
# shellcheck disable=SC2046 # file names of our own, without spaces
check shellcheck shellcheck $(shell_scripts)

if [ ${#failed[@]} -gt 0 ]; then
    printf '\nfailed: %s\n' "${failed[*]}" >&2
    exit 1
fi
say "all checks passed"
