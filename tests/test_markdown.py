"""What the Markdown files let a reader run, runs; what takes long, a GPU or the network is at least understood."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainingArguments, Trainer, ViTConfig, ViTForImageClassification

import hf_sharp
from tests.commands import check, parsers_only, run_python
from tests.markdown import FILES, ROOT, Block, anchors, blocks, commands, prose, spans

MARKS = {"python run", "bash run", "bash check", "text", "text output", "yaml", "toml", "json", "diff"}
BLOCKS = [block for file in FILES for block in blocks(file)]
CHECKED = [*(block for block in BLOCKS if block.mark == "bash check"), *(span for file in FILES for span in spans(file))]

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))


@every_file
def test_every_block_is_marked(file: Path) -> None:
    assert {str(block): block.mark for block in blocks(file) if block.mark not in MARKS} == {}
    lines = prose(file)
    for before, line in itertools.pairwise(lines):
        assert before.strip() or not line.startswith("    "), f"a code block by its indentation; put ``` around {line!r}"


@every_file
def test_links_lead_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(prose(file))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (file.parent / path).resolve() if path else file
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def stage(folder: Path) -> dict[str, Any]:
    """What the reader of a Python block is taken to have."""
    torch.manual_seed(0)
    sizes = {"image_size": 4, "patch_size": 2, "num_channels": 1, "hidden_size": 8, "intermediate_size": 16}
    config = ViTConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, num_labels=3)
    model = ViTForImageClassification(config)
    args = Seq2SeqTrainingArguments(
        str(folder),
        max_steps=2,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    data: Any = [{"pixel_values": torch.randn(1, 4, 4), "labels": i % 3} for i in range(8)]
    loader = DataLoader(data, batch_size=4)
    return {
        "__name__": "__main__",
        "model": model,
        "model_init": lambda: ViTForImageClassification(config),
        "args": args,
        "data": data,
        "held_out": data,
        "loader": loader,
        "other": loader,
        "optimizer": torch.optim.AdamW(model.parameters()),
        "loss_function": lambda model, batch: model(**batch).loss,
        "trainer": Trainer(model, args, train_dataset=data),
        "tokenizer": None,
    }


def said_output(block: Block) -> str | None:
    """What the file says that a block prints in the end: the block behind it."""
    later = [b for b in BLOCKS if b.file == block.file and b.line > block.line]
    return later[0].text if later and later[0].mark == "text output" else None


@pytest.mark.parametrize(
    "file", sorted({b.file for b in BLOCKS if b.mark == "python run"}), ids=lambda f: str(f.relative_to(ROOT))
)
def test_python_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "--output_dir", str(tmp_path), "--use_cpu", "True"])
    names = stage(tmp_path)
    for block in blocks(file):
        if block.mark == "python run":
            printed = io.StringIO()
            try:
                with contextlib.redirect_stdout(printed):
                    exec(compile("\n" * block.line + block.text, str(file), "exec"), names)
            except ModuleNotFoundError as error:
                pytest.skip(f"needs {error.name}")
            said = said_output(block)
            assert said is None or printed.getvalue().endswith(said), str(block)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that reads as the repository and takes what is written; the process is in it."""
    for name in ("examples", "configs", "docs", "tests", "hf_sharp"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", [pytest.param(b, id=str(b)) for b in BLOCKS if b.mark == "bash run"])
def test_bash_runs(block: Block, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, *words in commands(block.text, copy):
        assert name == "python", f"{name} does not run in this process; mark the block 'bash check'"
        run_python(words)
    said = said_output(block)
    assert said is None or capsys.readouterr().out.endswith(said)


@pytest.fixture
def parsing() -> Iterator[None]:
    with parsers_only():
        yield


@pytest.mark.usefixtures("parsing")
@pytest.mark.parametrize("block", [pytest.param(block, id=str(block)) for block in CHECKED])
def test_bash_is_understood(block: Block, copy: Path) -> None:
    for words in commands(block.text, copy):
        check(words)


@pytest.mark.usefixtures("parsing")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("python examples/quickstart.py --sedes 1", "2"),
        ("python examples/nothing.py", "examples/nothing.py is not there"),
        ("python examples/plain_pytorch.py --epochs 3", "takes no arguments"),
        ("python examples/compare.py configs/digits/sam.yaml -- --no_such_flag 1", "no_such_flag"),
        ("python examples/translation/table.py configs/multi30k --no_such_flag 1", "no_such_flag"),
        ("python train.py --output_dir out --sharpness gasm", "Did you mean 'gsam'"),
        ("accelerate launch --no_such_flag train.py", "2"),
        ("pip install -e '.[nothing]'", "is no extra"),
        ("curl https://example.org", "curl is no command"),
    ],
)
def test_a_wrong_command_is_found(line: str, said: str, copy: Path) -> None:
    (words,) = commands(line, copy)
    with pytest.raises((AssertionError, SystemExit, ValueError), match=said):
        check(words)


def test_a_block_without_its_tools_fails(copy: Path) -> None:
    """What bash itself refuses is no command."""
    with pytest.raises(AssertionError, match="no_such_folder"):
        commands("cd no_such_folder\n", copy)


def test_every_example_has_a_row() -> None:
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    scripts = [file for file in (ROOT / "examples").rglob("*.py") if "__main__" in file.read_text(encoding="utf-8")]
    assert [name for file in scripts if f"`{(name := str(file.relative_to(ROOT / 'examples')))}`" not in text] == []


def test_the_version_is_the_same_everywhere() -> None:
    """In the package, in what to cite, and as the newest release of the changelog."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    released = re.findall(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [cited["version"], released[0]] == [hf_sharp.__version__] * 2
