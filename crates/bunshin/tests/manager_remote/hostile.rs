//! Strangers, and peers that have the key and mean harm.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use bunshin::{Client, StreamConnection};
use support::wait_until;

use super::*;

fn dial(address: &Address) -> TcpStream {
    let stream = TcpStream::connect(address.to_string()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

/// Reads until the server has closed the connection.
fn is_closed(mut stream: TcpStream) -> bool {
    // A reset is an end, too; running out of time is not.
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// Somebody who has the key, and then says what it likes.
fn insider(address: &Address) -> StreamConnection {
    Client::builder()
        .authkey("secret")
        .connect(address)
        .unwrap()
}

fn hello(kind: u8, token: &[u8], number: u64) -> Vec<u8> {
    let mut bytes = vec![kind, 1];
    bytes.extend_from_slice(token);
    bytes.resize(18, 0);
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes
}

/// A session of an insider's, and its token.
fn session(address: &Address) -> (StreamConnection, Vec<u8>) {
    let connection = insider(address);
    connection.send_bytes(&hello(b's', &[], 0)).unwrap();
    let welcome = connection.recv_bytes_timeout(LONG).unwrap();
    assert_eq!((welcome.len(), welcome[0]), (16 + 8 + 32, 0));
    (connection, welcome[24..40].to_vec())
}

/// A connection of such a session.
fn link(address: &Address, kind: u8, token: &[u8]) -> StreamConnection {
    let connection = insider(address);
    connection.send_bytes(&hello(kind, token, 1)).unwrap();
    let reply = connection.recv_bytes_timeout(LONG).unwrap();
    assert_eq!(reply[0], 0, "{reply:?}");
    connection
}

fn request(op: u8, call: u8, object: u64, wait: u64) -> Vec<u8> {
    let mut bytes = vec![0; 40];
    (bytes[0], bytes[4]) = (op, call);
    bytes[8..16].copy_from_slice(&object.to_le_bytes());
    bytes[16..24].copy_from_slice(&wait.to_le_bytes());
    bytes
}

/// The server does its work for those who do theirs.
fn is_well(manager: &Manager, address: &Address) -> bool {
    let there = Manager::connect(address, "secret").unwrap();
    let list = there.list([1]).unwrap();
    list.push(&2).is_ok() && manager.dict::<u8, u8>().is_ok()
}

#[test]
fn another_key_is_refused_in_both_directions() {
    each_method(|method| {
        let (manager, address) = serve(method);
        let error = Manager::connect(&address, "another").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
        // A server with another key is not believed either, whatever it says.
        let other = manager.serve("another").bind("127.0.0.1:0").unwrap();
        let error = Manager::connect(&other, "secret").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
        // Somebody without a key gets no answer to what it says.
        let keyless = Client::connect::<(), ()>(&address).unwrap();
        keyless.send_bytes(&hello(b's', &[], 0)).unwrap();
        let challenge = keyless.recv_bytes_timeout(LONG).unwrap();
        assert!(challenge.starts_with(b"#CHALLENGE#"));
        assert!(is_well(&manager, &address));
        assert!(wait_until(LONG, || manager.census().unwrap().1 == 1));
    });
}

#[test]
fn any_bytes_of_strangers_cost_only_their_connection() {
    let _guard = support::guard_after(120, support::start_each_way_once);
    let (manager, address) = serve(StartMethod::Forkserver);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = |len: usize| -> Vec<u8> {
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..len).map(|_| next()).collect()
    };
    for round in 0..60 {
        let mut stream = dial(&address);
        let mut bytes = noise(round * 7 + 1);
        if round % 3 == 0 {
            // A message that is announced, and too long.
            bytes[0] = 0x7f;
        }
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        assert!(is_closed(stream), "round {round}");
    }
    // The same by those that have the key.
    for round in 0..60 {
        let connection = insider(&address);
        let _ = connection.send_bytes(&noise(round));
        if round % 2 == 0 {
            let _ = connection.send_bytes(&noise(26));
        }
        while connection.recv_bytes_timeout(LONG).is_ok() {}
    }
    for round in 0..60 {
        let (session, token) = session(&address);
        let calls = link(&address, if round % 2 == 0 { b'l' } else { b'd' }, &token);
        for _ in 0..3 {
            let mut bytes = noise(40 + round);
            // Something that it knows, to an object that may be there.
            bytes[..2].copy_from_slice(&[round as u8, 0]);
            bytes[8..16].copy_from_slice(&(round as u64 % 3).to_le_bytes());
            let _ = calls.send_bytes(&bytes);
        }
        drop(calls);
        if round % 3 == 0 {
            // A session has nothing to say.
            let _ = session.send_bytes(b"but this one has");
            assert!(session.recv_bytes_timeout(LONG).is_err());
        }
    }
    assert!(is_well(&manager, &address));
    assert!(wait_until(LONG, || manager.census().unwrap().1 == 1));
}

#[test]
fn those_that_say_nothing_are_dropped_and_hold_up_nobody() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    let manager = start(StartMethod::Forkserver);
    let address = manager
        .serve("secret")
        .handshake_timeout(Duration::from_secs(3))
        .max_pending(20)
        .bind("127.0.0.1:0")
        .unwrap();
    let silent: Vec<TcpStream> = (0..5).map(|_| dial(&address)).collect();
    let slow: Vec<TcpStream> = (0..5)
        .map(|_| {
            let mut stream = dial(&address);
            stream.write_all(&[0, 0]).unwrap();
            stream
        })
        .collect();
    // They have the key, and do not say what they want.
    let insiders: Vec<StreamConnection> = (0..5).map(|_| insider(&address)).collect();
    assert!(is_well(&manager, &address));
    for stream in silent.into_iter().chain(slow) {
        assert!(is_closed(stream));
    }
    for insider in insiders {
        assert!(matches!(
            insider.recv_bytes_timeout(LONG),
            Err(bunshin::RecvTimeoutError::Disconnected)
        ));
    }
    assert!(is_well(&manager, &address));
}

#[test]
fn messages_longer_than_allowed_are_refused_and_get_no_memory() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    let manager = start(StartMethod::Forkserver);
    let address = manager
        .serve("secret")
        .max_message_bytes(100_000)
        .bind("127.0.0.1:0")
        .unwrap();
    let there = Manager::connect(&address, "secret").unwrap();
    let list = there.list::<Buffer<u8>>([]).unwrap();
    list.push(&Buffer::from(vec![1; 90_000])).unwrap();
    let error = list.push(&Buffer::from(vec![1; 100_000])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains("limit"), "{error}");
    // The other way: each is short enough, all together are not.
    list.push(&Buffer::from(vec![2; 90_000])).unwrap();
    let error = list.to_vec().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert_eq!(list.get(1).unwrap().unwrap()[0], 2);
    // Who announces more all the same: no memory for it, and no connection any more.
    let (_session, token) = session(&address);
    let before = support::resident_bytes(manager.pid().unwrap()).unwrap();
    for _ in 0..20 {
        let calls = link(&address, b'l', &token);
        let calls = Client::builder()
            .max_message_bytes(1 << 30)
            .authkey("secret")
            .connect::<(), ()>(&address)
            .map(|one| (one, calls));
        let (greedy, calls) = calls.unwrap();
        let _ = greedy.send_bytes_timeout(&vec![0; 8 << 20], SOON);
        assert!(greedy.recv_bytes_timeout(LONG).is_err());
        let _ = calls.send_bytes_timeout(&vec![0; 8 << 20], SOON);
        assert!(calls.recv_bytes_timeout(LONG).is_err());
    }
    let after = support::resident_bytes(manager.pid().unwrap()).unwrap();
    assert!(after < before + (16 << 20), "{before} to {after}");
    assert!(is_well(&manager, &address));
}

