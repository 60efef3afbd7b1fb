# shellcheck shell=bash
# What scripts/test says at its end: how long each part took, what was skipped, and how many tests passed. Sourced.

# A folder of this run's: `log`, all that was said; `times`, a line for each part and each file of tests; `skips`, a line for each test
# that could not run and why (tests/common writes them).
report=''
failed_parts=0

begin_report() {
    report=$(mktemp -d "${TMPDIR:-/tmp}/xpool-test.XXXXXX")
    trap 'rm -rf "$report"' EXIT
    clear_report
}

clear_report() {
    : >"$report/log"
    : >"$report/times"
    : >"$report/skips"
    failed_parts=0
}

# part NAME COMMAND...: runs it, shows what it says, and keeps it for the counts. A part that fails does not stop the next one.
part() {
    local name=$1 began=$SECONDS status=0
    shift
    say "$name"
    "$@" 2>&1 | tee -a "$report/log" || status=1
    printf '%s\t\t%s\n' $((SECONDS - began)) "$name" >>"$report/times"
    failed_parts=$((failed_parts + status))
}

# The same for what runs tests by nextest, whose files are listed too.
tests_part() {
    local from
    from=$(wc -l <"$report/log")
    part "$@"
    tail -n "+$((from + 1))" "$report/log" | plain | files_of_nextest >>"$report/times"
}

# Without what a terminal would obey.
plain() { sed 's/\x1b\[[0-9;]*m//g'; }

# From nextest's lines for each test, such as `PASS [  12.345s] ( 1/20) xpool::real fresh::many_sessions`: seconds, number of tests, file.
files_of_nextest() {
    awk '$1 ~ /^(PASS|FAIL|LEAK|TIMEOUT|ABORT|SIG[A-Z]+)$/ && match($0, /\[ *[0-9.]+s\]/) {
        seconds = substr($0, RSTART + 1, RLENGTH - 3) + 0
        file = $NF
        sub(/::.*/, "", file)
        sum[file] += seconds
        count[file]++
    }
    END { for (file in sum) printf "%d\t%d\t    %s\n", sum[file], count[file], file }'
}

# The tests in the log that passed or failed: cargo says `test result: ok. 3 passed; 0 failed; …`, nextest
# `Summary [ 3.0s] 5 tests run: 3 passed (1 slow), 2 failed, 1 timed out, 7 skipped`, where the skipped ones were not asked for.
count() {
    plain <"$report/log" | awk -v wanted="$1" '
        /^test result: / || /^ *Summary \[/ {
            n = split($0, words, /[ ,;]+/)
            for (i = 2; i <= n; i++) {
                if (words[i] == "passed") passed += words[i - 1]
                if (words[i] == "failed") failed += words[i - 1]
                if (words[i] == "timed" && words[i + 1] == "out") failed += words[i - 1]
            }
        }
        END { print (wanted == "passed" ? passed : failed) + 0 }'
}

# The counts of this run so far: passed, failed, skipped. A test that says that it is skipped has passed, as far as cargo knows, and a
# part that did not even come to its tests has failed too.
counts() {
    local skipped passed failed
    skipped=$(wc -l <"$report/skips")
    passed=$(($(count passed) - skipped))
    failed=$(count failed)
    if [ "$failed_parts" != 0 ] && [ "$failed" = 0 ]; then failed=$failed_parts; fi
    printf '%s passed, %s failed, %s skipped\n' "$passed" "$failed" "$skipped"
}

show_skips() {
    [ ! -s "$report/skips" ] || { printf '\nskipped:\n' && cat "$report/skips"; }
}

show_times() {
    printf '\n%8s %6s  %s\n' seconds tests 'part (indented: files of tests, two of which run at a time)'
    sort -rn "$report/times" | awk -F '\t' '{ printf "%8s %6s  %s\n", $1, $2, $3 }'
}

# A table, what was skipped, and the line of counts. Fails if a test has.
end_report() {
    local line
    line=$(counts)
    show_times
    show_skips
    printf '\n%s\n' "$line"
    [[ $line == *" 0 failed,"* ]]
}
