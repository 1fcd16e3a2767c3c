"""What proxies say of a server that is gone: what they say in `multiprocessing`."""

import os
import subprocess
import sys
import tempfile

import pytest

PROGRAM = """
import importlib, os, sys, threading
library, method, where = sys.argv[1:]
mp = importlib.import_module(library)
managers = importlib.import_module(f"{library}.managers")

class Manager(managers.BaseManager):
    pass

class Thing:
    def get(self):
        return 1

Manager.register("Thing", Thing)

def tell(way, thing):
    if where == "tcp":
        # What is sent first after the end is not known to have failed, or is: that is chance.
        try:
            thing.get()
        except (EOFError, OSError):
            pass
    for _ in range(2):
        try:
            print(way, thing.get())
        except (EOFError, OSError) as error:
            print(way, type(error).__name__)

def begin(key=None):
    address = ("127.0.0.1", 0) if where == "tcp" else None
    manager = Manager(address, key, ctx=mp.get_context(method))
    manager.start()
    return manager, manager.Thing()

def elsewhere(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join()

if __name__ == "__main__":
    manager, thing = begin()
    manager.shutdown()
    tell("never called", thing)
    manager, thing = begin()
    other = manager.Thing()
    thing.get()
    manager.shutdown()
    tell("shut down", thing)
    tell("shut down, another", other)
    elsewhere(tell, "shut down, of a thread", thing)
    manager, thing = begin()
    thing.get()
    elsewhere(manager.shutdown)
    tell("shut down by a thread", thing)
    manager, thing = begin()
    thing.get()
    manager._process.kill()
    manager._process.join()
    tell("killed", thing)
    elsewhere(tell, "killed, of a thread", thing)
    manager, thing = begin(b"key")
    client = Manager(manager.address, b"key")
    client.connect()
    thing = client.Thing()
    thing.get()
    manager.shutdown()
    tell("a client", thing)
    if where == "tcp":
        # Another server at that address is as good.
        again = Manager(manager.address, b"key", ctx=mp.get_context(method))
        again.start()
        client = Manager(again.address, b"key")
        client.connect()
        tell("a new server", client.Thing())
        again.shutdown()
"""


@pytest.mark.parametrize("where", ["unix", "tcp"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_proxies_whose_server_is_gone(tmp_path, method, where):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    told = []
    for library in ("multiprocessing", "bunshin"):
        # A short name, as sockets are made there; the interpreter's own leaves those of a killed server.
        with tempfile.TemporaryDirectory(prefix="gone-") as folder:
            run = subprocess.run(
                [sys.executable, str(program), library, method, where],
                env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), TMPDIR=folder),
                capture_output=True,
                text=True,
                timeout=60,
            )
            told.append(run)
            left = os.listdir(folder)
    assert [run.returncode for run in told] == [0, 0], told[0].stderr + told[1].stderr
    assert told[1].stdout == told[0].stdout
    assert "killed BrokenPipeError\n" in told[1].stdout
    assert not left
