"""Trains a causal language model from scratch on blocks of a text."""

import math

import numpy as np
from arguments import DataTrainingArguments, ModelArguments, run_stages
from datasets import load_dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer import Trainer


def main():
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, TrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)

    raw_datasets = load_dataset("text", data_files=data_args.files(), cache_dir=model_args.cache_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_args.tokenizer_name)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_args.config_name))

    def numbers(examples):
        """The text as one row of token numbers, cut into blocks; what is left over is dropped."""
        tokens = np.concatenate(
            [np.array(ids) for ids in tokenizer(examples["text"], add_special_tokens=False)["input_ids"]]
        )
        count = len(tokens) // data_args.max_seq_length
        blocks = tokens[: count * data_args.max_seq_length].reshape(count, -1)
        return {"input_ids": blocks, "labels": blocks}

    lm_datasets = raw_datasets.map(numbers, batched=True, remove_columns=["text"])

    def preprocess_logits_for_metrics(logits, labels):
        return logits.argmax(dim=-1)

    def compute_metrics(eval_preds):
        preds, labels = eval_preds
        return {"accuracy": float((labels[:, 1:] == preds[:, :-1]).mean())}

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=lm_datasets["train"] if training_args.do_train else None,
        eval_dataset=lm_datasets["validation"] if training_args.do_eval else None,
        processing_class=tokenizer,
        data_collator=default_data_collator,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=preprocess_logits_for_metrics,
    )
    run_stages(trainer, training_args)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    trainer.save_metrics("perplexity", {f"perplexity_{i}": math.exp(loss) for i, loss in enumerate(losses)})


if __name__ == "__main__":
    main()
