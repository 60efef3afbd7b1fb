//! Stands between QEMU's monitor and qapi: passes the greeting and replies on, and takes the events out.
//!
//! qapi knows the events of one QEMU version, and one that it does not know ends its stream.

use futures::StreamExt as _;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};

/// The longest line that QEMU may send: its longest answers (schema, device lists) stay below 300 KB.
pub(super) const LINE_LIMIT: usize = 1024 * 1024;

/// Why the connection to the monitor cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilterError {
    #[error("QEMU's monitor sent a line of more than {LINE_LIMIT} bytes")]
    LineTooLong,
    #[error("QEMU's monitor sent what is not JSON")]
    NotJson(#[source] serde_json::Error),
    #[error("QEMU's monitor could not be read")]
    Io(#[from] std::io::Error),
}

/// Copies lines from QEMU to qapi until either ends; each event goes to `on_event` instead.
pub(super) async fn run(
    from_qemu: impl AsyncRead + Unpin,
    mut to_qapi: impl AsyncWrite + Unpin,
    on_event: impl Fn(&Value),
) -> Result<(), FilterError> {
    let mut lines = FramedRead::new(from_qemu, LinesCodec::new_with_max_length(LINE_LIMIT));
    while let Some(line) = lines.next().await {
        let line = match line {
            Ok(line) => line,
            Err(LinesCodecError::MaxLineLengthExceeded) => return Err(FilterError::LineTooLong),
            // QEMU was killed, so it closed with our last command unread.
            Err(LinesCodecError::Io(error))
                if error.kind() == std::io::ErrorKind::ConnectionReset =>
            {
                return Ok(());
            }
            Err(LinesCodecError::Io(error)) => return Err(error.into()),
        };
        if line.is_empty() {
            continue;
        }
        let message: Value = serde_json::from_str(&line).map_err(FilterError::NotJson)?;
        if message.get("event").is_some() {
            on_event(&message);
        } else if pass_on(&mut to_qapi, line).await.is_err() {
            // Nobody is there who could have asked.
            return Ok(());
        }
    }
    Ok(())
}

async fn pass_on(to_qapi: &mut (impl AsyncWrite + Unpin), mut line: String) -> std::io::Result<()> {
    line.push('\n');
    to_qapi.write_all(line.as_bytes()).await
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// What qapi gets, the events' names, and how the filter ended, for these chunks from QEMU.
    async fn filtered(chunks: &[&[u8]]) -> (String, Vec<String>, Result<(), FilterError>) {
        let (mut qemu, from_qemu) = tokio::io::duplex(100);
        let (to_qapi, mut qapi) = tokio::io::duplex(LINE_LIMIT);
        let events = RefCell::new(Vec::new());
        let note = |event: &Value| events.borrow_mut().push(event["event"].to_string());
        let write = async {
            for chunk in chunks {
                // The filter may have ended on an earlier one.
                let _ = qemu.write_all(chunk).await;
            }
            drop(qemu);
        };
        let (outcome, ()) = tokio::join!(run(from_qemu, to_qapi, note), write);
        let mut passed = String::new();
        qapi.read_to_string(&mut passed).await.unwrap();
        (passed, events.into_inner(), outcome)
    }

    #[tokio::test]
    async fn events_are_taken_out_even_unknown_ones() {
        let (passed, events, outcome) = filtered(&[
            b"{\"QMP\": {}}\r\n",
            b"{\"event\": \"FROM_THE_FUTURE\", \"data\": {\"x\": [1]}}\r\n",
            b"{\"return\": {}, \"id\": 1}\r\n",
        ])
        .await;
        assert_eq!(passed, "{\"QMP\": {}}\n{\"return\": {}, \"id\": 1}\n");
        assert_eq!(events, ["\"FROM_THE_FUTURE\""]);
        assert!(outcome.is_ok());
    }

    #[tokio::test]
    async fn a_line_may_come_in_pieces() {
        let (passed, events, _) = filtered(&[
            b"{\"ret",
            b"urn\": 1}\n{\"eve",
            b"nt\": \"STOP\"}\n{}",
            b"\n",
        ])
        .await;
        assert_eq!(passed, "{\"return\": 1}\n{}\n");
        assert_eq!(events, ["\"STOP\""]);
    }

    #[tokio::test]
    async fn garbage_ends_the_connection() {
        let (passed, _, outcome) = filtered(&[b"{}\n", b"\x00\xffhello\n", b"{}\n"]).await;
        assert_eq!(passed, "{}\n");
        assert!(
            matches!(outcome, Err(FilterError::NotJson(_) | FilterError::Io(_))),
            "{outcome:?}"
        );
        let (_, _, outcome) = filtered(&[b"hello\n"]).await;
        assert!(
            matches!(outcome, Err(FilterError::NotJson(_))),
            "{outcome:?}"
        );
    }

    #[tokio::test]
    async fn a_line_without_end_is_not_kept() {
        let endless = vec![b'x'; LINE_LIMIT + 1000];
        let (passed, _, outcome) = filtered(&[&endless]).await;
        assert_eq!(passed, "");
        assert!(
            matches!(outcome, Err(FilterError::LineTooLong)),
            "{outcome:?}"
        );
    }
}
