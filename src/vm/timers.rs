//! Reminds QEMU of the timers of restored riscv64 processors.
//!
//! QEMU saves when a hart's timer is due (`stimecmp`) but, up to 10.1, not that somebody waits for it: after a restore it
//! never fires, and a guest that was idle waits for ever (mended by "target/riscv: Save stimer and vstimer in CPU
//! vmstate", September 2025). Writing the register its own value arms the timer again. Only QEMU's debugger port can do that
//! from outside; a newer QEMU is told what it knows already. The protocol is GDB's remote one: `$packet#checksum`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::wait::within;

/// Two milliseconds in all on a quiet machine.
const LIMIT: Duration = Duration::from_secs(30);

/// Number of the control and status register `stimecmp` (RISC-V Sstc extension, version 1.0.0).
const STIMECMP: u64 = 0x14d;

/// Number of the register `time`, by whose place the debugger's numbering of all such registers is known.
const TIME: u64 = 0xc01;

/// The page of the target's description that has the control and status registers.
const CSR_PAGE: &str = "riscv-csr.xml";

/// No packet of QEMU's is longer.
const PACKET_LIMIT: u64 = 64 * 1024;

/// Arms the timers of all harts of a paused guest. It stays paused, or goes on, as QEMU's debugger port pleases.
pub(super) async fn arm(socket: &Path) -> anyhow::Result<()> {
    within("QEMU's debugger port", LIMIT, arm_all(socket))
        .await?
        .context("arming the restored processors' timers")
}

async fn arm_all(socket: &Path) -> anyhow::Result<()> {
    let stream = UnixStream::connect(socket)
        .await
        .with_context(|| format!("connecting to `{}`", socket.display()))?;
    let mut debugger = Debugger {
        stream: BufReader::new(stream),
    };
    let csr_page = debugger.description(CSR_PAGE).await?;
    let time = register_number(&csr_page, "time").context("QEMU describes no register `time`")?;
    // QEMU does not list the register, whose presence is decided after the list was made, but has it at its place.
    let stimecmp = format!("{:x}", time - TIME + STIMECMP);
    let harts = debugger.threads().await?;
    ensure!(!harts.is_empty(), "QEMU knows of no harts");
    for hart in harts {
        debugger.expect_ok(&format!("Hg{hart}")).await?;
        let due = debugger.ask(&format!("p{stimecmp}")).await?;
        ensure!(
            !due.is_empty() && !due.starts_with('E'),
            "hart {hart} has no register `stimecmp`: the CPU model lacks the Sstc extension"
        );
        debugger.expect_ok(&format!("P{stimecmp}={due}")).await?;
    }
    // Detached, or the guest would stop when the connection ends.
    debugger.expect_ok("D").await
}

struct Debugger {
    stream: BufReader<UnixStream>,
}

impl Debugger {
    /// A page of the target's description, which comes in pieces: `m` more, `l` the last.
    async fn description(&mut self, page: &str) -> anyhow::Result<String> {
        // QEMU makes the pages when it is asked for what it supports.
        self.ask("qSupported").await?;
        let mut text = String::new();
        loop {
            let request = format!("qXfer:features:read:{page}:{:x},800", text.len());
            let piece = self.ask(&request).await?;
            match piece.split_at_checked(1) {
                Some(("m", more)) if !more.is_empty() => text.push_str(more),
                Some(("l", last)) => return Ok(text + last),
                _ => bail!("QEMU has no description `{page}`"),
            }
        }
    }

    /// The threads, which are harts; `m` some of them, `l` no more.
    async fn threads(&mut self) -> anyhow::Result<Vec<String>> {
        let mut threads = Vec::new();
        let mut answer = self.ask("qfThreadInfo").await?;
        while let Some(some) = answer.strip_prefix('m') {
            threads.extend(some.split(',').map(str::to_owned));
            answer = self.ask("qsThreadInfo").await?;
        }
        Ok(threads)
    }

    async fn expect_ok(&mut self, request: &str) -> anyhow::Result<()> {
        let answer = self.ask(request).await?;
        ensure!(answer == "OK", "QEMU answered `{request}` with `{answer}`");
        Ok(())
    }

