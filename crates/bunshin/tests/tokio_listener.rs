//! Accepting and connecting in `async` code: who gets in, what slow, dead and hostile peers do,
//! what a dropped future leaves behind, and CPython at the other end.
#![cfg(feature = "tokio")]

mod support;

use std::future::Future;
use std::io::{Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use bunshin::tokio::{Client, Listener, StreamConnection};
use bunshin::{Address, ErrorKind, Process, RecvError, StartMethod};
use rustix::process::Signal;
use support::python::{Peer, pythons};
use tokio::runtime::Builder;
use tokio::time::{sleep, timeout};

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(30);

type Echo = StreamConnection<u64>;

/// A runtime of this thread alone, without timers: nothing here may need them.
fn plain<T>(work: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_io().build();
    runtime.expect("a runtime can be made").block_on(work)
}

/// One with timers, for those tests that drop futures.
fn timed<T>(work: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(work)
}

/// A listener at each kind of address.
fn listeners(key: &str) -> Vec<Listener> {
    let builder = bunshin::Listener::builder().authkey(key);
    let file = format!("bunshin-{}-async.sock", std::process::id());
    let file = std::env::temp_dir().join(file);
    let bound = [
        builder.bind(&file),
        builder.bind("@"),
        builder.bind("127.0.0.1:0"),
        builder.bind("localhost:0"),
    ];
    let listen = |bound: bunshin::Result<_>| Listener::new(bound.expect("it can listen"));
    bound.into_iter().map(listen).collect()
}

fn keyed(key: &str) -> Client {
    Client::new(bunshin::Client::builder().authkey(key))
}

/// A bare socket to a listener.
fn dial(listener: &Listener) -> UnixStream {
    let Address::Abstract(name) = listener.get_ref().local_addr() else {
        panic!("the tests here listen at abstract names");
    };
    let address = SocketAddr::from_abstract_name(name).expect("a name");
    UnixStream::connect_addr(&address).expect("it listens")
}

#[test]
fn values_and_bytes_go_both_ways_over_every_kind_of_address() {
    let _guard = support::guard(60);
    plain(async {
        for listener in listeners("secret") {
            let client = keyed("secret");
            let address = match listener.get_ref().local_addr() {
                // By name: a thread looks it up.
                Address::Tcp(_, port) => Address::Tcp("localhost".into(), *port),
                other => other.clone(),
            };
            let (here, there) = tokio::join!(client.connect(address), listener.accept());
            let (here, there): (Echo, Echo) = (here.expect("it answers"), there.expect("it calls"));
            here.send(1).await.expect("it is there");
            assert_eq!(there.recv().await.expect("it was sent"), 1);
            for len in [0, 1, 5000, 3 << 20] {
                let bytes: Vec<u8> = (0..len).map(|at: usize| (at % 251) as u8).collect();
                let (sent, back) = tokio::join!(there.send_bytes(&bytes), here.recv_bytes());
                sent.expect("it is there");
                assert!(back.expect("it was sent") == bytes);
            }
            drop(there);
            assert!(matches!(here.recv().await, Err(RecvError::Disconnected)));
        }
    });
}

#[test]
fn all_tasks_of_a_runtime_with_threads_can_accept_and_connect() {
    let _guard = support::guard(60);
    let runtime = Builder::new_multi_thread()
        .worker_threads(3)
        .enable_io()
        .build()
        .expect("a runtime can be made");
    runtime.block_on(async {
        let listener = bunshin::Listener::builder()
            .authkey("secret")
            .max_pending(100)
            .bind("@");
        let listener = Arc::new(Listener::new(listener.expect("it can listen")));
        let servers: Vec<_> = (0..4)
            .map(|_| {
                let listener = Arc::clone(&listener);
                tokio::spawn(async move {
                    for _ in 0..25 {
                        let connection: Echo = listener.accept().await.expect("it has the key");
                        let number = connection.recv().await.expect("it was sent");
                        connection.send(number + 1).await.expect("it is there");
                    }
                })
            })
            .collect();
        let clients: Vec<_> = (0..100)
            .map(|number| {
                let address = listener.get_ref().local_addr().clone();
                tokio::spawn(async move {
                    let connection: Echo = keyed("secret").connect(address).await.expect("it is");
                    connection.send(number).await.expect("it is there");
                    assert_eq!(connection.recv().await.expect("an answer"), number + 1);
                })
            })
            .collect();
        for task in servers.into_iter().chain(clients) {
            task.await.expect("it ends");
        }
    });
}

#[test]
fn the_slow_hold_up_nobody_and_are_dropped() {
    let _guard = support::guard(60);
    plain(async {
        let listener = bunshin::Listener::builder()
            .authkey("secret")
            .handshake_timeout(Duration::from_secs(2))
            .bind("@");
        let listener = Listener::new(listener.expect("it can listen"));
        let mut slow: Vec<UnixStream> = (0..10).map(|_| dial(&listener)).collect();
        for peer in &mut slow {
            peer.write_all(&[0, 0]).expect("it is there");
        }
        let client = keyed("secret");
        let address = listener.get_ref().local_addr();
        let (here, there) = tokio::join!(client.connect(address), listener.accept());
        let (here, there): (Echo, Echo) = (here.expect("it answers"), there.expect("it calls"));
        here.send(1).await.expect("it is there");
        assert_eq!(there.recv().await.expect("it was sent"), 1);
        // Without a timer in the runtime, and though nobody says anything any more.
        for _ in &slow {
            let late = listener.accept::<u8, u8>().await.unwrap_err();
            assert_eq!(late.kind(), ErrorKind::TimedOut, "{late}");
        }
        assert!(listener.get_ref().try_accept::<u8, u8>().unwrap().is_none());
    });
}

#[test]
fn a_flood_makes_the_oldest_give_way() {
    let _guard = support::guard(60);
    plain(async {
        let listener = bunshin::Listener::builder()
            .authkey("secret")
            .max_pending(8)
            .bind("@");
        let listener = Listener::new(listener.expect("it can listen"));
        let flood: Vec<UnixStream> = (0..40).map(|_| dial(&listener)).collect();
        for _ in 0..32 {
            let error = listener.accept::<u8, u8>().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy);
        }
        let (client, address) = (keyed("secret"), listener.get_ref().local_addr());
        let server = async {
            let error = listener.accept::<u8, u8>().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy);
            listener.accept::<u8, u8>().await.expect("it has the key")
        };
        let (here, _there) = tokio::join!(client.connect::<u8, u8>(address), server);
        here.expect("it answers");
        drop(flood);
    });
}

