"""Small models with dropout on, data for them, one instance of every method, and what tests compare bit for bit."""

from __future__ import annotations

import atexit
import gc
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from hf_sharp import (
    ASAM,
    CRSAM,
    GAM,
    GSAM,
    LPF,
    RGSAM,
    RSAM,
    SAM,
    AbstractMethod,
    AcceleratedGAM,
    Cosine,
    Decayed,
    During,
    Every,
    Linear,
)

CLASSES = 3
VOCABULARY = 24
LENGTH = 7
FEATURES = 6
_PAD = 1

Row = dict[str, Tensor]

# Each training begins with a garbage collection, which takes half a second over all that the imports left.
gc.freeze()
atexit.register(gc.unfreeze)


class Mixed(PreTrainedModel):
    """A classifier with BatchNorm and dropout; the smallest model on which neutrality can break."""

    config_class = PreTrainedConfig

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.first = nn.Linear(FEATURES, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(8, CLASSES)
        self.post_init()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.last(self.dropout(nn.functional.gelu(self.norm(self.first(x)))))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Restless(Mixed):
    """`Mixed`, which also draws from numpy's and Python's random streams in training, and remembers what it drew."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.drawn: list[tuple[float, float]] = []

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        if self.training:
            self.drawn.append((float(np.random.standard_normal()), random.random()))
            x = x * (1.0 + 0.1 * self.drawn[-1][0]) + 0.1 * self.drawn[-1][1]
        return super().forward(x, labels)


def mixed() -> Mixed:
    """A seeded `Mixed`."""
    return seeded(lambda: Mixed(PreTrainedConfig()))


def restless() -> Restless:
    """A seeded `Restless`."""
    return seeded(lambda: Restless(PreTrainedConfig()))


def vit(attention: str = "sdpa", dropout: float = 0.1) -> nn.Module:
    """A ViT of one layer for 8x8 images."""
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        num_labels=CLASSES,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        attn_implementation=attention,
    )
    return seeded(lambda: ViTForImageClassification(config))


def bart() -> nn.Module:
    """A BART of one encoder and one decoder layer; its three embedding tables are one parameter."""
    config = BartConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=16,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        dropout=0.1,
        attention_dropout=0.1,
        activation_dropout=0.1,
        bos_token_id=0,
        pad_token_id=_PAD,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )
    return seeded(lambda: BartForConditionalGeneration(config))


def llama(attention: str = "sdpa", dropout: float = 0.1) -> nn.Module:
    """A Llama of two layers whose embedding is tied to its output layer, with dropout in the attention."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        attention_dropout=dropout,
        tie_word_embeddings=True,
        bos_token_id=0,
        pad_token_id=_PAD,
        eos_token_id=2,
        use_cache=False,
        attn_implementation=attention,
    )
    return seeded(lambda: LlamaForCausalLM(config))


