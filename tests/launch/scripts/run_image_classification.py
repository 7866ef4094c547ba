"""Classifies images in folders, flipped at random in training."""

import os

import numpy as np
import torch
from arguments import ImageArguments, ModelArguments, run_stages
from datasets import load_dataset
from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, ToTensor
from transformers import AutoConfig, AutoModelForImageClassification, HfArgumentParser, Trainer, TrainingArguments, set_seed


def main():
    parser = HfArgumentParser((ModelArguments, ImageArguments, TrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)

    folders = {"train": data_args.train_dir, "validation": data_args.validation_dir}
    data_files = {split: os.path.join(folder, "**") for split, folder in folders.items()}
    dataset = load_dataset("imagefolder", data_files=data_files, cache_dir=model_args.cache_dir)
    labels = dataset["train"].features["label"].names
    config = AutoConfig.from_pretrained(model_args.model_name_or_path, num_labels=len(labels))
    model = AutoModelForImageClassification.from_pretrained(model_args.model_name_or_path, config=config)

    normalize = Normalize([0.5] * 3, [0.5] * 3)
    transforms = {
        "train": Compose([RandomHorizontalFlip(), ToTensor(), normalize]),
        "validation": Compose([ToTensor(), normalize]),
    }

    def transformed(split):
        def each(batch):
            batch["pixel_values"] = [transforms[split](image.convert("RGB")) for image in batch["image"]]
            return batch

        return each

    for split in dataset:
        dataset[split].set_transform(transformed(split))

    def collate_fn(examples):
        pixel_values = torch.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": pixel_values, "labels": torch.tensor([example["label"] for example in examples])}

    def compute_metrics(p):
        return {"accuracy": float((np.argmax(p.predictions, axis=1) == p.label_ids).mean())}

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=dataset["train"] if training_args.do_train else None,
        eval_dataset=dataset["validation"] if training_args.do_eval else None,
        compute_metrics=compute_metrics,
        data_collator=collate_fn,
    )
    run_stages(trainer, training_args)


if __name__ == "__main__":
    main()
