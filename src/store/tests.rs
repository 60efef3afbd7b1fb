//! The store, with a Nix daemon that is a few lines: what is asked of it, and what is made of its answers.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::nix::handshake::{Promise, ServerProgress, ServerSide};
use crate::nix::registrations::Registrations;
use crate::nix::stderr;
use crate::nix::wire::{Reader, Version, put_number, put_string, put_strings};

const HASH: &str = "f3fd5d95ca4e8bf91713e86c1fedf1bde75566e5558973a311963f2b5da4bf25";

pub(crate) fn path(name: &str) -> StorePath {
    let text = format!("/nix/store/b0a26ff37b0c5c35c34c0d4d0cb00b18-{name}");
    StorePath::parse(text.as_bytes()).unwrap()
}

/// A store in a folder, and a daemon for it.
pub(crate) struct Rig {
    dir: TempDir,
    /// The names of valid paths, and of what each refers to.
    valid: Arc<Mutex<BTreeMap<StorePath, Vec<StorePath>>>>,
    /// The numbers of all operations.
    asked: Arc<Mutex<Vec<u64>>>,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir_all(dir.path().join("nix/store")).unwrap();
        let rig = Self {
            dir,
            valid: Arc::default(),
            asked: Arc::default(),
        };
        let sockets = rig.dir.path().join("nix/var/nix/daemon-socket");
        fs::create_dir_all(&sockets).unwrap();
        let listener = UnixListener::bind(sockets.join("socket")).unwrap();
        let (valid, asked) = (rig.valid.clone(), rig.asked.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, valid.clone(), asked.clone()));
            }
        });
        rig
    }

    /// Makes a path valid, and there.
    pub(crate) fn add(&self, name: &str, references: &[&str]) {
        fs::write(self.file(name), name).unwrap();
        let references = references.iter().map(|name| path(name)).collect();
        self.valid.lock().unwrap().insert(path(name), references);
    }

    fn file(&self, name: &str) -> PathBuf {
        let store = self.dir.path().join("nix/store");
        store.join(path(name).base_name())
    }

    pub(crate) fn store(&self) -> HostStore {
        HostStore::new(StorePlace {
            root: Some(self.dir.path().to_owned()),
            search_path: "/nonexistent".into(),
        })
    }

    /// The daemon's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.store().place.socket()
    }

    /// How often an operation was asked for.
    pub(crate) fn count(&self, number: u64) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|asked| **asked == number).count()
    }
}

async fn serve(
    mut stream: UnixStream,
    valid: Arc<Mutex<BTreeMap<StorePath, Vec<StorePath>>>>,
    asked: Arc<Mutex<Vec<u64>>>,
) {
    let promise = Promise {
        version: Version::new(1, 34),
        nix: "2.8.0".to_owned(),
    };
    let mut side = ServerSide::new(promise);
    let mut received = Vec::new();
    loop {
        let mut chunk = [0; 100];
        let n = stream.read(&mut chunk).await.unwrap();
        match side.receive(&chunk[..n]).unwrap() {
            ServerProgress::More { reply } => stream.write_all(&reply).await.unwrap(),
            ServerProgress::Done { reply, rest, .. } => {
                stream.write_all(&reply).await.unwrap();
                received.extend(rest);
                break;
            }
        }
    }
    loop {
        while let Some((reply, used)) = answer(&received, &valid, &asked) {
            received.drain(..used);
            stream.write_all(&reply).await.unwrap();
        }
        if stream.read_buf(&mut received).await.unwrap() == 0 {
            return;
        }
    }
}

/// The reply to the first request of these, once it is there, and the request's length.
fn answer(
    requests: &[u8],
    valid: &Mutex<BTreeMap<StorePath, Vec<StorePath>>>,
    asked: &Mutex<Vec<u64>>,
) -> Option<(Vec<u8>, usize)> {
    let valid = valid.lock().unwrap();
    let mut reader = Reader::new(requests);
    let number = reader.number().ok()?;
    let mut reply = Vec::new();
    put_number(&mut reply, stderr::LAST);
    match number {
        11 => {
            reader.string(300).ok()?;
            put_number(&mut reply, 1);
        }
        31 => {
            let asked = reader.strings(1000, 300).ok()?;
            reader.number().ok()?;
            let asked: BTreeSet<_> = asked.into_iter().filter_map(StorePath::parse).collect();
            let known: Vec<_> = asked
                .iter()
                .filter(|path| valid.contains_key(path))
                .collect();
            let known: Vec<_> = known.iter().map(|path| path.as_str()).collect();
            put_strings(&mut reply, &known);
        }
        26 => {
            let path = StorePath::parse(reader.string(300).ok()?).unwrap();
            put_number(&mut reply, 1);
            put_string(&mut reply, b"");
            put_string(&mut reply, HASH.as_bytes());
            let references: Vec<_> = valid[&path].iter().map(StorePath::as_str).collect();
            put_strings(&mut reply, &references);
            put_number(&mut reply, 0);
            put_number(&mut reply, 120);
            put_number(&mut reply, 0);
            put_strings::<&str>(&mut reply, &[]);
            put_string(&mut reply, b"");
        }
        other => panic!("operation {other}"),
    }
    asked.lock().unwrap().push(number);
    Some((reply, reader.position()))
}

