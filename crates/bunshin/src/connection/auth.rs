//! Showing each other that both have the same key, without showing the key.
//!
//! The messages are those of CPython's `multiprocessing.connection`; PROTOCOL.md has them.
//! Nothing here knows a socket or a clock: messages come in, messages go out.

use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::Md5;
use sha2::Sha256;

use crate::error::{Error, ErrorKind, Result};
use crate::sys::network;

const CHALLENGE: &[u8] = b"#CHALLENGE#";
const WELCOME: &[u8] = b"#WELCOME#";
const FAILURE: &[u8] = b"#FAILURE#";
const SHA256: &[u8] = b"{sha256}";
const MD5: &[u8] = b"{md5}";

/// Random bytes in a challenge of ours.
const RANDOM: usize = 40;
/// Random bytes in a challenge of CPython's up to 3.11.
const OLD_RANDOM: usize = 20;
/// Bytes of an MD5 code.
const OLD_CODE: usize = 16;
/// The longest message of the exchange.
pub(crate) const MESSAGE_MAX: usize = 256;

/// A key that both ends have.
#[derive(Clone)]
pub(crate) struct Key {
    bytes: Vec<u8>,
    /// Whether codes by MD5 are taken and given, to those who know nothing better.
    takes_md5: bool,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys do not belong into logs.
        f.write_str("Key")
    }
}

/// How a code is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Digest {
    Sha256,
    /// With its name before it, or without.
    Md5 {
        is_named: bool,
    },
}

impl Key {
    pub(crate) fn new(bytes: Vec<u8>, takes_md5: bool) -> Self {
        Self { bytes, takes_md5 }
    }

    fn sha256(&self, message: &[u8]) -> Result<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.bytes).map_err(unusable)?;
        mac.update(message);
        Ok(mac)
    }

    fn md5(&self, message: &[u8]) -> Result<Hmac<Md5>> {
        let mut mac = Hmac::<Md5>::new_from_slice(&self.bytes).map_err(unusable)?;
        mac.update(message);
        Ok(mac)
    }

    /// The answer to a challenge.
    fn answer(&self, message: &[u8]) -> Result<Vec<u8>> {
        let (digest, _) = self.digest(message, OLD_RANDOM)?;
        Ok(match digest {
            Digest::Sha256 => {
                let code = self.sha256(message)?.finalize().into_bytes();
                [SHA256, &code].concat()
            }
            Digest::Md5 { is_named } => {
                let code = self.md5(message)?.finalize().into_bytes();
                [if is_named { MD5 } else { &[] }, &code].concat()
            }
        })
    }

    /// Whether this is an answer to the challenge by somebody who has the key. Takes as long
    /// for a wrong one as for a right one.
    fn is_answer(&self, message: &[u8], answer: &[u8]) -> Result<bool> {
        let (digest, code) = self.digest(answer, OLD_CODE)?;
        Ok(match digest {
            Digest::Sha256 => self.sha256(message)?.verify_slice(code).is_ok(),
            Digest::Md5 { .. } => self.md5(message)?.verify_slice(code).is_ok(),
        })
    }

    /// Which digest a message wants or uses, and what follows the digest's name. Without a
    /// name it is MD5, if the message is as long as old ones are.
    fn digest<'a>(&self, message: &'a [u8], old_len: usize) -> Result<(Digest, &'a [u8])> {
        if let Some(rest) = message.strip_prefix(SHA256) {
            return Ok((Digest::Sha256, rest));
        }
        let (digest, rest) = match message.strip_prefix(MD5) {
            Some(rest) => (Digest::Md5 { is_named: true }, rest),
            None if message.len() == old_len => (Digest::Md5 { is_named: false }, message),
            None => {
                return Err(refused(
                    "the peer uses a digest that is not known here, or no authentication",
                ));
            }
        };
        if self.takes_md5 {
            Ok((digest, rest))
        } else {
            Err(refused(
                "the peer authenticates by MD5 (CPython 3.11 and earlier), which has to be \
                 allowed by `allow_md5`",
            ))
        }
    }
}

fn unusable(error: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!("the key cannot be used: {error}"),
    )
}

fn refused(why: &str) -> Error {
    Error::new(ErrorKind::Authentication, format!("authentication: {why}"))
}