#[test]
fn whoever_cannot_show_the_key_gets_nothing() {
    let _guard = support::guard(60);
    plain(async {
        let listener = bunshin::Listener::builder()
            .authkey("secret")
            .handshake_timeout(Duration::from_millis(200))
            .bind("@");
        let listener = Listener::new(listener.expect("it can listen"));
        let frame = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes(), bytes].concat();
        for (say, kind) in [
            (frame(b"#WELCOME#"), ErrorKind::Authentication),
            (frame(b""), ErrorKind::Authentication),
            (frame(&[0; 300]), ErrorKind::Corrupt),
            (vec![0xff; 12], ErrorKind::Corrupt),
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), ErrorKind::Corrupt),
            (vec![0, 0], ErrorKind::TimedOut),
        ] {
            let mut peer = dial(&listener);
            peer.write_all(&say).expect("it is there");
            let error = listener.accept::<u8, u8>().await.unwrap_err();
            assert_eq!(error.kind(), kind, "{say:?}: {error}");
            let mut all = Vec::new();
            let _ = peer.read_to_end(&mut all);
            assert!(!all.windows(9).any(|w| w == b"#WELCOME#"));
        }
        let address = listener.get_ref().local_addr();
        let wrong = keyed("wrong");
        let (here, there) = tokio::join!(
            wrong.connect::<u8, u8>(address),
            listener.accept::<u8, u8>()
        );
        assert_eq!(here.unwrap_err().kind(), ErrorKind::Authentication);
        assert_eq!(there.unwrap_err().kind(), ErrorKind::Authentication);
    });
}

