"""Runs tests of one suite, for `conformance.py`: those named on standard input, one by one.

How each went is written to descriptor 3.
"""

import faulthandler
import importlib
import json
import os
import sys
import time
import unittest


#: Tells children and their server which suite it is: this is their main module too.
VARIABLE = "CONFORMANCE_SUITE"

if __name__ == "__main__":
    os.environ[VARIABLE] = sys.argv[1]
if VARIABLE in os.environ:
    from bunshin import _replace

    _replace.install()
    # A module that children can import, as what they run is found by its name.
    module = importlib.import_module(f"suite_{os.environ[VARIABLE]}")


def load():
    """The tests of the suite, by name."""
    loader = unittest.TestLoader()
    tests = {}

    def add(item):
        if isinstance(item, unittest.TestSuite):
            for part in item:
                add(part)
        else:
            tests[".".join(item.id().rsplit(".", 2)[1:])] = item

    for name in dir(module):
        case = getattr(module, name)
        if isinstance(case, type) and issubclass(case, unittest.TestCase):
            add(loader.loadTestsFromTestCase(case))
    return tests


class Fixtures:
    """Those of the class whose test ran last."""

    def __init__(self):
        self.of = None

    def enter(self, case):
        if case is not self.of:
            self.leave()
            self.of = case
            case.setUpClass()

    def leave(self):
        case, self.of = self.of, None
        if case is not None:
            case.tearDownClass()
            case.doClassCleanups()


def run(test, fixtures):
    result = unittest.TestResult()
    skipped = getattr(type(test), "__unittest_skip__", False)
    start = time.monotonic()
    if not skipped:
        fixtures.enter(type(test))
    test.run(result)
    bad = result.errors + result.failures
    outcome = "failed" if bad else "skipped" if result.skipped else "passed"
    text = bad[0][1] if bad else result.skipped[0][1] if result.skipped else ""
    return {"outcome": outcome, "text": text, "seconds": round(time.monotonic() - start, 2)}


def main():
    faulthandler.enable()
    tests = load()
    answers = os.fdopen(3, "w", buffering=1)
    os.set_inheritable(3, False)
    getattr(module, "setUpModule", lambda: None)()
    if os.environ.get("CONFORMANCE_LIST"):
        answers.write(json.dumps(sorted(tests)) + "\n")
        return
    answers.write("ready\n")
    fixtures = Fixtures()
    for line in sys.stdin:
        try:
            found = run(tests[line.strip()], fixtures)
        except BaseException as error:
            found = {"outcome": "failed", "text": repr(error), "seconds": 0}
        answers.write(json.dumps(found) + "\n")
    fixtures.leave()
    getattr(module, "tearDownModule", lambda: None)()


if __name__ == "__main__":
    main()
