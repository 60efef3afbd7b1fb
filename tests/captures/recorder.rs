//! `recorder FOLDER PROGRAM [ARGUMENT...]`: runs a nix-daemon for a client, passes what both say, and writes it to a file
//! FOLDER/N, where N counts the sessions.
//!
//! A file is a sequence of chunks in the order in which they were passed on: a line with `C` or `S` (who said it) and the
//! number of bytes, and then these bytes and a line break. Only protocol versions are changed on their way: what is newer
//! than 1.37 becomes that, in both directions, as it does where xpool stands in between. What is written is what was said.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

/// Where the minor part of a peer's version is in what it says.
const MINOR: usize = 8;

/// The newest protocol that either side hears of.
const NEWEST_MINOR: u8 = 37;

/// A session has no more of these: there is one per file.
const MOST_SESSIONS: u32 = 1000;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(folder), Some(program)) = (arguments.next(), arguments.next()) else {
        return Err(io::Error::other(
            "usage: recorder FOLDER PROGRAM [ARGUMENT...]",
        ));
    };
    let record = Arc::new(Mutex::new(next_file(Path::new(&folder))?));
    let mut daemon = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let (Some(to_daemon), Some(from_daemon)) = (daemon.stdin.take(), daemon.stdout.take()) else {
        return Err(io::Error::other("the daemon has no pipes"));
    };
    let theirs = record.clone();
    // Not joined: it ends with the client, which may wait for the daemon's end.
    thread::spawn(move || pass('C', io::stdin(), to_daemon, &theirs));
    pass('S', from_daemon, io::stdout(), &record)?;
    daemon.wait().map(drop)
}

fn next_file(folder: &Path) -> io::Result<File> {
    for number in 1..MOST_SESSIONS {
        match File::create_new(folder.join(number.to_string())) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            outcome => return outcome,
        }
    }
    Err(io::Error::other("there are too many sessions"))
}

/// Passes on what one side says until it ends, and closes the way then.
fn pass(
    who: char,
    mut from: impl Read,
    mut to: impl Write,
    record: &Mutex<File>,
) -> io::Result<()> {
    let mut chunk = vec![0; 64 * 1024];
    let mut n_passed = 0;
    loop {
        let n = from.read(&mut chunk)?;
        if n == 0 {
            return Ok(());
        }
        let said = &mut chunk[..n];
        {
            // Before it is passed on, so that no answer comes before what it answers to.
            let mut file = record.lock().map_err(|_| io::Error::other("no record"))?;
            let head = format!("{who} {n}\n");
            file.write_all(&[head.as_bytes(), said, b"\n"].concat())?;
        }
        if let Some(minor) = MINOR.checked_sub(n_passed).and_then(|at| said.get_mut(at)) {
            *minor = NEWEST_MINOR.min(*minor);
        }
        n_passed += n;
        to.write_all(said)?;
        to.flush()?;
    }
}
