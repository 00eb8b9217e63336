"""``transformers.pipeline()`` as a side: what a user has without this library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from pipeline_kit.bench.sides import BenchSide, TextBatch
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.contract.types import Example
from pipeline_kit.errors import StageError, UsageError, for_message

if TYPE_CHECKING:
    from pipeline_kit.compose.schema import PipelineConfig
    from pipeline_kit.runtime.pipeline import Pipeline

TASKS = ("text-classification", "token-classification", "fill-mask", "feature-extraction", "zero-shot-classification")
"""Those that both have and whose work is the same; what a generator writes may differ in length."""


@final
class TransformersSide(BenchSide):
    """``transformers.pipeline(task, model=folder)`` with the device, dtype and length limit of a pipeline of ours."""

    def __init__(self, pipeline: Pipeline, config: PipelineConfig, batch_size: int = 1) -> None:
        """Load the checkpoint of `pipeline` a second time.

        :param batch_size: texts that it runs at once; 1 is its default.
        :raises UsageError: if it has no such task.
        :raises StageError: if it cannot load the checkpoint.
        """
        task = config.task.name
        if task not in TASKS:
            raise UsageError(f"--vs transformers: not for task={task}; it is for {', '.join(TASKS)}")
        self.name = "pipeline()" if batch_size == 1 else f"pipeline() batch {batch_size}"
        self.device = pipeline.device
        self._config = config
        self._batch_size = batch_size
        self._folder = str(pipeline.description["checkpoint"]["path"])
        import torch
        import transformers

        try:
            with quiet():
                # Its dtype would be the one the checkpoint was saved in, which is other work.
                self._pipe: Any = transformers.pipeline(
                    task, model=self._folder, device=self.device.name, dtype=getattr(torch, self.device.dtype)
                )
        except Exception as error:
            raise self._failed("cannot load this checkpoint", error) from error
        if pipeline.tokenizer.max_length is not None:
            self._pipe.tokenizer.model_max_length = pipeline.tokenizer.max_length
        self._options = self._call_options()

    def warm_up(self, examples: Sequence[Example]) -> TextBatch:
        work = TextBatch([])

        def hook(module: object, args: object, given: Mapping[str, Any]) -> None:
            mask = given["attention_mask"]
            work.count(mask.sum(1).cpu().numpy(), mask.numel())

        handle = self._pipe.model.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            work.results = list(self.run(examples))
        except KeyError as error:  # an architecture without an attention mask has nothing to count by
            raise self._failed("gives its network no attention mask", error) from error
        finally:
            handle.remove()
        return work

    def run(self, examples: Sequence[Example]) -> list[Any]:
        found = self._call([_read(example) for example in examples], examples)
        return found if isinstance(found, list) and len(found) == len(examples) else [found]

    def run_one(self, example: Example) -> object:
        return self._call(_read(example), [example])

    @property
    def description(self) -> Mapping[str, Any]:
        limit = self._pipe.tokenizer.model_max_length
        return {
            "task": self._config.task.name,
            "checkpoint": {"path": self._folder},
            "device": {"name": self.device.name, "dtype": self.device.dtype, "threads": self.device.threads},
            "batch_size": self._batch_size,
            "max_length": limit if limit < 1 << 31 else None,
            "options": {name: value for name, value in self._options.items() if name != "candidate_labels"},
        }

    def _call(self, inputs: Any, examples: Sequence[Example]) -> Any:
        options = dict(self._options)
        if self._config.task.name == "zero-shot-classification":
            options["candidate_labels"] = self._labels(examples)
        try:
            return self._pipe(inputs, batch_size=self._batch_size, **options)
        except Exception as error:
            if isinstance(error, KeyError | UsageError):
                raise
            raise self._failed("failed on these texts", error) from error

    def _call_options(self) -> dict[str, Any]:
        """Ask for the same answers: texts are cut at the same length, entities are put together the same way."""
        chosen = self._config.postprocessor.options
        options: dict[str, Any] = {}
        task = self._config.task.name
        if task in ("text-classification", "feature-extraction"):
            options["truncation"] = True
        elif task == "fill-mask":
            options["tokenizer_kwargs"] = {"truncation": True}
            options["top_k"] = getattr(chosen, "top_k", 5)
        elif task == "token-classification":
            options["aggregation_strategy"] = getattr(chosen, "aggregation", "simple")
        else:
            options["multi_label"] = getattr(chosen, "multi_label", False)
            options["hypothesis_template"] = getattr(chosen, "hypothesis_template", "This example is {}.")
        return options

    def _labels(self, examples: Sequence[Example]) -> list[str]:
        own = list(getattr(self._config.postprocessor.options, "labels", ()))
        given = [
            list(example["labels"]) for example in examples if isinstance(example, Mapping) and "labels" in example
        ]
        if any(labels != given[0] for labels in given) or (given and len(given) != len(examples)):
            raise UsageError(
                "--vs transformers: pipeline() takes the same candidate labels for all texts; "
                "leave 'labels' out of the rows and set postprocessor.labels"
            )
        return given[0] if given else own

    def _failed(self, problem: str, error: Exception) -> StageError:
        cause = f"{type(error).__name__}: {for_message(str(error))}"
        return StageError(f"transformers.pipeline() {problem}: {cause}. Leave --vs transformers out")


def _read(example: Example) -> Any:
    """Return the text, or text and pair, as it takes them."""
    if isinstance(example, str):
        return example
    return dict(example) if example.get("text_pair") is not None else example["text"]