#[test]
fn a_client_waits_no_longer_than_it_wants() {
    let _guard = support::guard(60);
    plain(async {
        // It listens, and nobody accepts; its backlog fills, and the last find no room.
        let builder = bunshin::Listener::builder().authkey("secret").backlog(1);
        let silent = builder.bind("@").expect("it can listen");
        let builder = bunshin::Client::builder().authkey("secret");
        let client = Client::new(builder.timeout(Duration::from_millis(200)));
        let address = silent.local_addr();
        let connect = || client.connect::<u8, u8>(address);
        let all = tokio::join!(connect(), connect(), connect(), connect());
        for late in [all.0, all.1, all.2, all.3] {
            let late = late.unwrap_err();
            assert_eq!(late.kind(), ErrorKind::TimedOut, "{late}");
        }
        for nobody in ["@nobody.listens.here", "127.0.0.1:1"] {
            let error = client.connect::<u8, u8>(nobody).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Os, "{error}");
        }
        let error = client.connect::<u8, u8>("no address").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    });
}

#[test]
fn who_finds_no_room_gets_in_when_there_is_some() {
    let _guard = support::guard(60);
    plain(async {
        let listener = bunshin::Listener::builder().backlog(1).bind("@");
        let listener = Listener::new(listener.expect("it can listen"));
        let (client, address) = (bunshin::Client::builder(), listener.get_ref().local_addr());
        let client = Client::new(client);
        let connect = || client.connect::<u8, u8>(address);
        let accept = async {
            for _ in 0..6 {
                listener.accept::<u8, u8>().await.expect("it is open");
            }
        };
        let (all, ()) = tokio::join!(
            async {
                tokio::join!(
                    connect(),
                    connect(),
                    connect(),
                    connect(),
                    connect(),
                    connect()
                )
            },
            accept
        );
        for one in [all.0, all.1, all.2, all.3, all.4, all.5] {
            one.expect("it has room in the end");
        }
    });
}

#[test]
fn a_dropped_accept_loses_no_peer_and_a_dropped_connect_leaves_nothing() {
    let _guard = support::guard(60);
    timed(async {
        let listener = bunshin::Listener::builder().authkey("secret").bind("@");
        let listener = Listener::new(listener.expect("it can listen"));
        let address = listener.get_ref().local_addr().clone();
        let before = support::open_descriptors(std::process::id());
        let client = keyed("secret");
        for _ in 0..50 {
            let soon = Duration::from_micros(500);
            let dropped = timeout(soon, client.connect::<u8, u8>(&address)).await;
            assert!(dropped.is_err(), "nobody has accepted");
        }
        assert_eq!(support::open_descriptors(std::process::id()), before);
        // Each of them is told of, and none is in the way.
        for _ in 0..50 {
            let gone = listener.accept::<u8, u8>().await.unwrap_err();
            assert!(gone.is_disconnected(), "{gone}");
        }
        let connecting = async { client.connect::<u64, u64>(&address).await };
        let accepting = async {
            loop {
                // Polled once or a few times, then dropped in the middle of a greeting.
                tokio::select! {
                    biased;
                    () = tokio::task::yield_now() => {}
                    accepted = listener.accept::<u64, u64>() => break accepted,
                }
                tokio::select! {
                    biased;
                    accepted = listener.accept::<u64, u64>() => break accepted,
                    () = tokio::task::yield_now() => {}
                }
            }
        };
        let both = async { tokio::join!(connecting, accepting) };
        let (here, there) = timeout(LONG, both).await.expect("in time");
        let (here, there) = (here.expect("it answers"), there.expect("it calls"));
        here.send(7).await.expect("it is there");
        assert_eq!(there.recv().await.expect("it was sent"), 7);
    });
}

#[test]
fn the_longest_message_is_what_the_builders_say() {
    let _guard = support::guard(60);
    plain(async {
        let builder = bunshin::Listener::builder().max_message_bytes(1000);
        let listener = Listener::new(builder.bind("@").expect("it can listen"));
        let client = Client::new(bunshin::Client::builder());
        let address = listener.get_ref().local_addr();
        let (here, there) = tokio::join!(client.connect(address), listener.accept());
        let (here, there): (Echo, Echo) = (here.expect("it answers"), there.expect("it calls"));
        let too_long = there.send_bytes(&[0; 1001]).await.unwrap_err();
        assert_eq!(too_long.kind(), ErrorKind::InvalidInput);
        let (_, received) = tokio::join!(here.send_bytes(&[0; 1001]), there.recv_bytes());
        let Err(RecvError::Failed(error)) = received else {
            panic!("{received:?}");
        };
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    });
}

