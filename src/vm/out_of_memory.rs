//! What a guest's kernel says on its console when memory ran out and it has killed a process.
//!
//! Source: `__oom_kill_process` of Linux's `mm/oom_kill.c`: `Out of memory (…): Killed process 123 (cc1plus) total-vm:…`, an error,
//! which a quiet kernel shows as well.

use super::guest_text::quoted;

/// A line of the kernel's is shorter, and longer ones of others are of no interest, in bytes.
const LONGEST_LINE: usize = 512;

const BEGIN: &str = "Out of memory";
const KILLED: &str = ": Killed process ";

/// Reads a console as it comes.
#[derive(Debug, Default)]
pub(super) struct Kills {
    /// A line whose end has not come; no more of it than is of interest.
    line: Vec<u8>,
}

impl Kills {
    /// The names of processes that were killed, according to what comes next on the console.
    pub(super) fn read(&mut self, chunk: &[u8]) -> Vec<String> {
        let mut killed = Vec::new();
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            let room = LONGEST_LINE.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                killed.extend(killed_in(&quoted(&self.line)));
                self.line.clear();
            }
        }
        killed
    }
}

/// The name is in parentheses, and may have some in it.
fn killed_in(line: &str) -> Option<String> {
    let (_, said) = line.split_once(BEGIN)?;
    let (_, process) = said.split_once(KILLED)?;
    let (_, name) = process.split_once('(')?;
    let (name, _) = name.rsplit_once(')').unwrap_or((name, ""));
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "[   12.345678] Out of memory (oom_kill_allocating_task): Killed process 123 (cc1plus) total-vm:1000kB, \
        anon-rss:900kB, file-rss:0kB, shmem-rss:0kB, UID:30001 pgtables:40kB oom_score_adj:0\r\n";

    #[test]
    fn a_killed_process_is_named_however_the_console_is_cut() {
        let text = format!("xpool: guest started\r\n{LINE}more\r\n");
        for cut in 0..text.len() {
            let mut kills = Kills::default();
            let (first, second) = text.as_bytes().split_at(cut);
            let killed = [kills.read(first), kills.read(second)].concat();
            assert_eq!(killed, ["cc1plus"], "{cut}");
        }
    }

    #[test]
    fn names_may_be_odd_and_other_lines_say_nothing() {
        let mut kills = Kills::default();
        let odd = LINE
            .replace("cc1plus", "a) \u{1b}[2J(b")
            .replace(" (oom_kill_allocating_task)", "");
        assert_eq!(kills.read(odd.as_bytes()), ["a)  [2J(b"]);
        let others = "Out of memory\nKilled process 1 (sh)\nout of memory: Killed process 1 (sh)\n";
        assert_eq!(kills.read(others.as_bytes()), [""; 0]);
        let mut long = vec![b'x'; 10 * LONGEST_LINE];
        long.extend_from_slice(LINE.as_bytes());
        assert_eq!(kills.read(&long), [""; 0]);
        assert!(kills.line.capacity() <= 2 * LONGEST_LINE);
    }
}
