"""The interpreter's own tests of its process pool executor, over this package's contexts."""

import importlib
import importlib.util
import pkgutil

NAME = "test.test_concurrent_futures"


def _modules():
    if importlib.util.find_spec(NAME) is None:
        return
    module = importlib.import_module(NAME)
    yield module
    for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
        if found.name.startswith("test_"):
            yield importlib.import_module(f"{NAME}.{found.name}")


for _module in _modules():
    globals().update(
        (name, case) for name, case in vars(_module).items() if name.startswith("ProcessPool")
    )
    _setup = getattr(_module, "setUpModule", None)
    if _setup is not None:
        setUpModule = _setup
