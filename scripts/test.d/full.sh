# shellcheck shell=bash
# The parts of `scripts/test --full`, and their results. Sourced; `cache` is scripts/lib.sh's.

# Every test that does more in the full tier (tests/common/tier.rs) is in a part.
readonly PARTS=(random volumes clients repetitions packages-riscv64 packages-aarch64)

run_part() {
    case $1 in
        random)
            part "the pool's properties, a hundred thousand random runs" properties
            part "fuzzing the parsers" scripts/fuzz
            ;;
        # One after another: each of them keeps both processors busy for minutes.
        volumes) NEXTEST_TEST_THREADS=1 tests_part "$1" nextest 'test(/^matrix_large::/)' ;;
        clients) tests_part "$1" nextest 'test(/^(matrix|matrix_interrupt)::/)' ;;
        packages-*)
            part "tool chains and Linux" scripts/packages {"${1#*-}",x86_64}-linux{,-languages} linux
            NEXTEST_TEST_THREADS=1 tests_part "$1" nextest "test(/^packages::full::.*::${1#*-}/)"
            show_packages "${1#*-}"
            ;;
        repetitions) tests_part "$1" nextest 'binary(real) & test(/^(fresh|inputs|scaling|template)::/) | test(/^crowd::/)' ;;
    esac
}

# show_packages SYSTEM: what packages' own test suites have said, there and on x86_64.
show_packages() {
    local file name
    for file in "${XPOOL_TEST_PACKAGES:?}/tests/"*" $1-linux"; do
        [ -e "$file" ] || continue
        name=${file##*/} name=${name% *}
        printf '%-10s %s: %-40s x86_64: %s\n' "$name" "$1" "$(<"$file")" "$(<"${file% *} x86_64-linux")"
    done
}

properties() {
    PROPTEST_CASES=17000 cargo test --locked --quiet --release --lib --manifest-path tests/pool/Cargo.toml \
        --target-dir target/pool pool::properties
}

# Results are kept in the cache: of each part a line with date, revision, minutes and counts.
result_of() { printf '%s/full/%s' "${cache:?}" "$1"; }

# full [PART...]: runs these parts, or those that have not passed on this revision, and shows the results of all. Fails unless those that
# it was to run have passed.
full() {
    local name names=("$@") status=0
    if [ $# = 0 ]; then
        for name in "${PARTS[@]}"; do has_passed "$name" || names+=("$name"); done
    fi
    prepare
    if [ "${failed_parts:?}" != 0 ]; then end_report; fi
    export XPOOL_TEST_FULL=1
    for name in "${names[@]}"; do full_part "$name" || status=1; done
    show_results
    return $status
}

full_part() {
    local name=$1 began=$SECONDS before after result
    clear_report
    before=$(revision)
    say "part $name of the full tier"
    run_part "$name"
    show_times
    show_skips
    after=$(revision)
    [ "$before" = "$after" ] || before=$before-changed
    result=$(result_of "$name")
    mkdir -p "${result%/*}"
    printf '%s\t%s\t%s\t%s\n' "$(date --utc +%FT%RZ)" "$before" $(((SECONDS - began + 59) / 60)) "$(counts)" >"$result.new"
    mv "$result.new" "$result"
    [[ $(counts) == [1-9]*" 0 failed,"* ]]
}

# Whether a part has passed on this revision: something has, and nothing failed.
has_passed() {
    local now
    now=$(revision)
    [[ $now != *-changed && $(cut -f 2,4 "$(result_of "$1")" 2>/dev/null) == "$now"$'\t'[1-9]*" 0 failed,"* ]]
}

# The last result of each part, and the sum of those on this revision.
show_results() {
    local name now
    now=$(revision)
    printf '\n%-12s %-18s %-22s %7s  %s\n' part date revision minutes result
    for name in "${PARTS[@]}"; do
        awk -F '\t' -v name="$name" '{ printf "%-12s %-18s %-22s %7s  %s\n", name, $1, $2, $3, $4 }' "$(result_of "$name")" 2>/dev/null ||
            printf '%-12s has not run yet\n' "$name"
    done
    for name in "${PARTS[@]}"; do
        has_passed "$name" || printf 'not passed on %s: %s\n' "$now" "$name"
    done
    for name in "${PARTS[@]}"; do cat "$(result_of "$name")" 2>/dev/null || true; done |
        awk -F '\t' -v now="$now" '$2 == now { split($4, n, " "); passed += n[1]; failed += n[3]; skipped += n[5] }
            END { printf "\n%d passed, %d failed, %d skipped\n", passed, failed, skipped }'
}
