//! Listeners and clients: what goes over their connections, who gets in, and what slow, dead
//! and hostile peers do to them. CPython at the other end is in `listener/python.rs`.

#[path = "listener/hostile.rs"]
mod hostile;
#[path = "listener/python.rs"]
mod python;
mod support;
#[cfg(feature = "tls")]
#[path = "listener/tls.rs"]
mod tls;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use bunshin::{
    Address, Buffer, Client, ErrorKind, Listener, Lock, Process, RecvError, RecvTimeoutError,
    SendError, StartMethod, StreamConnection, TryRecvError, TrySendError, channel, wait,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use support::each_method;

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(30);

/// A path that no other test uses, in a folder that the tests may leave nothing in.
fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("bunshin-{}-{name}", std::process::id()))
}

/// A listener at each kind of address.
fn listeners(key: &str) -> Vec<Listener> {
    let builder = Listener::builder().authkey(key);
    let file = path("each.sock");
    vec![
        builder.bind(&file).unwrap(),
        builder.bind("@").unwrap(),
        builder.bind("127.0.0.1:0").unwrap(),
        builder
            .bind("[::1]:0")
            .or_else(|_| builder.bind("@"))
            .unwrap(),
    ]
}

/// Both ends of a connection over a listener.
fn connected<T>(listener: &Listener, key: &str) -> (StreamConnection<T>, StreamConnection<T>)
where
    T: 'static,
{
    let address = listener.local_addr().clone();
    let client = Client::builder().authkey(key);
    thread::scope(|scope| {
        let here = scope.spawn(move || client.connect(&address));
        let there = listener.accept().unwrap();
        (here.join().unwrap().unwrap(), there)
    })
}

#[test]
fn values_and_bytes_go_both_ways_over_every_kind_of_address() {
    let _guard = support::guard(60);
    for listener in listeners("secret") {
        let (here, there) = connected::<Vec<String>>(&listener, "secret");
        here.send(vec!["one".into(), "two".into()]).unwrap();
        assert_eq!(there.recv().unwrap(), ["one", "two"]);
        for len in [0, 1, 5000, 3 << 20] {
            let bytes: Vec<u8> = (0..len).map(|at: usize| (at % 251) as u8).collect();
            thread::scope(|scope| {
                scope.spawn(|| there.send_bytes(&bytes).unwrap());
                assert!(here.recv_bytes().unwrap() == bytes);
            });
        }
        assert_eq!(listener.last_accepted().as_ref(), Some(there.peer_addr()));
        drop(there);
        assert!(matches!(here.recv(), Err(RecvError::Disconnected)));
        // The first that goes over TCP after the end only finds out.
        let three = || vec!["three".to_owned()];
        assert!(support::wait_until(LONG, || {
            matches!(here.send(three()), Err(SendError::Disconnected(it)) if it == three())
        }));
    }
    assert!(!path("each.sock").exists());
}

#[test]
fn every_wait_has_three_forms() {
    let _guard = support::guard(60);
    let listener = Listener::bind("@").unwrap();
    let soon = Duration::from_millis(5);
    assert!(listener.try_accept::<u8, u8>().unwrap().is_none());
    assert!(listener.accept_timeout::<u8, u8>(soon).unwrap().is_none());
    let here: StreamConnection<u8> = Client::connect(listener.local_addr()).unwrap();
    let there: StreamConnection<u8> = listener.try_accept().unwrap().unwrap();
    assert!(matches!(there.try_recv(), Err(TryRecvError::Empty)));
    assert!(matches!(
        there.recv_timeout(soon),
        Err(RecvTimeoutError::Timeout)
    ));
    assert!(!there.poll(Duration::ZERO).unwrap() && !there.poll(soon).unwrap());
    here.try_send(1).unwrap();
    here.send_timeout(2, soon).unwrap();
    here.send(3).unwrap();
    assert!(there.poll(LONG).unwrap());
    assert_eq!(there.try_recv().unwrap(), 1);
    assert_eq!(there.recv_timeout(LONG).unwrap(), 2);
    assert_eq!(there.recv().unwrap(), 3);
    drop(here);
    assert!(there.poll(LONG).unwrap());
    assert!(matches!(there.try_recv(), Err(TryRecvError::Disconnected)));
    assert!(matches!(
        there.recv_timeout(soon),
        Err(RecvTimeoutError::Disconnected)
    ));
}