#[test]
fn what_a_dropped_send_has_left_goes_while_an_answer_is_awaited() {
    let _guard = support::guard(60);
    for is_waiting_before in [false, true] {
        timed(async {
            let (here, there) = UnixStream::pair().expect("a pair");
            let here: StreamConnection<Vec<u8>> =
                StreamConnection::new(here.into()).expect("it can be watched");
            let there: bunshin::StreamConnection<Vec<u8>> = there.into();
            let long = vec![5; 4 << 20];
            let soon = Duration::from_millis(20);
            let answering = || {
                std::thread::spawn(move || {
                    let len = there.recv().expect("all of it comes").len();
                    there.send_bytes(&[1; 3]).expect("it is there");
                    len
                })
            };
            let (answer, answering) = if is_waiting_before {
                let cut = async {
                    assert!(timeout(soon, here.send(long.clone())).await.is_err());
                    answering()
                };
                tokio::join!(timeout(LONG, here.recv_bytes()), cut)
            } else {
                assert!(timeout(soon, here.send(long.clone())).await.is_err());
                let answering = answering();
                (timeout(LONG, here.recv_bytes()).await, answering)
            };
            assert_eq!(answer.expect("in time").expect("it answers"), [1; 3]);
            assert_eq!(answering.join().expect("it ends"), long.len());
        });
    }
}

#[test]
fn peers_killed_at_any_moment_are_errors_or_ends() {
    support::each_method(|method: StartMethod| {
        for round in 0..15u64 {
            let builder = bunshin::Listener::builder().authkey("secret");
            let listener = builder.bind("@").expect("it can listen");
            let call = |address: String| {
                timed(async {
                    let client = keyed("secret");
                    while let Ok(connection) = client.connect::<u64, u64>(&address).await {
                        let _ = connection.send(1).await;
                    }
                });
            };
            let child = Process::builder()
                .start_method(method)
                .start(call, (listener.local_addr().to_string(),))
                .expect("a child can be started");
            timed(async {
                let listener = Listener::new(listener);
                let serve = async {
                    loop {
                        let accepted: bunshin::Result<Echo> = listener.accept().await;
                        if let Ok(connection) = accepted {
                            let _ = connection.recv().await;
                        }
                    }
                };
                let moment = Duration::from_micros(round * 2700);
                let kill = async {
                    sleep(moment).await;
                    support::kill(child.pid(), Signal::KILL);
                    sleep(Duration::from_millis(5)).await;
                };
                tokio::select! {
                    () = serve => {}
                    () = kill => {}
                }
                // It goes on for others.
                let (client, address) = (keyed("secret"), listener.get_ref().local_addr());
                let accept = async {
                    loop {
                        let accepted: bunshin::Result<Echo> = listener.accept().await;
                        let Ok(connection) = accepted else { continue };
                        if let Ok(2) = connection.recv().await {
                            break;
                        }
                    }
                };
                let connect = async {
                    let connection: Echo = client.connect(address).await.expect("it listens");
                    connection.send(2).await.expect("it is there");
                };
                let both = async { tokio::join!(accept, connect) };
                timeout(LONG, both).await.expect("in time");
            });
            assert_eq!(child.join().expect("it ends").signal(), Some(9));
        }
    });
}

/// Sends bytes of all sizes and wants them back.
async fn expect_echo(connection: &StreamConnection) {
    for len in [0, 1, 3, 4, 16_383, 16_384, 16_385, 1 << 20, 5_000_000] {
        let bytes: Vec<u8> = (0..len).map(|at: usize| (at * 7 % 253) as u8).collect();
        let (sent, back) = tokio::join!(connection.send_bytes(&bytes), connection.recv_bytes());
        sent.expect("it is there");
        let back = back.expect("it comes back");
        assert!(back == bytes, "{len} bytes came back as {}", back.len());
    }
}

