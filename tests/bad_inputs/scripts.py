"""Bad command lines of the scripts in ``examples/``."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

from datasets import Dataset

from hf_sharp.measure import QUANTITIES
from hf_sharp.measure.checkpoints import Source
from tests.bad_inputs.cases import Cases, written
from tests.scripts import ROOT, example

CONFIGS = ROOT / "configs"
DIGITS = str(CONFIGS / "digits" / "sam.yaml")
NUMBERS = str(CONFIGS / "numbers" / "asam.yaml")
METHODS = "accelerated_gam, asam, crsam, decayed, during, every, gam, gsam, lpf, rgsam, rsam, sam"


def classify(*words: str) -> object:
    """The training of classifiers, up to the data."""
    train = example("classification/train")
    return train.train(train.settings(train.asked([*words, "--output_dir", "."])))


def translate(*words: str) -> object:
    """The training of translation models."""
    return example("translation/train").main([NUMBERS, *words, "--output_dir", "."])


def run(name: str, *words: str) -> object:
    """A script that reads ``sys.argv``."""
    with patch.object(sys, "argv", [name, *words]):
        return example(name).main()


def measure(*words: str) -> object:
    """The measurement of checkpoints."""
    return example("measure/measure_checkpoint").main([*words, "--data", "digits", "--output_dir", "."])


def texts(folder: Path, split: str = "train", **fields: str) -> object:
    """A loader of texts."""
    (folder / "data").mkdir()
    Dataset.from_dict({"text": ["good film"], "label": [1]}).to_parquet(folder / "data" / "train.parquet")
    return Source(str(folder / "data"), "causal-lm", **fields).loader("none", split)  # type: ignore[arg-type]


CASES: Cases = [
    (
        lambda f: example("quickstart").arguments(["--seeds", "0"]),
        "--seeds must be at least 1, got 0. Use e.g. --seeds 3.",
    ),
    (
        lambda f: example("quickstart").arguments(["--epochs", "-1"]),
        "--epochs must be at least 1, got -1. Use e.g. --epochs 3.",
    ),
    (
        lambda f: example("compare").arguments(["a.yaml", "--seeds", "0"]),
        "--seeds must be at least 1, got 0. Use e.g. --seeds 3.",
    ),
    (
        lambda f: example("compare").arguments(["a.yaml", "--script", "none.py"]),
        "--script must be an existing file, got none.py. Use e.g. --script train.py.",
    ),
    (
        lambda f: example("compare").arguments(["a.yaml", "--launcher", "acelerate launch"]),
        "--launcher must begin with a program, got 'acelerate'. Use e.g. 'accelerate launch'.",
    ),
    (
        lambda f: example("compare").main([DIGITS, str(CONFIGS / "cifar10" / "sam.yaml")]),
        "Recipes must have different names, got ['sam', 'sam']. Rename one.",
    ),
    (
        lambda f: example("compare").main([str(f / "sam.yaml")]),
        "A recipe must be an existing YAML file, got '{f}/sam.yaml'. Beside it there are: none.",
    ),
    (
        lambda f: classify("--augmentation", "mixup", "--loss", "model"),
        "mixup and cutmix need a loss that takes probabilities, got loss='model', which takes class numbers. "
        "Set loss='cross_entropy'.",
    ),
    (
        lambda f: classify("--sharpness", "gasm"),
        f"Unknown method 'gasm'. Did you mean 'gsam'? Choose from {METHODS}.",
    ),
    (
        lambda f: classify("--perturb_over", "epoch"),
        "perturb_over must be 'batch' or 'micro_batch' or 'device', got 'epoch'. Pass e.g. perturb_over='batch'.",
    ),
    (
        lambda f: classify("--model_args", "{depths: 3"),
        "model_args must be YAML, got '{depths: 3': expected ',' or '}', but got '<stream end>' in line 1, column 11. "
        "Write e.g. '{\"depths\": [2, 2]}'.",
    ),
    (
        lambda f: classify("--model_args", "3"),
        "model_args must be a mapping, got '3'. Write e.g. '{\"depths\": [2, 2]}'.",
    ),
    (
        lambda f: classify("--paper", "asam"),
        "paper must be a name and row a number, got asam and None. Pass --paper asam --row 1.",
    ),
    (
        lambda f: classify("--paper", "asam", "--row", "one"),
        "paper must be a name and row a number, got asam and one. Pass --paper asam --row 1.",
    ),
    (
        lambda f: classify("--paper", "asm", "--row", "1"),
        "paper must be one of asam, crsam, gam, rsam, got 'asm'. Pass e.g. --paper asam.",
    ),
    (
        lambda f: example("classification/accuracy").main([str(f / "none"), "--dataset_name", "digits"]),
        "A checkpoint must be a folder or a model of the Hub, got '{f}/none', which cannot be loaded. "
        "Check the path or the name.",
    ),
    (
        lambda f: example("classification/accuracy").main(["x", "--variant", "d"]),
        "variant must be plain, c, r, v2 or real, got 'd'. Pass e.g. --variant plain.",
    ),
    (
        lambda f: example("classification/accuracy").main(["x", "--batch_size", "0"]),
        "batch_size must be a whole number >= 1, got 0. Pass e.g. batch_size=2.",
    ),
    (
        lambda f: example("classification/accuracy").main(["x", "--output_file", "none/a.json"]),
        "output_file must be in an existing folder, got 'none/a.json'. Make the folder first.",
    ),
    (
        lambda f: translate("--sharpness", "gasm"),
        f"Unknown method 'gasm'. Did you mean 'gsam'? Choose from {METHODS}.",
    ),
    (lambda f: translate("--beam", "0"), "beam must be at least 1, got 0. Use e.g. 5."),
    (
        lambda f: translate("--label_smoothing", "1.0"),
        "label_smoothing must be from 0 to below 1, got 1.0. Use e.g. 0.1.",
    ),
    (
        lambda f: translate("--size", "big"),
        "size must be one of tiny, small, iwslt, got 'big'. Use 'iwslt' for the papers' model.",
    ),
    (
        lambda f: translate("--source", "German"),
        "source must be a language code of two or three letters, got 'German'. Use e.g. 'de'.",
    ),
    (
        lambda f: translate("--average", "5", "--save_total_limit", "3"),
        "average must be at most the checkpoints that the run keeps, 3, got 5. "
        "Train longer, raise save_total_limit, or pass --average 0.",
    ),
    (
        lambda f: translate("--data", str(f / "none")),
        "data must be 'numbers', an existing folder or a data set of the Hub, got '{f}/none'. Check the path.",
    ),
    (
        lambda f: run("translation/bleu", "score", str(f / "none"), str(f / "none")),
        "There must be a file with one sentence per line, got '{f}/none'. Check the path.",
    ),
    (
        lambda f: run("translation/bleu", "score", str(written(f / "a", "x\n")), str(written(f / "b", "x\n\n"))),
        "Files must have as many lines as the references, got 1 in {f}/a and 2 in {f}/b. "
        "Score them line by line, empty lines included.",
    ),
    (
        lambda f: run("translation/bleu", "translate", str(f / "none"), "--output_dir", "."),
        "output_dir must be new or empty, got '.', which holds 'results.json'. Name another folder.",
    ),
    (
        lambda f: run("translation/prepare_iwslt14", str(f / "de-en.tgz"), "results.json"),
        "output_dir must be new or empty, got the file 'results.json'. Name another folder.",
    ),
    (
        lambda f: run("translation/bleu", "translate", str(f / "none"), "--output_dir", "scores"),
        "A checkpoint must be a folder or a model of the Hub, got '{f}/none', which cannot be loaded. "
        "Check the path or the name.",
    ),
    (
        lambda f: run("translation/convert_fairseq", "from", "c.pt", str(f / "de"), str(f / "en"), "model"),
        "A dictionary must be an existing file, got '{f}/de'. Use the dict.*.txt of fairseq-preprocess.",
    ),
    (
        lambda f: run("translation/prepare_iwslt14", str(f / "de-en.tgz"), "data"),
        "The IWSLT'14 archive must be an existing file or folder, got '{f}/de-en.tgz'. "
        "Fetch it from http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz.",
    ),
    (
        lambda f: measure("a=x", "a=y"),
        "Each checkpoint must have a name of its own, got a=x, a=y. Write e.g. SAM=runs/sam/end.",
    ),
    (
        lambda f: measure("x", "--quantities", "tarce"),
        f"Unknown quantity 'tarce'. Did you mean 'trace'? Choose from {', '.join(sorted(QUANTITIES))}.",
    ),
    (
        lambda f: measure("x", "--quantities", str(f / "none.yaml")),
        "quantities must be names or an existing YAML file, got '{f}/none.yaml'. Write e.g. trace.",
    ),
    (
        lambda f: measure("x", "--quantities", str(written(f / "q.yaml", "- [trace\n"))),
        "A file of quantities must be YAML, got {f}/q.yaml: expected ',' or ']', but got '<stream end>' in line 2, "
        "column 1. Write e.g. '- trace'.",
    ),
    (
        lambda f: measure("x", "--hvp", "fast"),
        "hvp must be 'exact' or 'difference', got 'fast'. Pass e.g. hvp='exact'.",
    ),
    (
        lambda f: measure("x", "--batch_size", "0"),
        "batch_size must be a whole number >= 1, got 0. Pass e.g. batch_size=2.",
    ),
    (
        lambda f: measure(str(f / "none")),
        "A checkpoint must be a folder or a model of the Hub, got '{f}/none', which cannot be loaded. "
        "Check the path or the name.",
    ),
    (lambda f: texts(f, "dev"), "split must be one of train, got 'dev' for '{f}/data'. Pass another one."),
    (
        lambda f: texts(f, text_column="x"),
        "text_column must be one of text, label, got 'x'. Name the one of text.",
    ),
]
