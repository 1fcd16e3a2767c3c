"""Rows of pipes and managers, for `compare.py`; alone, it measures just these."""

import dataclasses
import pathlib
import runpy
import sys
import time

if __name__ == "__main__":
    here = pathlib.Path(__file__).resolve()
    sys.argv = [str(here.with_name("compare.py")), str(here), *sys.argv[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()

from compare import row, timed

LARGE = 64 << 20


def echo(connection):
    while (item := connection.recv()) is not None:
        connection.send(item)


def swallow(connection):
    while (item := connection.recv()) is not None:
        if isinstance(item, str):
            connection.send("got")
        del item


def _child(mp, work):
    here, there = mp.Pipe()
    child = mp.Process(target=work, args=(there,))
    child.start()
    there.close()

    def end():
        here.send(None)
        child.join(20)
        child.kill()
        here.close()

    return here, end


def _round_trip(mp, item):
    here, end = _child(mp, echo)

    def work():
        here.send(item)
        here.recv()

    return lambda seconds: timed(work, seconds), end


def _one_way(mp, item, batch):
    here, end = _child(mp, swallow)

    def work():
        for _ in range(batch):
            here.send(item)
        here.send("all")
        here.recv()

    return lambda seconds: timed(work, seconds, batch), end


@row("pipe-round-trip-int", 8)
def pipe_round_trip(mp):
    return _round_trip(mp, 7)


@row("pipe-round-trip-dict-20", 8)
def pipe_round_trip_dict(mp):
    return _round_trip(mp, {f"key {n}": n for n in range(20)})


@row("pipe-one-way-int", 8)
def pipe_one_way(mp):
    return _one_way(mp, 7, 2000)


@dataclasses.dataclass
class Record:
    number: int
    name: str
    weight: float


@row("pipe-one-way-20-dataclasses")
def pipe_one_way_records(mp):
    return _one_way(mp, [Record(n, f"name {n}", n / 2) for n in range(20)], 200)


@row("pipe-one-way-1KiB-numpy")
def pipe_one_way_small_arrays(mp):
    import numpy

    return _one_way(mp, numpy.ones(128), 500)


@row("pipe-make-close")
def pipe_make(mp):
    def work():
        for end in mp.Pipe():
            end.close()

    return lambda seconds: timed(work, seconds), lambda: None


@row("pipe-make-use-close")
def pipe_make_use(mp):
    def work():
        here, there = mp.Pipe()
        here.send(7)
        there.recv()
        there.send(7)
        here.recv()
        here.close()
        there.close()

    return lambda seconds: timed(work, seconds), lambda: None


@row("pipe-64MiB-bytes", 8)
def pipe_bytes(mp):
    return _one_way(mp, b"x" * LARGE, 2)


@row("pipe-64MiB-numpy", 8)
def pipe_numpy(mp):
    import numpy

    return _one_way(mp, numpy.ones(LARGE // 8), 2)


@row("pipe-2.5GiB-bytes", 10, gib=18, rounds=2)
def pipe_huge(mp):
    here, end = _child(mp, swallow)

    def run(seconds):
        # One message, which is not there while the other side is measured.
        item = bytes(5 << 29)
        start = time.perf_counter()
        here.send(item)
        here.send("all")
        here.recv()
        return 1 / (time.perf_counter() - start)

    return run, end


def _manager(mp):
    manager = mp.Manager()
    return manager, manager.dict({"key": 1})


@row("manager-dict-get", 6)
def manager_get(mp):
    manager, held = _manager(mp)
    return lambda seconds: timed(lambda: held.get("key"), seconds), manager.shutdown


def get_on_demand(held, connection):
    held.get("key")
    connection.send("ready")
    while (count := connection.recv()) is not None:
        for _ in range(count):
            held.get("key")
        connection.send("done")


@row("manager-dict-get-4-clients", 10)
def manager_get_by_four(mp):
    manager, held = _manager(mp)
    clients = []
    for _ in range(4):
        here, there = mp.Pipe()
        child = mp.Process(target=get_on_demand, args=(held, there))
        child.start()
        there.close()
        clients.append((here, child))
    for here, _ in clients:
        here.recv()

    def work():
        for here, _ in clients:
            here.send(200)
        for here, _ in clients:
            here.recv()

    def end():
        for here, child in clients:
            here.send(None)
            child.join(20)
            here.close()
        # It lives until here: children of CPython's count on that.
        held.clear()
        manager.shutdown()

    return lambda seconds: timed(work, seconds, 4 * 200), end
