//! An SSH client that sends what it likes: just enough of RFC 4253, 4252 and 4254, with one algorithm of each kind. russh's and
//! OpenSSH's clients keep the rules, and whoever attacks a gateway does not.

use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use curve25519_dalek::MontgomeryPoint;
use russh::keys::signature::Signer as _;
use russh::keys::ssh_encoding::Encode as _;
use russh::keys::{PrivateKey, load_secret_key};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::apart::Apart;
use crate::fake::{Role, wish};
use crate::rig::{SLOT, keys_in, within};
use xpool::nix::handshake::ClientSide;
use xpool::nix::wire::Version;

const GREETING: &[u8] = b"SSH-2.0-rude";
/// Any number: nothing here is secret.
const SECRET: [u8; 32] = [7; 32];

const SERVICE_REQUEST: u8 = 5;
const KEXINIT: u8 = 20;
const NEWKEYS: u8 = 21;
const KEX_ECDH_INIT: u8 = 30;
const KEX_ECDH_REPLY: u8 = 31;
const USERAUTH_REQUEST: u8 = 50;
const USERAUTH_SUCCESS: u8 = 52;
const CHANNEL_OPEN: u8 = 90;
const CHANNEL_OPEN_CONFIRMATION: u8 = 91;
const CHANNEL_DATA: u8 = 94;
const CHANNEL_EXTENDED_DATA: u8 = 95;
const CHANNEL_REQUEST: u8 = 98;

/// Fields of a message, one after another.
#[derive(Clone, Default)]
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u8) -> Self {
        Self(vec![kind])
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn number(self, number: u32) -> Self {
        self.bytes(&number.to_be_bytes())
    }

    fn string(self, string: impl AsRef<[u8]>) -> Self {
        let string = string.as_ref();
        self.number(u32::try_from(string.len()).unwrap())
            .bytes(string)
    }

    /// A large positive number, its most significant byte first (RFC 4251, 5).
    fn large(self, bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        let sign: &[u8] = if bytes[zeros] >= 0x80 { &[0] } else { &[] };
        self.string([sign, &bytes[zeros..]].concat())
    }
}

/// Takes a string off a message.
fn string<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let (length, after) = rest.split_at(4);
    let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
    let (string, after) = after.split_at(length);
    *rest = after;
    string
}

/// One direction's key, and how many packets it was used for.
struct Key {
    cipher: Aes256Gcm,
    iv: [u8; 12],
    packets: u64,
}

impl Key {
    fn nonce(&mut self) -> [u8; 12] {
        let mut nonce = self.iv;
        let first = u64::from_be_bytes(nonce[4..].try_into().unwrap());
        nonce[4..].copy_from_slice(&first.wrapping_add(self.packets).to_be_bytes());
        self.packets += 1;
        nonce
    }
}

struct RudeClient {
    stream: BufReader<TcpStream>,
    /// Client to server, server to client; none before the keys are exchanged.
    keys: Option<(Key, Key)>,
}

impl RudeClient {
    /// A client that has logged in.
    async fn log_in(port: u16, key: &PrivateKey) -> Self {
        let stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
        let mut client = Self { stream, keys: None };
        let session = client.exchange_keys().await;
        client
            .send(Message::new(SERVICE_REQUEST).string("ssh-userauth"))
            .await;
        let request = Message::new(USERAUTH_REQUEST)
            .string(SLOT)
            .string("ssh-connection")
            .string("publickey")
            .bytes(&[1])
            .string("ssh-ed25519")
            .string(key.public_key().to_bytes().unwrap());
        let signed = Message::default().string(session).bytes(&request.0);
        let signature = key.try_sign(&signed.0).unwrap();
        let mut encoded = Vec::new();
        signature.encode(&mut encoded).unwrap();
        client.send(request.string(encoded)).await;
        client.hear(USERAUTH_SUCCESS).await;
        client
    }

    /// The session's identifier.
    async fn exchange_keys(&mut self) -> [u8; 32] {
        let mut greeting = [GREETING, b"\r\n"].concat();
        self.stream.write_all(&greeting).await.unwrap();
        greeting.clear();
        self.stream.read_until(b'\n', &mut greeting).await.unwrap();
        let init = Message::new(KEXINIT)
            .bytes(&[0; 16])
            .string("curve25519-sha256")
            .string("ssh-ed25519")
            .string("aes256-gcm@openssh.com")
            .string("aes256-gcm@openssh.com")
            .string("hmac-sha2-256-etm@openssh.com")
            .string("hmac-sha2-256-etm@openssh.com")
            .string("none")
            .string("none")
            .string("")
            .string("")
            .bytes(&[0])
            .number(0);
        self.send(init.clone()).await;
        let servers_init = self.hear(KEXINIT).await;
        let public = MontgomeryPoint::mul_base_clamped(SECRET).to_bytes();
        self.send(Message::new(KEX_ECDH_INIT).string(public)).await;
        let reply = self.hear(KEX_ECDH_REPLY).await;
        let mut rest = &reply[1..];
        let (host_key, servers_public) = (string(&mut rest), string(&mut rest));
        let shared = MontgomeryPoint(servers_public.try_into().unwrap()).mul_clamped(SECRET);
        let shared = Message::default().large(&shared.to_bytes());
        let hashed = Message::default()
            .string(GREETING)
            .string(greeting.trim_ascii_end())
            .string(&init.0)
            .string(&servers_init)
            .string(host_key)
            .string(public)
            .string(servers_public)
            .bytes(&shared.0);
        let session: [u8; 32] = Sha256::digest(&hashed.0).into();
        self.send(Message::new(NEWKEYS)).await;
        self.hear(NEWKEYS).await;
        let derived = |letter: u8| -> [u8; 32] {
            let all = shared.clone().bytes(&session).bytes(&[letter]);
            Sha256::digest(all.bytes(&session).0).into()
        };
        let key = |iv: u8, key: u8| Key {
            cipher: Aes256Gcm::new(&derived(key).into()),
            iv: derived(iv)[..12].try_into().unwrap(),
            packets: 0,
        };
        self.keys = Some((key(b'A', b'C'), key(b'B', b'D')));
        session
    }

