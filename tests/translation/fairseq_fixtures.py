"""Makes the fairseq checkpoints and figures that the tests compare with. Run it with a Python that has fairseq::

    TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 FAIRSEQ_PYTHON tests/translation/fairseq_fixtures.py FOLDER

FOLDER holds ``train``, ``valid`` and ``test`` with the endings ``.de`` and ``.en``, tokens between blanks. Three models are
trained with fairseq-train: all embeddings shared, the decoder's shared with unequal dictionaries, none shared.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SHARED = {"all": ["--share-all-embeddings"], "decoder": ["--share-decoder-input-output-embed"], "none": []}
SHAPE = "--encoder-layers 1 --decoder-layers 2 --encoder-attention-heads 2 --decoder-attention-heads 4"
SHAPE += " --encoder-embed-dim 16 --decoder-embed-dim 16 --encoder-ffn-embed-dim 24 --decoder-ffn-embed-dim 32"
RECIPE = "--optimizer adam --adam-betas (0.9,0.98) --lr 1e-2 --lr-scheduler inverse_sqrt --warmup-updates 100"
RECIPE += " --weight-decay 1e-4 --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --dropout 0.0"
RECIPE += " --max-tokens 800 --max-update 350 --seed 1 --cpu --no-epoch-checkpoints --no-save-optimizer-state"
RECIPE += " --log-format none --num-workers 0"
HERE = Path(__file__).parent / "data"


def run(*command: str) -> str:
    """What a fairseq command prints."""
    done = subprocess.run([str(Path(sys.executable).with_name(command[0])), *command[1:]], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def generated(binarised: Path, checkpoint: Path) -> list[str]:
    """The test set's best hypotheses, in order."""
    search = "--beam 5 --lenpen 1.0 --batch-size 16 --num-workers 0 --cpu"
    out = run(*f"fairseq-generate {binarised} --path {checkpoint} {search}".split())
    found = {}
    for line in out.splitlines():
        if line.startswith("H-"):
            name, _, text = line.split("\t")
            found[int(name[2:])] = text
    return [found[number] for number in range(len(found))]


def figures(binarised: Path, checkpoint: Path) -> dict:
    """Logits and losses of the first eight test pairs."""
    import torch
    from fairseq import checkpoint_utils
    from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss

    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], {"data": str(binarised)})
    model = models[0].eval()
    task.load_dataset("test")
    data = task.dataset("test")
    sample = data.collater([data[number] for number in range(8)])
    with torch.no_grad():
        output = model(**sample["net_input"])
        lprobs = model.get_normalized_probs(output, log_probs=True)
        loss, nll = label_smoothed_nll_loss(
            lprobs.view(-1, lprobs.size(-1)), sample["target"].view(-1), 0.1, ignore_index=1, reduce=True
        )
    order = sample["id"].argsort()
    sentences = [data[number] for number in range(len(data))]
    return {
        "logits": [[[round(x, 7) for x in row] for row in rows] for rows in output[0][order][:3].tolist()],
        "loss": loss.item(),
        "nll": nll.item(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "sources": [sentence["source"].tolist() for sentence in sentences],
        "targets": [sentence["target"].tolist() for sentence in sentences],
    }


def main(texts: Path) -> None:
    """Makes everything."""
    for name, shared in SHARED.items():
        folder = HERE / name
        folder.mkdir(parents=True, exist_ok=True)
        binarised, saved = texts / f"bin-{name}", texts / f"out-{name}"
        joined = ["--joined-dictionary"] if name == "all" else []
        run(
            *f"fairseq-preprocess --source-lang de --target-lang en --destdir {binarised} --padding-factor 1".split(),
            *f"--trainpref {texts}/train --validpref {texts}/valid --testpref {texts}/test".split(),
            *joined,
        )
        run(
            *f"fairseq-train {binarised} --arch transformer_iwslt_de_en --save-dir {saved} {SHAPE} {RECIPE}".split(),
            *shared,
        )
        checkpoint = saved / "checkpoint_last.pt"
        found = figures(binarised, checkpoint) | {"generated": generated(binarised, checkpoint)}
        (folder / "figures.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
        (folder / "checkpoint.pt").write_bytes(checkpoint.read_bytes())
        for file in ("dict.de.txt", "dict.en.txt"):
            (folder / file).write_bytes((binarised / file).read_bytes())
        for file in ("test.de-en.de.bin", "test.de-en.de.idx", "test.de-en.en.bin", "test.de-en.en.idx"):
            if name == "decoder":
                (folder / file).write_bytes((binarised / file).read_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
