"""The road from and to fairseq."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_sharp.checkpoints import found
from hf_sharp.translation.checkpoint import load_checkpoint, model_settings, save_checkpoint
from hf_sharp.translation.data import load_tokenizer
from hf_sharp.translation.dictionary import Dictionary
from hf_sharp.translation.files import added, check_new_file, check_new_folder, new_folder
from hf_sharp.translation.model import FairseqTransformer, FairseqTransformerConfig
from hf_sharp.translation.text import Subwords
from hf_sharp.translation.tokenizer import TranslationTokenizer

# What FSMT does not have; the value is what it does.
_UNSUPPORTED: dict[str, Any] = {
    "encoder_normalize_before": False,
    "decoder_normalize_before": False,
    "encoder_learned_pos": False,
    "decoder_learned_pos": False,
    "no_token_positional_embeddings": False,
    "layernorm_embedding": False,
    "no_cross_attention": False,
    "cross_self_attention": False,
    "adaptive_input": False,
    "adaptive_softmax_cutoff": None,
}
_COMPUTED = ("version", "embed_positions._float_tensor")
_TABLES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")
_FROM_FAIRSEQ = {
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "encoder_attention_heads": "encoder_attention_heads",
    "decoder_attention_heads": "decoder_attention_heads",
    "encoder_ffn_embed_dim": "encoder_ffn_dim",
    "decoder_ffn_embed_dim": "decoder_ffn_dim",
    "encoder_embed_dim": "d_model",
    "activation_fn": "activation_function",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
}
_POSITIONS = ("max_source_positions", "max_target_positions")
# What checkpoints of old versions leave out has fairseq's default.
_DEFAULTS: dict[str, Any] = {"activation_fn": "relu", "dropout": 0.1, "attention_dropout": 0.0, "activation_dropout": 0.0}
_DEFAULTS |= dict.fromkeys(_POSITIONS, 1024)


def from_fairseq(
    checkpoint: str | Path,
    source_dictionary: str | Path,
    target_dictionary: str | Path,
    folder: str | Path,
    *,
    merges: str | Path | None = None,
    languages: tuple[str, str] = ("de", "en"),
    moses: bool = True,
    lower: bool = True,
) -> FairseqTransformer:
    """Turn a fairseq Transformer into a folder that ``from_pretrained`` loads, model and tokenizer.

    Args:
        checkpoint: ``checkpoint_*.pt`` of a post-norm Transformer with sinusoidal positions. It is loaded safely, see
            `hf_sharp.translation.checkpoint.load_checkpoint`.
        source_dictionary: ``dict.*.txt`` of the source language.
        target_dictionary: the target language's.
        folder: the model directory, new or empty; it appears whole or not at all.
        merges: subword-nmt's file; without it the tokenizer splits at blanks only.
        languages: source and target.
        moses: whether the tokenizer shall tokenise; False where its input has blanks between tokens.
        lower: whether it shall lower-case.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, unsafe or of another architecture, a dictionary does not fit the model, or the folder
            is not empty.
    """
    check_new_folder(folder, "folder")
    source, target = Dictionary.load(source_dictionary), Dictionary.load(target_dictionary)
    subwords = None if merges is None else Subwords.load(merges)
    state = load_checkpoint(checkpoint)
    weights = {name: w for name, w in state["model"].items() if not name.endswith(_COMPUTED)}
    model = _model(weights, model_settings(state), checkpoint, languages)
    tables = zip(_TABLES, (source, target, target), (source_dictionary, target_dictionary, target_dictionary), strict=True)
    for name, dictionary, file in tables:
        if len(weights[name]) != len(dictionary):
            raise ValueError(
                f"A dictionary must fit the model, got {len(dictionary)} symbols in {file} for the {len(weights[name])} "
                f"rows of {name} in {checkpoint}. Use the dictionaries that the model was trained with."
            )
    with new_folder(folder, "folder") as new:
        tokenizer = TranslationTokenizer.of(new, source, target, subwords, languages=languages, moses=moses, lower=lower)
        model.config.dictionaries = tokenizer.fingerprint
        tokenizer.save_pretrained(new)
        model.save_pretrained(new)
    return model


def to_fairseq(folder: str | Path, checkpoint: str | Path) -> None:
    """Turn a `FairseqTransformer`'s folder into a checkpoint that fairseq loads, with its dictionaries beside it.

    Args:
        folder: with model and tokenizer, as ``save_pretrained`` writes them.
        checkpoint: the new ``.pt``; ``dict.<language>.txt`` are written into its folder, where they must be new as well, or
            the same.

    Raises:
        ValueError: the tokenizer is another model's, the checkpoint is there already, or other dictionaries are beside it.
    """
    check_new_file(checkpoint, "checkpoint")
    if not Path(folder).is_dir():
        raise ValueError(f"folder must be a model's folder, got {str(folder)!r}. Check the path.")
    with found(folder):
        model = FairseqTransformer.from_pretrained(folder)
    tokenizer = load_tokenizer(str(folder))
    tokenizer.check(model.config, folder)
    weights = {name: model.get_parameter(f"model.{name}").detach() for name in _names(model)}
    settings = {theirs: vars(model.config)[ours] for theirs, ours in _FROM_FAIRSEQ.items()}
    settings |= _UNSUPPORTED | {
        "arch": "transformer_iwslt_de_en",
        "task": "translation",
        "criterion": "label_smoothed_cross_entropy",
        "source_lang": tokenizer.languages[0],
        "target_lang": tokenizer.languages[1],
        "data": str(Path(checkpoint).parent),
        "decoder_embed_dim": model.config.d_model,
        "decoder_input_dim": model.config.d_model,
        "decoder_output_dim": model.config.d_model,
        "max_source_positions": model.config.max_position_embeddings,
        "max_target_positions": model.config.max_position_embeddings,
        "share_all_embeddings": model.config.share_embeddings == "all",
        "share_decoder_input_output_embed": model.config.share_embeddings != "none",
        "no_scale_embedding": not model.config.scale_embedding,
        "left_pad_source": True,
        "left_pad_target": False,
    }
    sides = zip(tokenizer.languages, (tokenizer.source, tokenizer.target), strict=True)
    dictionaries = {Path(checkpoint).parent / f"dict.{language}.txt": dictionary for language, dictionary in sides}
    for file, dictionary in dictionaries.items():
        if file.exists() and Dictionary.load(file) != dictionary:
            raise ValueError(
                f"The dictionaries beside the checkpoint must be new or the model's, got another in {file}. "
                "Name a checkpoint in a folder of its own."
            )
    with added(Path(checkpoint).parent) as new:
        for file, dictionary in dictionaries.items():
            if not file.exists():
                dictionary.save(new / file.name)
        save_checkpoint(new / Path(checkpoint).name, weights, settings)


def _names(model: FairseqTransformer) -> list[str]:
    """The parameters by fairseq's names, tied ones each time."""
    return [name.removeprefix("model.") for name, _ in model.named_parameters(remove_duplicate=False)]


