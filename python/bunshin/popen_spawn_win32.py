"""Starting a child on Windows, which this package does not run on."""

__all__ = ()
