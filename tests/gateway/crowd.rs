//! Many clients at once: each gets its turn, and together they take little memory.

use std::collections::HashMap;
use std::sync::Arc;

use russh::client::Msg;
use russh::keys::PrivateKeyWithHashAlg;
use russh::{Channel, ChannelStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use xpool::nix::stderr;
use xpool::open_files;

use crate::apart::{Apart, VMS};
use crate::fake::{Role, answer, wish};
use crate::rig::{SLOT, keys_in, long, private_key, shake_hands};
use crate::tier::volume;
use crate::trusting::AnyServer;

fn clients() -> usize {
    volume(250, 1000)
}

/// What a manager with so many sessions may take at the most, in KiB: 300 MiB with a thousand.
fn most_memory_kib() -> u64 {
    ((clients() as u64 * 300) << 10) / 1000
}

/// A Nix client that waits for its turn.
struct Waiting {
    /// The address that the manager knows it by.
    address: String,
    stream: ChannelStream<Msg>,
    /// Ends when it is dropped.
    _connection: russh::client::Handle<AnyServer>,
}

/// Logs in, shakes hands, and asks for its first operation.
async fn come(port: u16, key: PrivateKeyWithHashAlg) -> Waiting {
    let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let config = Arc::new(russh::client::Config::default());
    let mut connection = russh::client::connect_stream(config, socket, AnyServer)
        .await
        .unwrap();
    let login = connection.authenticate_publickey(SLOT, key).await.unwrap();
    assert!(login.success());
    let channel: Channel<Msg> = connection.channel_open_session().await.unwrap();
    channel.exec(true, "nix-daemon --stdio").await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(channel.into_stream());
    shake_hands(&mut reader, &mut writer).await;
    let mut stream = reader.unsplit(writer);
    stream.write_all(&wish(Role::Answers)).await.unwrap();
    stream.flush().await.unwrap();
    Waiting {
        address,
        stream,
        _connection: connection,
    }
}

impl Waiting {
    /// Waits for the answer to the first operation, over the lines that say what it waits for.
    async fn is_served(&mut self) {
        let mut heard = Vec::new();
        let line = stderr::line("").len();
        loop {
            let n = self.stream.read_buf(&mut heard).await.unwrap();
            assert!(n > 0, "{} was turned away: {heard:?}", self.address);
            if heard.ends_with(&answer()) {
                return;
            }
            assert!(heard.len() < 1000 * line, "{} hears too much", self.address);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_that_come_at_once_are_served_in_turn_in_little_memory() {
    open_files::raise_limit().unwrap();
    let apart = Apart::start().await;
    let key = Arc::new(private_key(&keys_in(apart.folder.path()).client_file()));
    let mut coming = JoinSet::new();
    for _ in 0..clients() {
        let key = PrivateKeyWithHashAlg::new(key.clone(), None);
        coming.spawn(come(apart.port, key));
    }
    let mut all = HashMap::new();
    while let Some(client) = long(coming.join_next()).await {
        let client = client.unwrap();
        all.insert(client.address.clone(), client);
    }
    let order = order_of_arrival(&apart).await;

    let (served, mut answers) = mpsc::channel(order.len());
    for (address, mut client) in all {
        let served = served.clone();
        tokio::spawn(async move {
            client.is_served().await;
            served.send((address, client)).await.unwrap();
        });
    }
    for turn in order.chunks(VMS as usize) {
        let mut now = Vec::new();
        for _ in turn {
            now.push(long(answers.recv()).await.unwrap());
        }
        let mut addresses: Vec<&String> = now.iter().map(|(address, _)| address).collect();
        let mut expected: Vec<&String> = turn.iter().collect();
        addresses.sort();
        expected.sort();
        assert_eq!(addresses, expected, "not in the order of arrival");
    }
    let most = apart.memory_kib("VmHWM");
    assert!(most <= most_memory_kib(), "{most} KiB");
}

/// The addresses of all clients, when each has its place in the queue.
async fn order_of_arrival(apart: &Apart) -> Vec<String> {
    let sessions = async {
        loop {
            let mut status = apart.manager.status().await.unwrap();
            let sessions = status.systems.remove(0).sessions;
            if sessions.len() == clients() {
                return sessions;
            }
        }
    };
    let address = |client: String| client.split(' ').nth(1).unwrap().to_owned();
    let sessions = long(sessions).await.into_iter();
    sessions.map(|session| address(session.client)).collect()
}
