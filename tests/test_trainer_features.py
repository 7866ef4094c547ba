"""What the Trainer offers around training, with a method in it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled
from torch import Tensor
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from hf_sharp import ASAM, GAM, GSAM, METHODS, SAM, AbstractMethod, Decayed, Every, Linear, SharpnessAwareTrainer
from hf_sharp.cards import card
from hf_sharp.hub import section
from hf_sharp.search import names, split
from tests.models import all_methods, arguments, differences, llama, mixed, rows, snapshot, streams


def _trainer(method: AbstractMethod | None, folder: Path, **changed: Any) -> Trainer:
    own = {name: changed.pop(name) for name in ("callbacks", "model_init", "compute_metrics") if name in changed}
    model = None if "model_init" in own else mixed()
    given = {"train_dataset": rows("mixed", 12), "eval_dataset": rows("mixed", 6, seed=1), **own}
    args = arguments(folder, **changed)
    return Trainer(model, args, **given) if method is None else SharpnessAwareTrainer(model, args, method=method, **given)


# Hyper-parameter search ------------------------------------------------------------------------------------------------


class Methods(TrainerCallback):
    """The method of every training, and how many passes its last step had."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, float]] = []
        self.trainer: SharpnessAwareTrainer | None = None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        passes = [entry["sharpness/passes"] for entry in state.log_history if "sharpness/passes" in entry][-1]
        self.seen.append((self.trainer._sharp.method, passes, args.learning_rate))


