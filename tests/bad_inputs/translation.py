"""Bad input to the translation parts: data, dictionaries, checkpoints, models, searches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import Seq2SeqTrainingArguments

from hf_sharp.translation.averaging import last_checkpoints, load_average
from hf_sharp.translation.batches import TokenBatchSampler, token_batches
from hf_sharp.translation.binarized import IndexedTokens, load_binarized
from hf_sharp.translation.checkpoint import load_checkpoint
from hf_sharp.translation.configuration import flags
from hf_sharp.translation.conversion import from_fairseq, to_fairseq
from hf_sharp.translation.data import check_tokenizer, load_data, load_tokenizer
from hf_sharp.translation.dictionary import Dictionary
from hf_sharp.translation.iwslt14 import PUBLISHED, load_iwslt14
from hf_sharp.translation.learning_rate import inverse_sqrt
from hf_sharp.translation.loss import LabelSmoothing
from hf_sharp.translation.model import FairseqTransformer, FairseqTransformerConfig
from hf_sharp.translation.pairs import TextSettings, encoded, load_pairs
from hf_sharp.translation.preprocessed import load_preprocessed
from hf_sharp.translation.search import BeamSearch
from hf_sharp.translation.text import Subwords
from hf_sharp.translation.tokenizer import TranslationTokenizer
from hf_sharp.translation.trainer import TranslationTrainer
from tests.bad_inputs.cases import Cases, written
from tests.translation.cases import DATA, converted, pairs_of_numbers, small_model, write_memory_mapped

DICTIONARY = (DATA / "decoder" / "dict.de.txt").read_text(encoding="utf-8")[:40]


def tokenizer(folder: Path) -> TranslationTokenizer:
    words = Dictionary.of(["ein one"])
    return TranslationTokenizer.of(folder / "t", words, words, None, languages=("de", "en"), moses=False, lower=True)


def cut_index(folder: Path) -> None:
    for suffix in (".idx", ".bin"):
        written(
            folder / f"x{suffix}",
            (DATA / "decoder" / f"test.de-en.de{suffix}").read_bytes()[: 100 if suffix == ".idx" else None],
        )
    IndexedTokens(folder / "x")


def other_dictionary(folder: Path) -> None:
    files = DATA / "decoder"
    from_fairseq(files / "checkpoint.pt", files / "dict.en.txt", files / "dict.de.txt", "model")


def binarized(folder: Path) -> Path:
    """Binarised data with dictionaries that are too small for it."""
    for file in (DATA / "decoder").glob("test.*"):
        written(folder / file.name, file.read_bytes())
    for language in ("de", "en", "fr"):
        Dictionary.of(["a"], multiple=1).save(folder / f"dict.{language}.txt")
    return folder


def pre_norm(folder: Path) -> None:
    state = torch.load(DATA / "all" / "checkpoint.pt", weights_only=False)
    state["cfg"]["model"].encoder_normalize_before = True
    torch.save(state, folder / "c.pt")
    from_fairseq(folder / "c.pt", DATA / "all" / "dict.de.txt", DATA / "all" / "dict.en.txt", "model")


def other_tokenizer(folder: Path) -> None:
    converted("decoder", folder / "model")
    tokenizer(folder).save_pretrained(folder / "model")
    to_fairseq(folder / "model", "back.pt")


def same_size(folder: Path) -> None:
    """A tokenizer that differs from the model's by the order of two symbols."""
    converted("decoder", folder / "model")
    file = folder / "model" / "dict.source.txt"
    first, second, *rest = file.read_text(encoding="utf-8").splitlines(keepends=True)
    written(file, "".join([second, first, *rest]))
    to_fairseq(folder / "model", "back.pt")


def saved_set(folder: Path, row: dict[str, Any], splits: tuple[str, ...] = ("train", "validation", "test")) -> str:
    for split in splits:
        (folder / "set").mkdir(exist_ok=True)
        Dataset.from_list([row]).to_parquet(folder / "set" / f"{split}.parquet")
    return str(folder / "set")


def pairs_with(source: str | None) -> Dataset:
    return Dataset.from_list([{"translation": {"de": "ein", "en": "one"}}, {"translation": {"de": source, "en": "one"}}])


