# The native part. It is private: the modules beside it are what to use.

from typing import Any

def __getattr__(name: str) -> Any: ...
