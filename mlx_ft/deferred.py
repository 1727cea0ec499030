"""A value that is made when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Deferred(Generic[T]):
    """What `make` gives, made once. key: tells the value from others without making it."""

    def __init__(self, key: str, make: Callable[[], T]) -> None:
        self.key = key
        self._make = make
        self._made: list[T] = []
        self._then: Callable[[T], object] | None = None

    @property
    def made(self) -> bool:
        """Whether it was asked for."""
        return bool(self._made)

    def then(self, action: Callable[[T], object]) -> None:
        """Do this to the value once it is made, before anybody gets it; in place of an earlier."""
        if self._made:
            action(self._made[0])
        else:
            self._then = action

    def get(self) -> T:
        """The value. Raises what `make` raises, each time."""
        if not self._made:
            value = self._make()
            if self._then is not None:
                self._then(value)
            self._made.append(value)
        return self._made[0]
