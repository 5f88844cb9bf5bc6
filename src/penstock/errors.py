"""Every error that Penstock raises, in one tree.

    PenstockError
    ├── BudgetError (ValueError)             a budget that cannot be understood
    │   └── BudgetInfeasibleError            a budget that cannot work: `.needed_nbytes` can
    ├── CheckpointError (OSError)            a checkpoint that cannot be read or is not what it says
    │   └── CheckpointMismatchError          a sound checkpoint that is not this module's
    ├── StorageError (OSError)               reading or writing failed while running
    ├── PlanError (ValueError)               a plan or planning problem that is not sound
    ├── UnsupportedModelError (TypeError)    something that Penstock does not do to this module
    └── StreamStateError (RuntimeError)      a call that the stream's present state does not allow

Each subclasses the builtin that it resembles, so that code which knows nothing of Penstock handles it sensibly.
"""

import functools


class PenstockError(Exception):
    """Base of everything that Penstock raises on purpose."""


class BudgetError(PenstockError, ValueError):
    """A budget that is zero, negative or not a size."""


class BudgetInfeasibleError(BudgetError):
    """A budget in which the model cannot run.

    Attributes:
        needed_nbytes: the smallest budget, in bytes, with which it can.
    """

    def __init__(self, message: str, *, needed_nbytes: int) -> None:
        super().__init__(message)
        self.needed_nbytes = needed_nbytes

    def __reduce__(self) -> tuple[object, ...]:
        """Survives the way from one process to another, as pools of workers need it."""
        return functools.partial(type(self), needed_nbytes=self.needed_nbytes), self.args


class CheckpointError(PenstockError, OSError):
    """A checkpoint that is missing, damaged, replaced, or of a kind that is not read."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint whose keys, shapes or dtypes are not the module's."""


class StorageError(PenstockError, OSError):
    """A read or write that failed, came short, or met a full disk."""


class PlanError(PenstockError, ValueError):
    """A plan or planning problem that breaks its own rules."""


class UnsupportedModelError(PenstockError, TypeError):
    """A module, or a use of it, that cannot be streamed."""


class StreamStateError(PenstockError, RuntimeError):
    """A call that the stream's present state does not allow."""
