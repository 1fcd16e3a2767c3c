//! The same under TLS.

use bunshin::tls::client_config;
use rustix::process::Signal;

use super::*;

const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/listener");
const OWN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/manager_remote");

fn secured(method: StartMethod, certificate: &str, key: &str) -> (Manager, Address) {
    let manager = start(method);
    let serve = manager.serve("secret").tls(certificate, key);
    let address = serve.bind("127.0.0.1:0").unwrap();
    (manager, address)
}

fn server(method: StartMethod) -> (Manager, Address) {
    secured(
        method,
        &format!("{KEYS}/tls.pem"),
        &format!("{KEYS}/tls.key"),
    )
}

fn client(believes: &str, name: &str, key: &str, address: &str) -> bunshin::Result<Manager> {
    let config = client_config(believes).unwrap();
    let remote = Manager::remote(key).tls(name, config).unwrap();
    remote.timeout(Duration::from_secs(5)).connect(address)
}

fn honest(address: &str) -> Manager {
    client(&format!("{KEYS}/tls.pem"), "localhost", "secret", address).unwrap()
}

#[test]
fn calls_go_under_tls_and_end_with_the_server() {
    each_method(|method| {
        let (manager, address) = server(method);
        let queue = manager.queue::<u32>(0).unwrap();
        manager.publish("queue", &queue).unwrap();
        let far = |address: String| {
            let there = honest(&address);
            let queue: QueueProxy<u32> = there.find("queue").unwrap().unwrap();
            let list = there.list([Buffer::from(vec![3; 1 << 20])]).unwrap();
            assert_eq!(list.get(0).unwrap().unwrap().len(), 1 << 20);
            // Its keys belong to this process.
            let error = channel::<QueueProxy<u32>>()
                .unwrap()
                .0
                .send(queue.clone())
                .unwrap_err();
            assert!(error.to_string().contains("TLS"), "{error}");
            thread::scope(|scope| {
                for n in 0..3 {
                    let queue = &queue;
                    scope.spawn(move || (0..40).for_each(|i| queue.send(n * 40 + i).unwrap()));
                }
            });
            queue.join().unwrap_err().is_disconnected()
        };
        let client = child(method, far, (address.to_string(),));
        let mut sum = 0;
        for _ in 0..120 {
            sum += queue.recv_timeout(LONG).unwrap();
        }
        assert_eq!(sum, 119 * 120 / 2);
        thread::sleep(SOON);
        support::kill(manager.pid().unwrap(), Signal::KILL);
        assert!(client.result().unwrap());
    });
}

#[test]
fn who_cannot_show_the_right_certificate_is_refused() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    let (manager, address) = server(StartMethod::Forkserver);
    let address = address.to_string();
    let own = format!("{KEYS}/tls.pem");
    let refused = |believes: &str, name: &str, key: &str, address: &str| {
        let error = client(believes, name, key, address).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
        error.to_string()
    };
    refused(&own, "localhost", "another", &address);
    // For somebody else; from an authority that is not believed.
    refused(&own, "example.org", "secret", &address);
    let other = format!("{OWN}/expired.pem");
    refused(&other, "localhost", "secret", &address);
    // The right one, but its time is over.
    let (_second, expired) = secured(
        StartMethod::Forkserver,
        &other,
        &format!("{OWN}/expired.key"),
    );
    let why = refused(&other, "localhost", "secret", &expired.to_string());
    assert!(why.to_lowercase().contains("expired"), "{why}");
    // One without TLS, to a server with it, and the other way round.
    assert!(
        Manager::remote("secret")
            .timeout(Duration::from_secs(2))
            .connect(&address)
            .is_err()
    );
    let plain = manager.serve("secret").bind("127.0.0.1:0").unwrap();
    refused(&own, "localhost", "secret", &plain.to_string());
    // A file that is none.
    let no_file = manager
        .serve("secret")
        .tls(&own, "/no/such/key")
        .bind("127.0.0.1:0");
    assert_eq!(no_file.unwrap_err().kind(), ErrorKind::InvalidInput);
    let list = honest(&address).list([1]).unwrap();
    assert_eq!(list.len().unwrap(), 1);
}
