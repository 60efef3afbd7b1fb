//! Traces: who wanted what built when, and how long it took. CSV with a header line and no quotes.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufRead};
use std::time::Duration;

use super::report::TraceSummary;
use crate::nix::System;

/// The first line of a trace.
pub const HEAD: &str = "time,system,client,seconds";

/// What a line of a trace may look like, for people.
pub const EXAMPLE: &str = "12.5,riscv64-linux,alice,90";

/// As many builds as fit into some hundred megabytes.
const MAX_BUILDS: usize = 2_000_000;

/// Far beyond any line with a key's fingerprint in it, in bytes; what has no line ends is no trace.
const MAX_LINE: u64 = 1024;

/// The latest time: seconds since the epoch fit, and any calendar's years.
const LATEST: f64 = 1e11;

/// The longest work, which no limit of a pool exceeds either.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// From the first build to the last one.
const LONGEST_SPAN: Duration = Duration::from_secs(366 * 24 * 3600);

/// One client of a trace, by a number instead of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(u32);

/// A build that was wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Build {
    /// When, counted from the first one of the trace.
    pub at: Duration,
    /// For which system.
    pub system: System,
    /// By whom.
    pub client: ClientId,
    /// How long it is at work on a VM.
    pub work: Duration,
}

/// Builds in the order in which they were wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// When the first one was wanted, counted from where the trace's own times are.
    begin: Duration,
    builds: Vec<Build>,
    /// Their names, by number.
    clients: Vec<String>,
}

/// A column of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// When the build was wanted, in seconds from any moment.
    Time,
    /// Of which system.
    System,
    /// By whom.
    Client,
    /// How long it took, in seconds.
    Seconds,
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Time => "time",
            Self::System => "system",
            Self::Client => "client",
            Self::Seconds => "seconds",
        })
    }
}

/// A trace that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It cannot be read to its end.
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    /// There is nothing in it.
    #[error("there is no build in it")]
    Empty,
    /// It does not begin with the header line.
    #[error("line 1: `{found}` is not the header line `{HEAD}`")]
    Head {
        /// What is there.
        found: String,
    },
    /// A line is too long, not text, or has too few columns or too many.
    #[error("line {line}: {what}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// A value cannot be used.
    #[error("line {line}, column `{column}`: {what}")]
    Value {
        /// Counted from 1.
        line: usize,
        /// Which value.
        column: Column,
        /// What is wrong.
        what: String,
    },
    /// There are too many builds.
    #[error("there are more than {MAX_BUILDS} builds in it")]
    Large,
    /// It is too long a time.
    #[error("it spans {} days, and 366 are the most", span.as_secs() / (24 * 3600))]
    Long {
        /// From the first build to the last one.
        span: Duration,
    },
}

impl Trace {
    /// Reads one. Its lines may be in any order: a manager writes each at the build's end.
    pub fn read(mut from: impl BufRead) -> Result<Self, TraceError> {
        let mut reading = Reading::default();
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let read = io::Read::take(&mut from, MAX_LINE).read_until(b'\n', &mut line);
            if read.map_err(TraceError::Unreadable)? == 0 {
                break;
            }
            let wrong = |what| TraceError::Line { line: number, what };
            if line.len() as u64 == MAX_LINE && line.last() != Some(&b'\n') {
                return Err(wrong(format!("it is longer than {MAX_LINE} bytes")));
            }
            let text = str::from_utf8(&line).map_err(|_| wrong("it is not UTF-8".to_owned()))?;
            if number == 1 {
                check_head(text)?;
            } else if !text.trim().is_empty() {
                reading.line(number, text.trim())?;
            }
        }
        reading.finish()
    }

    /// The builds, in the order in which they were wanted.
    pub fn builds(&self) -> &[Build] {
        &self.builds
    }

    /// The moment that builds' times are counted from, by the trace's own clock: since the epoch, where a manager wrote it.
    pub fn begin(&self) -> Duration {
        self.begin
    }

    /// The client's name.
    pub fn client(&self, id: ClientId) -> &str {
        // Numbers are given out with their names only.
        self.clients.get(id.0 as usize).map_or("", String::as_str)
    }

    /// The systems that it has builds for.
    pub fn systems(&self) -> impl Iterator<Item = System> {
        let has = |system: &System| self.builds.iter().any(|build| build.system == *system);
        System::ALL.into_iter().filter(has)
    }

    /// How much it is.
    pub fn summary(&self) -> TraceSummary {
        let span = self.builds.last().map_or(Duration::ZERO, |build| build.at);
        let work: Duration = self.builds.iter().map(|build| build.work).sum();
        TraceSummary {
            builds: self.builds.len(),
            clients: self.clients.len(),
            span_s: span.as_secs_f64(),
            work_s: work.as_secs_f64(),
        }
    }
}