fn addresses(name: &str) -> [String; 3] {
    let own = std::process::id();
    let file = std::env::temp_dir().join(format!("bunshin-{own}-{name}.sock"));
    [
        file.display().to_string(),
        format!("@bunshin.{own}.{name}"),
        "127.0.0.1:0".to_owned(),
    ]
}

#[test]
fn python_connects_to_our_listener() {
    let _guard = support::guard(300);
    for python in pythons() {
        for address in addresses("async-pc") {
            plain(async {
                let open = bunshin::Listener::bind(&address[..]).expect("it can listen");
                let peer = Peer::start(&python, "connect", &open.local_addr().to_string(), "-");
                expect_echo(&Listener::new(open).accept().await.expect("it calls")).await;
                assert_eq!(peer.end(), "done");
                let listener = bunshin::Listener::builder()
                    .authkey("secret")
                    .allow_md5(!python.is_modern);
                let listener = listener.bind(&address[..]).expect("it can listen");
                let local = listener.local_addr().to_string();
                let listener = Listener::new(listener);
                let peer = Peer::start(&python, "connect", &local, "secret");
                expect_echo(&listener.accept().await.expect("it has the key")).await;
                assert_eq!(peer.end(), "done", "{}", python.command);
                let peer = Peer::start(&python, "connect", &local, "wrong");
                let error = listener.accept::<(), ()>().await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Authentication);
                assert_eq!(peer.end(), "AuthenticationError");
            });
        }
    }
}

#[test]
fn we_connect_to_pythons_listener() {
    let _guard = support::guard(300);
    for python in pythons() {
        for address in addresses("async-pl") {
            let start = |key: &str| {
                let mut peer = Peer::start(&python, "listen", &address, key);
                let found = peer.line().replace('\0', "@");
                (peer, found)
            };
            plain(async {
                let builder = bunshin::Client::builder().allow_md5(!python.is_modern);
                let (peer, found) = start("-");
                let client = Client::new(builder.clone());
                expect_echo(&client.connect(&found[..]).await.expect("it answers")).await;
                assert_eq!(peer.end(), "done");
                let (peer, found) = start("secret");
                let client = Client::new(builder.clone().authkey("secret"));
                expect_echo(&client.connect(&found[..]).await.expect("it answers")).await;
                assert_eq!(peer.end(), "done", "{}", python.command);
                let (peer, found) = start("secret");
                let client = Client::new(builder.authkey("wrong"));
                let wrong = client.connect::<(), ()>(&found[..]).await;
                assert_eq!(wrong.unwrap_err().kind(), ErrorKind::Authentication);
                assert_eq!(peer.end(), "AuthenticationError");
            });
        }
    }
}

#[cfg(feature = "tls")]
#[test]
fn greetings_and_messages_go_under_tls() {
    use bunshin::tls::{client_config, server_config};

    const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/listener");
    let _guard = support::guard(60);
    plain(async {
        let config = server_config(format!("{KEYS}/tls.pem"), format!("{KEYS}/tls.key"));
        let listener = bunshin::Listener::builder()
            .authkey("secret")
            .tls(config.expect("they are keys"))
            .bind("127.0.0.1:0");
        let listener = Listener::new(listener.expect("it can listen"));
        let address = listener.get_ref().local_addr();
        let client = |server: &str| {
            let config = client_config(format!("{KEYS}/tls.pem")).expect("it is one");
            let builder = bunshin::Client::builder().authkey("secret");
            Client::new(builder.tls(server, config).expect("it is a name"))
        };
        let right = client("localhost");
        let (here, there) = tokio::join!(right.connect(address), listener.accept());
        let (here, there): (Echo, Echo) = (here.expect("it answers"), there.expect("it calls"));
        for len in [0, 1, 20_000, 5 << 20] {
            let bytes = vec![len as u8; len];
            let (sent, back) = tokio::join!(here.send_bytes(&bytes), there.recv_bytes());
            sent.expect("it is there");
            assert!(back.expect("it was sent") == bytes);
        }
        let wrong = client("example.org");
        let (here, there) = tokio::join!(
            wrong.connect::<u8, u8>(address),
            listener.accept::<u8, u8>()
        );
        assert_eq!(here.unwrap_err().kind(), ErrorKind::Authentication);
        assert_eq!(there.unwrap_err().kind(), ErrorKind::Authentication);
    });
}
