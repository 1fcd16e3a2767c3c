//! Peers that are slow, dead, or mean harm.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Instant;

use rustix::process::Signal;

use super::*;

/// A bare socket to a listener.
fn dial(listener: &Listener) -> UnixStream {
    let Address::Abstract(name) = listener.local_addr() else {
        panic!("the tests here listen at abstract names");
    };
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap()
}

fn listener() -> Listener {
    Listener::builder()
        .authkey("secret")
        .handshake_timeout(Duration::from_millis(200))
        .max_pending(8)
        .bind("@")
        .unwrap()
}

#[test]
fn the_slow_hold_up_nobody_and_are_dropped() {
    let _guard = support::guard(60);
    let listener = Listener::builder()
        .authkey("secret")
        .handshake_timeout(Duration::from_secs(3))
        .bind("@")
        .unwrap();
    let mut slow: Vec<UnixStream> = (0..10).map(|_| dial(&listener)).collect();
    slow.iter_mut()
        .for_each(|peer| peer.write_all(&[0, 0]).unwrap());
    let start = Instant::now();
    let (here, there) = connected::<u8>(&listener, "secret");
    here.send(1).unwrap();
    assert_eq!(there.recv().unwrap(), 1);
    for _ in &slow {
        let late = listener.accept::<u8, u8>().unwrap_err();
        assert_eq!(late.kind(), ErrorKind::TimedOut, "{late}");
    }
    assert!(start.elapsed() >= Duration::from_secs(2));
    assert!(listener.try_accept::<u8, u8>().unwrap().is_none());
    for mut peer in slow {
        let mut all = Vec::new();
        // Its challenge, then the end.
        let _ = peer.read_to_end(&mut all);
        assert!(all.len() == 4 + 11 + 8 + 40, "{all:?}");
    }
}

#[test]
fn a_flood_makes_the_oldest_give_way() {
    let _guard = support::guard(60);
    let listener = Listener::builder()
        .authkey("secret")
        .handshake_timeout(LONG)
        .max_pending(8)
        .bind("@")
        .unwrap();
    let flood: Vec<UnixStream> = (0..40).map(|_| dial(&listener)).collect();
    for _ in 0..32 {
        let error = listener.accept::<u8, u8>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
    }
    let address = listener.local_addr().clone();
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            Client::builder()
                .authkey("secret")
                .connect::<u8, u8>(&address)
        });
        let error = listener.accept::<u8, u8>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        listener.accept::<u8, u8>().unwrap();
        client.join().unwrap().unwrap();
    });
    drop(flood);
}

#[test]
fn whoever_cannot_show_the_key_gets_nothing() {
    let _guard = support::guard(60);
    let listener = listener();
    let frame = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes(), bytes].concat();
    let digest = [b"{sha256}".as_slice(), &[0; 32]].concat();
    for (say, kind) in [
        (frame(b"#WELCOME#"), ErrorKind::Authentication),
        (frame(&digest), ErrorKind::Authentication),
        (frame(b""), ErrorKind::Authentication),
        (frame(&[0; 16]), ErrorKind::Authentication),
        (frame(&[0; 300]), ErrorKind::Corrupt),
        (vec![0xff; 12], ErrorKind::Corrupt),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), ErrorKind::Corrupt),
        (vec![0, 0], ErrorKind::TimedOut),
    ] {
        let mut peer = dial(&listener);
        peer.write_all(&say).unwrap();
        let error = listener.accept::<u8, u8>().unwrap_err();
        assert_eq!(error.kind(), kind, "{say:?}: {error}");
        let mut all = Vec::new();
        let _ = peer.read_to_end(&mut all);
        assert!(!all.windows(9).any(|w| w == b"#WELCOME#"));
    }
    // One who closes, with and without a word.
    for say in [&b""[..], b"\0\0\0\x05ab"] {
        dial(&listener).write_all(say).unwrap();
        let error = listener.accept::<u8, u8>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
    }
    // One with no key at all, and one who wants a key where there is none.
    let keyless = Client::connect::<u8, u8>(listener.local_addr()).unwrap();
    let open = Listener::bind("@").unwrap();
    let impatient = Client::builder()
        .authkey("secret")
        .timeout(Duration::from_millis(50));
    let alone = impatient.connect::<u8, u8>(open.local_addr()).unwrap_err();
    assert_eq!(alone.kind(), ErrorKind::TimedOut);
    assert_eq!(
        listener.accept::<u8, u8>().unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    assert_eq!(keyless.recv_bytes().unwrap().len(), 59);
    assert!(keyless.recv_bytes().is_err());
}

#[test]
fn a_listener_that_is_none_is_told_from_one() {
    let _guard = support::guard(60);
    let false_one = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = false_one.local_addr().unwrap();
    let client = Client::builder()
        .authkey("secret")
        .timeout(Duration::from_millis(500));
    for (say, kind) in [
        (&b"\0\0\0\x09#WELCOME#"[..], ErrorKind::Authentication),
        (
            b"\0\0\0\x1f#CHALLENGE#aaaaaaaaaaaaaaaaaaaa",
            ErrorKind::Authentication,
        ),
        (b"HTTP/1.1 400\r\n", ErrorKind::Corrupt),
        (b"", ErrorKind::TimedOut),
    ] {
        thread::scope(|scope| {
            let called = scope.spawn(|| client.connect::<u8, u8>(address));
            let (mut peer, _) = false_one.accept().unwrap();
            peer.write_all(say).unwrap();
            let error = called.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), kind, "{say:?}: {error}");
            assert!(start_of_answer(&mut peer).is_empty());
        });
    }
}

