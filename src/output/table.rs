//! Aligned text. Pure.

use super::plain::plain;

/// Rows as text: columns two spaces apart, no borders, no space at line ends, no line end after the last. An empty cell
/// shows as `-`, and a cell has nothing that a terminal obeys.
pub fn render<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let head = head.map(str::to_owned);
    let rows = rows
        .iter()
        .map(|row| row.each_ref().map(|text| plain(text)));
    let lines: Vec<[String; N]> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| cell(&line[column]).chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let text = |line: &[String; N]| {
        let cells = line
            .iter()
            .zip(widths)
            .map(|(text, width)| format!("{:<width$}", cell(text)));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(text).collect::<Vec<_>>().join("\n")
}

fn cell(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// A time in seconds as people say it: `45s`, `2m10s`, `3h05m`.
pub fn age(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

/// A time in milliseconds as people say it: `5.6s`.
pub fn tenths(ms: u64) -> String {
    format!("{}.{}s", ms / 1000, ms / 100 % 10)
}

/// A size in bytes as people say it: `812 KiB`, `1.4 GiB`.
pub fn size(bytes: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => {
            let tenths = bytes / (unit / 10);
            if tenths < 100 {
                format!("{}.{} {name}", tenths / 10, tenths % 10)
            } else {
                format!("{} {name}", tenths / 10)
            }
        }
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["riscv64-1".to_owned(), String::new(), "x".to_owned()]];
        insta::assert_snapshot!(render(["VM", "AGE", "DOES"], &rows), @r"
        VM         AGE  DOES
        riscv64-1  -    x
        ");
    }

    #[test]
    fn times_and_sizes_read_well() {
        assert_eq!(
            [0, 45, 130, 11_100].map(age),
            ["0s", "45s", "2m10s", "3h05m"]
        );
        assert_eq!(
            [12, 1 << 10, 1_503_238_553, 92_667_904].map(size),
            ["12 B", "1.0 KiB", "1.4 GiB", "88 MiB"]
        );
    }
}
