//! Running the script that makes a portable image: what it says while it runs, and what its end means.

use std::io::Write as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio_util::sync::CancellationToken;

use crate::config::environment;
use crate::nix::System;
use crate::package::{self, Package};

/// How long the script may take to tidy up after it was told to end.
const TIDY_UP: Duration = Duration::from_secs(20);

/// How long its last words may take after its end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Bytes of a line: what is longer is several.
const LONGEST_LINE: u64 = 64 << 10;

/// The script says that something it needs is not there (`EX_UNAVAILABLE` of sysexits.h).
const EX_UNAVAILABLE: i32 = 69;

/// Lines of the log that an error repeats: the last ones, and those that say why. A mirror that lacks a hundred packages
/// fills a screen with the latter.
const LAST_LINES: usize = 20;
const TELLING_LINES: usize = 8;
/// Characters of such a line: a URL and a reason. apt names hashes and sizes in some.
const LINE_LENGTH: usize = 300;

/// mmdebstrap says the first whenever root uses it: packages are extracted only, and none of their scripts runs. It says the second where
/// there is no gpg, which it looks for a key's name with; it is told which keys there are.
const HARMLESS: [&str; 2] = [
    "W: running chrootless mode as root",
    "W: gpg --version failed",
];

/// Who is told how a build goes.
pub type Listener<'a> = dyn Fn(Told<'_>) + Send + Sync + 'a;

/// What a build says while it goes on.
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// The step that is being taken.
    Step(&'a str),
    /// A line of what the tools say.
    Line(&'a str),
}

/// The machine lacks something that building an image needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct CannotBuild {
    /// What it lacks, and what the tools said of it.
    pub text: String,
    /// What to do about it.
    pub hints: Vec<String>,
}

impl CannotBuild {
    /// Takes what the script said: lines that begin with `error: ` and `hint: `, and those of the tools that say why.
    fn from_log(said: &str, log: &Path) -> Self {
        let lines = |prefix: &'static str| {
            said.lines()
                .filter_map(move |line| line.strip_prefix(prefix))
        };
        let lacks = lines("error: ").collect::<Vec<_>>().join("\n");
        let telling = telling(said).join("\n");
        let text = if telling.is_empty() {
            lacks
        } else {
            let log = log.display();
            format!("{lacks}; the tools said:\n{telling}\nall of it is in `{log}`")
        };
        Self {
            text,
            hints: lines("hint: ").map(str::to_owned).collect(),
        }
    }
}

/// Runs the script to its end, with what the tools say told and put into a log. When `cancel` is cancelled, it is ended.
pub(super) async fn run(
    script: &Path,
    system: System,
    out: &Path,
    scratch: &Path,
    log: &Path,
    listener: &Listener<'_>,
    cancel: &CancellationToken,
) -> Result<()> {
    let log_file = create_log(log)?;
    let mut command = Command::new("bash");
    command.arg(script).arg(system.name()).arg(out);
    command.env("XPOOL_BUILD_TMP", scratch);
    in_package(&mut command, package::THIS);
    // Where it was called may be a folder that this user cannot enter, as after `sudo -u`; some of the tools want to go back there.
    command.current_dir("/");
    let mut child = spawn(command)?;
    let stdout = child.stdout.take().context("the script's output")?;
    let stderr = child.stderr.take().context("what the tools say")?;
    let hearing = async {
        let steps = tell_steps(stdout, listener);
        let lines = tell_lines(stderr, log_file, listener);
        tokio::try_join!(steps, lines)
            .with_context(|| format!("reading what the tools say into `{}`", log.display()))
    };
    tokio::pin!(hearing);
    let ended = tokio::select! {
        heard = &mut hearing => match heard {
            Ok(_) => Some(child.wait().await?),
            Err(error) => {
                end(&mut child).await?;
                return Err(error);
            }
        },
        status = child.wait() => {
            // What it has said before is on its way. Something that it left behind may say more, or nothing for ever.
            let _ = tokio::time::timeout(LAST_WORDS, &mut hearing).await;
            Some(status?)
        }
        () = cancel.cancelled() => None,
    };
    if let Some(status) = ended {
        return outcome(status, log);
    }
    let ending = end(&mut child);
    tokio::pin!(ending);
    // Heard until the end, because a tool that nobody hears waits.
    tokio::select! {
        ended = &mut ending => ended?,
        _ = hearing => ending.await?,
    }
    bail!("interrupted; nothing was left behind");
}

/// Has a script find what xpool's package has for it, where the user has not said otherwise.
fn in_package(command: &mut Command, package: Package) {
    if package.path.is_some() {
        let path = environment::variable("PATH").unwrap_or_default();
        command.env("PATH", package.search_path(&path));
        // Names of packages in hints are those of nixpkgs.
        command.env("XPOOL_NIXPKGS", "1");
    }
    if let Some(keyrings) = package.keyrings
        && environment::variable("XPOOL_DEBIAN_KEYRINGS").is_none()
    {
        command.env("XPOOL_DEBIAN_KEYRINGS", keyrings);
    }
}

fn spawn(mut command: Command) -> Result<Child> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("starting bash")
}

