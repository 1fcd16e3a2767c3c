"""Workers of pools among the active children, under each start method."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import connection

import pytest

import bunshin as mp

METHODS = ("fork", "spawn", "forkserver")


@pytest.fixture(params=METHODS)
def context(request):
    return mp.get_context(request.param)


def names(_number=None):
    process = mp.current_process()
    return process.name, process.pid, process.daemon


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def ours():
    gc.collect()
    return mp.active_children()


def test_workers_are_listed_as_what_they_are(context):
    before = ours()
    with context.Pool(2) as pool:
        workers = [child for child in mp.active_children() if child not in before]
        assert len(workers) == 2 and workers == pool._pool
        assert [child for child in mp.active_children() if child in workers] == workers
        name, pid, daemon = pool.apply(names)
        (same,) = [worker for worker in workers if worker.pid == pid]
        assert same.name == name and same.daemon is daemon is True
        assert same.ident == pid and same.is_alive() and same.exitcode is None
        assert str(pid) in repr(same) and "started" in repr(same)
        same.join(0.05)
        assert same.is_alive() and not connection.wait([same.sentinel], 0)
        with pytest.raises(ValueError):
            same.close()
    assert not any(worker.is_alive() for worker in workers)
    assert not [child for child in ours() if child in workers]


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_an_ended_worker_is_replaced(context, how):
    before = ours()
    with context.Pool(2) as pool:
        pool.map(abs, range(10))
        first = [child for child in mp.active_children() if child not in before]
        for worker in first:
            getattr(worker, how)()
        for worker in first:
            worker.join(60)
            number = signal.SIGTERM if how == "terminate" else signal.SIGKILL
            assert worker.exitcode == -number and not worker.is_alive()
            assert connection.wait([worker.sentinel], 60) == [worker.sentinel]
            getattr(worker, how)()
        assert pool.map(abs, range(10)) == list(range(10))
        second = [child for child in mp.active_children() if child not in before]
        assert len(second) == 2 and not set(first) & set(second)
        assert all(worker.is_alive() for worker in second)
        first[0].close()
        with pytest.raises(ValueError):
            first[0].is_alive()


def test_an_ended_worker_costs_its_task(context):
    with context.Pool(1) as pool:
        task = pool.apply_async(time.sleep, (600,))
        (worker,) = pool._pool
        until(lambda: worker.is_alive())
        time.sleep(0.3)
        worker.kill()
        with pytest.raises(mp.WorkerLost) as raised:
            task.get(60)
        assert raised.value.pid == worker.pid and raised.value.exitcode == worker.exitcode == -9


def test_workers_of_executors_and_servers_of_managers_are_listed(context):
    before = ours()
    with mp.ProcessPoolExecutor(1, mp_context=context) as executor:
        assert executor._processes == {}
        _, pid, _ = executor.submit(names).result(60)
        (worker,) = [child for child in mp.active_children() if child not in before]
        assert worker.pid == pid and executor._processes == {pid: worker}
    with context.Manager() as manager:
        (server,) = [child for child in ours() if child not in before]
        assert server.pid == manager._process.pid
    assert ours() == before


def test_a_child_has_none_of_its_parents(context):
    with context.Pool(1) as pool:
        pool.apply(names)
        child = context.Process(target=_has_no_children)
        child.start()
        assert child in mp.active_children()
        child.join(60)
        assert child.exitcode == 0


def _has_no_children():
    assert mp.active_children() == []
    with mp.Pool(1) as pool:
        assert mp.active_children() == pool._pool


def test_several_threads_may_list_them(context):
    with context.Pool(2) as pool:
        errors = []

        def look():
            try:
                for _ in range(50):
                    for child in mp.active_children():
                        child.is_alive()
                        child.exitcode
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            os.kill(pool._pool[0].pid, signal.SIGKILL)
            pool.map(abs, range(100))
        for thread in threads:
            thread.join(60)
        assert not errors


PROGRAM = """
import time
import bunshin as mp

if __name__ == "__main__":
    mp.set_start_method("{method}")
    pool = mp.Pool(2)
    pool.apply_async(time.sleep, (600,))
    listed = mp.active_children()
    {then}
    print(len(listed), flush=True)
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "then",
    ["pass", "[p.terminate() for p in mp.active_children()]", "[p.kill() or p.join() for p in listed]"],
)
def test_programs_that_have_listed_them_end(tmp_path, method, then):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(method=method, then=then))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("2\n", "", 0)
