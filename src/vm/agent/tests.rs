//! The agent's connection against a guest that misbehaves.

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::*;

/// A guest agent of a test: reads a line, sends what it is told.
struct FakeAgent {
    stream: BufReader<UnixStream>,
}

impl FakeAgent {
    async fn accept(listener: &UnixListener) -> Self {
        let stream = BufReader::new(listener.accept().await.unwrap().0);
        Self { stream }
    }

    async fn hear(&mut self) -> String {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).await.unwrap();
        String::from_utf8_lossy(&line).into_owned()
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }
}

fn listener() -> (tempfile::TempDir, UnixListener, Agent) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent");
    let listener = UnixListener::bind(&socket).unwrap();
    (dir, listener, Agent::new(socket))
}

#[tokio::test]
async fn replies_of_a_connection_before_are_not_taken_for_ours() {
    let (_dir, listener, agent) = listener();
    let guest = async {
        let mut fake = FakeAgent::accept(&listener).await;
        assert!(fake.hear().await.contains("\"id\":1"));
        fake.say(b"{\"return\": {\"pid\": 4}}\n{\"ret\xff{\"return\": 77}\n")
            .await;
        fake.say(b"\xff{\"return\": 1}\n").await;
        assert!(fake.hear().await.contains("guest-exec"));
        fake.say(b"{\"return\": {\"pid\": 5}}\n").await;
    };
    let (pid, ()) = tokio::join!(agent.start("/bin/true", &[]), guest);
    assert_eq!(pid.unwrap(), GuestPid(5));
}

#[tokio::test]
async fn a_late_reply_does_not_answer_the_next_request() {
    let (_dir, listener, agent) = listener();
    let guest = async {
        let mut silent = FakeAgent::accept(&listener).await;
        silent.hear().await;
        silent.say(b"\xff{\"return\": 1}\n").await;
        silent.hear().await;
        let mut second = FakeAgent::accept(&listener).await;
        second.hear().await;
        second.say(b"{\"return\": {}}\n\xff{\"return\": 2}\n").await;
        second.hear().await;
        second.say(b"{\"return\": {\"exited\": false}}\n").await;
    };
    let calls = async {
        agent.shut_down(Duration::from_millis(50)).await.unwrap();
        agent.outcome(GuestPid(1)).await.unwrap()
    };
    let (outcome, ()) = tokio::join!(calls, guest);
    assert_eq!(outcome, None);
}

#[tokio::test]
async fn a_refusal_carries_the_agents_words() {
    let (_dir, listener, agent) = listener();
    let guest = async {
        let mut fake = FakeAgent::accept(&listener).await;
        fake.hear().await;
        fake.say(b"\xff{\"return\": 1}\n").await;
        fake.hear().await;
        fake.say(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such file\"}}\n")
            .await;
    };
    let (pid, ()) = tokio::join!(agent.start("/none", &[]), guest);
    let error = format!("{:#}", pid.unwrap_err());
    assert!(
        error.contains("/none") && error.contains("no such file"),
        "{error}"
    );
}

/// More than a socket holds.
const FLOOD: usize = 64 << 20;

impl FakeAgent {
    /// Brings the caller into step.
    async fn in_step(listener: &UnixListener) -> Self {
        let mut fake = Self::accept(listener).await;
        fake.hear().await;
        fake.say(b"\xff{\"return\": 1}\n").await;
        fake
    }

    /// Says this again and again; how many bytes were taken when nobody took more.
    async fn flood(&mut self, with: &[u8]) -> usize {
        let mut taken = 0;
        while taken < FLOOD {
            match self.stream.get_mut().try_write(with) {
                Ok(count) => taken += count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let writable = self.stream.get_mut().writable();
                    // Time is paused: it passes when nobody has anything to do.
                    if tokio::time::timeout(Duration::from_secs(1), writable)
                        .await
                        .is_err()
                    {
                        break;
                    }
                }
                // The connection was ended.
                Err(_) => break,
            }
        }
        taken
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_without_end_ends_the_connection_and_is_not_kept() {
    let (_dir, listener, agent) = listener();
    let guest = async {
        let mut fake = FakeAgent::in_step(&listener).await;
        fake.hear().await;
        fake.flood(&[b'x'; 4 << 10]).await
    };
    let (outcome, taken) = tokio::join!(agent.outcome(GuestPid(1)), guest);
    let error = format!("{:#}", outcome.unwrap_err());
    assert!(error.contains("a line of more than"), "{error}");
    assert!(taken < 2 * channel::LINE_LIMIT, "{taken}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_read_of_an_agent_that_was_not_asked() {
    let (_dir, listener, agent) = listener();
    let asked = async {
        let mut fake = FakeAgent::in_step(&listener).await;
        fake.hear().await;
        fake.say(b"{\"return\": {\"exited\": false}}\n").await;
        fake
    };
    let (outcome, mut fake) = tokio::join!(agent.outcome(GuestPid(1)), asked);
    outcome.unwrap();
    let taken = fake.flood(&[0; 4 << 10]).await;
    assert!(taken < 2 << 20, "{taken}");
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_answers_to_others_is_given_up() {
    let (_dir, listener, agent) = listener();
    let guest = async {
        let mut fake = FakeAgent::accept(&listener).await;
        fake.flood(b"{\"return\": [0, 0, 0, 0]}\n").await
    };
    let (outcome, _) = tokio::join!(agent.outcome(GuestPid(1)), guest);
    outcome.unwrap_err();
}

#[tokio::test]
async fn a_reply_of_another_shape_is_no_reply() {
    for reply in [
        &b"{\"return\": [0, 0, 0]}\n"[..],
        b"{\"return\": {}, \"return\": {}}\n",
        b"[[[[\n",
        b"{}\n",
        b"\xff\xff\n",
    ] {
        let (_dir, listener, agent) = listener();
        let guest = async {
            let mut fake = FakeAgent::in_step(&listener).await;
            fake.hear().await;
            fake.say(reply).await;
        };
        let (outcome, ()) = tokio::join!(agent.outcome(GuestPid(1)), guest);
        let error = format!("{:#}", outcome.unwrap_err());
        assert!(error.contains("no reply to that"), "{error}");
    }
}
