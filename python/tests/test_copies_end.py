"""Results that a copy of this process can see go once that copy has ended, and not before."""

import os
import signal

import numpy as np
import pytest

import bunshin as mp

LIMIT = 120
MEBIBYTE = 1 << 20
METHODS = ["fork", "spawn", "forkserver"]


def array_of(number):
    return np.full(MEBIBYTE, number, dtype=np.float64)


def kill_worker(_):
    os.kill(os.getpid(), signal.SIGKILL)


def shared_memory():
    """Bytes of memory without a name that this process has a handle of."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if "memfd" in os.readlink(f"/proc/self/fd/{name}"):
                total += os.stat(f"/proc/self/fd/{name}").st_blocks * 512
        except OSError:
            pass
    return total


@pytest.mark.parametrize("method", METHODS)
def test_results_do_not_pile_up_while_workers_are_replaced(method):
    context = mp.get_context(method)
    kept = []
    with context.Pool(2, maxtasksperchild=1) as pool:
        for number in range(80):
            array = pool.apply_async(array_of, (number,)).get(LIMIT)
            kept.append((number, array))
            if len(kept) > 3:
                number, array = kept.pop(0)
                assert (array == number).all()
            del array
        # 640 MB in all, of which three results are held, and a few copies have some more.
        assert shared_memory() < 160 * MEBIBYTE


def test_results_do_not_pile_up_while_workers_are_killed():
    kept = []
    with mp.get_context("fork").Pool(2) as pool:
        for number in range(40):
            kept = [*kept[-1:], pool.apply_async(array_of, (number,)).get(LIMIT)]
            with pytest.raises(mp.WorkerLost):
                pool.apply_async(kill_worker, (0,)).get(LIMIT)
        assert (kept[-1] == 39).all()
        assert shared_memory() < 160 * MEBIBYTE


def read_later(array, number, go, done):
    """Reads what the parent has let go of, as a copy of a copy that has closed its descriptors."""
    if os.fork():
        os._exit(0)
    keep = {go, done, 2}
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                pass
    os.read(go, 1)
    is_right = (array == number).all()
    os.write(done, b"y" if is_right else b"n")
    os._exit(0)


def test_a_copy_of_a_copy_goes_on_to_see_what_it_had():
    go_read, go_write = os.pipe()
    done_read, done_write = os.pipe()
    with mp.get_context("fork").Pool(2) as pool:
        array = pool.apply(array_of, (7,))
        pid = os.fork()
        if pid == 0:
            try:
                read_later(array, 7, go_read, done_write)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        del array
        for number in range(100, 130):
            other = pool.apply(array_of, (number,))
            assert other[0] == number
            del other
        os.write(go_write, b".")
        assert os.read(done_read, 1) == b"y"
    for descriptor in (go_read, go_write, done_read, done_write):
        os.close(descriptor)


def test_no_descriptors_are_left_of_copies():
    with mp.get_context("fork").Pool(2) as pool:
        array = pool.apply(array_of, (1,))
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        del array
        pool.apply(array_of, (2,))
        assert len(os.listdir("/proc/self/fd")) <= before + 1
