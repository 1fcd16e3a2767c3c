//! The showing of keys, for the fuzzers.

use super::auth::{Exchange, Key, MESSAGE_MAX};

/// Lets a peer say these things to one of the ends; true if it was believed.
pub(crate) fn converse(is_listener: bool, takes_md5: bool, messages: &[&[u8]]) -> bool {
    // Nobody else has this one.
    let mut bytes = [0; 32];
    if crate::sys::network::random(&mut bytes).is_err() {
        return false;
    }
    let key = Key::new(bytes.to_vec(), takes_md5);
    let mut exchange = if is_listener {
        match Exchange::listener(key) {
            Ok((exchange, first)) => {
                assert!(first.len() <= MESSAGE_MAX);
                exchange
            }
            Err(_) => return false,
        }
    } else {
        Exchange::client(key)
    };
    let mut has_failed = false;
    for message in messages {
        let reply = exchange.receive(message);
        assert!(reply.messages.iter().all(|m| m.len() <= MESSAGE_MAX));
        match reply.result {
            // Nothing mends what has failed.
            Ok(sure) => {
                assert!(!has_failed, "it went on after it had failed");
                if sure {
                    return true;
                }
            }
            Err(_) => has_failed = true,
        }
    }
    false
}