def binarized_test(folder: Path, sources: list[list[int]]) -> Path:
    """A folder of fairseq-preprocess with nothing but a test set."""
    for language, rows in (("de", sources), ("en", [[4, 2]] * len(sources))):
        Dictionary.of(["a"], multiple=1).save(folder / f"dict.{language}.txt")
        write_memory_mapped(folder / f"test.de-en.{language}", rows, "u2")
    return folder


def changed_settings(folder: Path, **settings: object) -> None:
    """A checkpoint whose settings were edited."""
    state = torch.load(DATA / "all" / "checkpoint.pt", weights_only=False)
    vars(state["cfg"]["model"]).update(settings)
    torch.save(state, folder / "c.pt")
    from_fairseq(folder / "c.pt", DATA / "all" / "dict.de.txt", DATA / "all" / "dict.en.txt", "model")


def not_a_number() -> FairseqTransformer:
    model = small_model()
    torch.nn.init.constant_(model.model.decoder.output_projection.weight, float("nan"))
    return model


def arguments(**given: Any) -> Seq2SeqTrainingArguments:
    return Seq2SeqTrainingArguments(".", use_cpu=True, report_to="none", **given)


def trainer(data: Any, **given: Any) -> TranslationTrainer:
    return TranslationTrainer(small_model(), arguments(**given), train_dataset=data)


