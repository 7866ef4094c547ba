"""A method of one object that is another function for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: object, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Let ``owner``'s method ``name`` be ``function``; its class and other objects of it stay what they are."""
    own = vars(owner)
    was = own.get(name)
    own[name] = function
    try:
        yield
    finally:
        if was is None:
            del own[name]
        else:
            own[name] = was