/// What a peer sends before it closes.
fn start_of_answer(peer: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = peer.read_to_end(&mut all);
    all
}

#[test]
fn frames_that_lie_are_errors_and_cost_no_memory() {
    let _guard = support::guard(60);
    let listener = Listener::builder()
        .max_message_bytes(1 << 20)
        .bind("@")
        .unwrap();
    let own = std::process::id();
    for lie in [
        (1u32 << 20 | 1).to_be_bytes().to_vec(),
        (-2i32).to_be_bytes().to_vec(),
        [&(-1i32).to_be_bytes()[..], &u64::MAX.to_be_bytes()].concat(),
    ] {
        let mut peer = dial(&listener);
        let connection: StreamConnection<u8> = listener.accept().unwrap();
        peer.write_all(b"\0\0\0\x01\x07").unwrap();
        peer.write_all(&lie).unwrap();
        assert_eq!(connection.recv().unwrap(), 7);
        for _ in 0..2 {
            let Err(RecvError::Failed(error)) = connection.recv() else {
                panic!("{lie:?} was believed");
            };
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
        // The other direction still works.
        connection.send(8).unwrap();
        let mut answer = [0; 5];
        peer.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [0, 0, 0, 1, 8]);
    }
    // Many who announce all they may, and send nothing of it.
    let open = Listener::bind("@").unwrap();
    let before = support::resident_bytes(own).unwrap();
    let liars: Vec<(UnixStream, StreamConnection)> = (0..100)
        .map(|_| {
            let mut peer = dial(&open);
            peer.write_all(&(200u32 << 20).to_be_bytes()).unwrap();
            let connection: StreamConnection = open.accept().unwrap();
            assert!(matches!(connection.try_recv(), Err(TryRecvError::Empty)));
            (peer, connection)
        })
        .collect();
    let grown = support::resident_bytes(own).unwrap().saturating_sub(before);
    assert!(grown < 64 << 20, "{} peers cost {grown} bytes", liars.len());
}

#[test]
fn closed_halves_resets_and_cuts_are_told_apart() {
    let _guard = support::guard(60);
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().to_string();
    // Half closed: it still receives.
    let mut peer = TcpStream::connect(&address).unwrap();
    let connection: StreamConnection<u8> = listener.accept().unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    assert!(matches!(connection.recv(), Err(RecvError::Disconnected)));
    connection.send(5).unwrap();
    let mut answer = [0; 5];
    peer.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [0, 0, 0, 1, 5]);
    // Cut in the middle of a header, or of a body: told once, then it is gone.
    for cut in [&b"\0\0"[..], b"\0\0\0\x0912345"] {
        TcpStream::connect(&address)
            .unwrap()
            .write_all(cut)
            .unwrap();
        let connection: StreamConnection<u8> = listener.accept().unwrap();
        let Err(RecvError::Failed(error)) = connection.recv() else {
            panic!("half a message was taken");
        };
        assert!(
            error.is_disconnected() && error.to_string().contains("middle"),
            "{error}"
        );
        assert!(matches!(connection.recv(), Err(RecvError::Disconnected)));
    }
    // Reset: what it had not read makes its end of the connection refuse more.
    let mut peer = TcpStream::connect(&address).unwrap();
    let connection: StreamConnection<u8> = listener.accept().unwrap();
    connection.send(1).unwrap();
    peer.write_all(b"\0").unwrap();
    drop(peer);
    assert!(matches!(connection.recv(), Err(RecvError::Failed(_))));
    assert!(support::wait_until(LONG, || matches!(
        connection.send(2),
        Err(SendError::Disconnected(2))
    )));
}

#[test]
fn a_peer_killed_in_the_middle_of_a_message_is_noticed() {
    each_method(|method: StartMethod| {
        for round in 0..15u64 {
            let listener = Listener::bind("@").unwrap();
            let flood = |address: String| {
                let connection: StreamConnection = Client::connect(&address).unwrap();
                let bytes = vec![3; 300_000];
                while connection.send_bytes(&bytes).is_ok() {}
            };
            let child = Process::builder()
                .start_method(method)
                .start(flood, (listener.local_addr().to_string(),))
                .unwrap();
            let connection: StreamConnection = listener.accept().unwrap();
            let mut whole = 0;
            let end = loop {
                match connection.recv_bytes_timeout(LONG) {
                    Ok(bytes) => assert!(bytes.len() == 300_000 && bytes.iter().all(|b| *b == 3)),
                    Err(end) => break end,
                }
                whole += 1;
                if whole == 1 + round % 4 {
                    thread::sleep(Duration::from_micros(137 * round));
                    support::kill(child.pid(), Signal::KILL);
                }
            };
            match end {
                RecvTimeoutError::Disconnected => {}
                RecvTimeoutError::Failed(error) => assert!(error.is_disconnected(), "{error}"),
                other => panic!("{other}"),
            }
            assert!(child.join().unwrap().signal().is_some());
        }
    });
}
