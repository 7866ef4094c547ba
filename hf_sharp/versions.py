"""Which versions of other packages this one runs on."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from operator import ge, lt

from packaging.version import Version

SUPPORTED = {"torch": ">=2.8", "transformers": ">=5.17,<6", "accelerate": ">=1.10"}
"""What must be installed, as ``pyproject.toml`` has it. The tests run on the oldest of each together, and on the newest."""
TRIED_DEEPSPEED = ">=0.19.0,<0.20.0"
"""The DeepSpeed whose private names were tried."""
_BOUNDS = {">=": ("at least", ge), "<": ("below", lt)}


def check_installed() -> None:
    """Raises ImportError, with the command that mends it, where a package is missing or of a version that is not supported.

    Nothing is imported for it but the packages' metadata.
    """
    for name, bounds in SUPPORTED.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError as error:
            if find_spec(name) is not None:  # a build of another name, whose version only importing would tell
                continue
            raise ImportError(f"hf_sharp needs {name}, which is not installed. Run pip install '{name}{bounds}'.") from error
        check_version(name, found, bounds)


def check_deepspeed() -> None:
    """Raises ImportError where DeepSpeed is of a version whose private names were not tried."""
    import deepspeed

    check_version("deepspeed", deepspeed.__version__, TRIED_DEEPSPEED)


def check_version(name: str, found: str, bounds: str) -> None:
    """Raises ImportError where a package's version is out of bounds; builds and pre-releases count as their release.

    >>> check_version("torch", "2.11.0a0+nv26.1", ">=2.8")

    Args:
        name: as ``pip install`` takes it.
        found: its version.
        bounds: lower and upper one, ``">=5.17,<6"``.
    """
    release, said, holds = Version(Version(found).base_version), list[str](), True
    for bound in bounds.split(","):
        sign = bound.rstrip("0123456789.")
        word, compare = _BOUNDS[sign]
        said.append(f"{word} {bound.removeprefix(sign)}")
        holds = holds and compare(release, Version(bound.removeprefix(sign)))
    if not holds:
        raise ImportError(f"{name} must be {' and '.join(said)}, got {found}. Run pip install '{name}{bounds}'.")