def _searched(method: AbstractMethod, space: Any, folder: Path, trials: int) -> tuple[Any, list[Any], SharpnessAwareTrainer]:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    watch = Methods()
    trainer = _trainer(method, folder, model_init=mixed, callbacks=[watch], max_steps=2, eval_strategy="steps", eval_steps=2)
    watch.trainer = trainer
    best = trainer.hyperparameter_search(
        hp_space=space,
        n_trials=trials,
        direction="minimize",
        backend="optuna",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    return best, watch.seen, trainer


def test_a_search_over_rho(tmp_path: Path) -> None:
    """Each trial trains with its own radius and its own learning rate, from the method that the Trainer was given."""
    drawn = []

    def space(trial: Any) -> dict[str, float]:
        values = {"rho": trial.suggest_float("rho", 0.01, 0.5, log=True), "learning_rate": 10.0 ** -(1 + trial.number)}
        drawn.append(values)
        return values

    best, seen, trainer = _searched(SAM(p=3.0), space, tmp_path, trials=3)
    assert [entry[:2] for entry in seen] == [(SAM(rho=values["rho"], p=3.0), 2) for values in drawn]
    assert [entry[2] for entry in seen] == [values["learning_rate"] for values in drawn]
    assert len({values["rho"] for values in drawn}) == 3
    assert best.hyperparameters["rho"] == seen[int(best.run_id)][0].rho
    assert trainer.hp_space is space


def test_a_search_over_methods(tmp_path: Path) -> None:
    """A trial may take another method, and a field of one inside it."""
    chosen: list[dict[str, Any]] = [{"method": "gsam", "alpha": 0.1}, {"base": "sam", "base.rho": 0.2}, {}]
    _, seen, _ = _searched(GAM(rho=0.1), lambda trial: chosen[trial.number], tmp_path, trials=3)
    assert [entry[:2] for entry in seen] == [(GSAM(alpha=0.1), 2), (GAM(rho=0.1, base=SAM(rho=0.2)), 5), (GAM(rho=0.1), 4)]


@pytest.mark.parametrize(
    ("method", "values", "wanted"),
    [
        (SAM(), {"method.rho": 0.2}, SAM(rho=0.2)),
        (GSAM(rho=0.05, rho_min=0.01), {"rho": 0.005, "rho_min": 0.001}, GSAM(rho=0.005, rho_min=0.001)),
        (SAM(rho=Linear(0.1, 0.01)), {"rho.start": 0.3}, SAM(rho=Linear(0.3, 0.01))),
        (SAM(), {"rho": {"schedule": "linear", "start": 0.2, "stop": 0.1}}, SAM(rho=Linear(0.2, 0.1))),
        (Every(2, SAM()), {"k": 3, "method.rho": 0.3}, Every(3, SAM(rho=0.3))),
        (Every(2, SAM()), {"method": {"name": "asam", "rho": 2.0}}, ASAM(rho=2.0)),
        (Decayed(SAM(), 0.1), {"method.weight_decay": 0.2, "method.rho": 0.1}, Decayed(SAM(rho=0.1), 0.2)),
        (Every(2, SAM()), {"method.method": "gam", "method.method.rho": 0.3}, Every(2, GAM(rho=0.3))),
        (Every(2, SAM()), {"method": "{name: every, k: 3, method: gam}", "k": 4}, Every(4, GAM())),
        (Every(2, GAM(base=SAM())), {"method.base.rho": 0.3}, Every(2, GAM(base=SAM(rho=0.3)))),
    ],
    ids=str,
)
def test_names_of_a_search(method: AbstractMethod, values: dict[str, Any], wanted: AbstractMethod, tmp_path: Path) -> None:
    """A name may lead into methods and schedules; rules between fields see all of a trial's values at once."""
    args = arguments(tmp_path)
    assert split({**values, "weight_decay": 0.3}, method, args) == ({"weight_decay": 0.3}, wanted)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"roh": 0.1},
            "What hp_space returns must be named like a training argument or a field of the method, got 'roh'. Did you mean "
            "'rho'? GAM has rho, alpha, hvp, step, base.",
        ),
        (
            {"base.rho": 0.1},
            "What hp_space returns must be named like a training argument or a field of the method, got 'base.rho'. Did you "
            "mean 'base'? GAM has rho, alpha, hvp, step, base.",
        ),
        (
            {"learning_rat": 0.1},
            "What hp_space returns must be named like a training argument or a field of the method, got 'learning_rat'. Did "
            "you mean 'learning_rate'? GAM has rho, alpha, hvp, step, base.",
        ),
        ({"rho": -1.0}, "rho must be >= 0, got -1.0. Pass e.g. rho=0.05."),
        ({"method": "gasm"}, "Unknown method 'gasm'. Did you mean 'gsam'? Choose from"),
    ],
    ids=str,
)
def test_bad_names_and_values_end_the_search(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    """At once, instead of being passed over."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        _searched(GAM(), lambda trial: values, tmp_path, trials=2)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", all_methods())
def test_every_name_can_be_searched(name: str, tmp_path: Path) -> None:
    """Setting each field to what it is leaves the method as it is."""
    method = all_methods()[name]
    values = {}
    for dotted in names(method):
        value: Any = method
        for part in dotted.split("."):
            value = vars(value)[part]
        values[dotted] = value
    prefixed = {f"method.{key}" if key in vars(arguments(tmp_path)) else key: value for key, value in values.items()}
    if "method" in prefixed:  # which stands for the whole method
        prefixed["method.method"] = prefixed.pop("method")
    assert split(prefixed, method, arguments(tmp_path)) == ({}, method)


# Model cards and the Hub -----------------------------------------------------------------------------------------------


def _readme(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_a_model_card_names_method_fields_and_paper(tmp_path: Path) -> None:
    """The section stands once, behind all that the Trainer writes itself, however often the card is made."""
    method = Every(2, GSAM(rho=0.05, alpha=0.3), otherwise=SAM(rho=Linear(0.1, 0.02)))
    trainer = _trainer(method, tmp_path)
    trainer.create_model_card(model_name="small", tags=["mine"])
    once = _readme(tmp_path)
    trainer.create_model_card(model_name="small", tags=["mine"])
    assert _readme(tmp_path) == once
    plain = tmp_path / "plain"
    _trainer(None, plain).create_model_card(model_name="small", tags=["mine"])
    theirs = [line for line in _readme(plain).splitlines() if line]
    ours = once.splitlines()
    assert [line for line in theirs if line not in ours] == []
    assert once.count("## Sharpness-aware training") == 1
    for text in (
        repr(method),
        "`perturb_over='batch'`",
        "| `alpha` | `0.3` |",
        "| `start` | `0.1` |",
        "sharpness-aware-training",
    ):
        assert text in once
    for name in ("gsam", "sam"):
        assert card(METHODS[name]).references in once


@pytest.mark.parametrize("name", all_methods())
def test_a_section_about_every_method(name: str) -> None:
    """Each part's summary, fields and papers are in it."""
    method = all_methods()[name]
    text = section(method, "device", ["*.weight"])
    assert "`perturb_over='device'`, `perturb=['*.weight']`" in text
    for part in method.parts():
        found = card(type(part))
        assert found.summary in text
        assert found.references in text
        assert all(f"| `{f.name}` | `{vars(part)[f.name]!r}` |" in text for f in found.fields)


def test_pushing_without_a_network_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At construction, with what to do instead; nothing is written."""
    monkeypatch.setattr(HfApi, "create_repo", _unreachable)
    with pytest.raises(ConnectionError) as error:
        _trainer(SAM(), tmp_path / "out", push_to_hub=True)
    assert str(error.value) == (
        "Pushing needs the Hub, which cannot be reached (offline). Nothing was written. Train with push_to_hub=False, and "
        "call trainer.push_to_hub() with a network."
    )
    assert not (tmp_path / "out").exists()


def test_a_push_without_a_network_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model and card are in the folder that the error names, although the plain Trainer fails before it saves."""
    monkeypatch.setattr(HfApi, "create_repo", _unreachable)
    trainer = _trainer(SAM(), tmp_path, max_steps=1)
    trainer.train()
    with pytest.raises(ConnectionError) as error:
        trainer.push_to_hub()
    assert str(error.value) == (
        f"Pushing needs the Hub, which cannot be reached (offline). The model is saved in {tmp_path}. Call "
        "trainer.push_to_hub() again with a network."
    )
    assert {"model.safetensors", "config.json", "README.md"} <= {path.name for path in tmp_path.iterdir()}
    assert "SAM(rho=0.05, p=2.0)" in _readme(tmp_path)


def test_a_network_that_goes_away_during_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pushes of checkpoints fail in the background; training goes on, and its checkpoints are whole."""

    class Repository:
        repo_id = "someone/something"

    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **kwargs: Repository())
    monkeypatch.setattr(HfApi, "create_commit", _unreachable)
    monkeypatch.setattr(HfApi, "preupload_lfs_files", _unreachable)
    changed = {"push_to_hub": True, "save_strategy": "steps", "save_steps": 2, "max_steps": 4, "hub_strategy": "checkpoint"}
    trainer = _trainer(SAM(), tmp_path, **changed)
    trainer.train()
    assert trainer.state.global_step == 4
    assert (tmp_path / "checkpoint-4" / "trainer_state.json").exists()
    with pytest.raises(ConnectionError, match="The model is saved in"):
        trainer.push_to_hub()


def _unreachable(*args: Any, **kwargs: Any) -> None:
    raise OfflineModeIsEnabled("offline")


# Logs ------------------------------------------------------------------------------------------------------------------


def test_tensorboard_has_the_scalars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sharpness scalar of every logged step is in the event file, with the logged value."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = _trainer(SAM(), tmp_path, report_to="tensorboard", logging_steps=2, max_steps=4)
    trainer.train()
    (file,) = (tmp_path / "events").rglob("events.out.tfevents.*")
    events = reader.EventAccumulator(str(file))
    events.Reload()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    wanted = {key for key in logs[0] if key.startswith("sharpness/")}
    assert {f"sharpness/{name}" for name in ("passes", "loss_gap", "shift_norm", "cos", "grad_norm")} <= wanted
    found = {tag.removeprefix("train/"): tag for tag in events.Tags()["scalars"] if "sharpness/" in tag}
    assert set(found) == wanted
    for key in wanted:
        written = [(event.step, event.value) for event in events.Scalars(found[key])]
        assert written == [(entry["step"], pytest.approx(entry[key], rel=1e-6)) for entry in logs]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("what", ["all", "non_padding"])
def test_input_tokens_count_once(what: str, accumulation: int, tmp_path: Path) -> None:
    """``num_input_tokens_seen`` is that of the plain Trainer at every step."""
    counts = []
    for method in (None, SAM(), GAM()):
        args = arguments(tmp_path, include_num_input_tokens_seen=what, gradient_accumulation_steps=accumulation)
        data = rows("llama", 6)
        for row in data:
            row["attention_mask"] = torch.ones_like(row["input_ids"])
            row["attention_mask"][-2:] = 0
        given: dict[str, Any] = {"train_dataset": data}
        trainer = (
            Trainer(llama(), args, **given)
            if method is None
            else SharpnessAwareTrainer(llama(), args, method=method, **given)
        )
        trainer.train()
        counts.append([entry["num_input_tokens_seen"] for entry in trainer.state.log_history])
    assert counts[0] == counts[1] == counts[2]
    assert counts[0][-1] == (42 if what == "all" else 30)


# Ends ------------------------------------------------------------------------------------------------------------------


def _evaluated(method: AbstractMethod | None, folder: Path, **changed: Any) -> dict[str, Any]:
    losses = iter([3.0, 1.0, 2.0, 4.0, 5.0, 6.0])

    def metrics(prediction: Any) -> dict[str, float]:
        return {"chosen": next(losses)}

    trainer = _trainer(
        method,
        folder,
        compute_metrics=metrics,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        metric_for_best_model="chosen",
        greater_is_better=False,
        load_best_model_at_end=True,
        num_train_epochs=1,
        **changed,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    return {"model": snapshot(trainer.model), "step": trainer.state.global_step, "best": best, "streams": streams()}


def test_the_best_model_is_loaded_at_the_end(tmp_path: Path) -> None:
    """The weights at the end are those of the checkpoint with the best metric, unshifted."""
    from safetensors.torch import load_file

    end = _evaluated(SAM(), tmp_path)
    assert (end["step"], Path(end["best"]).name) == (6, "checkpoint-2")
    saved = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert differences(saved, {name: end["model"][name] for name in saved}) == []
    plain, neutral = _evaluated(None, tmp_path / "plain"), _evaluated(SAM(rho=0), tmp_path / "neutral")
    assert differences(plain["model"], neutral["model"]) == []
    assert differences(plain["model"], end["model"]) != []


def test_early_stopping(tmp_path: Path) -> None:
    """Training stops where the plain Trainer's would, and loads the best weights."""
    stop = {"callbacks": [EarlyStoppingCallback(early_stopping_patience=2)]}
    plain, neutral = _evaluated(None, tmp_path / "a", **stop), _evaluated(SAM(rho=0), tmp_path / "b", **stop)
    assert plain["step"] == neutral["step"] == 4
    assert Path(neutral["best"]).name == "checkpoint-2"
    assert differences(plain["model"], neutral["model"]) == []
    assert differences(plain["streams"], neutral["streams"]) == []
    assert _evaluated(GAM(), tmp_path / "c", **stop)["step"] == 4


class Hungry(TrainerCallback):
    """Counts the beginnings of training and the batch sizes that were tried."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sizes.append(state.train_batch_size)


def test_auto_find_batch_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that fits in the first pass but not in the second is made smaller by a tenth until it fits, from the same
    weights; then every step has its passes and the logs say so."""
    trainer = _trainer(
        SAM(), tmp_path, auto_find_batch_size=True, per_device_train_batch_size=10, max_steps=3, callbacks=[Hungry()]
    )
    forward, initial, calls = trainer.model.forward, snapshot(trainer.model), []

    def fits(x: Tensor, labels: Tensor | None = None) -> Any:
        calls.append(len(x))
        if len(x) > 8 and len(calls) % 2 == 0:
            assert differences(initial["first.weight"], trainer.model.first.weight.detach().clone()) != []
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(x, labels)

    monkeypatch.setattr(trainer.model, "forward", fits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    assert trainer.state.train_batch_size == 8
    assert calls[:4] == [10, 10, 9, 9]
    assert trainer.state.global_step == 3
    assert [entry["sharpness/passes"] for entry in trainer.state.log_history if "loss" in entry] == [2, 2, 2]
