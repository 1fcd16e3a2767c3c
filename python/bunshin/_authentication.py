"""Showing each other that both ends of a connection know the same key.

The messages are those of `multiprocessing.connection`. A challenge is random bytes, and since
CPython 3.12 the name of a digest before them; the answer is their HMAC under the key, and the
name of its digest. Before, the digest was MD5, and went without saying.
"""

import hashlib
import hmac
import os

from .context import AuthenticationError

__all__ = ()

CHALLENGE = b"#CHALLENGE#"
WELCOME = b"#WELCOME#"
FAILURE = b"#FAILURE#"

#: The longest message of the exchange.
MESSAGE_MAX = 256

#: Random bytes in a challenge.
_RANDOM = 40
#: Random bytes in a challenge of those who know MD5 only, and bytes of their answer.
_OLD_RANDOM = 20
_OLD_ANSWER = 16

_DIGESTS = ("sha256", "sha384", "sha3_256", "sha3_384", "md5")


def _named(message, unnamed):
    """The name of the digest at a message's front, and what follows.

    A message of the length `unnamed` is all random bytes, also if they look like a name.
    """
    if message[:1] == b"{" and len(message) != unnamed:
        name, closed, rest = message[1:].partition(b"}")
        if closed and len(name) <= 16:
            name = name.decode("ascii", "replace")
            if name not in _DIGESTS:
                raise AuthenticationError(f"unsupported digest: {name!r}")
            return name, rest
    return None, message


def _code(authkey, message, digest):
    try:
        return hmac.new(authkey, message, getattr(hashlib, digest)).digest()
    except ValueError as error:
        raise AuthenticationError(f"digest {digest} cannot be used here") from error


def _answer(authkey, message):
    if not message.startswith(CHALLENGE):
        raise AuthenticationError("expected a challenge of the peer's, and got something else")
    message = message[len(CHALLENGE) :]
    if len(message) < _OLD_RANDOM:
        # Short enough to have been answered before.
        raise AuthenticationError(f"the peer's challenge is too short: {len(message)} bytes")
    return create_response(authkey, message)


def create_response(authkey, message):
    """The answer to a challenge, without what says that it is one."""
    digest, _ = _named(message, _OLD_RANDOM)
    if digest is None:
        return _code(authkey, message, "md5")
    return b"{%s}" % digest.encode() + _code(authkey, message, digest)


def verify_challenge(authkey, message, response):
    """Raises `AuthenticationError` if that is not the answer to a challenge."""
    digest, code = _named(response, _OLD_ANSWER)
    if digest is None:
        digest = "md5" if len(response) == _OLD_ANSWER else None
    if digest is None or not hmac.compare_digest(_code(authkey, message, digest), code):
        raise AuthenticationError("digest received was wrong")


def _challenge():
    return b"{sha256}" + os.urandom(_RANDOM)


def _check_key(authkey):
    if not isinstance(authkey, bytes):
        raise ValueError(f"Authkey must be bytes, not {type(authkey)!s}")


def _check_welcome(message):
    if message != WELCOME:
        raise AuthenticationError("digest sent was rejected")


def deliver_challenge(connection, authkey):
    """Has the peer show that it knows the key.

    Raises `AuthenticationError` if it does not.
    """
    _check_key(authkey)
    challenge = _challenge()
    connection.send_bytes(CHALLENGE + challenge)
    try:
        verify_challenge(authkey, challenge, connection.recv_bytes(MESSAGE_MAX))
    except AuthenticationError:
        connection.send_bytes(FAILURE)
        raise
    connection.send_bytes(WELCOME)


def answer_challenge(connection, authkey):
    """Shows the peer that this end knows the key.

    Raises `AuthenticationError` if the peer does not believe it.
    """
    _check_key(authkey)
    connection.send_bytes(_answer(authkey, connection.recv_bytes(MESSAGE_MAX)))
    _check_welcome(connection.recv_bytes(MESSAGE_MAX))


def greet(authkey):
    """Both of these for an end that listens, step by step: yields messages to send, and
    None where it wants the peer's next one."""
    challenge = _challenge()
    yield CHALLENGE + challenge
    answer = yield
    try:
        verify_challenge(authkey, challenge, answer)
    except AuthenticationError:
        yield FAILURE
        raise
    yield WELCOME
    yield _answer(authkey, (yield))
    _check_welcome((yield))
