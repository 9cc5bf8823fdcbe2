"""A name is a decorated function: registering is all that a new part needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from leukoscope.errors import InputError, UnknownNameError, nearest

F = TypeVar("F", bound=Callable[..., Any])


class Registry(Generic[F]):
    """Functions by name.

    >>> transforms = Registry("transform")
    >>> @transforms.register("invert")
    ... def invert(image): ...
    >>> transforms["invert"] is invert
    True
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, F] = {}

    def register(self, name: str) -> Callable[[F], F]:
        """Decorator. Raises ValueError where the name is taken: a silent overwrite is a bug."""

        def add(function: F) -> F:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = function
            return function

        return add

    def __getitem__(self, name: str) -> F:
        """The function of that name; UnknownNameError with the nearest match otherwise."""
        if name not in self._entries:
            raise UnknownNameError(self.kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def check_arguments(self, name: str, arguments: dict[str, Any]) -> None:
        """Raise InputError unless `arguments` are keyword parameters of the function `name`."""
        allowed = keyword_parameters(self[name])
        for key in arguments:
            if key not in allowed:
                near = nearest(key, allowed)
                hint = f"Did you mean {near!r}?" if near else "Remove it."
                raise InputError(
                    f"{self.kind} {name!r} has no setting {key!r}; "
                    f"allowed: {', '.join(allowed) or 'none'}",
                    fix=hint,
                    field=key,
                )


def keyword_parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """A function's keyword-only parameters: by convention, the settings of a registered part."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
