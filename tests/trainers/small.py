"""A tokenizer, texts and trainings for the Trainers of other libraries; and a SAM step written by hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer

from tests.models import reseed, seeded, snapshot, streams

WORDS = [f"w{i}" for i in range(20)]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
_CLOCKS = ("_runtime", "_samples_per_second", "_steps_per_second")


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word."""
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )


def text(stream: random.Random, low: int = 3, high: int = 7) -> str:
    """Some words."""
    return " ".join(stream.choices(WORDS, k=stream.randint(low, high)))


def texts(count: int, *columns: str, seed: int = 0) -> Dataset:
    """A data set with columns of texts of different lengths."""
    stream = random.Random(seed)
    return Dataset.from_dict({column: [text(stream) + " " for _ in range(count)] for column in columns})


def decoder(dropout: float = 0.1, kind: type[Any] = LlamaForCausalLM, **changed: Any) -> Any:
    """A small Llama over the tokenizer's words."""
    config = LlamaConfig(
        vocab_size=len(WORDS) + len(SPECIAL),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        attention_dropout=dropout,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        **changed,
    )
    return seeded(lambda: kind(config))


def usual(folder: Any, **changed: Any) -> dict[str, Any]:
    """Training arguments for the CPU that write nothing and ask no hub, for any library's subclass."""
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "per_device_train_batch_size": 2,
        "learning_rate": 0.01,
        "max_steps": 3,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        **changed,
    }


def end_of(trainer: Trainer) -> dict[str, Any]:
    """All that a training leaves behind, without clocks and our own scalars."""
    reseed(0)
    trainer.train()
    assert trainer.model is not None
    logs = [
        {key: value for key, value in entry.items() if not key.endswith(_CLOCKS) and not key.startswith("sharpness/")}
        for entry in trainer.state.log_history
    ]
    optimizer: Any = trainer.optimizer
    return {"model": snapshot(trainer.model), "logs": logs, "optimizer": optimizer.state_dict(), "streams": streams()}


def trained_batches(trainer: Trainer) -> list[dict[str, Tensor]]:
    """Train, and return what each step was given."""
    batches: list[dict[str, Tensor]] = []
    training_step = trainer.training_step

    def step(model: nn.Module, inputs: dict[str, Tensor], *args: Any) -> Tensor:
        batches.append(dict(inputs))
        return training_step(model, inputs, *args)

    trainer.training_step = step  # type: ignore[method-assign, assignment]
    trainer.train()
    return batches


def sam_step(model: nn.Module, loss_of: Callable[[], Tensor], *, rho: float, lr: float) -> None:
    """One textbook step: the gradient at w + rho g / (|g| + 1e-12) moves w."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    old = [p.detach().clone() for p in parameters]
    g = torch.autograd.grad(loss_of(), parameters, allow_unused=True)
    norm = torch.sqrt(sum(((x**2).sum() for x in g if x is not None), start=torch.zeros(()))) + 1e-12
    with torch.no_grad():
        for p, x in zip(parameters, g, strict=True):
            if x is not None:
                p += rho * x / norm
    shifted = torch.autograd.grad(loss_of(), parameters, allow_unused=True)
    with torch.no_grad():
        for p, w, x in zip(parameters, old, shifted, strict=True):
            p.copy_(w if x is None else w - lr * x)


def gap(these: Mapping[str, Tensor], those: Mapping[str, Tensor]) -> float:
    """The largest difference between two sets of weights."""
    assert these.keys() == those.keys()
    return max(float((these[name].double() - those[name].double()).abs().max()) for name in these)
