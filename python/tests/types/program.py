"""What a type checker is to know of the package; checked, not run."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import assert_type

import bunshin as mp
from bunshin import pool, shared_memory, sharedctypes
from bunshin.connection import Client, Connection, Listener


def length(text: str) -> int:
    return len(text)


def main() -> None:
    with mp.Pool(2) as workers:
        assert_type(workers.map(length, ["a"]), list[int])
        handle = workers.apply_async(length, ("a",))
        assert_type(handle, pool.ApplyResult[int])
        assert_type(handle.get(timeout=1), int)
        assert_type(handle.cancel(), bool)
        for number in workers.imap(length, ["a"]):
            assert_type(number, int)
        try:
            workers.apply(length, ("a",))
        except mp.WorkerLost as lost:
            assert_type(lost.pid, int | None)

    with mp.ProcessPoolExecutor(2) as executor:
        assert_type(executor.submit(length, "a"), Future[int])

    one, other = mp.Pipe()
    one.send({"any": "thing"})
    child = mp.Process(target=length, args=("a",), daemon=True)
    child.start()
    assert_type(child.exitcode, int | None)
    with mp.Lock(), mp.RLock():
        pass
    queue: mp.Queue[int] = mp.Queue(10)
    queue.put(1, timeout=1)
    numbers = mp.Array("d", 10)
    numbers.as_numpy()
    assert_type(mp.get_context("spawn").Pool(1), pool.Pool)
    memory = shared_memory.SharedMemory(create=True, size=10)
    assert_type(memory.size, int)
    raw = sharedctypes.RawValue("i", 1)
    raw.value += 1
    starter: Callable[[], None] = child.start
    starter()
    with Listener(authkey=b"key") as listener:
        link: Connection[object, object] = Client(listener.address, authkey=b"key")
        link.close()
    manager = mp.Manager()
    manager.dict()
