"""Trains a masked language model on lines of a text."""

import datasets
import transformers
from arguments import DataTrainingArguments, ModelArguments, run_stages
from transformers import DataCollatorForLanguageModeling, HfArgumentParser


def main():
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, transformers.TrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    transformers.set_seed(training_args.seed)

    raw_datasets = datasets.load_dataset("text", data_files=data_args.files(), cache_dir=model_args.cache_dir)
    config = transformers.AutoConfig.from_pretrained(model_args.config_name or model_args.model_name_or_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_args.tokenizer_name or model_args.model_name_or_path)
    model = transformers.AutoModelForMaskedLM.from_pretrained(model_args.model_name_or_path, config=config)

    def tokenize_function(examples):
        lines = [line for line in examples["text"] if line and not line.isspace()]
        length = data_args.max_seq_length
        return tokenizer(lines, padding="max_length", truncation=True, max_length=length, return_special_tokens_mask=True)

    tokenized_datasets = raw_datasets.map(tokenize_function, batched=True, remove_columns=["text"])

    def preprocess_logits_for_metrics(logits, labels):
        return logits.argmax(dim=-1)

    def compute_metrics(eval_preds):
        preds, labels = eval_preds
        masked = labels != -100
        return {"accuracy": float((preds == labels)[masked].mean())}

    trainer = transformers.Trainer(
        model=model,
        args=training_args,
        train_dataset=tokenized_datasets["train"] if training_args.do_train else None,
        eval_dataset=tokenized_datasets["validation"] if training_args.do_eval else None,
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=0.3),
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=preprocess_logits_for_metrics,
    )
    run_stages(trainer, training_args)


if __name__ == "__main__":
    main()
