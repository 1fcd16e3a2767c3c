"""Waiting in a test for what comes about in its own time."""

import time

SECONDS = 30


def eventually(holds):
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
