//! What a manager says to Prometheus, and to who asks for the same at a terminal.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::common::{Installation, PATIENCE};

/// An answer by HTTP: the head and the body.
fn ask(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn free_address() -> String {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap().to_string()
}

#[test]
fn metrics_are_served_where_it_is_configured_and_printed_by_a_command() {
    let address = free_address();
    let installation = Installation::new(&format!("[metrics]\nlisten = \"{address}\"\n"));
    let _serving = installation.serve();
    let (head, body) = ask(&address, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let of_text = "content-type: text/plain; version=0.0.4";
    assert!(head.to_lowercase().contains(of_text), "{head}");
    assert_eq!(installation.ok(&["metrics"]), body);
    let ready = "xpool_vms{system=\"riscv64-linux\",state=\"ready\"} 0\n";
    assert!(body.contains(ready), "{body}");
    // Nothing else is to be had there: this is no way to command the manager.
    for path in ["/", "/v1/status", "/v1/down"] {
        let (head, _) = ask(&address, path);
        assert!(head.starts_with("HTTP/1.1 404 "), "{path}: {head}");
    }
}

#[test]
fn an_address_that_is_taken_is_named_with_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let installation = Installation::new(&format!("[metrics]\nlisten = \"{address}\"\n"));
    let said = installation.run(&["serve"]);
    assert_eq!(said.code, Some(1));
    let expected = format!(
        "error: what serves metrics cannot listen on {address}: Address already in use (os error 98)\n\n\
         hint: set `listen` in section `[metrics]` of xpool.toml to a free port\n"
    );
    assert_eq!(said.stderr, expected);
}
