"""The launcher itself: which Trainers it reaches, what the script sees, and what is said when something is wrong."""

from __future__ import annotations

import functools
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import transformers
from transformers import Seq2SeqTrainer, Trainer

from hf_sharp import ASAM, SAM, SharpnessAwareMixin, launch
from tests.launch.material import tokenizer
from tests.models import arguments, llama, mixed, rows

TRAINING = """
import sys
from pathlib import Path
from tests.models import arguments, mixed, rows
{code}
trainer = {name}(mixed(), arguments(Path(sys.argv[1]), max_steps=2), train_dataset=rows("mixed", 8))
trainer.train()
"""
SUBCLASS = """
from transformers import Trainer
STEPS = []
class Mine(Trainer):
    def training_step(self, *args, **kwargs):
        STEPS.append(1)
        return super().training_step(*args, **kwargs)
"""
OWN_LOOP = """
from transformers import Trainer
STEPS = []
class Mine(Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        STEPS.append(1)
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs))
        self.accelerator.backward(loss)
        return loss.detach()
"""
SEQ2SEQ = """
import transformers
class Mine(transformers.Seq2SeqTrainer):
    def __init__(self, model, args, *, train_dataset):
        super().__init__(model=model, args=given(args), train_dataset=train_dataset)
def given(args):
    return transformers.Seq2SeqTrainingArguments(**{k: v for k, v in vars(args).items() if k in KEYS})
KEYS = ("output_dir", "use_cpu", "max_steps", "report_to", "disable_tqdm", "save_strategy", "remove_unused_columns")
"""
OWN_NEW = """
from transformers import Trainer
class Mine(Trainer):
    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)
"""
OWN_NAMES = """
from functools import partial
from transformers import Trainer
class Distilling(Trainer):
    def __init__(self, *args, method, perturb, **kwargs):
        super().__init__(*args, **kwargs)
        self.method, self.perturb, self._perturb, self._notes, self._given = method, perturb, "p", "n", "g"
Mine = partial(Distilling, method="kd", perturb=0.5)
"""
FORMS = {
    "from transformers": ("from transformers import Trainer", "Trainer"),
    "from transformers.trainer": ("from transformers.trainer import Trainer", "Trainer"),
    "an attribute of transformers": ("import transformers", "transformers.Trainer"),
    "a subclass": (SUBCLASS, "Mine"),
    "a subclass with a step of its own": (OWN_LOOP, "Mine"),
    "a subclass with a __new__ of its own": (OWN_NEW, "Mine"),
    "a subclass of Seq2SeqTrainer": (SEQ2SEQ, "Mine"),
    "a library's": ("from library_of_trainers import LibraryTrainer", "LibraryTrainer"),
}


@pytest.fixture(autouse=True)
def _as_a_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the launcher changes in its process is put back; where scripts are run from is the test's folder."""
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library with a subclass, imported long before."""
    module = ModuleType("library_of_trainers")
    exec("from transformers import Trainer\nclass LibraryTrainer(Trainer): ...", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """The Trainers whose loss was computed to train, once per pass."""
    seen: list[Trainer] = []
    compute_loss = Trainer.compute_loss

    def counting(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        seen.append(self)
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "compute_loss", counting)
    return seen


def write(text: str, name: str = "script.py") -> str:
    Path(name).write_text(text)
    return name


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("form", FORMS)
def test_every_trainer_is_reached(form: str, passes: list[Trainer], capsys: pytest.CaptureFixture[str]) -> None:
    code, name = FORMS[form]
    launch.main(["--sharpness", "asam", "--rho", "0.2", write(TRAINING.format(code=code, name=name)), "out"])
    main = sys.modules["__main__"]
    trainer, kind = main.trainer, eval(name, vars(main))
    assert len(passes) == 4  # two for each of two steps
    assert trainer._sharp.method == ASAM(rho=0.2)
    assert isinstance(trainer, kind)
    assert isinstance(trainer, SharpnessAwareMixin)
    assert type(trainer).__mro__[1:] == (SharpnessAwareMixin, *kind.__mro__)
    assert (type(trainer).__name__, type(trainer).__module__) == (kind.__name__, kind.__module__)
    assert not issubclass(kind, SharpnessAwareMixin)
    assert issubclass(kind, Trainer)
    assert len(vars(main).get("STEPS", passes)) == 4  # a step of its own is one pass
    assert "warning" not in capsys.readouterr().err


def test_arguments_and_names_of_the_scripts_own(passes: list[Trainer]) -> None:
    """A Trainer that has a method of its own takes it, and keeps it."""
    launch.main(["--sharpness", "asam", "--rho", "0.2", write(TRAINING.format(code=OWN_NAMES, name="Mine")), "out"])
    trainer = sys.modules["__main__"].trainer
    assert len(passes) == 4
    assert (trainer.method, trainer.perturb, trainer._notes) == ("kd", 0.5, "n")
    assert trainer._sharp.method == ASAM(rho=0.2)


def test_a_script_of_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one, run as a module: TRL takes `Trainer` from transformers when it is imported, and has a loss of its own."""
    trl = pytest.importorskip("trl", reason="trl is not installed")
    llama().save_pretrained("model")
    tokenizer().save_pretrained("model")
    Path("data").mkdir()
    lines = [json.dumps({"text": text}) for text in ("the red dog runs", "the black cat eats")]
    write("\n".join(lines * 8), "data/train.jsonl")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    words = ["--model_name_or_path", "model", "--dataset_name", "data", "--max_steps", "2", "--learning_rate", "0.01"]
    words += ["--use_cpu", "True", "--bf16", "False", "--report_to", "none", "--logging_steps", "1", "--save_strategy", "no"]
    compute_loss, passes = trl.SFTTrainer.compute_loss, 0

    @functools.wraps(compute_loss)
    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal passes
        passes += 1
        return compute_loss(*args, **kwargs)

    monkeypatch.setattr(trl.SFTTrainer, "compute_loss", counting)

    def weights(out: str, *flags: str) -> bytes:
        rest = [*words, "--output_dir", out]
        if flags:
            launch.main([*flags, "-m", "trl.scripts.sft", *rest])
        else:
            launch.run("trl.scripts.sft", rest, module=True)
        return Path(out, "model.safetensors").read_bytes()

    plain = weights("plain")
    assert passes == 2
    assert weights("neutral", "--sharpness", "sam", "--rho", "0") == plain
    passes = 0
    assert weights("sharp", "--sharpness", "asam", "--rho", "0.2") != plain
    assert passes == 4


