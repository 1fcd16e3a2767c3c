"""Connections and managers beside peers that have the interpreter's own `multiprocessing` only.

Each peer is another interpreter, one of those on the machine, started with a program of a few
lines that knows nothing of this package.
"""

import glob
import os
import queue
import socket
import subprocess
import sys

import pytest

from bunshin import managers
from bunshin.connection import AuthenticationError, Client, Listener

KEY = b"the key"
SECONDS = 30


def _interpreters():
    found = {os.path.realpath(sys.executable)}
    roots = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    found.update(glob.glob(os.path.join(roots, "versions", "3.*", "bin", "python3")))
    named = {}
    for path in sorted(found):
        asked = "import sys, multiprocessing; print('%d.%d.%d' % sys.version_info[:3])"
        told = subprocess.run([path, "-S", "-c", asked], capture_output=True, text=True, cwd="/")
        version = told.stdout.strip()
        if told.returncode == 0 and tuple(map(int, version.split(".")[:2])) >= (3, 8):
            named[version] = path
    return named


INTERPRETERS = _interpreters()


@pytest.fixture(params=sorted(INTERPRETERS))
def interpreter(request):
    return INTERPRETERS[request.param]


@pytest.fixture(params=["unix", "abstract", "tcp"])
def address(request, tmp_path):
    if request.param == "unix":
        return str(tmp_path / "socket")
    if request.param == "abstract":
        return f"\0bunshin-test-{os.getpid()}-{os.urandom(4).hex()}"
    return ("localhost", 0)


