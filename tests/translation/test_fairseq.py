"""The road from and to fairseq, held to what real fairseq gave, and, where there is one, to real fairseq itself."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_sharp.translation.batches import Collator
from hf_sharp.translation.binarized import IndexedTokens, load_binarized
from hf_sharp.translation.checkpoint import load_checkpoint
from hf_sharp.translation.conversion import to_fairseq
from hf_sharp.translation.dictionary import Dictionary
from hf_sharp.translation.loss import LabelSmoothing
from hf_sharp.translation.model import FairseqTransformer
from hf_sharp.translation.search import BeamSearch
from hf_sharp.translation.tokenizer import TranslationTokenizer
from tests.translation.cases import DATA, SHARED, converted, figures, write_memory_mapped

FAIRSEQ = os.environ.get("FAIRSEQ_PYTHON")


@pytest.mark.parametrize("shared", SHARED)
def test_logits_and_losses_are_fairseqs(shared: str, tmp_path: Path) -> None:
    model, found = converted(shared, tmp_path / "model"), figures(shared)
    assert model.config.share_embeddings == shared
    assert sum(w.numel() for w in model.parameters()) == found["parameters"]
    rows = [{"input_ids": x, "labels": y} for x, y in zip(found["sources"][:8], found["targets"], strict=False)]
    batch = Collator()(rows)
    labels = batch.pop("labels")
    again = FairseqTransformer.from_pretrained(tmp_path / "model")
    for one in (model, again):
        with torch.no_grad():
            logits = one(**batch).logits
        expected = torch.tensor(found["logits"])
        torch.testing.assert_close(logits[:3], expected, rtol=0, atol=1e-5)
        assert LabelSmoothing(0.1).total(logits, labels).item() == pytest.approx(found["loss"], rel=1e-6)
        assert LabelSmoothing(0.0).total(logits, labels).item() == pytest.approx(found["nll"], rel=1e-6)


@pytest.mark.parametrize("shared", SHARED)
def test_beam_search_is_fairseq_generates(shared: str, tmp_path: Path) -> None:
    model, found = converted(shared, tmp_path / "model"), figures(shared)
    tokenizer = TranslationTokenizer.from_pretrained(tmp_path / "model")
    hypotheses = BeamSearch(5)(model, found["sources"])
    assert [tokenizer.target.decode(hypothesis.tokens) for hypothesis in hypotheses] == found["generated"]


@pytest.mark.parametrize("shared", SHARED)
def test_way_back_gives_the_same_weights(shared: str, tmp_path: Path) -> None:
    converted(shared, tmp_path / "model")
    to_fairseq(tmp_path / "model", tmp_path / "back" / "checkpoint.pt")
    was, now = (
        load_checkpoint(file)["model"] for file in (DATA / shared / "checkpoint.pt", tmp_path / "back/checkpoint.pt")
    )
    assert was.keys() - now.keys() <= {"encoder.version", "decoder.version"}
    assert all(torch.equal(was[name], weight) for name, weight in now.items())
    for language in ("de", "en"):
        name = f"dict.{language}.txt"
        assert (tmp_path / "back" / name).read_bytes() == (DATA / shared / name).read_bytes()


@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_left_where_the_way_back_fails(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was in the folder before stays."""
    converted("all", tmp_path / "model")
    back = tmp_path / "back"
    if there:
        back.mkdir()
        shutil.copy(DATA / "all" / "dict.en.txt", back)
    before = {path.name for path in tmp_path.rglob("*")}

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space"):
            to_fairseq(tmp_path / "model", back / "checkpoint.pt")
    assert {path.name for path in tmp_path.rglob("*")} == before
    to_fairseq(tmp_path / "model", back / "checkpoint.pt")
    assert sorted(path.name for path in back.iterdir()) == ["checkpoint.pt", "dict.de.txt", "dict.en.txt"]


def test_a_model_knows_its_dictionaries(tmp_path: Path) -> None:
    """Where its config says nothing of them, as older ones, only the sizes are compared."""
    model = converted("decoder", tmp_path / "model")
    tokenizer = TranslationTokenizer.from_pretrained(tmp_path / "model")
    config = FairseqTransformer.from_pretrained(tmp_path / "model").config
    assert config.dictionaries == model.config.dictionaries == tokenizer.fingerprint
    tokenizer.check(config, "model")
    reordered = tokenizer.source.symbols[:4] + tokenizer.source.symbols[:3:-1]
    tokenizer.source = Dictionary(reordered, tokenizer.source.counts[::-1])
    with pytest.raises(ValueError, match="got other symbols than the model's in model"):
        tokenizer.check(config, "model")
    config.dictionaries = None
    tokenizer.check(config, "model")


