"""Whether the workers of pools and executors are daemons, and who may say so."""

import functools
import multiprocessing

import pytest

import bunshin as mp
from bunshin import pool

METHODS = ("fork", "spawn", "forkserver")


@pytest.fixture(params=METHODS)
def context(request):
    return mp.get_context(request.param)


def who_am_i():
    own = multiprocessing.current_process()
    return own.daemon, own.name.partition("-")[0]


def start_children(number):
    with mp.get_context("fork").Pool(2) as inner:
        return inner.map(abs, range(-number, 0)), multiprocessing.current_process().daemon


def never_a_daemon(cls):
    return type(
        f"NoDaemon{cls.__name__}",
        (cls,),
        {"daemon": property(lambda self: False, lambda self, value: None)},
    )


def test_workers_of_pools_are_daemons(context):
    kind = type(context.Process()).__name__
    with context.Pool(1) as made:
        assert made.apply(who_am_i) == (True, kind.replace("Process", "PoolWorker"))
        assert [worker.daemon for worker in mp.active_children()] == [True]


def test_workers_of_executors_are_not(context):
    kind = type(context.Process()).__name__
    with mp.ProcessPoolExecutor(1, mp_context=context) as executor:
        assert executor.submit(who_am_i).result(30) == (False, kind)
        assert [worker.daemon for worker in mp.active_children()] == [False]
        assert executor.submit(start_children, 3).result(30) == ([3, 2, 1], False)
    assert mp.active_children() == []


def test_a_context_whose_processes_are_no_daemons(context):
    class Context(type(context)):
        Process = never_a_daemon(context.Process)

    with pool.Pool(2, context=Context()) as made:
        assert made.apply(who_am_i)[0] is False
        assert made.map(start_children, [1, 2]) == [([1], False), ([2, 1], False)]
        assert {worker.daemon for worker in mp.active_children()} == {False}


def test_a_pool_whose_processes_are_no_daemons(context):
    class Static(pool.Pool):
        @staticmethod
        def Process(ctx, *args, **kwds):
            made = ctx.Process(*args, **kwds)
            made.__class__ = never_a_daemon(type(made))
            return made

    class Bound(pool.Pool):
        def Process(self, *args, **kwds):
            made = super().Process(*args, **kwds)
            made.__class__ = never_a_daemon(type(made))
            return made

    class Wrapping(Bound):
        def Process(self, ctx, *, target, args, **kwds):
            return super().Process(ctx, target=functools.partial(target), args=args, **kwds)

    for cls in (Static, Bound, Wrapping):
        made = cls(1, context=context)
        assert made.apply(start_children, (2,)) == ([2, 1], False)
        made.close()
        made.join()
    assert mp.active_children() == []


def test_numbers_go_on_as_if_each_worker_were_a_process(context):
    before = context.Process()._identity[-1]
    with context.Pool(3) as made:
        assert sorted(worker._identity[-1] for worker in made._pool) == [
            before + 1,
            before + 2,
            before + 3,
        ]
    assert context.Process()._identity[-1] == before + 4
