"""Two ranks that gather inside their loss, and average their tokens, against one process on the union of their data."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backends.launches import SLOW, launch
from tests.models import differences
from tests.trainers.small import gap

pytestmark = SLOW


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What one process found, and what each of two ranks found."""
    folder: Path = tmp_path_factory.mktemp("gathering")
    if find_spec("sentence_transformers") is not None:
        from tests.trainers.test_sentence_transformers import save_encoder

        save_encoder(folder / "encoder")
    for ranks in (1, 2):
        launch("gathering", folder, ranks=ranks)
    both = [torch.load(folder / f"2-{rank}.pt", weights_only=True) for rank in range(2)]
    return torch.load(folder / "1-0.pt", weights_only=True), both


@pytest.mark.parametrize("method", ["sam", "gam"])
def test_tokens_are_averaged_across_devices_in_every_pass(method: str, found: Any) -> None:
    """The weights of one process on the union, although the ranks' batches have different numbers of tokens."""
    alone, both = found
    for rank in both:
        assert gap(rank[method]["weights"], alone[method]["weights"]) < 1e-12
        assert rank[method]["losses"] == pytest.approx(alone[method]["losses"], rel=1e-6)
    assert gap(both[0]["sam apart"]["weights"], alone["sam"]["weights"]) > 1e-6, "without it they differ"


@pytest.mark.parametrize("name", ["sam", "gam", "device", "neutral"])
def test_what_is_gathered_counts_once(name: str, found: Any) -> None:
    """Metrics are as many as micro-batches, and tokens are those of the data, on both ranks, whatever the passes."""
    alone, both = found
    for rank in both:
        assert len(rank[name]["metrics"]) == 6
        assert rank[name]["tokens"] == alone["plain"]["tokens"] == rank["plain"]["tokens"]
        assert rank[name]["seen"] == alone["plain"]["seen"]
        assert rank[name]["metrics"] == both[0][name]["metrics"]


def test_neutral_is_plain_on_each_rank(found: Any) -> None:
    """Weights, gathered metrics and logs: the same bits, with dropout."""
    for rank in found[1]:
        assert differences(rank["plain"], rank["neutral"]) == []


@pytest.mark.parametrize("perturb_over", ["batch", "device"])
def test_a_gradient_cache_changes_nothing(perturb_over: str, found: Any) -> None:
    """A loss with a backward of its own gives the weights of the one without, and both ranks the same."""
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    (first, second) = (rank["cache"][perturb_over] for rank in found[1])
    assert gap(first["ranking"], first["cached"]) < 1e-12
    assert differences(first, second) == []
    assert gap(found[1][0]["cache"]["batch"]["ranking"], found[1][0]["cache"]["device"]["ranking"]) > 1e-6
