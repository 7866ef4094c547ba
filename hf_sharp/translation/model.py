"""fairseq's Transformer as a Hugging Face model."""

from __future__ import annotations

import math
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    FSMTConfig,
    FSMTForConditionalGeneration,
    GenerationConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.models.fsmt.modeling_fsmt import Attention, FSMTDecoder, FSMTEncoder, FSMTModel

from hf_sharp.methods.checks import between
from hf_sharp.translation.layers import DecoderLayer, EncoderLayer, make_checkpointable
from hf_sharp.translation.positions import SinusoidalPositions

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"layers": 2, "width": 128, "inner": 256, "heads": 4},
    "small": {"layers": 3, "width": 256, "inner": 512, "heads": 4},
    "iwslt": {"layers": 6, "width": 512, "inner": 1024, "heads": 4},
}
SHARED = ("all", "decoder", "none")
PAD, EOS, IGNORED = 1, 2, -100
_CACHES = ("cache", "past_key_values")  # as FSMT calls it, and did before transformers 5.24
_OUTPUT = "decoder.output_projection.weight"
_TIED = {"none": [], "decoder": [_OUTPUT], "all": [_OUTPUT, "encoder.embed_tokens.weight"]}


@strict
class FairseqTransformerConfig(FSMTConfig):
    """The shape of a `FairseqTransformer`.

    Beside FSMT's own fields:

    Attributes:
        share_embeddings: which embedding tables are one: ``"decoder"`` (the decoder's input and output, as in fairseq's
            IWSLT model), ``"all"`` (the encoder's, too; both languages then have one dictionary) or ``"none"``.
        dictionaries: the fingerprint of the dictionaries whose numbers the model takes and gives, as
            `TranslationTokenizer.fingerprint`; None where it is not known.

    Raises:
        ValueError: the field has another value, all tables are shared between dictionaries of unequal size, or a dropout is
            no probability.
    """

    model_type = "fairseq_transformer"
    share_embeddings: str = "decoder"
    dictionaries: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Checks what the embedding tables share, and the dropouts."""
        if self.share_embeddings not in SHARED:
            raise ValueError(
                f"share_embeddings must be one of {', '.join(SHARED)}, got {self.share_embeddings!r}. Use 'decoder'."
            )
        if self.share_embeddings == "all" and self.src_vocab_size != self.tgt_vocab_size:
            raise ValueError(
                "share_embeddings='all' needs one dictionary for both languages, got "
                f"{self.src_vocab_size} and {self.tgt_vocab_size} symbols. Make a joint one, or use 'decoder'."
            )
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            between(0, 1, name, vars(self)[name], example="0.3")
        for side, heads in (("encoder", self.encoder_attention_heads), ("decoder", self.decoder_attention_heads)):
            if heads < 1 or self.d_model % heads:
                raise ValueError(
                    f"{side}_attention_heads must divide the width, got {heads} for d_model={self.d_model}. Use e.g. 4."
                )
        self.tie_word_embeddings = self.share_embeddings != "none"
        self.max_length = min(self.max_length, self.max_position_embeddings)  # of what generate() makes by default
        super().__post_init__(**kwargs)

    @classmethod
    def of_size(cls, size: str, source: int, target: int, **fields: Any) -> FairseqTransformerConfig:
        """A config of one of the three `SIZES`.

        Args:
            size: ``tiny`` (2+2 layers of 128), ``small`` (3+3 of 256) or ``iwslt`` (6+6 of 512, as
                ``transformer_iwslt_de_en``).
            source: symbols in the source dictionary.
            target: symbols in the target dictionary.
            **fields: any field of the config, e.g. ``dropout=0.3``.
        """
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}. Use 'iwslt' for the papers' model.")
        shape = SIZES[size]
        return cls(
            src_vocab_size=source,
            tgt_vocab_size=target,
            d_model=shape["width"],
            encoder_layers=shape["layers"],
            decoder_layers=shape["layers"],
            encoder_ffn_dim=shape["inner"],
            decoder_ffn_dim=shape["inner"],
            encoder_attention_heads=shape["heads"],
            decoder_attention_heads=shape["heads"],
            **fields,
        )


class _Initialised(PreTrainedModel):
    """Lets ``_init_weights`` see modules without weights of their own, which Transformers skips in code outside of it."""

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        super()._initialize_weights(module, is_custom_code=False)


class FairseqTransformerModel(_Initialised, FSMTModel):
    """Encoder and decoder, with the positions, the shared tables and the initialisation of fairseq."""

    config_class = FairseqTransformerConfig
    config: FairseqTransformerConfig
    supports_gradient_checkpointing = True

    def __init__(self, config: FairseqTransformerConfig) -> None:
        super(FSMTModel, self).__init__(config)  # FSMTModel's own would fill and tie what is replaced here
        self.encoder, self.decoder = FSMTEncoder(config), FSMTDecoder(config)
        for side in (self.encoder, self.decoder):
            positions = SinusoidalPositions(config.max_position_embeddings, config.d_model, PAD)
            side.embed_positions = positions  # type: ignore[assignment]
            make_checkpointable(side.layers)
        self._tied_weights_keys = dict.fromkeys(_TIED[config.share_embeddings], "decoder.embed_tokens.weight")
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialises as fairseq does; a module comes after its children, so it has the last word on them."""
        super()._init_weights(module)
        width = self.config.d_model
        if isinstance(module, SinusoidalPositions):
            init.copy_(module.table, module.computed())
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=width**-0.5)
            if "_is_hf_initialized" not in vars(module.weight):  # Transformers' mark on what it has loaded
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, Attention):
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                init.xavier_uniform_(projection.weight, gain=1 / math.sqrt(2))
                _uniform_bias(projection)
            init.xavier_uniform_(module.out_proj.weight)
        elif isinstance(module, EncoderLayer | DecoderLayer):
            for linear in (module.fc1, module.fc2):
                init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
                _uniform_bias(linear)
        elif isinstance(module, FSMTDecoder) and self.config.share_embeddings == "none":
            init.normal_(module.output_projection.weight, std=width**-0.5)


