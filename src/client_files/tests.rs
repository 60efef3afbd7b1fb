//! What Nix is told while the pools change.

use tempfile::TempDir;

use super::*;
use crate::config::Host;
use crate::manager::status::{SystemStatus, example};
use crate::shutdown::Shutdown;

const HOST: Host = Host {
    cpus: 2,
    memory_mib: 1024,
    search_path: std::ffi::OsString::new(),
};

fn installation(config: &str) -> (TempDir, Paths, Config) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("xpool.toml");
    std::fs::write(&file, config).unwrap();
    let at = |name| Some(dir.path().join(name));
    let paths = Paths::new(Some(file), at("state"), at("cache")).unwrap();
    let config = Config::load(&paths, &HOST).unwrap();
    state::prepare(&paths).unwrap();
    (dir, paths, config)
}

fn files(paths: &Paths, config: &Config) -> ClientFiles {
    let keys = GatewayKeys::load_or_create(&paths.keys()).unwrap();
    ClientFiles::write(config, paths, &keys, Handover::default()).unwrap()
}

fn pool(system: System, mode: Mode, max_vms: u32) -> SystemStatus {
    SystemStatus {
        mode,
        max_vms,
        ..example::pool(system)
    }
}

/// How many machines of riscv64 and of aarch64 a file has; none where there is no file.
fn told(paths: &Paths, form: Form) -> Option<(usize, usize)> {
    let text = std::fs::read_to_string(paths.machines(form)).ok()?;
    let count = |system: System| {
        let of = |line: &&str| line.split(' ').nth(1) == Some(system.name());
        text.lines().filter(of).count()
    };
    Some((count(System::Riscv64Linux), count(System::Aarch64Linux)))
}

#[test]
fn every_form_has_a_file_that_goes_with_the_manager() {
    let (_dir, paths, config) = installation("");
    let files = files(&paths, &config);
    assert_eq!(
        Form::ALL.map(|form| told(&paths, form)),
        [Some((16, 16)); 3]
    );
    let text = |form| std::fs::read_to_string(paths.machines(form)).unwrap();
    assert!(text(Form::SshAlias).contains("ssh-ng://riscv64-00@xpool-riscv64 "));
    assert!(text(Form::SshPort).contains("ssh-ng://riscv64-00@127.0.0.1:31022 "));
    assert!(text(Form::Local).starts_with("ssh-ng://localhost?remote-program=/"));
    drop(files);
    assert_eq!(Form::ALL.map(|form| told(&paths, form)), [None; 3]);
    assert!(paths.ssh_config().exists());
}

#[test]
fn the_usual_forms_file_has_the_plain_name() {
    let (_dir, paths, _) = installation("");
    assert_eq!(
        paths.machines(Form::default()),
        paths.state().join("machines")
    );
}

#[test]
fn nix_is_told_of_what_up_asks_for_and_not_of_what_goes_down() {
    let (_dir, paths, config) = installation("[systems.aarch64-linux]\nbuild-machines = 3\n");
    let told_at = |status: Vec<SystemStatus>| {
        let counts = counts(
            &config,
            &Status {
                systems: status,
                builds: Vec::new(),
            },
        );
        (counts[&System::Riscv64Linux], counts[&System::Aarch64Linux])
    };
    let (riscv64, aarch64) = (System::Riscv64Linux, System::Aarch64Linux);
    assert_eq!(told_at(Vec::new()), (16, 3));
    let raised = vec![pool(riscv64, Mode::Open, 12), pool(aarch64, Mode::Open, 12)];
    assert_eq!(told_at(raised), (24, 3));
    let down = vec![
        pool(riscv64, Mode::Draining, 8),
        pool(aarch64, Mode::Open, 2),
    ];
    assert_eq!(told_at(down), (0, 3));
    // The gateway lets in whom Nix may ever be told of.
    assert_eq!(config.systems[&riscv64].slots(), 64);
    assert_eq!(config.systems[&aarch64].slots(), 3);
    assert_eq!(told(&paths, Form::default()), None);
}

#[tokio::test]
async fn the_machines_follow_the_pools_to_the_end() {
    let (_dir, paths, config) = installation("");
    let files = files(&paths, &config);
    let (changes, receiver) = watch::channel(Status::default());
    let following = tokio::spawn(files.follow(receiver));
    let raised = pool(System::Riscv64Linux, Mode::Open, 12);
    changes.send_replace(Status {
        systems: vec![raised],
        builds: Vec::new(),
    });
    let deadline = tokio::time::timeout(std::time::Duration::from_secs(60), async {
        while told(&paths, Form::default()) != Some((24, 16)) {
            tokio::task::yield_now().await;
        }
    });
    deadline.await.unwrap();
    drop(changes);
    following.await.unwrap();
    assert_eq!(told(&paths, Form::default()), None);
}

#[tokio::test]
async fn the_machines_stay_where_another_manager_comes() {
    let (_dir, paths, config) = installation("");
    let shutdown = Shutdown::default();
    let keys = GatewayKeys::load_or_create(&paths.keys()).unwrap();
    let handover = Handover::expected(&shutdown);
    let files = ClientFiles::write(&config, &paths, &keys, handover).unwrap();
    let (changes, receiver) = watch::channel(Status::default());
    shutdown.drain.cancel();
    let down = System::ALL.map(|system| pool(system, Mode::Draining, 8));
    changes.send_replace(Status {
        systems: down.to_vec(),
        builds: Vec::new(),
    });
    drop(changes);
    files.follow(receiver).await;
    assert_eq!(told(&paths, Form::default()), Some((16, 16)));
}

#[test]
fn a_dead_managers_machines_are_taken_away_and_a_live_ones_are_not() {
    let (_dir, paths, config) = installation("");
    forget_dead(&paths).unwrap();
    let files = files(&paths, &config);
    let socket = std::os::unix::net::UnixListener::bind(paths.control_socket()).unwrap();
    forget_dead(&paths).unwrap();
    assert_eq!(told(&paths, Form::default()), Some((16, 16)));
    // As kill -9 does it: the socket's file stays.
    drop(socket);
    forget_dead(&paths).unwrap();
    assert_eq!(told(&paths, Form::default()), None);
    drop(files);
}
