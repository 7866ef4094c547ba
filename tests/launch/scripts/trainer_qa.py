"""A Trainer whose evaluation turns logits into texts before anything is scored."""

from transformers import Trainer


class QuestionAnsweringTrainer(Trainer):
    def __init__(self, *args, eval_examples=None, post_process_function=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.examples, self.to_texts = eval_examples, post_process_function

    def evaluate(self, ignore_keys=None, metric_key_prefix="eval"):
        score, self.compute_metrics = self.compute_metrics, None
        output = self.evaluation_loop(
            self.get_eval_dataloader(), "Evaluation", ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix
        )
        self.compute_metrics = score
        found = score(self.to_texts(self.examples, self.eval_dataset, output.predictions))
        metrics = output.metrics | {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