/// What the script's end means, by its exit code and its last words.
fn outcome(status: ExitStatus, log: &Path) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let said = std::fs::read(log).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    if status.code() == Some(EX_UNAVAILABLE) {
        return Err(CannotBuild::from_log(&said, log).into());
    }
    bail!(
        "{status}; its last words:\n{}\nall of them are in `{}`",
        last(said.lines(), LAST_LINES).join("\n"),
        log.display()
    )
}

fn create_log(log: &Path) -> Result<std::fs::File> {
    if let Some(parent) = log.parent() {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("creating `{}`", parent.display()))?;
    }
    std::fs::File::create(log).with_context(|| format!("creating `{}`", log.display()))
}

async fn tell_steps(stdout: ChildStdout, listener: &Listener<'_>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stdout).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some(step) = line.strip_prefix("step: ") {
            listener(Told::Step(step));
        }
    }
    Ok(())
}

async fn tell_lines(
    stderr: ChildStderr,
    mut log: std::fs::File,
    listener: &Listener<'_>,
) -> std::io::Result<()> {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    while (&mut stderr)
        .take(LONGEST_LINE)
        .read_until(b'\n', &mut line)
        .await?
        > 0
    {
        log.write_all(&line)?;
        let text = String::from_utf8_lossy(&line);
        listener(Told::Line(text.trim_end()));
        line.clear();
    }
    Ok(())
}

/// Ends the script with everything it started and waits until it is gone.
async fn end(child: &mut Child) -> Result<()> {
    let Some(group) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) else {
        return Ok(());
    };
    // A group that has ended by itself is no error.
    let _ = kill_process_group(group, Signal::TERM);
    if tokio::time::timeout(TIDY_UP, child.wait()).await.is_err() {
        let _ = kill_process_group(group, Signal::KILL);
        child.wait().await?;
    }
    Ok(())
}

/// The last lines in which tools complain, or just the last ones where none does. Not what the script itself says.
fn telling(said: &str) -> Vec<String> {
    let is_own = |line: &str| line.starts_with("error: ") || line.starts_with("hint: ");
    let of_tools = said.lines().filter(|line| !is_own(line));
    let complaints = last(
        of_tools.clone().filter(|line| complains(line)),
        TELLING_LINES,
    );
    if complaints.is_empty() {
        return last(of_tools, TELLING_LINES);
    }
    complaints
}

/// apt and mmdebstrap begin with a letter, the others with their names.
fn complains(line: &str) -> bool {
    let is_marked = line.starts_with("E: ") || line.starts_with("W: ");
    (is_marked || line.contains("error: "))
        && !HARMLESS.iter().any(|harmless| line.starts_with(harmless))
}

/// The last lines, each as it can be shown.
fn last<'a>(lines: impl Iterator<Item = &'a str>, most: usize) -> Vec<String> {
    let lines: Vec<&str> = lines.filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(most);
    lines[from..].iter().map(|line| shown(line)).collect()
}

/// Of a length to be read, and without what a terminal would obey: a mirror may have written it.
fn shown(line: &str) -> String {
    let chars = line.chars().filter(|char| !char.is_control());
    chars.take(LINE_LENGTH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cannot_build(said: &str) -> CannotBuild {
        CannotBuild::from_log(said, Path::new("/logs/image.log"))
    }

    #[test]
    fn what_the_script_lacks_is_taken_apart() {
        let error = cannot_build("error: missing tools: cpio\nhint: apt-get install cpio\n");
        assert_eq!(error.text, "missing tools: cpio");
        assert_eq!(error.hints, ["apt-get install cpio"]);
    }

    #[test]
    fn what_tools_complain_of_is_said_and_their_talk_is_not() {
        let error = cannot_build(
            "W: running chrootless mode as root might damage the host system\n\
             I: running apt-get update...\n\
             Get:1 http://mirror/debian trixie InRelease [140 kB]\n\
             E: Failed to fetch http://mirror/debian/Packages  404  Not Found\n\
             dpkg-deb: error: unexpected end of file\n\
             I: main() received signal PIPE: waiting for setup...\n\
             error: the Debian packages could not be fetched\n\
             hint: check the network\n",
        );
        assert_eq!(
            error.text,
            "the Debian packages could not be fetched; the tools said:\n\
             E: Failed to fetch http://mirror/debian/Packages  404  Not Found\n\
             dpkg-deb: error: unexpected end of file\n\
             all of it is in `/logs/image.log`"
        );
    }

    #[test]
    fn where_no_tool_complains_the_last_words_are_said() {
        let talk: Vec<String> = (1..20).map(|n| format!("line {n}")).collect();
        let said = telling(&format!("{}\n\nerror: no\n", talk.join("\n")));
        assert_eq!(said, talk[talk.len() - TELLING_LINES..]);
    }

    #[test]
    fn what_is_said_is_bounded_and_cannot_steer_a_terminal() {
        let long = "x".repeat(1000);
        let many: Vec<String> = (0..100).map(|n| format!("E: \x1b{n} {long}")).collect();
        let said = telling(&many.join("\n"));
        assert_eq!(said.len(), TELLING_LINES);
        assert!(said[7].starts_with("E: 99 xxx"), "{}", said[7]);
        assert!(said.iter().all(|line| line.chars().count() == LINE_LENGTH));
    }
}
