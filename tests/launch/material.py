"""What the scripts of `tests.launch.scripts` train on: tiny models, a tokenizer and files, and the flags that name them."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForPreTraining,
    GPT2Config,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTModel,
)

from tests.models import seeded

SCRIPTS = Path(__file__).parent / "scripts"
NOUNS, VERBS = ["dog", "cat", "bird", "horse"], ["runs", "sleeps", "eats", "sings"]
BRIGHT, DARK = ["red", "yellow", "white"], ["black", "brown", "grey"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, "the", "what", "does", "do", *NOUNS, *VERBS, *BRIGHT, *DARK]
SPLITS = {"train": 16, "validation": 6, "test": 5}
NAMES = ("clm", "glue", "image_classification", "mlm", "qa", "summarization", "translation")


def material(folder: Path) -> dict[str, list[str]]:
    """Write everything into a folder, and return the flags of each script."""
    words = tokenizer()
    size = {"vocab_size": len(VOCABULARY), "pad_token_id": 0}
    bert = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, max_position_embeddings=24, **size
    )
    bart = BartConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=24,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=3,
        forced_eos_token_id=3,
        **size,
    )
    vit = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4
    )
    gpt2 = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=24, bos_token_id=2, eos_token_id=3, **size)
    built: dict[str, Any] = {
        "bert": seeded(lambda: BertForPreTraining(bert)),
        "bart": seeded(lambda: BartForConditionalGeneration(bart)),
        "vit": seeded(lambda: ViTModel(vit)),
    }
    for name, model in built.items():
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    gpt2.save_pretrained(folder / "gpt2")
    _write_texts(folder)
    _write_images(folder)
    return _flags(folder)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="[SEP]", **named)


def _write_texts(folder: Path) -> None:
    stream = random.Random(0)
    for split, count in SPLITS.items():
        rows = []
        for i in range(count):
            color, noun, verb = stream.choice([BRIGHT, DARK][i % 2]), stream.choice(NOUNS), stream.choice(VERBS)
            rows.append((f"the {color} {noun} {verb}", ["bright", "dark"][i % 2], noun, verb))
        _lines(folder / f"{split}.glue.json", [{"sentence": text, "label": label} for text, label, _, _ in rows])
        pairs = [{"translation": {"de": " ".join(reversed(text.split())), "en": text}} for text, *_ in rows]
        _lines(folder / f"{split}.translation.json", pairs)
        (folder / f"{split}.txt").write_text("\n".join(text for text, *_ in rows) + "\n")
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "summary"), *((text, f"{noun} {verb}") for text, _, noun, verb in rows)])
        data = [
            {
                "id": str(i),
                "question": f"what does the {noun} do",
                "context": text,
                "answers": {"text": [verb], "answer_start": [text.index(verb)]},
            }
            for i, (text, _, noun, verb) in enumerate(rows)
        ]
        (folder / f"{split}.qa.json").write_text(json.dumps({"data": data}))


def _lines(file: Path, rows: list[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_images(folder: Path) -> None:
    stream = np.random.default_rng(0)
    for split in ("train", "validation"):
        for i in range(SPLITS[split]):
            label, low = [("dark", 0), ("light", 128)][i % 2]
            home = folder / "images" / split / label
            home.mkdir(parents=True, exist_ok=True)
            pixels = stream.integers(low, low + 128, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(home / f"{i}.png")


def _flags(folder: Path) -> dict[str, list[str]]:
    def files(ending: str, *splits: str) -> list[str]:
        return [word for split in splits for word in (f"--{split}_file", str(folder / f"{split}.{ending}"))]

    def model(name: str) -> list[str]:
        return ["--model_name_or_path", str(folder / name)]

    two, three = ("train", "validation"), ("train", "validation", "test")
    generated = ["--do_predict", "--predict_with_generate", "--generation_max_length", "8", "--generation_num_beams", "2"]
    images = [word for split in two for word in (f"--{split}_dir", str(folder / "images" / split))]
    given = {
        "glue": [*model("bert"), *files("glue.json", *three), "--do_predict"],
        "qa": [*model("bert"), *files("qa.json", *two)],
        "mlm": [*model("bert"), *files("txt", *two), "--gradient_accumulation_steps", "2"],
        "clm": [
            *["--config_name", str(folder / "gpt2"), "--tokenizer_name", str(folder / "bert")],
            *files("txt", *two),
            *["--max_seq_length", "6"],
        ],
        "translation": [*model("bart"), *files("translation.json", *three), *generated],
        "summarization": [*model("bart"), *files("csv", *two), *generated[1:], "--label_smoothing_factor", "0.1"],
        "image_classification": [*model("vit"), *images, "--remove_unused_columns", "False"],
    }
    usual = {
        "cache_dir": folder / "cache",
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }
    shared = [word for name, value in usual.items() for word in (f"--{name}", str(value))]
    return {name: [*given[name], *shared, "--do_train", "--do_eval"] for name in NAMES}