class FairseqTransformer(_Initialised, FSMTForConditionalGeneration):
    """fairseq's post-norm Transformer for translation: FSMT with fairseq's tables, positions and initialisation.

    With a fairseq checkpoint's weights it gives fairseq's logits. Three things differ from FSMT: the embedding tables are
    shared as the config says, the sinusoidal positions are computed and not trained, and ``labels`` are the targets, as in
    other models of Transformers (padded with -100, left as they are).
    """

    config_class = FairseqTransformerConfig
    config: FairseqTransformerConfig
    # What FSDP shards one by one.
    _no_split_modules: set[str] | list[str] | None = ["EncoderLayer", "DecoderLayer"]  # noqa: RUF012 - Transformers' form
    supports_gradient_checkpointing = True

    def __init__(self, config: FairseqTransformerConfig) -> None:
        super(FSMTForConditionalGeneration, self).__init__(config)
        self.model = FairseqTransformerModel(config)
        self.post_init()

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """FSMT's, but for ``labels`` and the causal mask.

        Args:
            input_ids: source tokens, (batch, source length).
            attention_mask: 1 at tokens, 0 at padding, (batch, source length).
            decoder_input_ids: the target shifted right, (batch, target length); made from the labels where missing.
            labels: target tokens, (batch, target length), -100 where there is none.
            **kwargs: FSMT's other arguments.

        Returns:
            ``logits`` (batch, target length, target symbols), and with labels ``loss``: their mean negative log-likelihood
            per token, in nats.
        """
        if labels is not None and decoder_input_ids is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        cached = any(kwargs.get(name) is not None for name in _CACHES)
        if not cached and decoder_input_ids is not None and decoder_input_ids.size(1) > 1:
            kwargs["use_cache"] = False  # FSMT drops the causal mask where it caches
        output = super().forward(input_ids, attention_mask, decoder_input_ids, **kwargs)
        if labels is None:
            return output
        logits = output[0]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)
        if isinstance(output, tuple):
            return (loss, *output)
        output.loss = loss
        return output

    def get_input_embeddings(self) -> nn.Module | None:  # type: ignore[override]
        """The source's table; None where it is the target's, too.

        FSDP shards what this and `get_output_embeddings` give by itself, apart from the rest, and a table that several
        modules share must not be in two such groups.
        """
        return None if self.config.share_embeddings == "all" else self.model.encoder.embed_tokens

    def get_output_embeddings(self) -> nn.Module | None:
        """The output's table; None where another module shares it."""
        return self.model.decoder.output_projection if self.config.share_embeddings == "none" else None

    def _validate_generated_length(
        self, generation_config: GenerationConfig, input_ids_length: int, has_default_max_length: bool
    ) -> None:
        """Also refuses translations that are longer than the positions, before the first token is made."""
        positions = self.config.max_position_embeddings
        if generation_config.max_length > positions + 1:  # the last token is not read
            raise ValueError(
                f"A translation must fit the model's {positions} positions, got max_length={generation_config.max_length}. "
                f"Pass max_new_tokens of at most {positions}."
            )
        super()._validate_generated_length(  # type: ignore[misc]
            generation_config, input_ids_length, has_default_max_length
        )

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """The labels shifted right behind ``</s>``, with padding in place of -100; the labels stay as they are."""
        shifted = labels.roll(1, dims=1)
        shifted[:, 0] = EOS
        return shifted.masked_fill(shifted == IGNORED, PAD)


def _uniform_bias(linear: nn.Linear) -> None:
    """PyTorch's default for biases, which fairseq leaves in these places."""
    bound = 1 / math.sqrt(linear.in_features)
    init.uniform_(linear.bias, -bound, bound)


AutoConfig.register(FairseqTransformerConfig.model_type, FairseqTransformerConfig, exist_ok=True)
AutoModel.register(FairseqTransformerConfig, FairseqTransformerModel, exist_ok=True)
AutoModelForSeq2SeqLM.register(FairseqTransformerConfig, FairseqTransformer, exist_ok=True)
