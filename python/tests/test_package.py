"""The package as its users meet it, under each start method."""

import os
import signal
import subprocess
import sys

import pytest

import bunshin as mp

METHODS = ("fork", "spawn", "forkserver")


@pytest.fixture(params=METHODS)
def context(request):
    return mp.get_context(request.param)


def square(number):
    return number * number


def die_at_three(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuse(number):
    raise ValueError(number)


def echo(connection):
    while True:
        try:
            connection.send(connection.recv())
        except EOFError:
            return


def count(sender, items):
    for number in range(items):
        sender.send(number)


def test_a_pipe_carries_objects_both_ways(context):
    here, there = context.Pipe()
    child = context.Process(target=echo, args=(there,))
    child.start()
    there.close()
    for sent in (None, {"a": [1, 2, (3,)]}, "x" * 100_000, b"\0" * 1_000_000):
        here.send(sent)
        assert here.recv() == sent
    here.close()
    child.join(20)
    assert child.exitcode == 0


def test_a_buffer_arrives_writable(context):
    here, there = context.Pipe()
    child = context.Process(target=echo, args=(there,))
    child.start()
    there.close()
    sent = bytearray(range(256)) * 1000
    here.send(__import__("pickle").PickleBuffer(sent))
    got = memoryview(here.recv())
    assert got == sent and not got.readonly
    got[0] = 7
    here.close()
    child.join(20)
    assert child.exitcode == 0


def test_what_several_senders_sent_arrives_before_the_end(context):
    receiver, sender = context.Pipe(duplex=False)
    children = [context.Process(target=count, args=(sender, 500)) for _ in range(3)]
    for child in children:
        child.start()
    sender.close()
    got = []
    with pytest.raises(EOFError):
        while True:
            got.append(receiver.recv())
    assert sorted(got) == sorted(list(range(500)) * 3)
    for child in children:
        child.join(20)
        assert child.exitcode == 0


def test_a_killed_peer_ends_the_receiver(context):
    here, there = context.Pipe()
    child = context.Process(target=echo, args=(there,))
    child.start()
    there.close()
    here.send(1)
    assert here.recv() == 1
    child.kill()
    with pytest.raises(EOFError):
        here.recv()
    child.join(20)
    assert child.exitcode == -signal.SIGKILL


def test_the_pool_maps_in_order(context):
    with context.Pool(2) as pool:
        assert pool.map(square, range(50)) == [n * n for n in range(50)]
        assert pool.map(square, range(50), chunksize=1) == [n * n for n in range(50)]
        assert list(pool.imap(square, range(50))) == [n * n for n in range(50)]
        assert sorted(pool.imap_unordered(square, range(9))) == [n * n for n in range(9)]
        assert pool.starmap(pow, [(2, 3), (3, 2)]) == [8, 9]
        assert pool.apply(square, (7,)) == 49
        assert pool.map(lambda n: n + 1, [1, 2]) == [2, 3]


def test_a_killed_worker_costs_its_own_task(context):
    with context.Pool(2) as pool:
        handles = [pool.apply_async(die_at_three, (n,)) for n in range(6)]
        for number, handle in enumerate(handles):
            if number == 3:
                with pytest.raises(mp.WorkerLost) as raised:
                    handle.get(20)
                assert raised.value.exitcode == -signal.SIGKILL
                assert isinstance(raised.value, mp.ProcessError)
            else:
                assert handle.get(20) == number
        assert pool.map(square, range(20)) == [n * n for n in range(20)]


def test_what_a_task_raises_comes_with_its_traceback(context):
    with context.Pool(1) as pool, pytest.raises(ValueError) as raised:
        pool.apply(refuse, (5,))
    assert raised.value.args == (5,)
    assert "in refuse" in str(raised.value.__cause__)


def test_callbacks_are_called(context):
    done = []
    with context.Pool(1) as pool:
        pool.apply_async(square, (3,), callback=done.append).wait(20)
        pool.apply_async(refuse, (3,), error_callback=done.append).wait(20)
    assert done[0] == 9 and isinstance(done[1], ValueError)


def broken():
    raise RuntimeError("it cannot begin")


def test_a_failing_initializer_ends_with_its_error(context):
    told = r"^the initializer failed: Traceback (?s:.*)in broken\n(?s:.*)RuntimeError: it cannot begin$"
    with context.Pool(2, broken) as pool, pytest.raises(mp.BrokenPool, match=told):
        pool.map(square, range(4))


@pytest.mark.parametrize("method", METHODS)
def test_a_program_runs_with_multiprocessing_replaced(tmp_path, method):
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, os, sys\n"
        "def double(n):\n"
        "    return 2 * n\n"
        "if __name__ == '__main__':\n"
        "    os.chdir('/')\n"
        "    context = multiprocessing.get_context(sys.argv[1])\n"
        "    print(multiprocessing.__name__, context.Pool(2).map(double, [1, 2]), __file__)\n"
    )
    # Named as from where it is started, and not where it goes from there.
    ran = subprocess.run(
        [sys.executable, "-m", "bunshin", "program.py", method],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(map(os.path.abspath, sys.path))),
    )
    assert ran.stdout == f"bunshin [2, 4] {program}\n", ran.stderr