/// One line of a trace, its line end included.
pub fn line(at: Duration, system: System, client: &str, work: Duration) -> String {
    let millis = |time: Duration| format!("{}.{:03}", time.as_secs(), time.subsec_millis());
    let client = client.replace(|char: char| char == ',' || char.is_control(), "_");
    format!(
        "{},{system},{},{}\n",
        millis(at),
        client.trim(),
        millis(work)
    )
}

fn check_head(text: &str) -> Result<(), TraceError> {
    let found = text.trim_start_matches('\u{feff}').trim();
    let columns = found.split(',').map(str::trim);
    if columns.eq(HEAD.split(',')) {
        return Ok(());
    }
    let found = found.chars().take(80).collect();
    Err(TraceError::Head { found })
}

/// A trace as far as it is read.
#[derive(Default)]
struct Reading {
    builds: Vec<Build>,
    clients: Vec<String>,
    ids: HashMap<String, ClientId>,
}

impl Reading {
    fn line(&mut self, number: usize, text: &str) -> Result<(), TraceError> {
        let columns: Vec<&str> = text.split(',').map(str::trim).collect();
        let [time, system, client, seconds] = columns[..] else {
            let what = format!("it has {} columns, not 4", columns.len());
            return Err(TraceError::Line { line: number, what });
        };
        let wrong = |column| {
            move |what| TraceError::Value {
                line: number,
                column,
                what,
            }
        };
        if self.builds.len() == MAX_BUILDS {
            return Err(TraceError::Large);
        }
        let build = Build {
            at: parse_time(time).map_err(wrong(Column::Time))?,
            system: parse_system(system).map_err(wrong(Column::System))?,
            client: self.client(client).map_err(wrong(Column::Client))?,
            work: parse_seconds(seconds).map_err(wrong(Column::Seconds))?,
        };
        self.builds.push(build);
        Ok(())
    }

    fn client(&mut self, name: &str) -> Result<ClientId, String> {
        if let Some(id) = self.ids.get(name) {
            return Ok(*id);
        }
        if name.is_empty() {
            return Err("there is no name".to_owned());
        }
        let id = u32::try_from(self.clients.len()).map_err(|_| "too many names".to_owned())?;
        self.clients.push(name.to_owned());
        self.ids.insert(name.to_owned(), ClientId(id));
        Ok(ClientId(id))
    }

    fn finish(self) -> Result<Trace, TraceError> {
        let (mut builds, clients) = (self.builds, self.clients);
        builds.sort_by_key(|build| build.at);
        let (Some(first), Some(last)) = (builds.first(), builds.last()) else {
            return Err(TraceError::Empty);
        };
        let (first, span) = (first.at, last.at.saturating_sub(first.at));
        if span > LONGEST_SPAN {
            return Err(TraceError::Long { span });
        }
        for build in &mut builds {
            build.at -= first;
        }
        let begin = first;
        Ok(Trace {
            begin,
            builds,
            clients,
        })
    }
}

fn parse_system(given: &str) -> Result<System, String> {
    given
        .parse()
        .map_err(|error: crate::nix::UnknownSystem| error.to_string())
}

fn parse_time(given: &str) -> Result<Duration, String> {
    let time = parse_number(given)?;
    if time > LATEST {
        return Err(format!("`{given}` is more than {LATEST} seconds"));
    }
    to_millis(given, time)
}

fn parse_seconds(given: &str) -> Result<Duration, String> {
    let work = to_millis(given, parse_number(given)?)?;
    if work > LONGEST {
        return Err(format!("`{given}` is more than 30 days"));
    }
    Ok(work)
}

/// A number of seconds that is not negative.
fn parse_number(given: &str) -> Result<f64, String> {
    match given.parse::<f64>() {
        Ok(number) if !number.is_finite() => Err(format!("`{given}` is not a number of seconds")),
        Ok(number) if number < 0.0 => Err(format!("`{given}` is less than 0")),
        Ok(number) => Ok(number),
        Err(_) => Err(format!("`{given}` is not a number of seconds")),
    }
}

/// Rounded, so that the same trace is the same everywhere.
fn to_millis(given: &str, seconds: f64) -> Result<Duration, String> {
    let exact = Duration::try_from_secs_f64(seconds);
    let exact = exact.map_err(|_| format!("`{given}` is too many seconds"))?;
    let millis = (exact + Duration::from_micros(500)).as_millis();
    Ok(Duration::from_millis(
        u64::try_from(millis).unwrap_or(u64::MAX),
    ))
}