#[test]
fn one_connection_too_many_is_told_so() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    let manager = start(StartMethod::Forkserver);
    let address = manager
        .serve("secret")
        .max_connections(4)
        .bind("127.0.0.1:0")
        .unwrap();
    let two = [(); 2].map(|()| {
        let there = Manager::connect(&address, "secret").unwrap();
        (there.list([1]).unwrap(), there)
    });
    let error = Manager::connect(&address, "secret").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    // A connection more for those that are there is one too many as well, and told so.
    let queue = manager.queue::<u8>(0).unwrap();
    manager.publish("queue", &queue).unwrap();
    let lock = two[0].1.lock().unwrap();
    let waits: QueueProxy<u8> = two[0].1.find("queue").unwrap().unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            loop {
                match waits.recv() {
                    // The other call below has the connection.
                    Err(bunshin::RecvError::Failed(error)) if error.kind() == ErrorKind::Busy => {}
                    other => return other,
                }
            }
        });
        let is_refused = || match lock.try_lock() {
            Err(LockError::Failed(error)) => error.kind() == ErrorKind::Busy,
            _ => false,
        };
        // Once the other thread has the connection.
        assert!(wait_until(LONG, is_refused));
        queue.send(1).unwrap();
        assert_eq!(waits.join().unwrap().unwrap(), 1);
    });
    drop(lock.try_lock().unwrap());
    drop(two);
    assert!(wait_until(LONG, || Manager::connect(&address, "secret").is_ok()));
}