def _complete(settings: Mapping[str, Any], checkpoint: str | Path) -> dict[str, Any]:
    """The settings with fairseq's defaults."""
    given = _DEFAULTS | dict(settings)
    for name in (*_FROM_FAIRSEQ, *_POSITIONS):
        kinds = str if name == "activation_fn" else int | float if name.endswith("dropout") else int
        if not isinstance(given.get(name), kinds):
            raise ValueError(
                f"A checkpoint must hold the settings of its model, got {name}={given.get(name)!r} in {checkpoint}. "
                "Use a checkpoint_*.pt as fairseq-train wrote it."
            )
    return given


def _model(
    weights: Mapping[str, Tensor], settings: Mapping[str, Any], checkpoint: str | Path, languages: tuple[str, str]
) -> FairseqTransformer:
    """The model with these weights."""
    if not any(".self_attn." in name for name in weights):
        arch = settings.get("arch", settings.get("_name", "another"))
        raise ValueError(
            f"A checkpoint must be of a Transformer, got {arch} in {checkpoint}. Other models cannot be converted."
        )
    for name, value in _UNSUPPORTED.items():
        if settings.get(name, value) != value:
            raise ValueError(
                f"A checkpoint must be of a post-norm Transformer with sinusoidal positions, got {name}={settings[name]!r} "
                f"in {checkpoint}. Models with it cannot be converted."
            )
    for name in _TABLES:
        if name not in weights:
            raise ValueError(
                f"A checkpoint must be of fairseq 0.10 or newer, got one without {name} in {checkpoint}. "
                "Load and save it with a newer fairseq."
            )
    given = _complete(settings, checkpoint)
    known: dict[str, Any] = {ours: given[theirs] for theirs, ours in _FROM_FAIRSEQ.items()}
    share = "none"
    if torch.equal(weights[_TABLES[1]], weights[_TABLES[2]]) and settings.get("share_decoder_input_output_embed"):
        share = "all" if settings.get("share_all_embeddings") else "decoder"
    config = FairseqTransformerConfig(
        src_vocab_size=len(weights[_TABLES[0]]),
        tgt_vocab_size=len(weights[_TABLES[1]]),
        max_position_embeddings=min(given[name] for name in _POSITIONS),
        scale_embedding=not settings.get("no_scale_embedding", False),
        share_embeddings=share,
        langs=list(languages),
        **known,
    )
    model = FairseqTransformer(config).eval()
    expected = _names(model)
    if set(expected) != weights.keys():
        odd = sorted(set(expected) ^ weights.keys())[0]
        raise ValueError(
            f"A checkpoint must have the weights that its settings say, got {odd!r} only "
            f"{'in' if odd in weights else 'outside of'} {checkpoint}. It is of another architecture."
        )
    for name in expected:
        has, fits = tuple(weights[name].shape), tuple(model.get_parameter(f"model.{name}").shape)
        if has != fits:
            raise ValueError(
                f"A checkpoint must have the weights that its settings say, got {name} of shape {has} instead of {fits} in "
                f"{checkpoint}. It is of another architecture."
            )
    model.load_state_dict({f"model.{name}": weights[name] for name in expected})
    return model
