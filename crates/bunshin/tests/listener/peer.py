"""The other end of the tests: CPython's own multiprocessing.connection.

    peer.py listen|connect FAMILY ADDRESS KEY

Sends back whatever comes, until the other end closes. KEY is "-" for none. A listener
first prints where it listens. The last line is "done", or the name of what went wrong.
"""

import sys
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener

role, family, address, key = sys.argv[1:]
key = None if key == "-" else key.encode()
if family == "AF_INET":
    host, port = address.rsplit(":", 1)
    address = (host, int(port))
elif address.startswith("@"):
    address = "\0" + address[1:]


def echo(connection):
    try:
        while True:
            connection.send_bytes(connection.recv_bytes())
    except EOFError:
        connection.close()


try:
    if role == "connect":
        echo(Client(address, family, authkey=key))
    else:
        listener = Listener(address, family, authkey=key)
        found = listener.address
        if family == "AF_INET":
            found = "%s:%d" % found
        elif isinstance(found, bytes):
            found = found.decode()
        print(found, flush=True)
        try:
            echo(listener.accept())
        finally:
            # Old versions cannot close one at an abstract name.
            if not address[0] == "\0":
                listener.close()
    print("done", flush=True)
except (AuthenticationError, EOFError, OSError, AssertionError) as error:
    print(type(error).__name__, flush=True)
