"""What a manager's server reads from a client after that client's end, under each start method."""

import os
import random
import threading
import time

import pytest
from waiting import SECONDS, eventually

import bunshin as mp
from bunshin import connection, managers


@pytest.fixture(params=("fork", "spawn", "forkserver"))
def context(request):
    return mp.get_context(request.param)


@pytest.fixture
def manager(context):
    with context.Manager() as made:
        yield made


def references(manager, proxy):
    lines = manager._debug_info().splitlines()
    (count,) = (line.rpartition("=")[2] for line in lines if f"  {proxy._id}: " in line)
    return int(count)


def drop(given, dropped, go):
    given.clear()
    dropped.set()
    go.wait(SECONDS)


def test_a_child_that_drops_a_proxy_refers_to_nothing(context, manager):
    shared, dropped, go = manager.list(), manager.Event(), manager.Event()
    before = references(manager, shared)
    child = context.Process(target=drop, args=([shared], dropped, go))
    child.start()
    assert dropped.wait(SECONDS)
    # A copy of this process has this very variable, too.
    copies = context.get_start_method() == "fork"
    assert references(manager, shared) == before + copies
    go.set()
    child.join(SECONDS)
    assert (child.exitcode, references(manager, shared)) == (0, before)


def lend_connections(address, authkey, shared, lender, count):
    for _ in range(count):
        lender.send(connection.Client(address, authkey=authkey))
    shared.append(os.getpid())
    time.sleep(SECONDS)


def test_what_a_killed_client_asked_for_counts_no_more(context, manager):
    shared = manager.list()
    before = references(manager, shared), manager._number_of_objects()
    receiver, lender = context.Pipe(duplex=False)
    authkey = bytes(mp.current_process().authkey)
    child = context.Process(
        target=lend_connections, args=(manager.address, authkey, shared, lender, 3)
    )
    child.start()
    lent = [receiver.recv() for _ in range(3)]
    eventually(lambda: len(shared) == 1)
    assert references(manager, shared) == before[0] + 1
    child.kill()
    child.join(SECONDS)
    eventually(lambda: references(manager, shared) == before[0])
    # To the server these come from the child, as whatever was on its way at that moment.
    for conn in lent[:2]:
        assert managers.dispatch(conn, None, "decref", (shared._id,)) is None
        conn.close()
    assert references(manager, shared) == before[0]
    managers.dispatch(lent[2], None, "create", ("list", [1]))
    lent[2].close()
    assert manager._number_of_objects() == before[1]
    assert len(shared) == 1


def make_objects_for_ever(address, authkey, shared):
    manager = managers.SyncManager(address, authkey)
    manager.connect()

    def make():
        held = manager.dict(shared=shared)
        held["shared"].count(held)

    while True:
        # With a connection of its own.
        thread = threading.Thread(target=make)
        thread.start()
        make()
        thread.join()


def test_objects_of_clients_that_are_killed_at_any_moment_go(context, manager):
    shared = manager.list()
    before = references(manager, shared), manager._number_of_objects()
    authkey = bytes(mp.current_process().authkey)
    for _ in range(6):
        children = [
            context.Process(target=make_objects_for_ever, args=(manager.address, authkey, shared))
            for _ in range(3)
        ]
        for child in children:
            child.start()
        eventually(lambda: manager._number_of_objects() > before[1])
        time.sleep(random.random() / 20)
        for child in children:
            child.kill()
        for child in children:
            child.join(SECONDS)
    eventually(lambda: manager._number_of_objects() == before[1])
    assert (references(manager, shared), shared[:]) == (before[0], [])
