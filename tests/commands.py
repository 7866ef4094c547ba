"""Commands of the documentation: run in this process, or only given to their own parsers."""

from __future__ import annotations

import argparse
import re
import runpy
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import launch_command_parser
from transformers import HfArgumentParser, TrainingArguments

from hf_sharp import SharpnessArguments
from tests.markdown import FOLDERS, ROOT

OTHERS = ("fairseq-preprocess", "mypy", "pre-commit", "pytest", "ruff", "wget")
"""Commands of other projects; their words are theirs."""
THEIRS = ("run_glue.py",)
"""Scripts of other projects. ``train.py`` is the reader's own, with the parser that the README shows."""


class ParsedError(Exception):
    """Raised in place of what would come after the command line is read.

    Args:
        result: what the parser made of it.
    """

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result


@contextmanager
def parsers_only() -> Iterator[None]:
    """Scripts go no further than their command line."""
    busy = False

    def ending(method: Callable[..., Any]) -> Callable[..., Any]:
        def parse(*args: Any, **kwargs: Any) -> Any:
            nonlocal busy
            if busy:
                return method(*args, **kwargs)
            busy = True
            try:
                result = method(*args, **kwargs)
            finally:
                busy = False
            raise ParsedError(result)

        return parse

    with pytest.MonkeyPatch.context() as patched:
        for owner, name in (
            (argparse.ArgumentParser, "parse_args"),
            (argparse.ArgumentParser, "parse_known_args"),
            (HfArgumentParser, "parse_args_into_dataclasses"),
        ):
            patched.setattr(owner, name, ending(getattr(owner, name)))
        patched.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)  # the reader has a GPU
        yield


def run_python(words: Sequence[str]) -> None:
    """``python words`` in this process; the script's neighbours are no modules afterwards."""
    script, *rest = words if words[0] != "-m" else [_file_of(words[1]), *words[2:]]
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", [script, *rest])
        patched.syspath_prepend(str(Path(script).parent))
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            if end.code not in (None, 0):
                raise AssertionError(f"{' '.join(words)}: {end.code}") from end
        finally:
            for name in set(sys.modules) - before:
                if "/examples/" in str(vars(sys.modules[name]).get("__file__")):
                    del sys.modules[name]


def _file_of(module: str) -> str:
    """What ``python -m module`` runs."""
    spec = find_spec(module)
    assert spec is not None, module
    folders = spec.submodule_search_locations
    return str(spec.origin) if folders is None else str(Path(folders[0]) / "__main__.py")


def check(words: Sequence[str]) -> None:
    """Raises where a command's parser does not take its words, or a file of the repository that it names is not there.

    To be called inside `parsers_only`, in a folder that reads as the repository.
    """
    name, *rest = words
    for word in rest:
        if word.startswith(FOLDERS) and "/" in word:
            assert Path(word).exists(), f"{word} is not there"
    if name == "python":
        _check_python(rest)
    elif name == "accelerate":
        assert rest[0] == "launch"
        args = _parsed(lambda: launch_command_parser().parse_args(rest[1:]))
        _check_python([*(["-m"] if args.module else []), args.training_script, *args.training_script_args])
    elif name == "pip":
        _check_install(rest)
    else:
        assert name in OTHERS, f"{name} is no command that is known here"


def _check_python(words: Sequence[str]) -> None:
    script, *rest = words
    if script == "train.py":
        parser = HfArgumentParser((TrainingArguments, SharpnessArguments))  # type: ignore[arg-type]
        _parsed(lambda: parser.parse_args_into_dataclasses([*rest, "--use_cpu", "True"]))
        return
    for name in set(THEIRS) & set(words):
        Path(name).touch()
    args = _taken(words)
    if script.endswith("compare.py"):
        extra = rest[rest.index("--") + 1 :] if "--" in rest else []
        for recipe in args.recipes:
            _check_python(["examples/classification/train.py", str(recipe), *extra])
    elif script.endswith("table.py"):
        for name in ("adam", "sam", "asam"):
            _check_python(["examples/translation/train.py", f"{args[0].configs}/{name}.yaml", *args[1]])


def _taken(words: Sequence[str]) -> Any:
    """What the script's parser makes of ``python words``; None where there is nothing to parse."""
    if words[0] != "-m" and "ArgumentParser" not in Path(words[0]).read_text(encoding="utf-8"):
        assert len(words) == 1, f"{words[0]} takes no arguments, got {words[1:]}"
        return None
    if "--help" in words:
        run_python(words)
        return None
    return _parsed(lambda: run_python(words))


def _parsed(parse: Callable[[], object]) -> Any:
    try:
        parse()
    except ParsedError as parsed:
        return parsed.result
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}")
    raise AssertionError("It went on without reading its command line.")


def _check_install(words: Sequence[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert words[0] == "install"
    for named in re.findall(r"\[(.*)\]", " ".join(words)):
        assert set(named.split(",")) <= set(extras), f"[{named}] is no extra; there are {', '.join(extras)}"