def test_outside_nothing_is_changed(passes: list[Trainer]) -> None:
    """While it lasts, classes are what they were and show the signature that they had; afterwards Trainers are plain."""
    signatures = [inspect.signature(kind) for kind in (Trainer, Seq2SeqTrainer)]
    with launch.sharp_trainers({"method": SAM()}) as made:
        assert [inspect.signature(kind) for kind in (Trainer, Seq2SeqTrainer)] == signatures
        assert transformers.Trainer is transformers.trainer.Trainer is Trainer
        first, second = (Trainer(mixed(), arguments(Path("out"))) for _ in range(2))
        copied = type(first)(mixed(), arguments(Path("out")))
    assert type(first) is type(second) is type(copied) is made[Trainer]
    assert [inspect.signature(kind) for kind in (Trainer, Seq2SeqTrainer)] == signatures
    later = Trainer(mixed(), arguments(Path("out"), max_steps=2), train_dataset=rows("mixed", 8))
    later.train()
    assert type(later) is Trainer
    assert len(passes) == 2


def test_plain_again_after_a_script_that_fails() -> None:
    with pytest.raises(ZeroDivisionError):
        launch.main([write("1 / 0")])
    assert type(Trainer(mixed(), arguments(Path("out")))) is Trainer


SHARP = """
from hf_sharp import SAM, SharpnessAwareTrainer
from tests.models import arguments, mixed
SharpnessAwareTrainer(mixed(), arguments("out"), method=SAM())
"""


