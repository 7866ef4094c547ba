"""Shortens texts; labels are smoothed, so that the loss is the Trainer's own."""

import numpy as np
from arguments import DataTrainingArguments, ModelArguments, run_stages
from datasets import load_dataset
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq, HfArgumentParser, set_seed
from transformers.trainer_seq2seq import Seq2SeqTrainer
from transformers.training_args_seq2seq import Seq2SeqTrainingArguments


def main():
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, Seq2SeqTrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)

    raw_datasets = load_dataset("csv", data_files=data_args.files(), cache_dir=model_args.cache_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(model_args.model_name_or_path)

    def preprocess_function(examples):
        length = data_args.max_seq_length
        model_inputs = tokenizer(examples["text"], max_length=length, truncation=True, return_token_type_ids=False)
        model_inputs["labels"] = tokenizer(text_target=examples["summary"], max_length=length, truncation=True)["input_ids"]
        return model_inputs

    data = raw_datasets.map(preprocess_function, batched=True, remove_columns=raw_datasets["train"].column_names)

    def compute_metrics(eval_preds):
        preds, labels = (np.where(ids < 0, tokenizer.pad_token_id, ids) for ids in eval_preds)
        decoded, wanted = (tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (preds, labels))
        found = [len(set(a.split()) & set(b.split())) / len(set(b.split())) for a, b in zip(decoded, wanted, strict=True)]
        return {"recall": float(np.mean(found))}

    trainer = Seq2SeqTrainer(
        model=model,
        args=training_args,
        train_dataset=data["train"] if training_args.do_train else None,
        eval_dataset=data["validation"] if training_args.do_eval else None,
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=-100),
        compute_metrics=compute_metrics if training_args.predict_with_generate else None,
    )
    run_stages(trainer, training_args)


if __name__ == "__main__":
    main()
