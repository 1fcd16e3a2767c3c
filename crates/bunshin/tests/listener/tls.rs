//! The same under TLS.

use bunshin::tls::{client_config, server_config};
use rustix::process::Signal;

use super::*;

const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/listener");

fn listener(key: &str) -> Listener {
    let config = server_config(format!("{KEYS}/tls.pem"), format!("{KEYS}/tls.key")).unwrap();
    let builder = Listener::builder().authkey(key).tls(config);
    builder
        .handshake_timeout(Duration::from_secs(5))
        .bind("127.0.0.1:0")
        .unwrap()
}

fn client(server: &str) -> bunshin::ClientBuilder {
    let config = client_config(format!("{KEYS}/tls.pem")).unwrap();
    Client::builder().tls(server, config).unwrap()
}

fn connect(listener: &Listener, key: &str) -> (StreamConnection, StreamConnection) {
    let client = client("localhost").authkey(key);
    thread::scope(|scope| {
        let here = scope.spawn(|| client.connect(listener.local_addr()));
        let there = listener.accept().unwrap();
        (here.join().unwrap().unwrap(), there)
    })
}

#[test]
fn messages_go_both_ways_under_tls() {
    let _guard = support::guard(60);
    let listener = listener("secret");
    let (here, there) = connect(&listener, "secret");
    for len in [0, 1, 20_000, 5 << 20] {
        let bytes = vec![len as u8; len];
        thread::scope(|scope| {
            // Both at once: neither direction waits for the other.
            scope.spawn(|| here.send_bytes(&bytes).unwrap());
            scope.spawn(|| there.send_bytes(&bytes).unwrap());
            scope.spawn(|| assert!(here.recv_bytes().unwrap() == bytes));
            assert!(there.recv_bytes().unwrap() == bytes);
        });
    }
    // Several that come at once lie in the session, where the socket does not show them.
    let fd = there.fileno().unwrap();
    for number in 0..10u8 {
        here.send_bytes(&[number]).unwrap();
    }
    for number in 0..10u8 {
        assert_eq!(wait(&[&there], Some(LONG)).unwrap(), [0]);
        assert!(is_readable(&fd));
        assert_eq!(there.recv_bytes().unwrap(), [number]);
    }
    assert!(matches!(there.try_recv_bytes(), Err(TryRecvError::Empty)));
    assert!(!is_readable(&fd));
    let (sender, _receiver) = channel::<StreamConnection>().unwrap();
    let Err(SendError::Failed(there, error)) = sender.send(there) else {
        panic!("keys went to another process");
    };
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    drop(there);
    assert!(matches!(here.recv_bytes(), Err(RecvError::Disconnected)));
}

#[test]
fn a_message_that_runs_out_of_time_goes_wholly_under_tls() {
    let _guard = support::guard(60);
    let listener = listener("secret");
    let (here, there) = connect(&listener, "secret");
    let long = vec![9; 30 << 20];
    here.try_send_bytes(&long).unwrap();
    assert!(!here.flush(Duration::from_millis(10)).unwrap());
    assert!(matches!(
        here.try_send_bytes(b"next"),
        Err(TrySendError::Full(()))
    ));
    thread::scope(|scope| {
        scope.spawn(|| {
            assert!(there.recv_bytes().unwrap() == long);
            there.send_bytes(b"thanks").unwrap();
        });
        assert_eq!(here.recv_bytes().unwrap(), b"thanks");
    });
}

#[test]
fn strangers_are_refused_at_both_ends() {
    let _guard = support::guard(60);
    let listener = listener("secret");
    let address = listener.local_addr();
    let refused = |client: bunshin::ClientBuilder, here: ErrorKind, there: ErrorKind| {
        thread::scope(|scope| {
            let called = scope.spawn(|| {
                let timeout = Duration::from_secs(2);
                client.timeout(timeout).connect::<(), ()>(address)
            });
            let at_listener = listener.accept::<(), ()>().unwrap_err();
            assert_eq!(at_listener.kind(), there, "{at_listener}");
            let at_client = called.join().unwrap().unwrap_err();
            assert_eq!(at_client.kind(), here, "{at_client}");
        });
    };
    use ErrorKind::{Authentication, Corrupt};
    refused(
        client("localhost").authkey("wrong"),
        Authentication,
        Authentication,
    );
    // A certificate for somebody else.
    refused(
        client("example.org").authkey("secret"),
        Authentication,
        Authentication,
    );
    // No TLS at all: to it the alert is no message.
    let plain = Client::connect::<(), ()>(address).unwrap();
    plain.send_bytes(b"hello there, no TLS").unwrap();
    let error = listener.accept::<(), ()>().unwrap_err();
    assert_eq!(error.kind(), Authentication, "{error}");
    let Err(RecvError::Failed(error)) = plain.recv_bytes() else {
        panic!("an alert is no message");
    };
    assert_eq!(error.kind(), Corrupt);
}

#[test]
fn a_peer_killed_under_tls_is_noticed() {
    each_method(|method: StartMethod| {
        let listener = listener("secret");
        let flood = |address: String| {
            let connection = client("localhost")
                .authkey("secret")
                .connect::<(), ()>(&address);
            let connection = connection.unwrap();
            while connection.send_bytes(&[3; 300_000]).is_ok() {}
        };
        let child = Process::builder()
            .start_method(method)
            .start(flood, (listener.local_addr().to_string(),))
            .unwrap();
        let connection: StreamConnection = listener.accept().unwrap();
        assert_eq!(connection.recv_bytes_timeout(LONG).unwrap().len(), 300_000);
        support::kill(child.pid(), Signal::KILL);
        loop {
            match connection.recv_bytes_timeout(LONG) {
                Ok(bytes) => assert_eq!(bytes.len(), 300_000),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Failed(error)) => {
                    assert!(error.is_disconnected(), "{error}");
                    break;
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert!(child.join().unwrap().signal().is_some());
    });
}

#[test]
fn files_that_are_no_keys_are_errors() {
    let _guard = support::guard(60);
    let (cert, key) = (format!("{KEYS}/tls.pem"), format!("{KEYS}/tls.key"));
    let none = format!("{KEYS}/peer.py");
    let kind = |error: bunshin::Error| error.kind();
    assert_eq!(
        server_config(&none, &key).map_err(kind).unwrap_err(),
        ErrorKind::InvalidInput
    );
    assert_eq!(
        server_config(&cert, &none).map_err(kind).unwrap_err(),
        ErrorKind::InvalidInput
    );
    assert_eq!(
        client_config("/no/such/file").map_err(kind).unwrap_err(),
        ErrorKind::InvalidInput
    );
    assert_eq!(
        client_config(&none).map_err(kind).unwrap_err(),
        ErrorKind::InvalidInput
    );
}
