# shellcheck shell=bash
# The parts of `scripts/test --full`, and their results. Sourced; `cache` is scripts/lib.sh's.

# Every test that does more in the full tier (tests/common/tier.rs) is in a part.
readonly PARTS=(random volumes clients repetitions)

run_part() {
    case $1 in
        random)
            part "the pool's properties, a hundred thousand random runs" properties
            part "fuzzing the parsers" scripts/fuzz
            ;;
        volumes) tests_part "$1" files matrix_large ;;
        clients) tests_part "$1" files matrix matrix_interrupt ;;
        repetitions) tests_part "$1" files crowd fresh inputs scaling template ;;
    esac
}

properties() {
    PROPTEST_CASES=17000 cargo test --locked --quiet --release --lib --manifest-path tests/pool/Cargo.toml \
        --target-dir target/pool pool::properties
}

# Results are kept in the cache: of each part a line with date, revision, minutes and counts.
result_of() { printf '%s/full/%s' "${cache:?}" "$1"; }

revision() {
    local changed=''
    [ -z "$(git status --porcelain 2>/dev/null)" ] || changed=-changed
    printf '%s%s' "$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)" "$changed"
}

# full [PART...]: runs them, or those that have not passed on this revision, and shows the results of all. Fails unless all have passed.
full() {
    local name names=("$@")
    if [ $# = 0 ]; then
        for name in "${PARTS[@]}"; do has_passed "$name" || names+=("$name"); done
    fi
    prepare
    export XPOOL_TEST_FULL=1
    for name in "${names[@]}"; do full_part "$name"; done
    show_results
}

full_part() {
    local name=$1 began=$SECONDS result
    clear_report
    say "part $name of the full tier"
    run_part "$name"
    show_times
    result=$(result_of "$name")
    mkdir -p "${result%/*}"
    printf '%s\t%s\t%s\t%s\n' "$(date --utc +%FT%RZ)" "$(revision)" $(((SECONDS - began + 59) / 60)) "$(counts)" >"$result.new"
    mv "$result.new" "$result"
}

has_passed() {
    local now
    now=$(revision)
    [[ $now != *-changed && $(cut -f 2,4 "$(result_of "$1")" 2>/dev/null) == "$now"$'\t'*" 0 failed,"* ]]
}

show_results() {
    local name status=0
    printf '\n%-12s %-18s %-22s %7s  %s\n' part date revision minutes result
    for name in "${PARTS[@]}"; do
        awk -F '\t' -v name="$name" '{ printf "%-12s %-18s %-22s %7s  %s\n", name, $1, $2, $3, $4 }' "$(result_of "$name")" 2>/dev/null ||
            printf '%-12s has not run yet\n' "$name"
        has_passed "$name" || status=1
    done
    for name in "${PARTS[@]}"; do cut -f 4 "$(result_of "$name")" 2>/dev/null || true; done |
        awk '{ passed += $1; failed += $3; skipped += $5 }
            END { printf "\n%d passed, %d failed, %d skipped\n", passed, failed, skipped }'
    return $status
}
