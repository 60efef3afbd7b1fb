//! The agent's connection against a guest that misbehaves.

use tokio::net::UnixListener;

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
