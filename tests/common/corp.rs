//! A company's network, which is only in a namespace of its own: a host that /etc/hosts knows, one that a resolver knows, a web server
//! that has a file for everybody and one for who logs in, and a proxy.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Installation, Serving};

/// The host's address, which is no loopback's.
pub const ADDRESS: [u8; 4] = [192, 0, 2, 7];
pub const PORT: u16 = 8080;
pub const PROXY_PORT: u16 = 3128;

/// What the server has at `/public`, and at `/private` for who logs in as `a` with the password `b`.
pub const PUBLIC: &str = "for everybody\n";
pub const PRIVATE: &str = "for who logs in\n";

/// `a:b` in base64.
const LOGIN: &str = "authorization: basic ytpi";

/// Runs a command in the network, which it is the first process of, with files of its own for hosts and resolvers.
const ENTER: &str = r#"ip link set lo up && ip addr add 192.0.2.7/32 dev lo &&
    mount --bind "$1/hosts" /etc/hosts && mount --bind "$1/resolv.conf" /etc/resolv.conf && shift && exec "$@""#;

/// The network, with a manager in it.
pub struct Corp {
    pub serving: Serving,
    /// The first lines of what the proxy was asked.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Corp {
    /// Starts the manager of an installation there.
    pub fn serve(installation: &Installation, variables: &[(&str, String)]) -> Self {
        let dir = installation.path();
        fs::write(
            dir.join("hosts"),
            "127.0.0.1 localhost\n192.0.2.7 only-hosts.test\n",
        )
        .unwrap();
        fs::write(
            dir.join("resolv.conf"),
            "nameserver ::1\nsearch corp.test\n",
        )
        .unwrap();
        let serve = installation.command(&["serve"]);
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--propagation", "private"]);
        command.args(["sh", "-c", ENTER, "sh"]).arg(dir);
        command.arg(serve.get_program()).args(serve.get_args());
        for (name, value) in serve.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.envs(variables.iter().map(|(name, value)| (*name, value)));
        let log = fs::File::create(dir.join("serve.log")).unwrap();
        let child = command.stderr(log).spawn().unwrap();
        let serving = Serving { child };
        installation.until("the manager serves", || {
            installation.run(&["status"]).code == Some(0)
        });
        let asked = Arc::default();
        start_servers(serving.child.id(), &asked);
        Self { serving, asked }
    }

    /// A command in the network.
    pub fn command(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--net=/proc/{}/ns/net", self.serving.child.id()));
        inside.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                inside.env(name, value);
            }
        }
        if let Some(dir) = command.get_current_dir() {
            inside.current_dir(dir);
        }
        inside
    }

    /// Whether the proxy was asked for this.
    pub fn was_proxied(&self, url: &str) -> bool {
        let asked = self.asked.lock().unwrap();
        asked.iter().any(|line| line.contains(url))
    }
}

/// Opens the servers' sockets in the network, from a thread that is in it. They stay there.
fn start_servers(pid: u32, asked: &Arc<Mutex<Vec<String>>>) {
    let network = fs::File::open(Path::new("/proc").join(pid.to_string()).join("ns/net")).unwrap();
    let sockets = thread::spawn(move || {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(network.as_fd(), kind).unwrap();
        let listen = |port| TcpListener::bind((IpAddr::from(ADDRESS), port)).unwrap();
        let resolver = UdpSocket::bind((Ipv6Addr::LOCALHOST, 53)).unwrap();
        (listen(PORT), listen(PROXY_PORT), resolver)
    });
    let (web, proxy, resolver) = sockets.join().unwrap();
    let asked = asked.clone();
    thread::spawn(move || {
        for stream in web.incoming() {
            answer(&stream.unwrap());
        }
    });
    thread::spawn(move || {
        for stream in proxy.incoming() {
            let line = answer(&stream.unwrap());
            asked.lock().unwrap().push(line);
        }
    });
    thread::spawn(move || resolve(&resolver));
}

/// Answers one request; its first line.
fn answer(mut stream: &TcpStream) -> String {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let is_known = head.iter().any(|line| line.to_lowercase() == LOGIN);
    let path = first.split(' ').nth(1).unwrap_or_default();
    let (status, text) = match path.rsplit('/').next() {
        Some("public") => ("200 OK", PUBLIC),
        Some("private") if is_known => ("200 OK", PRIVATE),
        Some("private") => ("401 Unauthorized", ""),
        _ => ("404 Not Found", ""),
    };
    let login = "WWW-Authenticate: Basic realm=\"corp\"\r\n";
    let length = text.len();
    // Who asks may have gone.
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\n{login}Content-Length: {length}\r\nConnection: close\r\n\r\n{text}"
    );
    first
}

/// Answers questions for the IPv4 address of `h.corp.test`, and knows no other name.
fn resolve(socket: &UdpSocket) {
    const NAME: &[u8] = b"\x01h\x04corp\x04test\x00";
    let mut question = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut question) {
        let question = &question[..length];
        let is_known = question[12..].starts_with(NAME);
        let is_ipv4 = is_known && question[12 + NAME.len()..].starts_with(&[0, 1]);
        let code = if is_known { 0 } else { 3 };
        let mut reply = question[..2].to_vec();
        reply.extend([0x85, 0x80 | code, 0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0]);
        let end = 12 + question[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
        reply.extend(&question[12..end]);
        if is_ipv4 {
            // The name of the question, an address of the internet, for a minute.
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            reply.extend(ADDRESS);
        }
        socket.send_to(&reply, from).unwrap();
    }
}