/// What registers paths, one after the other.
fn registrations(paths: &[(&str, &[&str])]) -> String {
    let one = |(name, references): &(&str, &[&str])| {
        let head = format!("{}\n{HASH}\n120\n\n{}", path(name), references.len());
        let references = references.iter().map(|name| path(name).to_string());
        let lines: Vec<String> = std::iter::once(head).chain(references).collect();
        lines.join("\n") + "\n"
    };
    paths.iter().map(one).collect()
}

/// Gives inputs to a VM, and tells what it was to register.
async fn give(given: &mut Given, inputs: Inputs) -> String {
    let mut told = String::new();
    let register = async |new: &Registrations| {
        told = String::from_utf8(new.paths.clone()).unwrap();
        Ok(())
    };
    given.give(inputs, register).await.unwrap();
    told
}

#[tokio::test]
async fn what_the_store_has_is_found_with_all_that_it_refers_to() {
    let rig = Rig::new();
    rig.add("a", &["b"]);
    rig.add("b", &["c", "b"]);
    rig.add("c", &[]);
    let asked = vec![path("a"), path("b"), path("nowhere")];
    let inputs = rig.store().look_up(asked).await.unwrap();
    assert_eq!((inputs.asked(), inputs.shared()), (3, 2));
    let text = give(&mut Given::default(), inputs).await;
    let expected = [("a", &["b"][..]), ("b", &["c", "b"]), ("c", &[])];
    assert_eq!(text, registrations(&expected));
}

#[tokio::test]
async fn what_is_damaged_is_left_out_with_all_that_refers_to_it() {
    let rig = Rig::new();
    rig.add("a", &["b"]);
    rig.add("b", &["c"]);
    rig.add("c", &[]);
    rig.add("d", &[]);
    fs::remove_file(rig.file("c")).unwrap();
    let asked = ["a", "b", "c", "d"].map(path).to_vec();
    let inputs = rig.store().look_up(asked).await.unwrap();
    assert_eq!((inputs.asked(), inputs.shared()), (4, 1));
    let text = give(&mut Given::default(), inputs).await;
    assert_eq!(text, registrations(&[("d", &[])]));
}

#[tokio::test]
async fn a_path_is_asked_about_once_until_it_is_made_anew() {
    let rig = Rig::new();
    rig.add("a", &[]);
    let store = rig.store();
    for _ in 0..2 {
        store.look_up(vec![path("a")]).await.unwrap();
        assert_eq!(rig.count(26), 1);
    }
    // Held and asked for each time: it may have gone.
    assert_eq!((rig.count(11), rig.count(31)), (2, 2));
    fs::remove_file(rig.file("a")).unwrap();
    rig.add("new", &[]);
    rig.add("a", &["new"]);
    let inputs = store.look_up(vec![path("a")]).await.unwrap();
    let text = give(&mut Given::default(), inputs).await;
    assert_eq!(text, registrations(&[("a", &["new"]), ("new", &[])]));
}

#[tokio::test]
async fn a_vm_is_given_each_path_once() {
    let rig = Rig::new();
    rig.add("a", &[]);
    rig.add("b", &["a"]);
    let store = rig.store();
    let mut given = Given::default();
    for (name, new) in [
        ("a", &[("a", &[][..])][..]),
        ("b", &[("b", &["a"])]),
        ("b", &[]),
    ] {
        let inputs = store.look_up(vec![path(name)]).await.unwrap();
        assert_eq!(give(&mut given, inputs).await, registrations(new), "{name}");
    }
}

#[tokio::test]
async fn after_a_registration_that_failed_all_is_given_again() {
    let rig = Rig::new();
    rig.add("a", &[]);
    rig.add("b", &["a"]);
    let store = rig.store();
    let mut given = Given::default();
    let inputs = store.look_up(vec![path("a")]).await.unwrap();
    give(&mut given, inputs).await;
    let inputs = store.look_up(vec![path("b")]).await.unwrap();
    let refuse = async |_: &Registrations| anyhow::bail!("the guest has lost `a`");
    given.give(inputs, refuse).await.unwrap_err();
    let inputs = store.look_up(vec![path("b")]).await.unwrap();
    let text = give(&mut given, inputs).await;
    assert_eq!(text, registrations(&[("a", &[]), ("b", &["a"])]));
}

#[tokio::test]
async fn why_inputs_are_copied_is_known_until_they_are_shared_again() {
    let rig = Rig::new();
    rig.add("a", &[]);
    let store = rig.store();
    let socket = rig.socket();
    let aside = rig.dir.path().join("aside");
    fs::rename(&socket, &aside).unwrap();
    assert_eq!(store.trouble(), None);
    let error = store.look_up(vec![path("a")]).await.unwrap_err();
    assert!(
        format!("{error:#}").starts_with("starting `nix-daemon --stdio`: "),
        "{error:#}"
    );
    assert_eq!(store.trouble(), Some(format!("{error:#}")));
    fs::rename(&aside, &socket).unwrap();
    store.look_up(vec![path("a")]).await.unwrap();
    assert_eq!(store.trouble(), None);
    let nowhere = HostStore::new(StorePlace {
        root: Some("/nonexistent".into()),
        search_path: "/nonexistent".into(),
    });
    let reason = "there is no /nonexistent/nix/store";
    assert_eq!(nowhere.trouble().unwrap(), reason);
    let error = nowhere.look_up(vec![path("a")]).await.unwrap_err();
    assert_eq!(error.to_string(), reason);
}