#[test]
fn a_guest_that_takes_no_answers_or_asks_twice_holds_up_nobody() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    let manager = start(StartMethod::Forkserver);
    let address = manager
        .serve("secret")
        .idle_timeout(Duration::from_secs(4))
        .bind("127.0.0.1:0")
        .unwrap();
    let list = manager.list([Buffer::from(vec![7u8; 4 << 20])]).unwrap();
    manager.publish("list", &list).unwrap();
    let (_session, token) = session(&address);
    // It asks for much, again and again, and reads nothing.
    let find = {
        let mut bytes = request(7, 1, 0, 0);
        for text in ["list", std::any::type_name::<ListProxy<Buffer<u8>>>()] {
            bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes
    };
    let calls = link(&address, b'l', &token);
    calls.send_bytes(&find).unwrap();
    let found = calls.recv_bytes_timeout(LONG).unwrap();
    assert_eq!(found[0], 0, "{found:?}");
    let number = u64::from_le_bytes(*found.last_chunk().unwrap());
    let before = support::resident_bytes(manager.pid().unwrap()).unwrap();
    for call in 0..100 {
        // The whole list.
        let mut get = request(32, call, number, 0);
        get[24..32].fill(0);
        let _ = calls.send_bytes_timeout(&get, SOON);
    }
    assert!(is_well(&manager, &address));
    let after = support::resident_bytes(manager.pid().unwrap()).unwrap();
    assert!(after < before + (64 << 20), "{before} to {after}");
    // Its connection ends, as it is idle; what came before can still be read.
    let start = Instant::now();
    while calls.recv_bytes_timeout(LONG).is_ok() {}
    assert!(start.elapsed() < LONG);
    // A second question before the first is answered is against the rules.
    let calls = link(&address, b'l', &token);
    calls
        .send_bytes(&[request(1, 1, 0, 0), Vec::new()].concat())
        .unwrap();
    let _ = calls.recv_bytes_timeout(LONG).unwrap();
    let mut create = request(1, 2, 0, 0);
    create[24] = 9;
    calls.send_bytes(&create).unwrap();
    let queue = u64::from_le_bytes(
        calls.recv_bytes_timeout(LONG).unwrap()[8..16]
            .try_into()
            .unwrap(),
    );
    calls.send_bytes(&request(81, 3, queue, u64::MAX)).unwrap();
    calls.send_bytes(&request(81, 4, queue, u64::MAX)).unwrap();
    assert!(matches!(
        calls.recv_bytes_timeout(LONG),
        Err(bunshin::RecvTimeoutError::Disconnected)
    ));
    // Nor is the server ended, or code named, from here.
    let calls = link(&address, b'l', &token);
    for op in [5, 10, 12, 13] {
        calls.send_bytes(&request(op, op, 0, 0)).unwrap();
        let reply = calls.recv_bytes_timeout(LONG).unwrap();
        assert_eq!((reply[0], reply[4]), (5, op), "it is refused");
    }
    let direct = link(&address, b'd', &token);
    for op in [5, 10, 12, 13] {
        direct.send_bytes(&request(op, op, 0x1000, 0)).unwrap();
        let reply = direct.recv_bytes_timeout(LONG).unwrap();
        assert_eq!((reply[0], reply[4]), (5, op), "it is refused");
    }
    // A token that nobody has been given.
    let stranger = insider(&address);
    stranger.send_bytes(&hello(b'l', &[9; 16], 0)).unwrap();
    assert_eq!(stranger.recv_bytes_timeout(LONG).unwrap()[0], 5);
    assert!(is_well(&manager, &address));
}
