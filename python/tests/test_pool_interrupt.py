"""A signal is handled in a map whose results never stop coming."""

import itertools
import signal

import bunshin
import pytest


def same(value):
    return value


class Late(Exception):
    pass


def late(number, frame):
    raise Late


@pytest.mark.parametrize("ask", ["map", "imap"])
def test_a_handler_that_raises_ends_a_long_map(ask):
    with bunshin.get_context("fork").Pool(2) as pool:
        pool.map(same, range(10))
        before = signal.signal(signal.SIGALRM, late)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(Late):
                if ask == "map":
                    pool.map(same, range(100_000_000), 1)
                else:
                    for _ in pool.imap(same, itertools.count()):
                        pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        # The pool goes on.
        assert pool.apply(same, (5,)) == 5
