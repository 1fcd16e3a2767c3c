# Children that are copies: of the same types as in `multiprocessing`.

from multiprocessing.popen_fork import (
    Popen as Popen,
)