def resnet() -> nn.Module:
    """A ResNet of two blocks with BatchNorm, and with dropout before its classifier."""
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=CLASSES)
    model = seeded(lambda: ResNetForImageClassification(config))
    model.classifier.insert(1, nn.Dropout(0.1))
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {"vit": vit, "bart": bart, "llama": llama, "resnet": resnet}


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> Any:
    """What ``build`` returns, from a random stream of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().train()


def rows(name: str, count: int, seed: int = 0) -> list[Row]:
    """A random data set for one of the models; the same for the same seed."""
    stream = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=stream)

    def whole(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=stream)

    def row() -> Row:
        if name in ("vit", "resnet"):
            return {"pixel_values": normal(3, 8, 8), "labels": whole(0, CLASSES)}
        if name == "bart":
            labels = whole(3, VOCABULARY, LENGTH)
            labels[-1] = -100
            return {"input_ids": whole(3, VOCABULARY, LENGTH), "labels": labels}
        if name == "llama":
            tokens = whole(3, VOCABULARY, LENGTH)
            return {"input_ids": tokens, "labels": tokens.clone()}
        return {"x": normal(FEATURES), "labels": whole(0, CLASSES)}

    return [row() for _ in range(count)]


def collated(some: Iterable[Row]) -> Row:
    """One batch."""
    some = list(some)
    return {key: torch.stack([row[key] for row in some]) for key in some[0]}


def loss_of(model: nn.Module) -> Callable[[Row], Tensor]:
    """The loss of a batch, as a bare loop takes it."""
    return lambda batch: model(**batch)["loss"]


def all_methods() -> dict[str, AbstractMethod]:
    """One sensible instance of every entry of ``METHODS``; those that take a method or a schedule have one inside."""
    return {
        "sam": SAM(rho=0.05),
        "asam": ASAM(rho=0.5),
        "rsam": RSAM(rho=0.05, gamma=Cosine(0.02, 0.05)),
        "gsam": GSAM(rho=0.05, alpha=0.4, rho_min=0.01),
        "rgsam": RGSAM(rho=0.05, gamma=0.02, lam=2.0, alpha=0.3),
        "crsam": CRSAM(rho=0.1),
        "crsam_log": CRSAM(rho=0.1, alpha=0.001, beta=0.0001, log=True),
        "gam": GAM(rho=0.1),
        "gam_exact": GAM(rho=0.1, hvp="exact", base=GSAM(rho=0.05)),
        "accelerated_gam": AcceleratedGAM(rho=0.2),
        "lpf": LPF(gamma=0.05, draws=3),
        "every": Every(2, GAM(rho=0.1, base=SAM(rho=0.05)), otherwise=RSAM(rho=0.05, gamma=0.02)),
        "during": During(RSAM(rho=Linear(0.1, 0.02), gamma=0.02), stop=0.5, otherwise=SAM(rho=0.02)),
        "decayed": Decayed(ASAM(rho=0.5), weight_decay=0.01),
    }


def neutral_methods() -> dict[str, AbstractMethod]:
    """Every setting that is promised to be the plain gradient."""
    return {
        "sam": SAM(rho=0),
        "asam": ASAM(rho=0),
        "rsam": RSAM(rho=0, gamma=0),
        "gsam": GSAM(rho=0, alpha=0),
        "rgsam": RGSAM(rho=0, gamma=0, lam=2, alpha=0),
        "crsam": CRSAM(rho=0),
        "crsam_log": CRSAM(rho=0, log=True),
        "gam": GAM(alpha=0),
        "accelerated_gam": AcceleratedGAM(rho=0, step=0, a=1, gamma=0),
        "lpf": LPF(gamma=0, draws=1),
        "every": Every(1000, SAM(rho=0.1), offset=999),
        "during": During(SAM(rho=0.1), start=0.9999),
        "decayed": Decayed(SAM(rho=0), 0.0),
    }


def arguments(folder: Path, **changed: Any) -> TrainingArguments:
    """Training arguments for the CPU that write nothing unless asked."""
    usual: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 8,
        "learning_rate": 0.01,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "remove_unused_columns": False,
    }
    return TrainingArguments(**{**usual, **changed})


def bits(x: Tensor) -> bytes:
    """The bits of a tensor: tells -0.0 from 0.0, and one NaN equals the same NaN."""
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested states are not the same bits; empty where they are."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return [f"{path}: {a.dtype} of {tuple(a.shape)} != {b.dtype} of {tuple(b.shape)}"]
        # not the entries: printing them takes longer than all else, where differences are looked for
        return [] if bits(a) == bits(b) else [f"{path}: other bits, {int((a != b).sum())} of {a.numel()} entries differ"]
    if isinstance(a, np.ndarray):
        return [] if np.array_equal(a, b) else [f"{path}: arrays differ"]
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if list(a) != list(b):
            return [f"{path}: keys {list(a)} != {list(b)}"]
        return [line for key in a for line in differences(a[key], b[key], f"{path}[{key!r}]")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [f"{path}: lengths {len(a)} != {len(b)}"]
        return [line for i, (x, y) in enumerate(zip(a, b, strict=True)) for line in differences(x, y, f"{path}[{i}]")]
    return [] if a == b or (a != a and b != b) else [f"{path}: {a!r} != {b!r}"]


def streams() -> dict[str, Any]:
    """Where the random streams of torch, numpy and Python stand."""
    return {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}


def reseed(seed: int) -> None:
    """Put all three random streams to a known place."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all weights and buffers, those outside the state dict included."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}