def test_tied_weights_move_together(tmp_path: Path) -> None:
    model, found = converted("decoder", tmp_path / "model"), figures("decoder")
    batch = Collator()([{"input_ids": found["sources"][0], "labels": found["targets"][0]}])
    before = model.model.decoder.embed_tokens.weight.detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model(**batch).loss.backward()
    optimizer.step()
    assert torch.equal(model.model.decoder.embed_tokens.weight, model.model.decoder.output_projection.weight)
    assert not torch.equal(model.model.decoder.embed_tokens.weight, before)


def test_binarised_data_is_what_fairseq_reads() -> None:
    found = figures("decoder")
    data, source, target = load_binarized(DATA / "decoder", "de", "en")
    assert list(data) == ["test"]
    assert data["test"]["input_ids"][:] == found["sources"]
    assert data["test"]["labels"][:] == found["targets"]
    assert (len(source), len(target)) == (35, 36) or len(source) != len(target)


@pytest.mark.parametrize("core", ["core", "_core"])  # before and since numpy 2
def test_checkpoint_of_a_run_that_scored_itself(core: str, tmp_path: Path) -> None:
    """With ``--eval-bleu`` fairseq's meters are arrays and scalars of numpy."""
    meters = {"_bleu_counts": np.array([3, 2, 1, 0]), "_bleu_sys_len": np.float64(7.5), "best": np.array([0.5])}
    state = torch.load(DATA / "all" / "checkpoint.pt", weights_only=False) | {"extra_state": {"metrics": meters}}
    torch.save(state, tmp_path / "new.pt")
    with zipfile.ZipFile(tmp_path / "new.pt") as old, zipfile.ZipFile(tmp_path / "checkpoint.pt", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                assert b"cnumpy._core.multiarray\n_reconstruct\n" in content
                content = content.replace(b"numpy._core.multiarray", f"numpy.{core}.multiarray".encode())
            new.writestr(name, content)
    found = load_checkpoint(tmp_path / "checkpoint.pt")["extra_state"]["metrics"]
    assert found["_bleu_counts"].tolist() == [3, 2, 1, 0]
    assert (found["_bleu_sys_len"], found["best"].tolist()) == (7.5, [0.5])


def test_cut_and_flipped_checkpoints_are_damaged_or_refused(tmp_path: Path) -> None:
    whole = (DATA / "all" / "checkpoint.pt").read_bytes()
    torch.save({"model": {}, "args": {"a": [1.5, "x"]}}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    old = (tmp_path / "old.pt").read_bytes()
    file = tmp_path / "checkpoint.pt"
    for cut in range(0, len(old), 7):
        file.write_bytes(old[:cut])
        with pytest.raises(ValueError, match="must be whole"):
            load_checkpoint(file)
    for place in range(0, len(old), 3):
        file.write_bytes(bytes([*old[:place], old[place] ^ 0x25, *old[place + 1 :]]))
        try:
            load_checkpoint(file)
        except ValueError as error:
            assert str(file) in str(error)  # noqa: PT017
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="must be whole"):
            load_checkpoint(file)


class Evil:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("plain", [True, False])
def test_malicious_checkpoint_is_refused(plain: bool, tmp_path: Path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "checkpoint.pt"
    state = {"model": {"w": torch.zeros(1)}, "args": Evil(mark)}
    file.write_bytes(pickle.dumps(state)) if plain else torch.save(state, file)
    with pytest.raises(ValueError, match="must hold tensors and plain values only") as error:
        load_checkpoint(file)
    assert str(file) in str(error.value)
    assert not mark.exists()


def test_lazy_data_is_what_fairseq_reads() -> None:
    """The same four sentences, the second one empty, by ``fairseq-preprocess --dataset-impl mmap`` and ``lazy``."""
    mapped, lazy = ([row.tolist() for row in IndexedTokens(DATA / kind / "test")] for kind in ("mmap", "lazy"))
    assert lazy == mapped
    assert [row[-1] for row in lazy] == [2, 2, 2, 2]
    assert (len(lazy[0]), len(lazy[1])) == (5, 1)
    rows = IndexedTokens(DATA / "lazy" / "test")
    assert [row.tolist() for row in rows[1:-1]] == lazy[1:-1]
    assert [row.tolist() for row in rows[::-2]] == lazy[::-2]


@given(
    rows=st.lists(st.lists(st.integers(0, 65_000), max_size=6), max_size=6),
    kind=st.sampled_from(["u2", "i4", "i8"]),
    cut=st.integers(1, 400),
)
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
def test_reader_returns_what_was_written_and_refuses_what_is_cut(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]], kind: str, cut: int
) -> None:
    prefix = tmp_path_factory.getbasetemp() / "data"
    write_memory_mapped(prefix, rows, kind)
    read = IndexedTokens(prefix)
    assert [row.tolist() for row in read] == rows
    for suffix in (".idx", ".bin"):
        whole = Path(f"{prefix}{suffix}").read_bytes()
        if not whole:
            continue
        Path(f"{prefix}{suffix}").write_bytes(whole[: -min(cut, len(whole))])
        with pytest.raises(ValueError, match=str(prefix)):
            IndexedTokens(prefix)
        Path(f"{prefix}{suffix}").write_bytes(whole)


