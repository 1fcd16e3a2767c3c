"""The interpreter's own tests under spawn, as a module that children can import."""

from test import _test_multiprocessing

import main_handling

_test_multiprocessing.install_tests_in_module_dict(globals(), "spawn")
globals().update(main_handling.cases("spawn"))
