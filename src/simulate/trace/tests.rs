//! What a trace may look like, and what is said of one that does not.

use super::*;

fn read(text: &str) -> Result<Trace, TraceError> {
    Trace::read(text.as_bytes())
}

#[track_caller]
fn error(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

/// What is wrong with a second line.
#[track_caller]
fn wrong(line: &str) -> String {
    error(&format!("{HEAD}\n{line}\n"))
}

#[test]
fn builds_are_counted_from_the_first_one_whatever_the_order_of_lines() {
    let trace = read(&format!(
        "{HEAD}\n1700000060.5,aarch64,bob,5\n1700000000,riscv64-linux,alice,1.25\n"
    ))
    .unwrap();
    let [first, second] = trace.builds() else {
        panic!("{trace:?}")
    };
    assert_eq!(first.at, Duration::ZERO);
    assert_eq!(first.work, Duration::from_millis(1250));
    assert_eq!(second.at, Duration::from_millis(60_500));
    assert_eq!(second.system, System::Aarch64Linux);
    assert_eq!(trace.client(second.client), "bob");
}

#[test]
fn windows_line_ends_blanks_and_empty_lines_do_not_matter() {
    let plain = format!("{HEAD}\n0,riscv64-linux,a,1\n2,riscv64-linux,b,1\n");
    let odd =
        "\u{feff}time, system ,client,seconds\r\n0,riscv64-linux, a,1\r\n\r\n2,riscv64-linux,b ,1";
    assert_eq!(read(odd).unwrap(), read(&plain).unwrap());
}

#[test]
fn what_is_written_is_what_is_read() {
    let (at, work) = (
        Duration::from_millis(1_763_869_000_123),
        Duration::from_millis(70),
    );
    let line = line(at, System::Riscv64Linux, "uid 0,\nroot", work);
    assert_eq!(line, "1763869000.123,riscv64-linux,uid 0__root,0.070\n");
    let trace = read(&format!("{HEAD}\n{line}")).unwrap();
    assert_eq!(trace.builds()[0].work, work);
}

#[test]
fn a_trace_without_builds_is_empty() {
    let none = "there is no build in it";
    assert_eq!(
        [
            error(""),
            error(HEAD),
            error("time,system,client,seconds\r\n\r\n")
        ],
        [none; 3]
    );
}

#[test]
fn a_header_line_is_asked_for() {
    assert_eq!(
        error("0,riscv64-linux,a,1\n"),
        "line 1: `0,riscv64-linux,a,1` is not the header line `time,system,client,seconds`"
    );
}

#[test]
fn what_is_wrong_is_named_with_line_and_column() {
    insta::assert_snapshot!(
        [
            wrong("0,riscv64-linux,a,-3"),
            wrong("0,riscv64-linux,a,nan"),
            wrong("0,riscv64-linux,a,1e400"),
            wrong("0,riscv64-linux,a,2592001"),
            wrong("0,riscv64-linux,a,"),
            wrong("-1,riscv64-linux,a,3"),
            wrong("1e12,riscv64-linux,a,3"),
            wrong("noon,riscv64-linux,a,3"),
            wrong("0,riscv32-linux,a,3"),
            wrong("0,x86_64-linux,a,3"),
            wrong("0,riscv64-linux,,3"),
            wrong("0,riscv64-linux,3"),
            wrong("0,riscv64-linux,a,b,3"),
            wrong("0,riscv64-linux,a,1\n40000000,riscv64-linux,a,1"),
            wrong(&"x".repeat(5000)),
        ].join("\n"),
        @r"
        line 2, column `seconds`: `-3` is less than 0
        line 2, column `seconds`: `nan` is not a number of seconds
        line 2, column `seconds`: `1e400` is not a number of seconds
        line 2, column `seconds`: `2592001` is more than 30 days
        line 2, column `seconds`: `` is not a number of seconds
        line 2, column `time`: `-1` is less than 0
        line 2, column `time`: `1e12` is more than 100000000000 seconds
        line 2, column `time`: `noon` is not a number of seconds
        line 2, column `system`: unknown system `riscv32-linux`: xpool has guests for `riscv64` and `aarch64`
        line 2, column `system`: unknown system `x86_64-linux`: xpool has guests for `riscv64` and `aarch64`
        line 2, column `client`: there is no name
        line 2: it has 3 columns, not 4
        line 2: it has 5 columns, not 4
        it spans 462 days, and 366 are the most
        line 2: it is longer than 1024 bytes
        "
    );
    let bytes = [HEAD.as_bytes(), b"\n0,riscv64-linux,\xff,1\n"].concat();
    let error = Trace::read(&bytes[..]).unwrap_err();
    assert_eq!(error.to_string(), "line 2: it is not UTF-8");
}
