"""Opening a model's loss for measurement, on one process or many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_sharp.backends.fsdp import reshard
from hf_sharp.measure.batches import Batches, Count, count_next_tokens, read
from hf_sharp.measure.ranks import Ranks
from hf_sharp.measure.settings import How, LossOf, model_loss
from hf_sharp.measure.soundness import look, look_again
from hf_sharp.measure.stillness import check_precision, still
from hf_sharp.measure.surface import Surface
from hf_sharp.methods.checks import whole


@contextmanager
def loss_surface(
    model: nn.Module,
    loader: Iterable[Any] | Batches,
    *,
    how: How | None = None,
    loss_of: LossOf = model_loss,
    samples: int | None = None,
    count: Count | None = None,
    check: bool = True,
) -> Iterator[Surface]:
    """The loss of a model on a loader, to be asked inside the context; outside, the model is as it was.

    Where torch.distributed runs, all processes of the default group must enter it: each takes every n-th batch, and all get
    the same answers, those of one process.

    Args:
        model: in float32 or float64; wrappers of accelerate are taken off. Its weights may be sharded by FSDP2; then
            Hessian products are differences, and there are no groups of samples.
        loader: the batches, see `hf_sharp.measure.batches.read`; or `Batches` that were read.
        how: how the loss is taken; None: ``How()``.
        loss_of: the mean loss of one batch; by default the model's own.
        samples: read whole batches until there are this many; None: all.
        count: how many terms a batch's loss is the mean of; by default samples, or labels where each token has one.
        check: whether to make sure that the loss is finite, and that two looks at one place see the same one; costs a
            forward pass and two of one batch.

    Raises:
        ValueError: the loader is empty, the model has no loss, or its loss is not a function of the weights.
        UndefinedError: the loss at the weights is not finite; a ValueError too.
    """
    if samples is not None:
        whole(1, "samples", samples)
    how, ranks = how or How(), Ranks.present()
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "Weights must be in memory to be moved, got those of DeepSpeed ZeRO-3. Measure the saved checkpoint."
        )
    reshard(model.modules())
    check_precision(model)
    if count is None and isinstance(model, PreTrainedModel) and model.loss_type == "ForCausalLM":
        count = count_next_tokens
    with still(model, how.statistics):
        batches = loader if isinstance(loader, Batches) else read(loader, ranks, samples=samples, count=count)
        made = Surface(model, batches, loss_of, how, ranks)
        if check:
            look(made)
            look_again(made)
        try:
            yield made
        finally:
            made.release()