#[test]
fn a_full_connection_gives_the_value_back_or_sends_all_of_it() {
    let _guard = support::guard(60);
    let (here, there) = UnixStream::pair().unwrap();
    let here = StreamConnection::<(u32, Buffer<u8>), ()>::from(here);
    let there = StreamConnection::<(), (u32, Buffer<u8>)>::from(there);
    let mut sent = 0;
    // Sizes that do not divide the socket's room: some message goes in parts.
    while sent < 10_000 {
        match here.try_send((sent, Buffer::from(vec![7; 3000 + sent as usize % 7]))) {
            Ok(()) => sent += 1,
            Err(TrySendError::Full((number, bytes))) => {
                assert_eq!((number, bytes.len()), (sent, 3000 + sent as usize % 7));
                break;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(sent > 10 && sent < 10_000);
    let timed = here.send_timeout((sent, vec![].into()), Duration::from_millis(5));
    assert!(matches!(timed, Err(TrySendError::Full(_))));
    thread::scope(|scope| {
        scope.spawn(|| assert!(here.flush(LONG).unwrap()));
        for number in 0..sent {
            let (found, bytes) = there.recv_timeout(LONG).unwrap();
            assert_eq!((found, bytes.len()), (number, 3000 + number as usize % 7));
        }
    });
    assert!(matches!(there.try_recv(), Err(TryRecvError::Empty)));
}

#[test]
fn what_cannot_travel_comes_back() {
    let _guard = support::guard(60);
    let (here, there) = UnixStream::pair().unwrap();
    let here = StreamConnection::<Option<Lock>, u32>::from(here);
    let there = StreamConnection::<String>::from(there);
    let Err(SendError::Failed(Some(lock), error)) = here.send(Some(Lock::new().unwrap())) else {
        panic!("a lock went over a socket");
    };
    assert_eq!(error.kind(), ErrorKind::Encode);
    drop(lock.lock().unwrap());
    // Nor does it leave with a message around it, or hurt that one.
    let (sender, receiver) = channel::<StreamConnection<Option<Lock>, u32>>().unwrap();
    sender.send(here).unwrap();
    let here = receiver.recv().unwrap();
    // A message of another type is taken, and the next one comes.
    there.send("no number".to_owned()).unwrap();
    there.with_types::<u32, ()>().send(5).unwrap();
    let Err(RecvError::Failed(error)) = here.recv() else {
        panic!("text became a number");
    };
    assert_eq!(error.kind(), ErrorKind::Decode);
    assert_eq!(here.recv().unwrap(), 5);
}

/// Whether a descriptor is readable now.
fn is_readable(fd: &impl std::os::fd::AsFd) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&now)).unwrap() == 1
}

#[test]
fn waiting_for_many_and_watching_the_descriptor() {
    let _guard = support::guard(60);
    let (one, two) = UnixStream::pair().unwrap();
    let here = StreamConnection::<Vec<u8>>::from(one);
    let there = StreamConnection::<Vec<u8>>::from(two);
    let (sender, receiver) = channel::<u8>().unwrap();
    let fd = there.fileno().unwrap();
    assert!(!is_readable(&fd));
    let soon = Some(Duration::from_millis(5));
    assert!(wait(&[&there, &receiver], soon).unwrap().is_empty());
    here.send(vec![1; 100_000])
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(is_readable(&fd));
    assert_eq!(wait(&[&receiver, &there], Some(LONG)).unwrap(), [1]);
    // Taken from the socket, not from the connection.
    assert!(is_readable(&fd));
    sender.send(1).unwrap();
    assert_eq!(wait(&[&receiver, &there], Some(LONG)).unwrap(), [0, 1]);
    assert_eq!(there.recv().unwrap().len(), 100_000);
    assert!(!is_readable(&fd));
    drop(here);
    assert!(is_readable(&fd));
    assert_eq!(wait(&[&there], Some(LONG)).unwrap(), [0]);
    assert!(matches!(there.recv(), Err(RecvError::Disconnected)));
}

#[test]
fn connections_go_to_children_under_every_start_method() {
    each_method(|method: StartMethod| {
        for address in ["@", "127.0.0.1:0"] {
            let listener = Listener::bind(address).unwrap();
            let here: StreamConnection<u32> = Client::connect(listener.local_addr()).unwrap();
            let there: StreamConnection<u32> = listener.accept().unwrap();
            // One message has come already, and half of another.
            here.send(20).unwrap();
            assert!(there.poll(LONG).unwrap());
            let double = |connection: StreamConnection<u32>, others: Vec<StreamConnection<u32>>| {
                assert!(others.is_empty());
                while let Ok(number) = connection.recv() {
                    connection.send(2 * number).unwrap();
                }
            };
            let child = Process::builder()
                .start_method(method)
                .start(double, (there, Vec::new()))
                .unwrap();
            here.send(21).unwrap();
            assert_eq!(here.recv_timeout(LONG).unwrap(), 40);
            assert_eq!(here.recv_timeout(LONG).unwrap(), 42);
            // A forked child has a copy of this end too.
            here.close();
            assert!(child.join().unwrap().success());
        }
    });
}

