"""Wrong arguments raise what they raise in `multiprocessing`, by the type of the exception."""

import multiprocessing

import pytest

import bunshin as mp

MADE = [
    ("Condition", 3),
    ("Condition", "lock"),
    ("Lock", 1),
    ("RLock", 1),
    ("Event", 1),
    ("Semaphore", "one"),
    ("Semaphore", 1.5),
    ("Semaphore", -1),
    ("Semaphore", 2**40),
    ("BoundedSemaphore", None),
    ("BoundedSemaphore", -1),
    ("Queue", "many"),
    ("Queue", None),
    ("JoinableQueue", "many"),
    ("Value", "no code", 1),
    ("Value", "i", "one"),
    ("Array", "i", "one"),
    ("Array", "i", -1),
    ("Array", "i", 2.5),
    ("Pool", "many"),
    ("Pool", 0),
    ("Pool", -1),
    ("Pool", 1.5),
    ("Process", 1),
    ("Pipe", 1, 2),
]

CALLED = {
    "notify of a condition that is not held": lambda mp: mp.Condition().notify(),
    "wait for a condition that is not held": lambda mp: mp.Condition().wait(0),
    "release of a lock that is not held": lambda mp: mp.Lock().release(),
    "release of an rlock that is not held": lambda mp: mp.RLock().release(),
    "release over the bound": lambda mp: mp.BoundedSemaphore(1).release(),
    "a timeout that is no number": lambda mp: mp.Lock().acquire(timeout="x"),
    "join before start": lambda mp: mp.Process().join(),
    "terminate before start": lambda mp: mp.Process().terminate(),
    "poll for text": lambda mp: mp.Pipe()[0].poll("x"),
    "the wrong direction": lambda mp: mp.Pipe(False)[0].send(1),
    "an offset behind the end": lambda mp: mp.Pipe()[0].send_bytes(b"abc", 5),
    "a size behind the end": lambda mp: mp.Pipe()[0].send_bytes(b"abc", 0, 9),
    "text for bytes": lambda mp: mp.Pipe()[0].send_bytes("abc"),
    "a negative length": lambda mp: mp.Pipe()[0].recv_bytes(-1),
}


def raised(function, *args):
    with pytest.raises(Exception) as caught:
        function(*args)
    return type(caught.value)


@pytest.mark.parametrize("case", MADE, ids=str)
def test_making(case):
    name, *arguments = case
    theirs = raised(getattr(multiprocessing, name), *arguments)
    assert raised(getattr(mp, name), *arguments) is theirs


@pytest.mark.parametrize("what", CALLED)
def test_calling(what):
    assert raised(CALLED[what], mp) is raised(CALLED[what], multiprocessing)
