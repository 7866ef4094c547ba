"""Runs a training script as it is, with every Trainer in it made sharpness-aware.

    python -m hf_sharp.launch --sharpness asam --rho 0.2 run_glue.py --model_name_or_path ... --do_train
    accelerate launch -m hf_sharp.launch --sharpness asam --rho 0.2 run_glue.py ...
    python -m hf_sharp.launch --sharpness asam -m package.train ...

In front of the script's name stand the flags of `SharpnessArguments`; what stands behind it is the script's. Whatever
`Trainer` the script makes, its own subclass or a library's, becomes what ``class Sharp(SharpnessAwareMixin, TheirTrainer)``
would be. A script that is sharpness-aware by itself is refused.

Environment variables that torch or transformers read when they are imported belong in the shell: both are imported before
the script's first line. After a script that succeeds each process leaves torch's process group.
"""

from __future__ import annotations

import inspect
import os
import runpy
import sys
import types
from argparse import PARSER, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser, Trainer

from hf_sharp.arguments import SharpnessArguments
from hf_sharp.leaving import leave
from hf_sharp.trainer import SharpnessAwareMixin

_ABOUT = (
    "Runs a training script as it is, with every Trainer in it made sharpness-aware. The flags stand in front of the "
    "script's name; what stands behind it is the script's."
)


@contextmanager
def sharp_trainers(given: Mapping[str, Any]) -> Iterator[dict[type[Trainer], type[Trainer]]]:
    """Let every Trainer that is made inside be sharpness-aware, of whatever class it is.

    The classes stay as they are, wherever and whenever they were imported: what is made is an object of a subclass, with
    `SharpnessAwareMixin` in front. All of them inherit the one ``Trainer.__new__``, hence that is what is replaced.

    Args:
        given: the mixin's keyword arguments, ``method``, ``perturb_over`` and ``perturb``.

    Yields:
        The subclass of each class of which a Trainer was made.

    Raises:
        ValueError: a Trainer is made that is sharpness-aware by itself.
    """
    made: dict[type[Trainer], type[Trainer]] = {}

    def new(cls: type[Trainer], *args: Any, **kwargs: Any) -> Any:
        if not issubclass(cls, tuple(made.values())):
            if issubclass(cls, SharpnessAwareMixin):
                raise ValueError(
                    f"A script under hf_sharp.launch must make plain Trainers, got {cls.__name__}, which is sharpness-aware "
                    "by itself. Run the script without hf_sharp.launch, or let it make a Trainer."
                )
            if cls not in made:
                made[cls] = _sharp(cls, given)
            cls = made[cls]
        return object.__new__(cls)

    def plain(cls: type[Trainer], *args: Any, **kwargs: Any) -> Any:
        return object.__new__(cls)

    for function in (new, plain):  # whoever inspects Trainer shall see the arguments that it takes
        function.__signature__ = inspect.signature(Trainer.__init__)  # type: ignore[attr-defined]
    Trainer.__new__ = new  # type: ignore[method-assign, assignment]
    try:
        yield made
    finally:
        # Not deleted: object.__new__ would then refuse the arguments that it left to __init__ before.
        Trainer.__new__ = plain  # type: ignore[method-assign, assignment]


def _sharp(kind: type[Trainer], given: Mapping[str, Any]) -> type[Trainer]:
    """A class of Trainers with the mixin in front, under its own name."""

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        # Not the mixin's own: the script's Trainer may have arguments of the same names.
        with self._made_sharp(**given):
            super(SharpnessAwareMixin, self).__init__(*args, **kwargs)

    body = {
        "__init__": made,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    return types.new_class(kind.__name__, (SharpnessAwareMixin, kind), exec_body=lambda names: names.update(body))


def run(name: str, words: Sequence[str], *, module: bool = False) -> None:
    """Run a script as ``python name words...`` does, or a module as ``python -m name words...`` does.

    Args:
        name: the script's file, or the module.
        words: its arguments.
        module: whether ``name`` is a module.
    """
    sys.argv = [name, *words]
    if module:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        return
    file = os.path.abspath(name)
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(name))
    code = compile(Path(file).read_bytes(), file, "exec", dont_inherit=True)
    # Not runpy.run_path: there __main__ is gone when threads and exit handlers look for it, and __file__ may be relative.
    main = types.ModuleType("__main__")
    main.__file__ = file
    sys.modules["__main__"] = main
    exec(code, vars(main))


def _asked(words: Sequence[str]) -> tuple[SharpnessArguments, Namespace]:
    """The method, and the command behind it; leaves with status 2 and the reason where something is wrong."""
    parser = HfArgumentParser(
        SharpnessArguments,  # type: ignore[arg-type]
        prog="python -m hf_sharp.launch",
        description=_ABOUT,
        allow_abbrev=False,
    )
    parser.add_argument("-m", dest="module", action="store_true", help="a module's name follows, as after python -m")
    parser.add_argument("command", nargs=PARSER, metavar="script", help="the script, and its own arguments")
    try:
        sharpness, asked, unknown = parser.parse_args_into_dataclasses(
            list(words), return_remaining_strings=True, look_for_args_file=False
        )
    except ValueError as error:
        parser.error(str(error))
    if unknown:
        parser.error(
            f"Only the launcher's flags may stand in front of the script's name, got {unknown[0]}. Write fields of the "
            "method as --sharpness_args '{\"eta\": 0.01}', and the script's own flags behind its name."
        )
    name = asked.command[0]
    if asked.module and not _is_module(name):
        parser.error(f"The module must be one that Python finds, got {name!r}. Install it, or leave out -m for a file.")
    if not asked.module and not Path(name).is_file():
        parser.error(f"The script must be an existing file, got {name!r}. Mend its path, or write -m for a module.")
    return sharpness, asked


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):  # there is no package around it, or it is no name
        return False


def _say(text: str) -> None:
    """One line, from one of the processes."""
    if os.environ.get("RANK", "0") == "0":
        print(f"hf_sharp: {text}", file=sys.stderr, flush=True)


def main(words: Sequence[str] | None = None) -> None:
    """Run what the command line names.

    Args:
        words: the command line without the launcher's own name; by default the process's.
    """
    sharpness, asked = _asked(sys.argv[1:] if words is None else words)
    given = sharpness.trainer_kwargs()
    name, *rest = asked.command
    about = ", ".join([repr(given["method"]), *(f"{key}={given[key]!r}" for key in ("perturb_over", "perturb"))])
    _say(f"every Trainer of {name} is sharpness-aware: {about}")
    with sharp_trainers(given) as made:
        end = None
        try:
            run(name, rest, module=asked.module)
        except SystemExit as error:
            end = error
    if end is not None and end.code not in (None, 0):
        raise end
    if not made:
        _say(
            f"warning: nothing was made sharpness-aware, since {name} made no Trainer. In a loop without one use "
            "hf_sharp.SharpStep."
        )


def _show(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """Print a traceback as Python does for the script alone: from the script's own first line on."""
    rest = trace
    while rest is not None and rest.tb_frame.f_code.co_filename in (main.__code__.co_filename, "<frozen runpy>"):
        rest = rest.tb_next
    if rest is not None or isinstance(error, SyntaxError):
        trace = rest
    sys.__excepthook__(kind, error.with_traceback(trace), trace)


if __name__ == "__main__":
    sys.excepthook = _show
    main()
    leave()
