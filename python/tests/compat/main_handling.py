"""The interpreter's own tests of what children do with the main module: the programs they start are
run by `python -m bunshin`."""

import os

from test import test_multiprocessing_main_handling as tests

_assert_python_ok = tests.assert_python_ok


def _assert_bunshin_ok(*arguments, **options):
    # With a variable of their own, the programs have the others, too.
    options["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
    return _assert_python_ok("-m", "bunshin", *arguments, **options)


tests.assert_python_ok = _assert_bunshin_ok


def cases(method):
    """The test cases for a start method, by name."""
    return {
        name: case
        for name, case in vars(tests).items()
        if getattr(case, "start_method", None) == method
    }
