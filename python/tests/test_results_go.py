"""Results and exceptions of tasks go when nobody has them any more."""

import gc

import pytest

import bunshin as mp


class Refused(Exception):
    pass


def refuse(number):
    raise Refused(number)


def refuse_one(number):
    if number == 1:
        raise Refused(number)
    return [Refused(number)]


def give(number):
    return Refused(number)


def apply_async(pool):
    result = pool.apply_async(refuse, (1,))
    result.get()


def apply_async_with_callbacks(pool):
    result = pool.apply_async(refuse, (1,), callback=print, error_callback=str)
    result.get()


def apply_async_that_succeeds(pool):
    around = [pool.apply_async(give, (1,))]
    around.append(around)
    around[0].get()
    raise Refused


def map_async(pool):
    result = pool.map_async(refuse_one, range(4), chunksize=1)
    result.get()


def map_async_with_callbacks(pool):
    result = pool.map_async(refuse_one, range(4), chunksize=1, error_callback=str)
    result.get()


def imap(pool):
    result = pool.imap(refuse, range(4))
    next(result)


USES = [
    apply_async,
    apply_async_with_callbacks,
    apply_async_that_succeeds,
    map_async,
    map_async_with_callbacks,
    imap,
]


def count():
    gc.collect()
    return sum(type(one) is Refused for one in gc.get_objects())


@pytest.fixture(scope="module", params=["fork", "forkserver"])
def pool(request):
    with mp.get_context(request.param).Pool(2) as pool:
        yield pool


@pytest.mark.parametrize("use", USES)
def test_what_the_traceback_leads_to_is_garbage_with_it(pool, use):
    def fail():
        with pytest.raises(Refused):
            use(pool)

    for _ in range(50):
        fail()
    # The last ones may be on their way.
    assert count() < 10


def test_the_results_of_a_map_that_failed_go_at_once(pool):
    result = pool.map_async(refuse_one, range(4), chunksize=1)
    gc.collect()
    gc.disable()
    try:
        try:
            result.get()
        except Refused as error:
            assert error.args == (1,)
        del result
        assert not any(type(one) is Refused for one in gc.get_objects())
    finally:
        gc.enable()