class Peer:
    """Another interpreter that runs a program; `arguments` are what it finds in `given`."""

    def __init__(self, interpreter, program, *arguments):
        text = f"given = {arguments!r}\n{program}"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        self.process = subprocess.Popen(
            [interpreter, "-c", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env=environment,
        )

    def line(self):
        return self.process.stdout.readline().strip()

    def end(self):
        """Waits for its end; what it has printed."""
        out, err = self.process.communicate(timeout=SECONDS)
        assert self.process.returncode == 0, err
        return out.strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


CLIENT = """
from multiprocessing.connection import Client
address, key = given
with Client(address, authkey=key) as connection:
    connection.send({"a": [1, 2.5, "x"]})
    assert connection.recv() == ("got", {"a": [1, 2.5, "x"]})
    connection.send_bytes(b"bytes" * 50000)
    assert connection.recv_bytes() == b"bytes" * 50000
    assert not connection.poll(0.01)
    connection.send("the last")
print("done")
"""


def serve_one(listener):
    with listener.accept() as connection:
        got = connection.recv()
        connection.send(("got", got))
        connection.send_bytes(connection.recv_bytes())
        assert connection.recv() == "the last"
        with pytest.raises(EOFError):
            connection.recv()


def test_a_client_of_cpython(interpreter, address):
    with Listener(address, authkey=KEY) as listener:
        with Peer(interpreter, CLIENT, listener.address, KEY) as peer:
            serve_one(listener)
            assert peer.end() == "done"


LISTENER = """
import sys
from multiprocessing.connection import AuthenticationError, Listener
address, key = given
with Listener(address, authkey=key) as listener:
    print(ascii(listener.address), flush=True)
    while True:
        try:
            connection = listener.accept()
        except AuthenticationError:
            continue
        break
    with connection:
        connection.send(("got", connection.recv()))
        connection.send_bytes(connection.recv_bytes())
        assert connection.recv() == "the last"
print("done")
"""


def test_a_listener_of_cpython(interpreter, address):
    with Peer(interpreter, LISTENER, address, KEY) as peer:
        where = eval(peer.line())
        with pytest.raises(AuthenticationError):
            Client(where, authkey=b"another key")
        with Client(where, authkey=KEY) as connection:
            connection.send([None, 1])
            assert connection.recv() == ("got", [None, 1])
            connection.send_bytes(bytes(100_000))
            assert connection.recv_bytes() == bytes(100_000)
            connection.send("the last")
        assert peer.end() == "done"


REFUSED = """
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
address, key = given
try:
    Client(address, authkey=key)
except AuthenticationError:
    print("refused")
"""


def test_a_client_of_cpython_with_another_key(interpreter, address):
    with Listener(address, authkey=KEY) as listener:
        with Peer(interpreter, REFUSED, listener.address, b"guessed") as peer:
            with pytest.raises(AuthenticationError):
                listener.accept()
            assert peer.end() == "refused"
        with Peer(interpreter, CLIENT, listener.address, KEY) as peer:
            serve_one(listener)
            assert peer.end() == "done"


# -- managers

shared = {"from": "the server"}
tasks = queue.Queue()


def get_shared():
    return shared


def get_tasks():
    return tasks


class Counter:
    def __init__(self, count=0):
        self.count = count

    def add(self, number):
        self.count += number
        return self.count

    def refuse(self):
        raise ValueError("not this one")

    def numbers(self):
        return iter(range(self.count))

    def _hidden(self):
        return "hidden"


class Manager(managers.BaseManager):
    pass


Manager.register("get_shared", callable=get_shared, proxytype=managers.DictProxy)
Manager.register("get_tasks", callable=get_tasks)
Manager.register("Counter", callable=Counter, method_to_typeid={"numbers": "Iterator"})
Manager.register("Iterator", proxytype=managers.IteratorProxy, create_method=False)

MANAGER_CLIENT = """
import multiprocessing
from multiprocessing import managers
address, key = given
multiprocessing.current_process().authkey = key
class Manager(managers.BaseManager):
    pass
Manager.register("get_shared", proxytype=managers.DictProxy)
Manager.register("get_tasks")
Manager.register("Counter")
Manager.register("Iterator", proxytype=managers.IteratorProxy, create_method=False)
manager = Manager(address, authkey=key)
manager.connect()
shared = manager.get_shared()
assert shared.copy() == {"from": "the server"}, shared.copy()
shared["answer"] = 42
shared.update(list=[1, 2])
assert sorted(shared.keys()) == ["answer", "from", "list"]
assert sorted(shared) == ["answer", "from", "list"]
try:
    shared["nothing"]
except KeyError:
    pass
counter = manager.Counter(3)
assert counter.add(4) == 7
assert list(counter.numbers()) == list(range(7))
try:
    counter.refuse()
except ValueError as error:
    assert str(error) == "not this one"
assert not hasattr(counter, "_hidden")
try:
    counter._callmethod("_hidden")
except managers.RemoteError:
    pass
else:
    assert False
manager.get_tasks().put(("a", "task"))
assert str(shared) == repr(shared.copy())
shared["itself"] = counter
assert shared["itself"].add(1) == 8
print("done")
"""


def test_a_client_of_cpython_uses_our_manager(interpreter, address):
    with Manager(address, authkey=KEY) as manager:
        with Peer(interpreter, MANAGER_CLIENT, manager.address, KEY) as peer:
            assert peer.end() == "done"
        assert manager.get_shared()["answer"] == 42
        assert manager.get_shared()["list"] == [1, 2]
        assert manager.get_tasks().get() == ("a", "task")


MANAGER_SERVER = """
import queue, sys
from multiprocessing import managers
address, key = given
shared = {"from": "the server"}
tasks = queue.Queue()
class Counter:
    def __init__(self, count=0):
        self.count = count
    def add(self, number):
        self.count += number
        return self.count
    def refuse(self):
        raise ValueError("not this one")
    def numbers(self):
        return iter(range(self.count))
class Manager(managers.BaseManager):
    pass
Manager.register("get_shared", callable=lambda: shared, proxytype=managers.DictProxy)
Manager.register("get_tasks", callable=lambda: tasks)
Manager.register("Counter", callable=Counter, method_to_typeid={"numbers": "Iterator"})
Manager.register("Iterator", proxytype=managers.IteratorProxy, create_method=False)
server = Manager(address, authkey=key).get_server()
print(ascii(server.address), flush=True)
server.serve_forever()
"""


class Visitor(managers.BaseManager):
    pass


Visitor.register("get_shared", proxytype=managers.DictProxy)
Visitor.register("get_tasks")
Visitor.register("Counter")
Visitor.register("Iterator", proxytype=managers.IteratorProxy, create_method=False)


def test_our_client_uses_a_manager_of_cpython(interpreter, address):
    with Peer(interpreter, MANAGER_SERVER, address, KEY) as peer:
        where = eval(peer.line())
        visitor = Visitor(where, authkey=KEY)
        visitor.connect()
        shared = visitor.get_shared()
        assert shared.copy() == {"from": "the server"}
        shared["answer"] = 42
        assert sorted(shared.keys()) == ["answer", "from"]
        assert sorted(shared) == ["answer", "from"]
        with pytest.raises(KeyError):
            shared["nothing"]
        counter = visitor.Counter(3)
        assert counter.add(4) == 7
        assert list(counter.numbers()) == list(range(7))
        with pytest.raises(ValueError, match="not this one"):
            counter.refuse()
        visitor.get_tasks().put([1])
        assert visitor.get_tasks().get() == [1]
        assert str(shared) == repr(shared.copy())
        peer.process.kill()
        with pytest.raises((EOFError, OSError)):
            shared.copy()
        del shared, counter


def test_a_manager_refuses_a_client_with_another_key(interpreter, address):
    program = REFUSED.replace(
        "    Client(address, authkey=key)",
        "    from multiprocessing.managers import BaseManager\n"
        "    BaseManager(address, authkey=key).connect()",
    )
    with Manager(address, authkey=KEY) as manager:
        with Peer(interpreter, program, manager.address, b"guessed") as peer:
            assert peer.end() == "refused"
        assert manager.get_shared().copy() == shared


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff",
        b"\0\0\0\0" * 1000,
        b"\0\0\0\x10" + b"#WELCOME#",
        bytes(range(256)) * 64,
    ],
)
def test_whoever_talks_nonsense_is_turned_away(said, tmp_path):
    with Manager(str(tmp_path / "socket"), authkey=KEY) as manager:
        with socket.socket(socket.AF_UNIX) as hostile:
            hostile.settimeout(SECONDS)
            hostile.connect(manager.address)
            try:
                hostile.sendall(said)
                hostile.shutdown(socket.SHUT_WR)
                while hostile.recv(4096):
                    pass
            except (BrokenPipeError, ConnectionResetError):
                pass
        assert manager.get_shared().copy() == shared


def test_a_peer_that_says_nothing_holds_up_nobody(tmp_path):
    with Manager(str(tmp_path / "socket"), authkey=KEY) as manager:
        silent = [socket.socket(socket.AF_UNIX) for _ in range(20)]
        for one in silent:
            one.connect(manager.address)
        assert manager.get_shared().copy() == shared
        for one in silent:
            one.close()
