"""What the scripts beside this file share: their arguments, and the stages at their end."""

from dataclasses import dataclass, field


@dataclass
class ModelArguments:
    model_name_or_path: str | None = None
    config_name: str | None = None
    tokenizer_name: str | None = None
    cache_dir: str | None = None


@dataclass
class DataTrainingArguments:
    train_file: str | None = None
    validation_file: str | None = None
    test_file: str | None = None
    max_seq_length: int = 16
    source_lang: str = "de"
    target_lang: str = "en"

    def files(self):
        """The files by split, as load_dataset takes them."""
        given = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {split: file for split, file in given.items() if file is not None}


@dataclass
class ImageArguments:
    train_dir: str | None = None
    validation_dir: str | None = None
    labels: list[str] = field(default_factory=lambda: ["dark", "light"])


def run_stages(trainer, training_args, test_dataset=None):
    """Train, evaluate and predict, as far as the flags ask for it."""
    if training_args.do_train:
        result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    if training_args.do_eval:
        metrics = trainer.evaluate(metric_key_prefix="eval")
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if training_args.do_predict:
        result = trainer.predict(test_dataset, metric_key_prefix="predict")
        trainer.save_metrics("predict", result.metrics)
        return result.predictions
    return None
