//! The dependency rules of ARCHITECTURE.md, held by looking at the source.

use std::fs;
use std::path::{Path, PathBuf};

/// In files below `path`, none of `words` may stand outside tests and comments.
struct Rule {
    path: &'static str,
    words: &'static [&'static str],
    except: &'static [&'static str],
}

const RULES: [Rule; 16] = [
    // The core decides; it never acts, and time is an argument.
    Rule {
        path: "pool",
        words: &[
            "tokio",
            "qapi",
            "russh",
            "std::fs",
            "std::net",
            "std::process",
            "std::env",
            "Instant::now",
            "SystemTime",
            "crate::manager",
            "crate::vm",
            "crate::config",
            "tracing",
        ],
        except: &[],
    },
    // A forecast is made from numbers, and the time of day is one of them.
    Rule {
        path: "forecast",
        words: &[
            "tokio",
            "std::fs",
            "std::net",
            "std::process",
            "std::env",
            "Instant::now",
            "SystemTime",
            "tracing",
            "crate::manager",
            "crate::vm",
            "crate::config",
            "crate::simulate",
        ],
        except: &[],
    },
    // A simulation asks the core, and nobody else.
    Rule {
        path: "simulate",
        words: &[
            "tokio",
            "std::fs",
            "std::net",
            "std::process",
            "std::env",
            "std::thread",
            "Instant::now",
            "SystemTime",
            "tracing",
            "crate::manager",
            "crate::vm",
            "crate::config",
            "crate::record",
            "crate::output",
            "crate::cli",
        ],
        except: &[],
    },
    // The protocol does no IO of its own.
    Rule {
        path: "nix",
        words: &[
            "tokio",
            "std::fs",
            "TcpStream",
            "UdpSocket",
            "std::process",
            "std::env",
            "crate::manager",
            "crate::vm",
            "crate::pool",
        ],
        except: &[],
    },
    // A VM knows nothing of pools and sessions.
    Rule {
        path: "vm",
        words: &[
            "crate::pool",
            "crate::manager",
            "crate::gateway",
            "crate::session",
            "crate::store",
            "crate::control",
            "crate::cli",
        ],
        except: &[],
    },
    Rule {
        path: "image",
        words: &[
            "crate::pool",
            "crate::manager",
            "crate::vm",
            "crate::gateway",
            "crate::control",
            "crate::cli",
        ],
        except: &[],
    },
    // The host's store serves sessions and VMs, and knows neither.
    Rule {
        path: "store",
        words: &[
            "crate::pool",
            "crate::manager",
            "crate::vm",
            "crate::session",
            "crate::gateway",
            "crate::control",
            "crate::cli",
        ],
        except: &[],
    },
    // Files of a user's are changed for what is configured, not for what a manager does.
    Rule {
        path: "install",
        words: &[
            "crate::pool",
            "crate::manager",
            "crate::vm",
            "crate::session",
            "crate::gateway",
            "crate::control",
            "crate::cli",
        ],
        except: &[],
    },
    // Front ends know the manager's desk and nothing behind it.
    Rule {
        path: "gateway",
        words: &[
            "crate::pool",
            "crate::vm",
            "crate::control",
            "crate::cli",
            "crate::image",
            "crate::manager::status",
        ],
        except: &[],
    },
    Rule {
        path: "connect",
        words: &[
            "crate::pool",
            "crate::gateway",
            "crate::control",
            "crate::cli",
            "crate::image",
            "crate::manager::status",
            "russh",
        ],
        except: &[],
    },
    Rule {
        path: "shell",
        words: &[
            "crate::pool",
            "crate::gateway",
            "crate::session",
            "crate::control",
            "crate::cli",
            "crate::image",
            "crate::manager::status",
        ],
        except: &[],
    },
    Rule {
        path: "session",
        words: &[
            "crate::pool",
            "crate::gateway",
            "crate::control",
            "crate::cli",
            "crate::image",
            "russh",
        ],
        except: &[],
    },
    Rule {
        path: "manager",
        words: &[
            "crate::gateway",
            "crate::session",
            "crate::control",
            "crate::cli",
            "crate::output",
        ],
        except: &[],
    },
    // Numbers are made of the status and nothing else.
    Rule {
        path: "metrics",
        words: &[
            "crate::gateway",
            "crate::session",
            "crate::vm",
            "crate::control",
            "crate::cli",
            "std::fs",
        ],
        except: &[],
    },
    // Printing is the output module's.
    Rule {
        path: "",
        words: &["println!", "print!(", "eprint"],
        except: &["output"],
    },
    // The environment is read where the program starts.
    Rule {
        path: "",
        words: &["std::env::var"],
        except: &["program.rs", "config"],
    },
];

#[test]
fn nothing_points_up() {
    let mut broken = Vec::new();
    for rule in &RULES {
        for file in rust_files(&Path::new("src").join(rule.path)) {
            let name = file
                .strip_prefix("src")
                .unwrap()
                .to_string_lossy()
                .into_owned();
            if !rule.except.iter().any(|except| name.starts_with(except)) {
                broken.extend(offences(&file, rule.words));
            }
        }
    }
    assert!(broken.is_empty(), "broken rules:\n{}", broken.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<PathBuf> = rust_files(Path::new("src"))
        .into_iter()
        .filter(|file| !fs::read_to_string(file).unwrap().starts_with("//!"))
        .collect();
    assert!(
        silent.is_empty(),
        "files without a first line of documentation: {silent:?}"
    );
}

fn offences(file: &Path, words: &[&str]) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    // Tests come last in a file, or have a file of their own.
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or("");
    let lines = code
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"));
    let found = lines.flat_map(|(number, line)| {
        let hits = words.iter().filter(move |word| line.contains(**word));
        hits.map(move |word| (number + 1, *word))
    });
    found
        .map(|(line, word)| format!("{}:{line}: `{word}`", file.display()))
        .collect()
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|end| end == "rs")
            && name != "tests.rs"
            && name != "properties.rs"
        {
            files.push(path);
        }
    }
    files
}

/// A name that is no test's would be a test that does not run alone, or not first.
#[test]
fn nextest_is_told_of_tests_that_there_are() {
    let config = fs::read_to_string(".config/nextest.toml").unwrap();
    let names = config.split("test(=").skip(1);
    let names: Vec<&str> = names.map(|text| text.split_once(')').unwrap().0).collect();
    assert!(!names.is_empty());
    for name in names {
        let (file, test) = name.rsplit_once("::").unwrap();
        let file = format!("tests/real/{}.rs", file.replace("::", "/"));
        let source = fs::read_to_string(file).unwrap();
        assert!(source.contains(&format!("fn {test}(")), "{name}");
    }
}

/// scripts/check.sh and scripts/test name them.
#[test]
fn there_are_three_programs_of_tests() {
    let programs = fs::read_dir("tests").unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let is_program =
            path.join("main.rs").exists() || path.extension().is_some_and(|end| end == "rs");
        is_program.then(|| path.file_stem().unwrap().to_string_lossy().into_owned())
    });
    let mut programs: Vec<String> = programs.collect();
    programs.sort();
    assert_eq!(programs, ["gateway", "it", "real"]);
}