CASES: Cases = [
    (
        lambda f: load_iwslt14(f / "de-en.tgz"),
        f"The IWSLT'14 archive must be an existing file or folder, got '{{f}}/de-en.tgz'. Fetch it from {PUBLISHED}.",
    ),
    (
        lambda f: load_iwslt14(f),
        f"The IWSLT'14 archive must hold train.tags.de-en.de, got none in {{f}}. Fetch it from {PUBLISHED}.",
    ),
    (
        cut_index,
        "An .idx file must be whole, got 100 bytes of at least 282 in {f}/x.idx. "
        "Copy it anew, or run fairseq-preprocess again.",
    ),
    (
        lambda f: (written(f / "x.idx", b"HUFFIDX\x00\x00"), written(f / "x.bin"), IndexedTokens(f / "x")),
        "An .idx file must be fairseq's mmap, cached or lazy format, got one that starts with "
        "b'HUFFIDX\\x00\\x00' in {f}/x.idx. "
        "Run fairseq-preprocess with --dataset-impl mmap.",
    ),
    (
        lambda f: IndexedTokens(f / "x"),
        "A binarised data set needs a .bin and an .idx file, got no {f}/x.idx. Run fairseq-preprocess again.",
    ),
    (
        lambda f: load_binarized(binarized(f), "de", "en"),
        "A data set must fit its dictionary, got the number 34 for 5 symbols in {f}/test.de-en.de.bin. "
        "Use the dict.*.txt from the same folder.",
    ),
    (
        other_dictionary,
        f"A dictionary must fit the model, got 36 symbols in {DATA}/decoder/dict.en.txt for the 35 rows of "
        f"encoder.embed_tokens.weight in {DATA}/decoder/checkpoint.pt. "
        "Use the dictionaries that the model was trained with.",
    ),
    (
        lambda f: Dictionary.load(written(f / "d.txt", "a 1\nb\n")),
        "A dictionary's line must be 'symbol count', got 'b' in line 2 of {f}/d.txt. "
        "Use the dict.*.txt that fairseq-preprocess wrote.",
    ),
    (
        lambda f: Dictionary.load(written(f / "d.txt", "a 1\nb 1\na 2\n")),
        "A dictionary must hold a symbol once, got 'a' in lines 1 and 3 of {f}/d.txt. Delete one.",
    ),
    (
        pre_norm,
        "A checkpoint must be of a post-norm Transformer with sinusoidal positions, got encoder_normalize_before=True "
        "in {f}/c.pt. Models with it cannot be converted.",
    ),
    (
        lambda f: load_checkpoint(f / "c.pt"),
        "A fairseq checkpoint must be an existing file, got '{f}/c.pt'. Check the path.",
    ),
    (
        lambda f: (torch.save([1], f / "c.pt"), load_checkpoint(f / "c.pt")),
        "A fairseq checkpoint must be a dict with 'model', got list in {f}/c.pt. "
        "Use a checkpoint_*.pt that fairseq-train wrote.",
    ),
    (
        other_tokenizer,
        "Tokenizer and model must have the same dictionaries, got 8 and 8 symbols for a model of "
        "35 and 36 in {f}/model. "
        "Load the tokenizer from the model's own folder.",
    ),
    (
        lambda f: encoded(pairs_with(" "), tokenizer(f), 9, "data.parquet, split train"),
        "A sentence must not be empty, got an empty one in data.parquet, split train, row 1, de. Remove the pair.",
    ),
    (
        lambda f: encoded(pairs_with("ein " * 9), tokenizer(f), 9, "data.parquet, split train"),
        "A sentence must have at most 9 symbols with </s>, got 10 in data.parquet, split train, row 1, de. "
        "Remove the pair, or give the model larger max_position_embeddings.",
    ),
    (
        lambda f: small_model()(torch.full((1, 65), 4), labels=torch.tensor([[4]])),
        "A sentence must have at most 64 tokens, got 65. Shorten it, or make a model with larger max_position_embeddings.",
    ),
    (
        lambda f: token_batches([3, 9], [3, 4], 8),
        "max_tokens must hold the longest sentence, got 8 for 9 symbols in pair 1. Raise max_tokens to 9.",
    ),
    (
        lambda f: load_pairs(saved_set(f, {"translation": {"de": "a", "en": "b"}}, ("train",)), TextSettings()),
        "The data must have the splits train, validation, test, got train in {f}/set. Add it.",
    ),
    (
        lambda f: FairseqTransformerConfig(share_embeddings="encoder"),
        "share_embeddings must be one of all, decoder, none, got 'encoder'. Use 'decoder'.",
    ),
    (
        lambda f: FairseqTransformerConfig.of_size("tiny", 8, 9, share_embeddings="all"),
        "share_embeddings='all' needs one dictionary for both languages, got 8 and 9 symbols. "
        "Make a joint one, or use 'decoder'.",
    ),
    (
        lambda f: FairseqTransformerConfig.of_size("big", 8, 8),
        "size must be one of tiny, small, iwslt, got 'big'. Use 'iwslt' for the papers' model.",
    ),
    (lambda f: BeamSearch(0), "beam must be at least 1, got 0. Use e.g. 5."),
    (lambda f: LabelSmoothing(1.0), "label_smoothing must be from 0 to below 1, got 1.0. Use e.g. 0.1."),
    (
        lambda f: inverse_sqrt(torch.optim.SGD([torch.zeros(1)], lr=1), 0),
        "warmup_steps must be at least 1, got 0. Use e.g. 4000.",
    ),
    (
        lambda f: TextSettings(source="German"),
        "source must be a language code of two or three letters, got 'German'. Use e.g. 'de'.",
    ),
    (
        lambda f: last_checkpoints(f, 2),
        "average must be from 1 to the number of checkpoints, got 2 for 0 in {f}. Keep more with save_total_limit.",
    ),
    (
        lambda f: flags([str(f / "x.yaml")]),
        "A config must be an existing YAML file, got '{f}/x.yaml'. Use e.g. configs/numbers/asam.yaml.",
    ),
    (
        lambda f: Dictionary.load(f / "d.txt"),
        "A dictionary must be an existing file, got '{f}/d.txt'. Use the dict.*.txt of fairseq-preprocess.",
    ),
    (
        lambda f: Dictionary.load(written(f / "d.txt", "a 1\n<pad> 1\n")),
        "A dictionary must not hold the special symbol '<pad>', got it in line 2 of {f}/d.txt. "
        "Delete the line, or end it with '#fairseq:overwrite' to read it as an ordinary word.",
    ),
    (
        lambda f: Subwords.load(f / "merges.txt"),
        "Merges must be an existing file, got '{f}/merges.txt'. Write it with learn-bpe.",
    ),
    (
        lambda f: Subwords.load(written(f / "merges.txt", "#version: 0.2\na b c\n")),
        "Merges must be subword-nmt's, two symbols a line, got '#version: 0.2\\na b c\\n'. Write them with learn-bpe.",
    ),
    (
        lambda f: load_pairs(str(f / "none"), TextSettings()),
        "data must be 'numbers', an existing folder or a data set of the Hub, got '{f}/none'. Check the path.",
    ),
    (
        lambda f: load_pairs(saved_set(f, {"text": "a"}), TextSettings()),
        "The data must have a column 'translation' of {language: text}, got text in {f}/set, split train. "
        "Make one with datasets' map.",
    ),
    (
        lambda f: load_pairs(saved_set(f, {"translation": {"de": "a", "fr": "b"}}), TextSettings()),
        "The data must have the languages de and en, got de, fr in {f}/set, split train. Choose from these.",
    ),
    (
        lambda f: load_binarized(binarized(f), "de", "fr"),
        "A binarised data set must have train, valid or test files for de-fr, got none in {f}. "
        "Check the languages and the folder.",
    ),
    (
        lambda f: TokenBatchSampler([3, 4], [3, 4], 8, ranks=3),
        "Pairs must be shared out evenly, got 2 in 1 batches for 3 processes. Use fewer processes or a larger max_tokens.",
    ),
    (
        lambda f: tokenizer(f)("ein", "one"),
        "A source must be one text, got a pair of them. Pass the translation as text_target.",
    ),
    (lambda f: TextSettings(merges=-1), "merges must be >= 0, got -1. Use 0 for whole words."),
    (
        lambda f: FairseqTransformerConfig(dropout=1.5),
        "dropout must be a number from 0 to 1, got 1.5. Pass e.g. dropout=0.3.",
    ),
    (
        lambda f: flags([str(written(f / "x.yaml", "- 1\n"))]),
        "A config must hold a mapping, got [1] in {f}/x.yaml. Write e.g. 'sharpness: asam'.",
    ),
    (
        lambda f: flags([str(written(f / "x.yaml", "rho: [1\n"))]),
        "A config must be YAML, got {f}/x.yaml: expected ',' or ']', but got '<stream end>' in line 2, column 1. "
        "Write e.g. 'sharpness: asam'.",
    ),
    (
        lambda f: (small_model(encoder_layers=2).save_pretrained(f), load_average(small_model(), [f])),
        "The checkpoints must be of this model, got 'model.encoder.layers.1.fc1.bias' in only one of model and {f}. "
        "Average checkpoints of one run.",
    ),
    (
        lambda f: from_fairseq(f / "c.pt", f / "d.txt", f / "d.txt", "."),
        "folder must be new or empty, got '.', which holds 'results.json'. Name another folder.",
    ),
    (
        lambda f: from_fairseq(f / "c.pt", f / "d.txt", f / "d.txt", "results.json"),
        "folder must be new or empty, got the file 'results.json'. Name another folder.",
    ),
    (
        lambda f: to_fairseq(f, f),
        "checkpoint must be a new file, got '{f}', which is there. Name another, or delete it.",
    ),
    (
        lambda f: to_fairseq(f, written(f / "x") / "c.pt"),
        "checkpoint must be in a folder, got '{f}/x/c.pt' below the file '{f}/x'. Name another place.",
    ),
    (
        lambda f: (
            converted("all", f / "model"),
            Dictionary.of(["a"]).save(f / "dict.en.txt"),
            to_fairseq(f / "model", f / "c.pt"),
        ),
        "The dictionaries beside the checkpoint must be new or the model's, got another in {f}/dict.en.txt. "
        "Name a checkpoint in a folder of its own.",
    ),
    (
        lambda f: load_pairs("data/multi30k", TextSettings()),
        "data must be 'numbers', an existing folder or a data set of the Hub, got 'data/multi30k', which is not here and "
        "cannot be fetched. Name your copy with --data, or make data/iwslt14 with prepare_iwslt14.py.",
    ),
    (
        lambda f: load_pairs("numbers", TextSettings(target="fr")),
        "The data must have the languages de and fr, got de, en in numbers. Choose from these.",
    ),
    (
        lambda f: load_pairs(saved_set(f, {"translation": "ein"}), TextSettings()),
        "The column 'translation' must be of {language: text}, got Value('string') in {f}/set, split train. "
        "Make one with datasets' map.",
    ),
    (
        lambda f: encoded(pairs_with(None), tokenizer(f), 9, "data.parquet, split train"),
        "A sentence must be text, got None in data.parquet, split train, row 1, de. Remove the pair.",
    ),
    (
        lambda f: encoded(Dataset.from_list([{"translation": None}]), tokenizer(f), 9, "data.parquet, split train"),
        "A sentence must be text, got None in data.parquet, split train, row 0, de. Remove the pair.",
    ),
    (
        lambda f: load_preprocessed(binarized_test(f, [[4, 2]]), "de", "en"),
        "The data must have the splits train, validation, test, got test in {f}. "
        "Run fairseq-preprocess with --trainpref, --validpref and --testpref.",
    ),
    (
        lambda f: load_preprocessed(binarized_test(f, [[4, 2], [2]]), "de", "en", splits=["test"]),
        "A sentence must not be empty, got an empty one in {f}, split test, row 1, de. Remove the pair.",
    ),
    (
        lambda f: load_preprocessed(binarized_test(f, [[4, 4, 4, 2]]), "de", "en", 3, splits=["test"]),
        "A sentence must have at most 3 symbols with </s>, got 4 in {f}, split test, row 0, de. "
        "Remove the pair, or give the model larger max_position_embeddings.",
    ),
    (
        lambda f: check_tokenizer(tokenizer(f), "r1", TextSettings("en", "de"), {}),
        "The tokenizer must be for en to de, got one for de to en in r1. "
        "Leave tokenizer out to learn one, or change source and target.",
    ),
    (
        lambda f: check_tokenizer(tokenizer(f), "r1", TextSettings(), {"merges": 0, "joint": True, "moses": True}),
        "moses comes from the tokenizer, which has False in r1, got True. Leave one of the two out.",
    ),
    (
        lambda f: check_tokenizer(tokenizer(f), "r1", TextSettings(), {"merges": 400}),
        "merges comes from the tokenizer, which has 0 in r1, got 400. Leave one of the two out.",
    ),
    (
        lambda f: load_tokenizer(str(f)),
        "A tokenizer must be a folder with dict.source.txt and dict.target.txt, or on the Hub, got '{f}'. "
        "Use the folder of a trained model.",
    ),
    (
        lambda f: to_fairseq(f / "none", "c.pt"),
        "folder must be a model's folder, got '{f}/none'. Check the path.",
    ),
    (
        lambda f: changed_settings(f, max_source_positions=None),
        "A checkpoint must hold the settings of its model, got max_source_positions=None in {f}/c.pt. "
        "Use a checkpoint_*.pt as fairseq-train wrote it.",
    ),
    (
        lambda f: changed_settings(f, encoder_attention_heads=3),
        "encoder_attention_heads must divide the width, got 3 for d_model=16. Use e.g. 4.",
    ),
    (
        lambda f: changed_settings(f, encoder_ffn_embed_dim=8),
        "A checkpoint must have the weights that its settings say, got encoder.layers.0.fc1.weight of shape (24, 16) "
        "instead of (8, 16) in {f}/c.pt. It is of another architecture.",
    ),
    (
        lambda f: BeamSearch(1)(small_model(), [[4, 2], []]),
        "A sentence must not be empty, got an empty one in source 1. Remove the pair.",
    ),
    (
        lambda f: BeamSearch(1)(small_model(), [[4] * 65]),
        "A sentence must have at most 64 symbols with </s>, got 65 in source 0. "
        "Remove the pair, or give the model larger max_position_embeddings.",
    ),
    (
        lambda f: BeamSearch(2)(not_a_number(), [[4, 2]]),
        "The model must give a number to every symbol, got NaN or infinity, and so no translation. "
        "Check its weights and the training's loss.",
    ),
    (
        lambda f: load_iwslt14(written(f / "train.tags.de-en.de", b"a \xff\n").parent),
        f"The IWSLT'14 files must be UTF-8, got byte 2 of train.tags.de-en.de in {{f}}: invalid start byte. "
        f"Fetch the archive anew from {PUBLISHED}.",
    ),
    (
        lambda f: trainer([{"input_ids": [4, 2], "labels": [4, 2]}]).get_train_dataloader(),
        "train_dataset must be one datasets.Dataset with columns input_ids and labels, got a list. "
        "Make it with hf_sharp.translation.pairs.encoded.",
    ),
    (
        lambda f: trainer(pairs_of_numbers(3)).evaluate(),
        "eval_dataset must be one datasets.Dataset with columns input_ids and labels, got a NoneType. "
        "Make it with hf_sharp.translation.pairs.encoded.",
    ),
    (
        lambda f: trainer(pairs_with("ein")).get_train_dataloader(),
        "train_dataset must be one datasets.Dataset with columns input_ids and labels, got columns translation. "
        "Make it with hf_sharp.translation.pairs.encoded.",
    ),
    (
        lambda f: TranslationTrainer(small_model(), data_collator=list),
        "data_collator must be left out, got one: the recipe has its own. "
        "Leave it out, or use SharpnessAwareSeq2SeqTrainer.",
    ),
    (
        lambda f: TranslationTrainer(small_model(), compute_loss_func=max),
        "compute_loss_func must be left out, got one: the recipe has its own. "
        "Leave it out, or use SharpnessAwareSeq2SeqTrainer.",
    ),
    (
        lambda f: trainer(pairs_of_numbers(3), label_smoothing_factor=0.2),
        "label_smoothing_factor must be 0, since Transformers' smoothing is not fairseq's, got 0.2. "
        "Pass label_smoothing=0.2, which is fairseq's.",
    ),
    (
        lambda f: trainer(pairs_of_numbers(3), lr_scheduler_type="cosine"),
        "lr_scheduler_type must be left out, got 'cosine': the recipe has the inverse square root of the steps. "
        "Leave it out, or give the Trainer a scheduler in optimizers.",
    ),
    (
        lambda f: trainer(pairs_of_numbers(3), auto_find_batch_size=True),
        "auto_find_batch_size must be False, got True: batches are cut by tokens, so that a smaller batch size changes "
        "nothing. Leave it out, and lower max_tokens where the memory is short.",
    ),
    (
        lambda f: trainer(pairs_of_numbers(3), dataloader_drop_last=True),
        "dataloader_drop_last must be False, got True: the recipe trains on every pair once per epoch. Leave it out.",
    ),
    (
        lambda f: TranslationTrainer(
            small_model(), arguments(), train_dataset=pairs_of_numbers(3), eval_dataset=pairs_of_numbers(7), max_tokens=7
        ),
        "eval_dataset: max_tokens must hold the longest sentence, got 7 for 8 symbols in pair 6. Raise max_tokens to 8.",
    ),
    (
        lambda f: load_data(saved_set(f, {"translation": {"de": None, "en": "one"}}), TextSettings(moses=False), 9),
        "A sentence must be text, got None in {f}/set, split train, row 0, de. Remove the pair.",
    ),
    (
        lambda f: load_data(saved_set(f, {"translation": {"de": "ein", "en": 1}}), TextSettings(), 9),
        "A sentence must be text, got 1 in {f}/set, split train, row 0, en. Remove the pair.",
    ),
    (
        same_size,
        "Tokenizer and model must have the same dictionaries, got other symbols than the model's in {f}/model. "
        "Load the tokenizer from the model's own folder.",
    ),
    (
        lambda f: Subwords.load(DATA / "decoder" / "dict.de.txt"),
        f"Merges must be subword-nmt's, two symbols a line, got a dictionary's, {DICTIONARY!r}. "
        "Use the file of learn-bpe, often called code.",
    ),
    (
        lambda f: small_model().generate(torch.tensor([[4, 2]]), max_new_tokens=65),
        "A translation must fit the model's 64 positions, got max_length=66. Pass max_new_tokens of at most 64.",
    ),
    (
        lambda f: tokenizer(f).decode([4, -100]),
        "A number must be a target symbol's, 0 to 7, got -100. Put pad_token_id, 1, where labels have -100.",
    ),
    (
        lambda f: load_average(small_model(), [f]),
        "A checkpoint must hold model.safetensors or pytorch_model_fsdp_0, got neither in {f}. "
        "Under ZeRO-3 save with zero3_save_16bit_model: true.",
    ),
]