/// One end of the exchange.
#[derive(Debug)]
pub(crate) struct Exchange {
    key: Key,
    /// What the peer was asked, without the mark in front.
    challenge: Vec<u8>,
    step: Step,
    is_listener: bool,
}

/// What is expected of the peer next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Challenge,
    Answer,
    Verdict,
    Nothing,
}

/// What follows from a message.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Messages to send, also where the exchange has failed.
    pub(crate) messages: Vec<Vec<u8>>,
    /// Whether both ends are sure of each other now.
    pub(crate) result: Result<bool>,
}

impl Exchange {
    /// The end that accepts: it asks first. Gives the first message.
    pub(crate) fn listener(key: Key) -> Result<(Self, Vec<u8>)> {
        let mut random = [0; RANDOM];
        network::random(&mut random)
            .map_err(|error| Error::os("make a challenge for a peer", error))?;
        Ok(Self::listener_with(key, random))
    }

    fn listener_with(key: Key, random: [u8; RANDOM]) -> (Self, Vec<u8>) {
        let mut exchange = Self {
            key,
            challenge: Vec::new(),
            step: Step::Nothing,
            is_listener: true,
        };
        let first = exchange.challenge(random);
        (exchange, first)
    }

    /// The end that connects: it is asked first.
    pub(crate) fn client(key: Key) -> Self {
        Self {
            key,
            challenge: Vec::new(),
            step: Step::Challenge,
            is_listener: false,
        }
    }

    fn challenge(&mut self, random: [u8; RANDOM]) -> Vec<u8> {
        self.challenge = [SHA256, &random].concat();
        self.step = Step::Answer;
        [CHALLENGE, &self.challenge].concat()
    }

    /// Takes a message of the peer.
    pub(crate) fn receive(&mut self, message: &[u8]) -> Reply {
        let mut messages = Vec::new();
        let result = self.step(message, &mut messages);
        if result.is_err() {
            self.step = Step::Nothing;
        }
        Reply { messages, result }
    }

