"""Classifies sentences."""

import os
import sys

import numpy as np
from arguments import DataTrainingArguments, ModelArguments, run_stages
from datasets import load_dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)


def main():
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, TrainingArguments))
    is_file = sys.argv[1].endswith(".json")
    parsed = parser.parse_json_file(sys.argv[1]) if is_file else parser.parse_args_into_dataclasses()
    model_args, data_args, training_args = parsed
    set_seed(training_args.seed)

    raw_datasets = load_dataset("json", data_files=data_args.files(), cache_dir=model_args.cache_dir)
    label_list = sorted(raw_datasets["train"].unique("label"))
    config = AutoConfig.from_pretrained(model_args.model_name_or_path, num_labels=len(label_list))
    tokenizer = AutoTokenizer.from_pretrained(model_args.tokenizer_name or model_args.model_name_or_path)
    model = AutoModelForSequenceClassification.from_pretrained(model_args.model_name_or_path, config=config)

    def preprocess_function(examples):
        result = tokenizer(examples["sentence"], max_length=data_args.max_seq_length, truncation=True)
        result["label"] = [label_list.index(label) for label in examples["label"]]
        return result

    raw_datasets = raw_datasets.map(preprocess_function, batched=True)

    def compute_metrics(p: EvalPrediction):
        return {"accuracy": float((np.argmax(p.predictions, axis=1) == p.label_ids).mean())}

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=raw_datasets["train"] if training_args.do_train else None,
        eval_dataset=raw_datasets["validation"] if training_args.do_eval else None,
        compute_metrics=compute_metrics,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8),
    )
    predictions = run_stages(trainer, training_args, raw_datasets.get("test"))
    if training_args.do_predict and trainer.is_world_process_zero():
        with open(os.path.join(training_args.output_dir, "predict_results.txt"), "w") as writer:
            writer.writelines(f"{label_list[i]}\n" for i in np.argmax(predictions, axis=1))


if __name__ == "__main__":
    main()
