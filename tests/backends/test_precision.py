"""DeepSpeed in bfloat16 and float16: the shift is made in the float32 masters, and a skipped step leaves no trace."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD

from hf_sharp import SAM, SharpStep
from tests.backends.launches import SLOW, launch
from tests.problems import Perceptron, batch_for, generic
from tests.workers.precision import LR, RHO

STORES = {
    "zero1_bf16": "_Flat",
    "zero3_bf16": "_Gathered",
    "zero2_fp16": "_Flat",
    "zero0_bf16": "_Whole",
    "zero1_bf16_fp32": "_FlatWithWholeGradients",
    "zero2_bf16": "_Flat",
    "zero0_fp16": "_Whole",
    "zero1_fp16": "_Flat",
    "zero3_fp16": "_Gathered",
    "zero2_bf16_offload": "_Flat",
    "zero3_bf16_offload": "_Gathered",
    "zero2_fp16_offload": "_Flat",
    "zero3_fp16_offload": "_Gathered",
    "zero1_fp16_fp32": "_Flat",
    "zero2_bf16_fp32": "_Flat",
    "zero0_autocast": "_Whole",
    "zero2_autocast": "_Flat",
    "zero3_autocast": "_Gathered",
}


KINDS = [k if i < 3 else pytest.param(k, marks=SLOW) for i, k in enumerate(STORES)]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each rank found under one kind of training; each kind is launched once."""
    folder = tmp_path_factory.mktemp("precision")

    @cache
    def found(kind: str) -> list[dict[str, Any]]:
        launch("precision", kind, folder / kind)
        return [torch.load(folder / f"{kind}-{rank}", weights_only=True) for rank in range(2)]

    return found


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_have_their_true_size(kind: str, launched: Any) -> None:
    """The norm that methods see, and the direction that the optimizer takes, at the first loss scale and at the lowered one:
    a scale left in them, or taken out twice, makes them several times too large or small."""
    for found in launched(kind):
        for errors in (found["errors"], found["errors_later"]):
            assert errors["grad_norm"] < 0.05
            if kind == "zero0_fp16":  # DeepSpeed does not scale the loss there, and its optimizer divides by the scale
                assert 0.9 < errors["direction"] < 1
            else:
                assert errors["direction"] < 0.05
        if "exact" in found and kind != "zero0_fp16":
            assert found["exact"] < 0.05
            assert found["device"] < 0.05 < 0.1 < found["device_from_batch"]


@pytest.mark.parametrize("kind", KINDS)
def test_masters_and_copies(kind: str, launched: Any) -> None:
    for found in launched(kind):
        assert found["store"] == STORES[kind]
        assert found["first_at_the_weights"]
        assert found["shift"] == pytest.approx(RHO, rel=1e-5)  # no bit of it is lost to rounding
        assert found["scalars"]["sharpness/shift_norm_applied"] == pytest.approx(RHO, rel=1e-5)
        assert found["published_0"], "the forward must see the cast of the masters"
        assert found["published_1"], "the forward must see the cast of the shifted masters"
        assert found["stepped"]
        for poisoned in (0, 1):  # an infinite loss in this pass on one rank
            assert found[f"masters_kept_{poisoned}"]
            assert found[f"copies_kept_{poisoned}"]
            # under its own autocast DeepSpeed's ZeRO skips an overflow before its GradScaler sees it
            lowered = "fp16" in kind or kind == "zero0_autocast"
            assert found[f"lowered_{poisoned}"] == (0.5 if lowered else 1.0)


@SLOW
def test_a_weight_that_one_rank_uses(launched: Any) -> None:
    """Its gradient of 1, averaged over both ranks, is stepped with, though the other rank keeps the weight."""
    for found in launched("zero1_bf16_fp32"):
        torch.testing.assert_close(found["side"], torch.full((4,), 1 - LR / 2), rtol=0.0, atol=0.005)


def test_one_warning_for_weights_in_low_precision() -> None:
    """The fix is in it, and the logs have the shift as it was applied beside the one asked for."""
    model = generic(Perceptron()).to(torch.bfloat16)
    with pytest.warns(UserWarning, match=r"^Weights should be kept in float32, got 6 of 6 in torch\.bfloat16") as seen:
        sharp = SharpStep(model, SGD(model.parameters(), 0.1), SAM(rho=0.01))
    assert len(seen) == 1
    batch = batch_for(Perceptron())
    before = [p.detach().clone() for p in model.parameters()]
    shifted: list[list[torch.Tensor]] = []

    def loss_of(given: dict[str, torch.Tensor]) -> torch.Tensor:
        shifted.append([p.detach().clone() for p in model.parameters()])
        return model(x=given["x"].bfloat16(), labels=given["labels"])["loss"].float()

    sharp(loss_of, batch, observe=True)
    scalars = sharp.scalars()
    moved = torch.cat([(a.double() - b.double()).reshape(-1) for a, b in zip(shifted[1], before, strict=True)])
    assert scalars["sharpness/shift_norm"] == pytest.approx(0.01, rel=1e-2)
    assert scalars["sharpness/shift_norm_applied"] == pytest.approx(float(moved.norm()), rel=1e-2)
    assert scalars["sharpness/shift_norm_applied"] != pytest.approx(0.01, rel=0.05)


def test_no_warning_for_float32(recwarn: pytest.WarningsRecorder) -> None:
    model = Perceptron()
    SharpStep(model, SGD(model.parameters(), 0.1), SAM())
    assert not [w for w in recwarn if "float32" in str(w.message)]


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_the_scaler_skips_on_every_rank(kind: str, tmp_path: Path) -> None:
    """An infinite loss in either pass on one rank: no rank steps, each lowers its scale once. Before and after, gradients
    have their true size in the method, and the scaler's in the optimizer."""
    launch("scaler", kind, tmp_path / "found")
    for rank in range(2):
        found = torch.load(tmp_path / f"found-{rank}", weights_only=True)
        for when in ("first", "later"):
            errors = found[when].pop("errors")
            assert all(error < 0.01 for error in errors.values()), errors
        assert found == {
            "first": {"kept": False, "scale": 1.0},
            "pass 0": {"kept": True, "scale": 0.5},
            "pass 1": {"kept": True, "scale": 0.5},
            "later": {"kept": False, "scale": 1.0},
        }