    fn step(&mut self, message: &[u8], messages: &mut Vec<Vec<u8>>) -> Result<bool> {
        match self.step {
            Step::Challenge => {
                let Some(challenge) = message.strip_prefix(CHALLENGE) else {
                    return Err(refused("the peer does not ask for the key"));
                };
                // Who asks what we ask has only heard it from us.
                if !self.challenge.is_empty() && challenge == self.challenge {
                    return Err(refused("the peer sends our own challenge back"));
                }
                messages.push(self.key.answer(challenge)?);
                self.step = Step::Verdict;
                Ok(false)
            }
            Step::Answer => {
                let is_answer = self.key.is_answer(&self.challenge, message);
                if !matches!(is_answer, Ok(true)) {
                    messages.push(FAILURE.to_vec());
                    is_answer?;
                    return Err(refused("the peer does not have the same key"));
                }
                messages.push(WELCOME.to_vec());
                if self.is_listener {
                    self.step = Step::Challenge;
                    Ok(false)
                } else {
                    self.step = Step::Nothing;
                    Ok(true)
                }
            }
            Step::Verdict => {
                if message != WELCOME {
                    return Err(refused("the peer says that it has another key"));
                }
                if self.is_listener {
                    self.step = Step::Nothing;
                    return Ok(true);
                }
                let mut random = [0; RANDOM];
                network::random(&mut random)
                    .map_err(|error| Error::os("make a challenge for a peer", error))?;
                messages.push(self.challenge(random));
                Ok(false)
            }
            Step::Nothing => Err(refused("the exchange is over")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(bytes: &[u8], takes_md5: bool) -> Key {
        Key::new(bytes.to_vec(), takes_md5)
    }

    /// Lets both ends talk; what each came to.
    fn talk(listener: Key, client: Key) -> (Result<bool>, Result<bool>) {
        let (mut listener, first) = Exchange::listener(listener).unwrap();
        let mut client = Exchange::client(client);
        let (mut at_listener, mut at_client) = (Ok(false), Ok(false));
        let mut to_client = vec![first];
        let mut to_listener: Vec<Vec<u8>> = Vec::new();
        while !to_client.is_empty() || !to_listener.is_empty() {
            for message in std::mem::take(&mut to_client) {
                if matches!(at_client, Ok(false)) {
                    let reply = client.receive(&message);
                    to_listener.extend(reply.messages);
                    at_client = reply.result;
                }
            }
            for message in std::mem::take(&mut to_listener) {
                assert!(message.len() <= MESSAGE_MAX);
                if matches!(at_listener, Ok(false)) {
                    let reply = listener.receive(&message);
                    to_client.extend(reply.messages);
                    at_listener = reply.result;
                }
            }
        }
        (at_listener, at_client)
    }

    #[test]
    fn the_same_key_is_welcome() {
        let (listener, client) = talk(key(b"secret", false), key(b"secret", false));
        assert!(listener.unwrap() && client.unwrap());
        let (listener, client) = talk(key(b"", true), key(b"", false));
        assert!(listener.unwrap() && client.unwrap());
    }

    #[test]
    fn another_key_is_refused_at_both_ends() {
        let (listener, client) = talk(key(b"secret", false), key(b"Secret", false));
        assert_eq!(listener.unwrap_err().kind(), ErrorKind::Authentication);
        assert_eq!(client.unwrap_err().kind(), ErrorKind::Authentication);
    }

    /// As CPython 3.12 to 3.14 and 3.11 calculate them: `hmac.new(key, message, digest)`.
    #[test]
    fn codes_are_those_of_cpython() {
        let modern = [SHA256, &[b'x'; RANDOM]].concat();
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
        let answer = key(b"secret", false).answer(&modern).unwrap();
        assert_eq!(&answer[..8], SHA256);
        assert_eq!(hex(&answer[8..]), SHA256_OF_X);
        let answer = key(b"secret", true).answer(&[b'x'; OLD_RANDOM]).unwrap();
        assert_eq!(hex(&answer), MD5_OF_X);
        assert!(
            key(b"secret", true)
                .is_answer(&[b'x'; OLD_RANDOM], &answer)
                .unwrap()
        );
        assert!(
            !key(b"secres", true)
                .is_answer(&[b'x'; OLD_RANDOM], &answer)
                .unwrap()
        );
    }

    const SHA256_OF_X: &str = "d6015d69eb8ea16fa3facb01e106d867717f46fcab6e70010c6127f58a15301d";
    const MD5_OF_X: &str = "057af3628403f67c1e4d56dde31cc3c8";

    #[test]
    fn md5_has_to_be_allowed() {
        for challenge in [vec![1; OLD_RANDOM], [MD5, &[1; 40]].concat()] {
            let mut client = Exchange::client(key(b"secret", false));
            let reply = client.receive(&[CHALLENGE, &challenge].concat());
            assert!(reply.messages.is_empty());
            let error = reply.result.unwrap_err();
            assert!(error.to_string().contains("allow_md5"), "{error}");
            let mut client = Exchange::client(key(b"secret", true));
            assert_eq!(
                client
                    .receive(&[CHALLENGE, &challenge].concat())
                    .messages
                    .len(),
                1
            );
        }
        for (allowed, answers) in [(false, 0), (true, 1)] {
            let (mut listener, first) = Exchange::listener(key(b"secret", allowed)).unwrap();
            let asked = first.strip_prefix(CHALLENGE).unwrap();
            let old = key(b"secret", true).md5(asked).unwrap().finalize();
            let reply = listener.receive(&old.into_bytes());
            let welcome = reply.messages.iter().filter(|m| *m == WELCOME).count();
            assert_eq!(welcome, answers);
        }
    }

    #[test]
    fn a_challenge_sent_back_is_no_challenge() {
        let (mut listener, first) = Exchange::listener(key(b"secret", false)).unwrap();
        let answer = key(b"secret", false)
            .answer(first.strip_prefix(CHALLENGE).unwrap())
            .unwrap();
        assert!(!listener.receive(&answer).result.unwrap());
        let reply = listener.receive(&first);
        assert!(reply.messages.is_empty() && reply.result.is_err());
    }

    #[test]
    fn other_digests_and_nonsense_are_refused() {
        for bad in [
            &b""[..],
            b"#WELCOME#",
            b"#CHALLENGE#",
            b"#CHALLENGE#{sha1}aaaaaaaaaaaaaaaaaa",
        ] {
            let mut client = Exchange::client(key(b"secret", true));
            let reply = client.receive(bad);
            assert!(reply.messages.is_empty(), "{bad:?} was answered");
            assert_eq!(reply.result.unwrap_err().kind(), ErrorKind::Authentication);
            // Nothing that follows mends it.
            assert!(client.receive(WELCOME).result.is_err());
        }
    }
}
