"""A progress bar that shows the loss, and a line per evaluation."""

from __future__ import annotations

from typing import Any

from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments


class Progress(ProgressCallback):
    """The Trainer's progress bar with the training loss behind it, and the test accuracy in a line of its own."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Shows the loss that was logged last."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.4f}")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes the accuracy, above the bar."""
        super().on_evaluate(args, state, control, **kwargs)
        metrics = kwargs.get("metrics") or {}
        if self.training_bar is not None and "eval_accuracy" in metrics:
            epoch, accuracy = metrics.get("epoch", state.epoch), metrics["eval_accuracy"]
            self.training_bar.write(f"epoch {epoch:g}: test accuracy {100 * accuracy:.2f} %")
