"""Every error catvec raises on purpose.

CatvecError
├── ConfigError        wrong option, file or combination of them: nothing was started
├── CatalogError       the catalog as a whole cannot be read
├── ModelError         weights, identity or device of a model
│   └── DeviceLostError  a device that worked has failed
├── StoreError         the database
│   ├── AwayError      it did not come back in time
│   └── LockedError    another run holds the lock
├── BundleError        a bundle on disk is damaged, or cannot be written
├── BreakerError       too many images fail: the network or a server is down
└── ItemError          one catalog row or image; the only one a run survives
    ├── RowError
    ├── FetchError
    ├── DecodeError
    └── EncodeError

A message is lower case without a full stop: what was found, what was expected. `hint` is the cure. Neither
ever holds a password. All of them pickle, because engines send them between processes.
"""

from __future__ import annotations

from typing import Any


class CatvecError(Exception):
    """An error with a cure; the command line prints it as `error: …` and `hint: …`."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        # the default passes self.args to __init__, which has keyword-only parameters
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(kind: type[CatvecError], args: tuple[Any, ...], state: dict[str, Any]) -> CatvecError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(CatvecError):
    """An option, a configuration file or a combination of them is wrong; nothing was started."""


class CatalogError(CatvecError):
    """The catalog as a whole cannot be read."""


class ModelError(CatvecError):
    """A model cannot be had, is not what it was, or does not run on this device."""


class DeviceLostError(ModelError):
    """A device that worked has failed, and will fail again in this process."""


class StoreError(CatvecError):
    """The database cannot be reached or refuses what was asked."""


class AwayError(StoreError):
    """The database went away, or was too busy with others, and did not come back in time."""


class LockedError(StoreError):
    """Another run holds the lock on this database and model, or on this bundle."""


class BundleError(CatvecError):
    """A bundle on disk is damaged, or cannot be read or written."""


class BreakerError(CatvecError):
    """So many images fail that the network, or the server they come from, must be down."""


class ItemError(CatvecError):
    """One catalog row or image cannot be used; the others go on.

    `code` is stable (`http_404`, `timeout`, `truncated` …): reports group by it. `is_retryable` says that
    the same request may succeed later without anybody changing anything.
    """

    def __init__(self, code: str, message: str, *, is_retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.is_retryable = is_retryable


class RowError(ItemError):
    """A catalog row is not a product."""


class FetchError(ItemError):
    """The bytes of an image cannot be had."""


class DecodeError(ItemError):
    """The bytes are not an image that can be used."""


class EncodeError(ItemError):
    """The model gives no usable vector for an image."""
