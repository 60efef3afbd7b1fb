//! Keys in a folder of their own.

use std::os::unix::fs::symlink;
use std::process::Command;

use tempfile::TempDir;

use super::*;

fn folder() -> (TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("keys");
    (parent, folder)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// The error of keys that cannot be used, without the folder's name.
#[track_caller]
fn refusal(folder: &Path) -> String {
    let error = GatewayKeys::load_or_create(folder).unwrap_err();
    format!("{error:#}").replace(&folder.display().to_string(), "KEYS")
}

#[test]
fn keys_are_made_once_and_are_private() {
    let (_parent, folder) = folder();
    let made = GatewayKeys::load_or_create(&folder).unwrap();
    let read = GatewayKeys::load_or_create(&folder).unwrap();
    assert_eq!(made.host().public_key(), read.host().public_key());
    assert_eq!(made.client(), read.client());
    assert_ne!(
        made.host().public_key().key_data(),
        made.client().key_data()
    );
    assert_eq!(mode(&folder), 0o700);
    for name in [HOST_KEY, CLIENT_KEY] {
        assert_eq!(mode(&folder.join(name)), 0o600);
        assert!(folder.join(name).with_extension("pub").exists());
    }
    assert_eq!(
        fs::read_dir(&folder).unwrap().count(),
        4,
        "something was left behind"
    );
}

#[test]
fn openssh_reads_the_client_key() {
    let (_parent, folder) = folder();
    let keys = GatewayKeys::load_or_create(&folder).unwrap();
    let Ok(output) = Command::new("ssh-keygen")
        .arg("-yf")
        .arg(keys.client_file())
        .output()
    else {
        tracing::warn!("skipped: there is no ssh-keygen");
        return;
    };
    let public = keys.client().to_openssh().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().trim_end(),
        public.trim_end()
    );
}

#[test]
fn a_copy_of_the_client_key_is_the_same_key() {
    let (parent, folder) = folder();
    GatewayKeys::load_or_create(&folder).unwrap();
    let keys = GatewayKeys::load_of(us(), &folder).unwrap();
    let copy = parent.path().join("copy");
    fs::write(&copy, keys.client_text().unwrap()).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).unwrap();
    let read = load(&copy, us()).unwrap().unwrap();
    assert_eq!(read.public_key(), keys.client());
    let other = GatewayKeys::load_of(us() + 1, &folder).unwrap_err();
    assert!(other.to_string().contains("belongs to user"), "{other}");
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let (_parent, folder) = folder();
    let keys = GatewayKeys::load_or_create(&folder).unwrap();
    fs::set_permissions(keys.client_file(), fs::Permissions::from_mode(0o640)).unwrap();
    insta::assert_snapshot!(refusal(&folder), @"KEYS/client_ed25519 can be used by others than its owner: close it with `chmod 600 KEYS/client_ed25519`");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    insta::assert_snapshot!(refusal(&folder), @"KEYS can be used by others than its owner: close it with `chmod 700 KEYS`");
}

#[test]
fn garbage_is_refused_and_left_alone() {
    let (_parent, folder) = folder();
    prepare_folder(&folder).unwrap();
    let path = folder.join(HOST_KEY);
    fs::write(&path, "not a key\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let refusal = refusal(&folder);
    assert!(
        refusal.starts_with(
            "KEYS/host_ed25519 is not a private key in OpenSSH's format: move it away"
        ),
        "{refusal}"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "not a key\n");
}

#[test]
fn links_are_not_followed() {
    let (parent, folder) = folder();
    prepare_folder(&folder).unwrap();
    let elsewhere = parent.path().join("elsewhere");
    symlink(&elsewhere, folder.join(HOST_KEY)).unwrap();
    assert!(refusal(&folder).starts_with("cannot open the key KEYS/host_ed25519"));
    assert!(!elsewhere.exists());
}

#[test]
fn the_host_key_is_written_as_ssh_and_nix_want_it() {
    let (_parent, folder) = folder();
    let keys = GatewayKeys::load_or_create(&folder).unwrap();
    let line = keys.known_hosts_line("xpool-riscv64");
    let [host, kind, key] = line.split(' ').collect::<Vec<_>>()[..] else {
        panic!("not three words: {line}");
    };
    assert_eq!((host, kind), ("xpool-riscv64", "ssh-ed25519"));
    assert_eq!(
        keys.machine_field(),
        base64(format!("ssh-ed25519 {key}").as_bytes())
    );
}

#[test]
fn base64_is_padded() {
    // RFC 4648, section 10.
    let vectors = [
        ("", ""),
        ("f", "Zg=="),
        ("fo", "Zm8="),
        ("foo", "Zm9v"),
        ("foobar", "Zm9vYmFy"),
    ];
    for (plain, encoded) in vectors {
        assert_eq!(base64(plain.as_bytes()), encoded);
    }
}