    /// A channel on which a daemon was asked for; the gateway's number for it.
    async fn start_daemon(&mut self) -> u32 {
        let open = Message::new(CHANNEL_OPEN).string("session");
        self.send(open.number(0).number(1 << 30).number(1 << 15))
            .await;
        let confirmed = self.hear(CHANNEL_OPEN_CONFIRMATION).await;
        let channel = u32::from_be_bytes(confirmed[5..9].try_into().unwrap());
        let request = Message::new(CHANNEL_REQUEST).number(channel).string("exec");
        self.send(request.bytes(&[0]).string("nix-daemon --stdio"))
            .await;
        channel
    }

    async fn send(&mut self, message: Message) {
        self.try_send(message).await.unwrap();
    }

    async fn try_send(&mut self, message: Message) -> std::io::Result<()> {
        let block = 16;
        // The length counts for the blocks only without a cipher.
        let counted = if self.keys.is_some() { 1 } else { 5 } + message.0.len();
        let padding = 2 * block - counted % block;
        let padding = if padding >= block + 4 {
            padding - block
        } else {
            padding
        };
        let plain = [
            &[u8::try_from(padding).unwrap()],
            &message.0[..],
            &vec![0; padding],
        ]
        .concat();
        let length = u32::try_from(plain.len()).unwrap().to_be_bytes();
        let body = match &mut self.keys {
            Some((key, _)) => {
                let nonce = Nonce::from(key.nonce());
                let (msg, aad) = (&plain[..], &length[..]);
                key.cipher.encrypt(&nonce, Payload { msg, aad }).unwrap()
            }
            None => plain,
        };
        self.stream.write_all(&[&length[..], &body].concat()).await
    }

    /// The next message of this kind.
    async fn hear(&mut self, kind: u8) -> Vec<u8> {
        loop {
            let message = within(self.next()).await.expect("the gateway has hung up");
            if message[0] == kind {
                return message;
            }
        }
    }

    /// The next message; `None` at the end of the connection.
    async fn next(&mut self) -> Option<Vec<u8>> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).await.ok()?;
        let tag = if self.keys.is_some() { 16 } else { 0 };
        let mut body = vec![0; u32::from_be_bytes(length) as usize + tag];
        self.stream.read_exact(&mut body).await.ok()?;
        if let Some((_, key)) = &mut self.keys {
            let nonce = Nonce::from(key.nonce());
            let (msg, aad) = (&body[..], &length[..]);
            body = key.cipher.decrypt(&nonce, Payload { msg, aad }).unwrap();
        }
        let padding = usize::from(body[0]);
        body.truncate(body.len() - padding);
        Some(body.split_off(1))
    }
}

/// What the client sends, in bytes, if it is let.
const FLOOD: usize = 64 << 20;

/// The most memory that the gateway may ever have had, in KiB: it begins with 18 MiB.
const MOST_KIB: u64 = 42 << 10;

/// A gateway, and a client of it that floods a channel for as long as it is let.
async fn flooded(data: impl Fn(u32) -> Message) -> (Apart, RudeClient) {
    let apart = Apart::start().await;
    let key = load_secret_key(keys_in(apart.folder.path()).client_file(), None).unwrap();
    let mut client = RudeClient::log_in(apart.port, &key).await;
    let channel = client.start_daemon().await;
    let hello = ClientSide::new(Version::PROMISED).hello();
    let hello = [hello, wish(Role::IsDeaf)].concat();
    let hello = Message::new(CHANNEL_DATA).number(channel).string(hello);
    client.send(hello).await;
    let packet = data(channel);
    for _ in 0..FLOOD / packet.0.len() {
        if within(client.try_send(packet.clone())).await.is_err() {
            break;
        }
    }
    (apart, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_keeps_no_window_is_cut_and_costs_little_memory() {
    let (apart, mut client) = flooded(|channel| {
        let data = Message::new(CHANNEL_DATA).number(channel);
        data.string(vec![0; 32 << 10])
    })
    .await;
    while within(client.next()).await.is_some() {}
    let most = apart.memory_kib("VmHWM");
    assert!(most <= MOST_KIB, "{most} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_errors_costs_little_memory() {
    let (apart, _client) = flooded(|channel| {
        let data = Message::new(CHANNEL_EXTENDED_DATA).number(channel);
        data.number(1).string(vec![0; 32 << 10])
    })
    .await;
    let most = apart.memory_kib("VmHWM");
    assert!(most <= MOST_KIB, "{most} KiB");
}
