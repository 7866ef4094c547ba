"""Finds the span of a context that answers a question."""

import numpy as np
from arguments import DataTrainingArguments, ModelArguments, run_stages
from datasets import load_dataset
from trainer_qa import QuestionAnsweringTrainer
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    HfArgumentParser,
    TrainingArguments,
    default_data_collator,
    set_seed,
)


def main():
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, TrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)

    raw_datasets = load_dataset("json", data_files=data_args.files(), field="data", cache_dir=model_args.cache_dir)
    config = AutoConfig.from_pretrained(model_args.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    model = AutoModelForQuestionAnswering.from_pretrained(model_args.model_name_or_path, config=config)

    def prepare_features(examples):
        """Question and context in one sequence, with the first and the last token of the answer."""
        given = {"truncation": "only_second", "max_length": data_args.max_seq_length, "padding": "max_length"}
        encoded = tokenizer(examples["question"], examples["context"], return_offsets_mapping=True, **given)
        encoded["start_positions"], encoded["end_positions"], encoded["offsets"] = [], [], []
        for i, offsets in enumerate(encoded.pop("offset_mapping")):
            spans = [span if part == 1 else (-1, -1) for part, span in zip(encoded.sequence_ids(i), offsets, strict=True)]
            answer = examples["answers"][i]
            start = answer["answer_start"][0]
            end = start + len(answer["text"][0])
            encoded["start_positions"].append(next(k for k, span in enumerate(spans) if span[0] == start))
            encoded["end_positions"].append(next(k for k, span in enumerate(spans) if span[1] == end))
            encoded["offsets"].append(spans)
        return encoded

    columns = raw_datasets["train"].column_names
    data = raw_datasets.map(prepare_features, batched=True, remove_columns=columns)

    def post_processing_function(examples, features, predictions):
        """The texts of the best spans, beside the right ones."""
        texts = []
        for example, feature, start, end in zip(examples, features, *predictions, strict=True):
            allowed = [k for k, span in enumerate(feature["offsets"]) if span[0] >= 0]
            first = max(allowed, key=lambda k: start[k])
            last = max((k for k in allowed if k >= first), key=lambda k: end[k])
            texts.append(example["context"][feature["offsets"][first][0] : feature["offsets"][last][1]])
        return texts, [example["answers"]["text"][0] for example in examples]

    def compute_metrics(eval_preds):
        return {"exact_match": float(np.mean([a == b for a, b in zip(*eval_preds, strict=True)]))}

    trainer = QuestionAnsweringTrainer(
        model=model,
        args=training_args,
        train_dataset=data["train"] if training_args.do_train else None,
        eval_dataset=data["validation"] if training_args.do_eval else None,
        eval_examples=raw_datasets["validation"] if training_args.do_eval else None,
        processing_class=tokenizer,
        data_collator=default_data_collator,
        post_process_function=post_processing_function,
        compute_metrics=compute_metrics,
    )
    run_stages(trainer, training_args)


if __name__ == "__main__":
    main()
