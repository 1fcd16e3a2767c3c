//! CPython at the other end.

use super::support::python::{Peer, pythons};
use super::*;

fn addresses(name: &str) -> [String; 3] {
    let own = std::process::id();
    [
        path(name).display().to_string(),
        format!("@bunshin.{own}.{name}"),
        "127.0.0.1:0".to_owned(),
    ]
}

/// Sends bytes of all sizes and wants them back.
fn expect_echo(connection: &StreamConnection) {
    for len in [0, 1, 3, 4, 16_383, 16_384, 16_385, 1 << 20, 5_000_000] {
        let bytes: Vec<u8> = (0..len).map(|at: usize| (at * 7 % 253) as u8).collect();
        connection.send_bytes(&bytes).unwrap();
        let back = connection.recv_bytes_timeout(LONG).unwrap();
        assert!(back == bytes, "{len} bytes came back as {}", back.len());
    }
}

#[test]
fn python_connects_to_our_listener() {
    let _guard = support::guard(300);
    for python in pythons() {
        for address in addresses("pc.sock") {
            let open = Listener::bind(&address[..]).unwrap();
            let peer = Peer::start(&python, "connect", &open.local_addr().to_string(), "-");
            expect_echo(&open.accept().unwrap());
            assert_eq!(peer.end(), "done");
            drop(open);
            let listener = Listener::builder()
                .authkey("secret")
                .allow_md5(!python.is_modern);
            let listener = listener.bind(&address[..]).unwrap();
            let local = listener.local_addr().to_string();
            let peer = Peer::start(&python, "connect", &local, "secret");
            expect_echo(&listener.accept().unwrap());
            assert_eq!(peer.end(), "done", "{}", python.command);
            let peer = Peer::start(&python, "connect", &local, "wrong");
            let error = listener.accept::<(), ()>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Authentication);
            assert_eq!(peer.end(), "AuthenticationError");
        }
    }
}

#[test]
fn we_connect_to_pythons_listener() {
    let _guard = support::guard(300);
    for python in pythons() {
        for address in addresses("pl.sock") {
            let start = |key: &str| {
                let mut peer = Peer::start(&python, "listen", &address, key);
                let found = peer.line().replace('\0', "@");
                (peer, found)
            };
            let (peer, found) = start("-");
            expect_echo(&Client::connect(&found[..]).unwrap());
            assert_eq!(peer.end(), "done");
            let client = Client::builder().allow_md5(!python.is_modern);
            let (peer, found) = start("secret");
            expect_echo(
                &client
                    .clone()
                    .authkey("secret")
                    .connect(&found[..])
                    .unwrap(),
            );
            assert_eq!(peer.end(), "done", "{}", python.command);
            let (peer, found) = start("secret");
            let wrong = client
                .clone()
                .authkey("wrong")
                .connect::<(), ()>(&found[..]);
            assert_eq!(wrong.unwrap_err().kind(), ErrorKind::Authentication);
            assert_eq!(peer.end(), "AuthenticationError");
            // Without a key: what comes is the challenge, and no echo.
            let (peer, found) = start("secret");
            let keyless: StreamConnection = Client::connect(&found[..]).unwrap();
            assert!(keyless.recv_bytes().unwrap().starts_with(b"#CHALLENGE#"));
            drop(keyless);
            assert_ne!(peer.end(), "done");
        }
    }
}

#[test]
fn old_pythons_are_refused_unless_they_are_allowed() {
    let _guard = support::guard(300);
    for python in pythons().iter().filter(|python| !python.is_modern) {
        let listener = Listener::builder().authkey("secret").bind("@").unwrap();
        let local = listener.local_addr().to_string();
        let peer = Peer::start(python, "connect", &local, "secret");
        let error = listener.accept::<(), ()>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Authentication);
        assert!(error.to_string().contains("allow_md5"), "{error}");
        assert_eq!(peer.end(), "AuthenticationError");
        let mut peer = Peer::start(python, "listen", "127.0.0.1:0", "secret");
        let found = peer.line();
        let client = Client::builder().authkey("secret");
        let error = client.connect::<(), ()>(&found[..]).unwrap_err();
        assert!(error.to_string().contains("allow_md5"), "{error}");
        assert_ne!(peer.end(), "done");
    }
}
