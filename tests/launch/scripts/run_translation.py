"""Translates sentences, and writes what a beam search finds."""

import os

import numpy as np
from arguments import DataTrainingArguments, ModelArguments, run_stages
from datasets import load_dataset
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)


def main():
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, Seq2SeqTrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)

    raw_datasets = load_dataset("json", data_files=data_args.files(), cache_dir=model_args.cache_dir)
    config = AutoConfig.from_pretrained(model_args.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(model_args.tokenizer_name or model_args.model_name_or_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(model_args.model_name_or_path, config=config)

    def preprocess_function(examples):
        inputs = [pair[data_args.source_lang] for pair in examples["translation"]]
        targets = [pair[data_args.target_lang] for pair in examples["translation"]]
        length = data_args.max_seq_length
        return tokenizer(inputs, text_target=targets, max_length=length, truncation=True, return_token_type_ids=False)

    columns = raw_datasets["train"].column_names
    tokenized = {
        split: rows.map(preprocess_function, batched=True, remove_columns=columns) for split, rows in raw_datasets.items()
    }

    def compute_metrics(eval_preds):
        preds, labels = (np.where(ids < 0, tokenizer.pad_token_id, ids) for ids in eval_preds)
        decoded, wanted = (tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (preds, labels))
        right = [a.split() == b.split() for a, b in zip(decoded, wanted, strict=True)]
        return {"exact": float(np.mean(right)), "gen_len": float(np.mean(np.sum(preds != tokenizer.pad_token_id, axis=1)))}

    trainer = Seq2SeqTrainer(
        model=model,
        args=training_args,
        train_dataset=tokenized["train"] if training_args.do_train else None,
        eval_dataset=tokenized["validation"] if training_args.do_eval else None,
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=-100),
        compute_metrics=compute_metrics if training_args.predict_with_generate else None,
    )
    predictions = run_stages(trainer, training_args, tokenized.get("test"))
    if training_args.do_predict and training_args.predict_with_generate:
        predictions = np.where(predictions != -100, predictions, tokenizer.pad_token_id)
        with open(os.path.join(training_args.output_dir, "generated_predictions.txt"), "w") as writer:
            writer.write("\n".join(tokenizer.batch_decode(predictions, skip_special_tokens=True)))


if __name__ == "__main__":
    main()