def test_a_script_that_is_sharpness_aware_by_itself() -> None:
    expected = (
        "A script under hf_sharp.launch must make plain Trainers, got SharpnessAwareTrainer, which is sharpness-aware by "
        "itself. Run the script without hf_sharp.launch, or let it make a Trainer."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        launch.main([write(SHARP)])


@pytest.mark.parametrize("end", ["", "import sys; sys.exit()", "import sys; sys.exit(0)"])
def test_a_script_without_a_trainer(end: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = write(f"print('hello')\n{end}")
    launch.main(["--sharpness", "gsam", script])
    out, err = capsys.readouterr()
    assert out == "hello\n"
    assert err.splitlines()[1:] == [
        "hf_sharp: warning: nothing was made sharpness-aware, since script.py made no Trainer. In a loop without one use "
        "hf_sharp.SharpStep."
    ]


@pytest.mark.parametrize("code", [3, "a message"])
def test_a_script_that_leaves_with_a_status(code: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        launch.main([write(f"import sys; sys.exit({code!r})")])
    assert left.value.code == code
    assert "warning" not in capsys.readouterr().err


IN_A_GROUP = """
import atexit, sys, time
import torch
import torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
atexit.register(lambda: print("still in the group:", dist.is_initialized()))
file = open("left_open.txt", "w")
file.write("the last line")
outer = open("detached.txt", "w")
inner = outer.detach()
inner.write(b"and another")

class Late:  # while the interpreter closes, gloo's thread lets go of tensors
    def __del__(self, group=dist.group.WORLD, ones=torch.ones, sleep=time.sleep):
        group.allgather([[ones(1_000_000)]], [ones(1_000_000)])
        sleep(0.5)

late = Late()
sys.exit({code})
"""


@pytest.mark.parametrize("code", [0, 3])
def test_a_process_of_a_group_leaves_it_when_it_succeeds(code: int, tmp_path: Path) -> None:
    """Where gloo's thread would abort it, when Python closes. Where one fails others may be waiting for it."""
    command = [sys.executable, "-m", "hf_sharp.launch", write(IN_A_GROUP.format(code=code))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == f"still in the group: {bool(code)}\n"
    assert (done.returncode == 0) is (code == 0), done.stderr
    if code == 0:
        assert (tmp_path / "left_open.txt").read_text() == "the last line"
        assert (tmp_path / "detached.txt").read_text() == "and another"


def test_one_of_several_processes_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    launch.main([write("")])
    assert capsys.readouterr().err == ""


WORLD = """
import json, sys
import neighbour
facts = {"argv": sys.argv, "path": sys.path[0], "name": __name__, "file": __file__, "package": __package__}
facts["spec"] = None if __spec__ is None else __spec__.name
facts["main"] = sys.modules["__main__"].__dict__ is globals()
facts["names"] = sorted(set(globals()) - {"__annotations__", "__cached__"})
def annotated(x: int): ...
facts["annotation"] = repr(annotated.__annotations__["x"])
print(json.dumps(facts))
"""


@pytest.mark.parametrize("module", [False, True], ids=["script", "module"])
@pytest.mark.parametrize("words", [[], ["--rho", "3", "-m", "--sharpness", "none", "--", "--help"]], ids=["bare", "words"])
def test_the_script_sees_what_it_sees_under_python(
    words: list[str], module: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``__main__``, arguments and the search path; what stands behind the script's name is its own."""
    (tmp_path / "package").mkdir()
    neighbour = tmp_path if module else tmp_path / "package"
    (neighbour / "neighbour.py").touch()
    write(WORLD, "package/train.py")
    name = "package.train" if module else "package/train.py"
    command = ["-m", name, *words] if module else [name, *words]
    alone = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    launch.main(["--rho", "0.1", *command])
    for imported in ("neighbour", "package"):
        sys.modules.pop(imported, None)
    assert json.loads(capsys.readouterr().out) == json.loads(alone.stdout)


FAILING = """
def inner():
    raise KeyError("a key")

try:
    inner()
except KeyError as error:
    raise RuntimeError("it failed") from error
"""


@pytest.mark.parametrize("text", [FAILING, "x = = 1"], ids=["failing", "no Python"])
def test_tracebacks_are_those_of_python(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = write(text)
    alone = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    with pytest.raises((RuntimeError, SyntaxError)) as raised:
        launch.main([script])
    capsys.readouterr()
    trace = raised.value.__traceback__
    assert trace is not None
    launch._show(type(raised.value), raised.value, trace.tb_next)  # without this test's own frame
    assert capsys.readouterr().err == alone.stderr


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        launch.main(["--help"])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: python -m hf_sharp.launch [-h] [--sharpness SHARPNESS] [--rho RHO]" in text
    for flag in ("--sharpness_args", "--perturb_over", "--perturb ", "-m "):
        assert flag in text


BAD: list[tuple[list[str], str]] = [
    ([], "the following arguments are required: script"),
    (["--rho", "0.1"], "the following arguments are required: script"),
    (["none.py"], "The script must be an existing file, got 'none.py'. Mend its path, or write -m for a module."),
    (["."], "The script must be an existing file, got '.'. Mend its path, or write -m for a module."),
    (["-m", ""], "The module must be one that Python finds, got ''. Install it, or leave out -m for a file."),
    (
        ["-m", "none.at.all"],
        "The module must be one that Python finds, got 'none.at.all'. Install it, or leave out -m for a file.",
    ),
    (
        ["--sharpness", "assam", "script.py"],
        "Unknown method 'assam'. Did you mean 'asam'? Choose from accelerated_gam, asam, crsam, decayed, during, every, "
        "gam, gsam, lpf, rgsam, rsam, sam.",
    ),
    (
        ["--sharpness", "lpf", "--rho", "0.1", "script.py"],
        "LPF has no field 'rho'. Its fields are gamma, draws.",
    ),
    (
        ["--sharpness_args", '{"eta": 0.1}', "script.py"],
        "SAM has no field 'eta'. Its fields are rho, p.",
    ),
    (["--rho", "-0.1", "script.py"], "rho must be >= 0, got -0.1. Pass e.g. rho=0.05."),
    (["--rho", "much", "script.py"], "argument --rho: invalid float value: 'much'"),
    (
        ["--eta", "0.01", "script.py"],
        "Only the launcher's flags may stand in front of the script's name, got --eta. Write fields of the method as "
        "--sharpness_args '{\"eta\": 0.01}', and the script's own flags behind its name.",
    ),
    (
        ["--perturb_over", "bach", "script.py"],
        "perturb_over must be 'batch' or 'micro_batch' or 'device', got 'bach'. Pass e.g. perturb_over='batch'.",
    ),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_command_lines(words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """They leave with status 2 before the script runs."""
    write("raise AssertionError('it ran')")
    with pytest.raises(SystemExit) as left:
        launch.main(words)
    assert left.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"python -m hf_sharp.launch: error: {message}"
    assert [file.name for file in tmp_path.iterdir()] == ["script.py"]