    async fn ask(&mut self, request: &str) -> anyhow::Result<String> {
        self.stream.write_all(packet(request).as_bytes()).await?;
        let mut received = Vec::new();
        let mut limited = (&mut self.stream).take(PACKET_LIMIT);
        limited.read_until(b'#', &mut received).await?;
        ensure!(received.pop() == Some(b'#'), "QEMU ended the connection");
        let mut checksum = [0; 2];
        self.stream.read_exact(&mut checksum).await?;
        self.stream.write_all(b"+").await?;
        // In front of it is QEMU's acknowledgement of the request.
        let start = received.iter().position(|byte| *byte == b'$');
        let start = start.context("QEMU sent something else than a packet")?;
        Ok(String::from_utf8(received.split_off(start + 1))?)
    }
}

fn packet(content: &str) -> String {
    let checksum = content.bytes().fold(0_u8, u8::wrapping_add);
    format!("${content}#{checksum:02x}")
}

/// The number that a description gives a register: `<reg name="time" bitsize="64" regnum="3139" type="int"/>`.
fn register_number(page: &str, name: &str) -> Option<u64> {
    let (_, after) = page.split_once(&format!("<reg name=\"{name}\""))?;
    let (attributes, _) = after.split_once('>')?;
    let (_, number) = attributes.split_once("regnum=\"")?;
    number.split_once('"')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    /// Arms the timers of a QEMU that is asked just this, in this order.
    async fn answering(answers: &[(&str, &str)]) -> anyhow::Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("debugger");
        let listener = UnixListener::bind(&socket).unwrap();
        let answers: Vec<_> = answers
            .iter()
            .map(|(request, answer)| (packet(request), packet(answer)))
            .collect();
        let qemu = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            for (request, answer) in answers {
                let mut asked = vec![0; request.len()];
                stream.read_exact(&mut asked).await.unwrap();
                assert_eq!(String::from_utf8(asked).unwrap(), request);
                stream.write_all(b"+").await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
                assert_eq!(stream.read_u8().await.unwrap(), b'+');
            }
        });
        let outcome = arm(&socket).await;
        qemu.await.unwrap();
        outcome
    }

    const READ: &str = "qXfer:features:read:riscv-csr.xml";

    #[tokio::test]
    async fn each_harts_timer_is_written_its_own_value() {
        let first = r#"m<reg name="fflags" bitsize="64" regnum="67"/>"#;
        let last = r#"l<reg name="time" bitsize="64" regnum="3139" type="int"/>"#;
        let next = format!("{READ}:{:x},800", first.len() - 1);
        let start = format!("{READ}:0,800");
        let conversation = [
            ("qSupported", "PacketSize=1000"),
            (&start, first),
            (&next, last),
            ("qfThreadInfo", "m01"),
            ("qsThreadInfo", "m02"),
            ("qsThreadInfo", "l"),
            ("Hg01", "OK"),
            ("p18f", "8111490400000000"),
            ("P18f=8111490400000000", "OK"),
            ("Hg02", "OK"),
            ("p18f", "8211490400000000"),
            ("P18f=8211490400000000", "OK"),
            ("D", "OK"),
        ];
        answering(&conversation).await.unwrap();
    }

    #[tokio::test]
    async fn a_cpu_model_without_the_register_is_named() {
        let start = format!("{READ}:0,800");
        let conversation = [
            ("qSupported", ""),
            (&start, r#"l<reg name="time" regnum="3139"/>"#),
            ("qfThreadInfo", "m01"),
            ("qsThreadInfo", "l"),
            ("Hg01", "OK"),
            ("p18f", "E14"),
        ];
        let error = format!("{:#}", answering(&conversation).await.unwrap_err());
        assert!(error.contains("lacks the Sstc extension"), "{error}");
    }

    #[test]
    fn a_register_is_found_by_its_whole_name() {
        let page = r#"<reg name="timeh" regnum="1"/><reg name="time" bitsize="64" regnum="7"/>"#;
        assert_eq!(register_number(page, "time"), Some(7));
        assert_eq!(register_number(page, "stimecmp"), None);
    }
}