def test_dictionary_comes_back_as_it_was(tmp_path: Path) -> None:
    words = Dictionary.of(["b a", "a <unk> c"], multiple=8)
    words.save(tmp_path / "dict.txt")
    assert Dictionary.load(tmp_path / "dict.txt") == words
    assert words.symbols[4:8] == ("a", "<unk>", "b", "c")
    assert len(words) == 8


@pytest.mark.slow
@pytest.mark.skipif(FAIRSEQ is None, reason="FAIRSEQ_PYTHON does not name a Python with fairseq")
@pytest.mark.parametrize("shared", SHARED)
def test_real_fairseq_generates_the_same_from_a_converted_checkpoint(shared: str, tmp_path: Path) -> None:
    assert FAIRSEQ is not None
    converted(shared, tmp_path / "model")
    to_fairseq(tmp_path / "model", tmp_path / "back" / "checkpoint.pt")
    for file in (DATA / "decoder").glob("test.*"):
        shutil.copy(file, tmp_path / "back")
    found = figures(shared)
    for language, side in (("de", found["sources"]), ("en", found["targets"])):
        write_memory_mapped(tmp_path / "back" / f"test.de-en.{language}", side, "u2")
    generate = Path(FAIRSEQ).with_name("fairseq-generate")
    search = "--beam 5 --lenpen 1.0 --cpu --batch-size 16 --num-workers 0"
    done = subprocess.run(
        [generate, tmp_path / "back", "--path", tmp_path / "back" / "checkpoint.pt", *search.split()],
        capture_output=True,
        text=True,
        env=os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines() if line.startswith("H-")]
    generated = {int(name[2:]): text for name, _, text in lines}
    assert [generated[number] for number in range(len(found["generated"]))] == found["generated"]


@pytest.mark.slow
@pytest.mark.skipif(FAIRSEQ is None, reason="FAIRSEQ_PYTHON does not name a Python with fairseq")
@pytest.mark.parametrize("shared", SHARED)
def test_logits_and_losses_inside_real_fairseq_are_ours(shared: str, tmp_path: Path) -> None:
    """After a training step here, so that the weights are not those that fairseq once wrote."""
    model, found = converted(shared, tmp_path / "model"), figures(shared)
    rows = [{"input_ids": x, "labels": y} for x, y in zip(found["sources"][:8], found["targets"], strict=False)]
    batch = Collator()(rows)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(**batch).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path / "model")
    back = tmp_path / "back"
    to_fairseq(tmp_path / "model", back / "checkpoint.pt")
    for language, side in (("de", found["sources"]), ("en", found["targets"])):
        write_memory_mapped(back / f"test.de-en.{language}", side, "u2")
    code = "import json, sys; from fairseq_fixtures import figures; from pathlib import Path; back = Path(sys.argv[1]); "
    code += "(back / 'figures.json').write_text(json.dumps(figures(back, back / 'checkpoint.pt')))"
    done = subprocess.run(
        [str(FAIRSEQ), "-c", code, back],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        env=os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    theirs = json.loads((back / "figures.json").read_text(encoding="utf-8"))
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch).logits
    expected = torch.tensor(theirs["logits"])
    torch.testing.assert_close(logits[:3], expected, rtol=0, atol=1e-5)
    assert (expected - torch.tensor(found["logits"])).abs().max() > 1e-2
    tokens = int(labels.ne(-100).sum())
    for epsilon, name in ((0.1, "loss"), (0.0, "nll")):
        ours = LabelSmoothing(epsilon).total(logits, labels).item()
        assert ours / tokens == pytest.approx(theirs[name] / tokens, abs=1e-5)
    assert theirs["parameters"] == sum(w.numel() for w in model.parameters())
