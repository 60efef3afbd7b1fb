//! The one setting of nix.conf that xpool adds to: `builders`. Pure.

use std::path::{Path, PathBuf};

/// How deep files may include one another; Nix itself has no limit and would hang on a circle.
const DEEPEST_INCLUDE: usize = 10;

/// The value of a setting such as `builders` that a nix.conf in `folder` has, or that a file has which it includes; `read` gives the
/// text of such a file, and none if there is none.
pub fn value(
    setting: &str,
    text: &str,
    folder: &Path,
    read: &mut impl FnMut(&Path) -> Option<String>,
) -> Option<String> {
    within(setting, text, folder, read, DEEPEST_INCLUDE)
}

fn within(
    setting: &str,
    text: &str,
    folder: &Path,
    read: &mut impl FnMut(&Path) -> Option<String>,
    depth: usize,
) -> Option<String> {
    let mut value = None;
    for line in text.lines() {
        let line = line.split_once('#').map_or(line, |(line, _)| line);
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words[..] {
            [name, "=", ..] if name == setting => value = Some(words[2..].join(" ")),
            ["include" | "!include", file] if depth > 0 => {
                let file: PathBuf = folder.join(file);
                let inner = file.parent().unwrap_or(folder).to_owned();
                let set =
                    read(&file).and_then(|text| within(setting, &text, &inner, read, depth - 1));
                value = set.or(value);
            }
            _ => {}
        }
    }
    value
}

/// The same value with one more machines file, once.
///
/// No blank after the `;`: Nix up to at least 2.26 takes ` @FILE` for the name of a machine.
pub fn with_machines(value: &str, machines: &Path) -> String {
    let ours = format!("@{}", machines.display());
    if value.split(';').any(|entry| entry.trim() == ours) {
        return value.to_owned();
    }
    match value {
        "" => ours,
        value => format!("{value};{ours}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Option<String> {
        match path.to_str()? {
            "/etc/nix/more.conf" => Some("builders = from more\n!include deep/er.conf\n".into()),
            "/etc/nix/deep/er.conf" | "/etc/nix/deep/circle.conf" => {
                Some("include circle.conf".into())
            }
            _ => None,
        }
    }

    fn found(text: &str) -> Option<String> {
        value("builders", text, Path::new("/etc/nix"), &mut read)
    }

    #[test]
    fn the_last_value_counts() {
        assert_eq!(found("max-jobs = 3\n#builders = x\n"), None);
        assert_eq!(
            found("builders = a\nbuilders =  b ;  c # d\r\n"),
            Some("b ; c".into())
        );
        assert_eq!(
            found("builders-use-substitutes = true\nbuilders =\n"),
            Some(String::new())
        );
    }

    #[test]
    fn included_files_count_where_they_are_included() {
        assert_eq!(
            found("builders = a\n!include more.conf\n"),
            Some("from more".into())
        );
        assert_eq!(found("include more.conf\nbuilders = a\n"), Some("a".into()));
        assert_eq!(
            found("builders = a\n!include /none.conf\n"),
            Some("a".into())
        );
    }

    #[test]
    fn xpools_machines_are_added_once_and_without_a_blank() {
        let with = |value| with_machines(value, Path::new("/s/machines"));
        assert_eq!(
            with("@/etc/nix/machines"),
            "@/etc/nix/machines;@/s/machines"
        );
        assert_eq!(with(""), "@/s/machines");
        assert_eq!(with("@/s/machines ; b"), "@/s/machines ; b");
    }
}