#[test]
fn children_connect_under_every_start_method() {
    each_method(|method: StartMethod| {
        let listener = Listener::builder().authkey("secret").bind("@").unwrap();
        let call = |address: String, key: String| {
            let client = Client::builder().authkey(key);
            match client.connect::<u32, u32>(&address) {
                Ok(connection) => {
                    connection.send(std::process::id()).unwrap();
                    connection.recv().is_err()
                }
                Err(error) => error.kind() == ErrorKind::Authentication,
            }
        };
        for key in ["secret", "wrong"] {
            let address = listener.local_addr().to_string();
            let child = Process::builder()
                .start_method(method)
                .start(call, (address, key.to_owned()))
                .unwrap();
            match listener.accept::<u32, u32>() {
                Ok(connection) => {
                    assert_eq!(connection.recv_timeout(LONG).unwrap(), child.pid());
                    assert_eq!(key, "secret");
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Authentication);
                    assert_eq!(key, "wrong");
                }
            }
            assert!(child.result().unwrap());
        }
    });
}

#[test]
fn the_file_is_removed_by_its_owner_only() {
    let _guard = support::guard(60);
    let file = path("owned.sock");
    let listener = Listener::bind(&file).unwrap();
    assert!(file.exists());
    let error = Listener::bind(&file).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Os);
    assert_eq!(
        error.raw_os_error(),
        Some(rustix::io::Errno::ADDRINUSE.raw_os_error())
    );
    // Not taken away from one who listens.
    let greedy = Listener::builder().remove_stale(true);
    assert!(greedy.bind(&file).is_err());
    drop(listener);
    assert!(!file.exists());
    // What a killed listener leaves.
    drop(std::os::unix::net::UnixListener::bind(&file).unwrap());
    assert!(Listener::bind(&file).is_err());
    let listener = greedy.bind(&file).unwrap();
    // Somebody else's file in its place stays.
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, "mine").unwrap();
    drop(listener);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    assert!(greedy.bind(&file).is_err());
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn a_thousand_connections_leave_nothing() {
    let _guard = support::guard(120);
    let listener = Listener::builder()
        .authkey("secret")
        .backlog(4)
        .bind("@")
        .unwrap();
    let address = listener.local_addr().clone();
    thread::scope(|scope| {
        for _ in 0..4 {
            let client = Client::builder().authkey("secret").timeout(LONG);
            let address = &address;
            scope.spawn(move || {
                for number in 0..250 {
                    let connection: StreamConnection<u32> = client.connect(address).unwrap();
                    connection.send(number).unwrap();
                    assert_eq!(connection.recv().unwrap(), number);
                }
            });
        }
        let mut accepted = Vec::new();
        for _ in 0..1000 {
            let connection: StreamConnection<u32> = listener.accept().unwrap();
            accepted.push(scope.spawn(move || {
                let number = connection.recv().unwrap();
                connection.send(number).unwrap();
            }));
        }
    });
    drop(listener);
    let gone = Client::connect::<u8, u8>(&address).unwrap_err();
    assert_eq!(
        gone.raw_os_error(),
        Some(rustix::io::Errno::CONNREFUSED.raw_os_error())
    );
}

#[test]
fn addresses_that_cannot_be_are_errors() {
    let _guard = support::guard(60);
    for (address, kind) in [
        ("nonsense".to_owned(), ErrorKind::InvalidInput),
        (format!("/{}", "x".repeat(200)), ErrorKind::InvalidInput),
        (
            path("no-such/file.sock").display().to_string(),
            ErrorKind::Os,
        ),
    ] {
        assert_eq!(
            Listener::bind(&address).unwrap_err().kind(),
            kind,
            "{address}"
        );
        let refused = Client::connect::<u8, u8>(&address).unwrap_err();
        assert_eq!(refused.kind(), kind, "{address}");
    }
    assert!(matches!(
        Listener::bind("@").unwrap().local_addr(),
        Address::Abstract(_)
    ));
}

#[test]
fn what_a_send_has_left_goes_with_attempts_to_receive() {
    let _guard = support::guard(60);
    let (here, there) = UnixStream::pair().unwrap();
    let (here, there): (StreamConnection, StreamConnection) = (here.into(), there.into());
    let long = vec![5; 4 << 20];
    here.try_send_bytes(&long).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            assert!(there.recv_bytes_timeout(LONG).unwrap() == long);
            there.send_bytes(&[1]).unwrap();
        });
        // An event loop's way: only attempts.
        let answered = support::wait_until(LONG, || match here.try_recv_bytes() {
            Ok(answer) => answer == [1],
            Err(TryRecvError::Empty) => false,
            Err(error) => panic!("{error}"),
        });
        assert!(answered, "the rest has not gone");
    });
}
