//! Everything that root's Nix and ssh read and execute to reach build machines, and who beside root can change it.

/// Runs a command as root where that Nix is; what it prints.
pub type Run<'a> = dyn Fn(&[&str]) -> String + 'a;

/// The piece that root's ssh has of xpool.
const SSH_PIECE: &str = "/etc/ssh/ssh_config.d/xpool.conf";

/// What somebody else than root can change of what the effective `builders` leads to, each with what `namei` says of it.
pub fn changeable(run: &Run<'_>, nix_conf: &str) -> Vec<String> {
    let mut found = Vec::new();
    for path in named(run, nix_conf) {
        let walk = sh(run, r#"namei --long -- "$1" 2>&1 || true"#, &path);
        let unsafe_part = unsafe_part(&walk);
        found.extend(unsafe_part.map(|part| format!("{path}: {part}")));
    }
    found
}

/// The files and programs that are read and executed, nix.conf and ssh's first.
pub fn named(run: &Run<'_>, nix_conf: &str) -> Vec<String> {
    let mut paths = vec![nix_conf.to_owned()];
    let conf = text(run, nix_conf);
    let mut builders = conf
        .lines()
        .filter_map(|line| line.strip_prefix("builders = "));
    let builders = builders
        .next_back()
        .unwrap_or_else(|| panic!("no builders: {conf}"));
    for entry in builders.split(';').map(str::trim) {
        let lines = match entry.strip_prefix('@') {
            Some(file) => {
                paths.push(file.to_owned());
                text(run, file)
            }
            None => entry.to_owned(),
        };
        paths.extend(lines.lines().flat_map(named_by_line));
    }
    let piece = text(run, SSH_PIECE);
    if !piece.is_empty() {
        paths.push(SSH_PIECE.to_owned());
    }
    for file in named_by_ssh(&piece) {
        paths.extend(named_by_ssh(&text(run, &file)));
        paths.push(file);
    }
    paths
}

/// The program and the key of a machine.
fn named_by_line(line: &str) -> Vec<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let program = fields
        .first()
        .and_then(|uri| uri.split_once("remote-program="));
    let program = program.map(|(_, value)| decoded(value.split('&').next().unwrap()));
    let program = program.map(|command| command.split(' ').next().unwrap().to_owned());
    let key = fields.get(2).filter(|key| **key != "-");
    program
        .into_iter()
        .chain(key.map(|key| (*key).to_owned()))
        .collect()
}

/// What a query of a URI stands for.
fn decoded(value: &str) -> String {
    let mut parts = value.split('%');
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |text, part| {
        let (code, rest) = part.split_at(2);
        let byte = u8::from_str_radix(code, 16).unwrap();
        text + &char::from(byte).to_string() + rest
    })
}

/// The files that a piece of ssh configuration names.
fn named_by_ssh(text: &str) -> Vec<String> {
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    let words = lines
        .flat_map(str::split_whitespace)
        .map(|word| word.trim_matches('"'));
    words
        .filter(|word| word.starts_with('/'))
        .map(str::to_owned)
        .collect()
}

/// The line of a part that is not root's alone. A folder such as /tmp is, for what is in it already and root's.
fn unsafe_part(walk: &str) -> Option<&str> {
    let mut is_shared = false;
    for line in walk.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mode = words[0].as_bytes();
        if mode.len() != 10 {
            // It is not there: what matters is who can make it.
            return is_shared.then_some(line);
        }
        let is_writable = mode[0] != b'l' && (mode[5] == b'w' || mode[8] == b'w');
        let is_sticky = matches!(mode[9], b't' | b'T');
        if words[1] != "root" || is_writable && !is_sticky {
            return Some(line);
        }
        is_shared = is_writable;
    }
    None
}

/// The text of a file; empty if there is none.
fn text(run: &Run<'_>, file: &str) -> String {
    sh(run, r#"cat "$1" 2>/dev/null || true"#, file)
}

fn sh(run: &Run<'_>, script: &str, word: &str) -> String {
    run(&["sh", "-c", script, "sh", word])
}
