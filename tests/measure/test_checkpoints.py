"""What a checkpoint is measured on: its own numbers of the classes, and rows that reach them all."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from transformers import BartForConditionalGeneration

from hf_sharp.measure import loss_surface
from hf_sharp.measure.checkpoints import Source
from hf_sharp.measure.rows import first_rows, numbers_of
from tests.measure.checkpoints import checkpoint


class Named:
    """A model's settings."""

    def __init__(self, *names: str) -> None:
        self.id2label, self.num_labels = dict(enumerate(names)), len(names)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images in folders named a and b."""
    root = tmp_path_factory.mktemp("images")
    for i, name in enumerate(("a", "a", "a", "b")):
        (root / "train" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (60 * i, 20, 90)).save(root / "train" / name / f"{i}.png")
    return root


def test_classes_are_the_models_whatever_their_order(images: Path, tmp_path: Path) -> None:
    """The same weights with the classes the other way round see the other labels."""
    taken = {}
    for names in (["a", "b"], ["b", "a"]):
        place = checkpoint(tmp_path / names[0], names)
        (batch,) = Source(str(images)).loader(place, "train")
        taken[names[0]] = batch["labels"].tolist()
        with loss_surface(Source(str(images)).model(place), [batch]) as f:
            assert f.loss() > 0
    assert taken == {"a": [0, 0, 0, 1], "b": [1, 1, 1, 0]}


def test_a_class_that_the_model_lacks_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^The data set's classes must be the model's, got 'b'\. "):
        Source(str(images)).loader(checkpoint(tmp_path, ["a", "c"]), "train")
    with pytest.raises(ValueError, match=r"^The data set's classes must be the model's, got '3'\. "):
        Source("digits").loader(checkpoint(tmp_path, ["0", "1", "2"]), "test")


def test_numbers_of_classes() -> None:
    assert numbers_of(["x", "y"], Named("LABEL_0", "LABEL_1")) == [0, 1]
    assert numbers_of(["0", "1"], Named("NEGATIVE", "POSITIVE")) == [0, 1]
    with pytest.raises(ValueError, match=r"must be the model's, got 'x'"):
        numbers_of(["x", "y", "z"], Named("LABEL_0", "LABEL_1"))


def test_first_rows_of_sorted_data_reach_every_class(images: Path, tmp_path: Path) -> None:
    """Mixed rows may miss a class by chance; sorted ones miss it for sure."""
    assert first_rows([0, 1, 0, 2], "abc", 2, "train") == range(2)
    assert first_rows([0, 0, 1, 1], "ab", 3, "train") == range(3)
    message = (
        r"^samples must reach every class of 'train', whose rows are sorted by class, got 2, which leave out 'b'\. "
        r"Pass samples=4, or a data set whose rows are mixed\.$"
    )
    with pytest.raises(ValueError, match=message):
        Source(str(images), samples=2).loader(checkpoint(tmp_path, ["a", "b"]), "train")


def test_a_sequence_to_sequence_model(tmp_path: Path) -> None:
    """Its loss is the mean over the target's tokens, however they are batched."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from tests.models import bart

    model = bart()
    assert isinstance(model, BartForConditionalGeneration)
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "ein": 4, "haus": 5, "a": 6, "house": 7}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )
    model.save_pretrained(tmp_path / "model")
    fast.save_pretrained(tmp_path / "model")
    rows = {"de": ["ein haus", "haus", "ein ein haus"], "en": ["a house", "house", "a a house"]}
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "data" / "train.parquet"))
    losses = []
    for size in (3, 2):
        source = Source(str(tmp_path / "data"), "seq2seq", batch_size=size, text_column="de", label_column="en")
        loader = source.loader(str(tmp_path / "model"), "train")
        with loss_surface(source.model(str(tmp_path / "model")), loader) as f:
            losses.append(f.loss())
            assert f.batches.total == 6
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
