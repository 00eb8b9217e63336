"""The built-in stages, tasks and policies."""

from __future__ import annotations

from typing import Any

from pipeline_kit.builtin.models import options as models
from pipeline_kit.builtin.tasks import options as tasks
from pipeline_kit.builtin.tokenizers import options as tokenizers
from pipeline_kit.contract.column_types import VECTOR, VECTORS, ColumnType
from pipeline_kit.contract.registry import Registry
from pipeline_kit.runtime.config import BatchingConfig, DeviceConfig, PaddingConfig, RayRunnerConfig, RunnerConfig

POLICIES: tuple[tuple[str, type[Any], str, dict[str, str]], ...] = (
    (
        "padding",
        PaddingConfig,
        "runtime.padding:PaddingPolicy",
        {
            "longest": "to the longest row of a batch",
            "max_length": "every row to one length: the checkpoint's own, or padding.max_length",
            "multiple_of": "to the longest row of a batch, rounded up; few distinct shapes suit compiled models",
            "none": "never: only rows of equal length share a batch",
        },
    ),
    (
        "batching",
        BatchingConfig,
        "runtime.batching:BatchingPolicy",
        {
            "token_budget": "rows sorted by length inside a window, cut into batches by their tokens",
            "fixed": "rows as they come, a fixed number to a batch",
        },
    ),
    (
        "device",
        DeviceConfig,
        "runtime.device:resolve_device",
        {
            "auto": "the first there is of cuda, mps, cpu",
            "cpu": "the processor",
            "cuda": "an NVIDIA (or, with a ROCm build of torch, AMD) GPU",
            "mps": "the GPU of an Apple machine",
        },
    ),
    ("runner", RunnerConfig, "job.run:local_runner", {"local": "processes of this machine, runner.workers of them"}),
    ("runner", RayRunnerConfig, "job.ray:RayRunner", {"ray": "actors of a Ray cluster, runner.workers of them"}),
)
"""The policies by kind: their options, their target, and the summary of each."""

_TOKENIZERS, _MODELS, _TASKS = (f"{__name__}.{room}" for room in ("tokenizers", "models", "tasks"))
_SCORED: ColumnType = {"list": {"struct": {"label": "string", "score": "float64"}}}
_LABELS: dict[str, ColumnType] = {"label": "string", "score": "float64"}
_ENTITY = {"label": "string", "score": "float64", "text": "string", "start": "int64", "end": "int64"}
_ANSWER: dict[str, ColumnType] = {"answer": "string", "score": "float64", "start": "int64", "end": "int64"}
_TOKEN = {"token": "string", "id": "int64", "score": "float64", "text": "string"}
_OWN = "checkpoint.path=./my-model"
_TEXT = '--text "I love this."'

FORMATS: tuple[tuple[str, str, str, str], ...] = (
    ("input_format", "text", "read.lines:_TextReader", "a text a line"),
    ("input_format", "jsonl", "read.lines:_JsonReader", "a string or an object a line"),
    ("input_format", "csv", "read.lines:_TableReader", "a table with a header, as RFC 4180 has it"),
    ("input_format", "tsv", "read.lines:_TableReader", "a table with a header, tabs between its cells"),
    ("input_format", "parquet", "read.arrow:ArrowPart", "through pyarrow"),
    ("input_format", "arrow", "read.arrow:ArrowPart", "files and streams of Arrow, through pyarrow"),
    ("output_format", "jsonl", "write.text:Jsonl", "an object a line"),
    ("output_format", "csv", "write.text:Csv", "a table with a header; no cell is a formula"),
    ("scheme", "s3", "storage.objects:ObjectStorage", "S3, and stores that speak its language"),
    ("scheme", "s3a", "storage.objects:ObjectStorage", "the same as s3"),
    ("scheme", "gs", "storage.objects:ObjectStorage", "Google Cloud Storage"),
    ("scheme", "az", "storage.objects:ObjectStorage", "Azure Blob Storage"),
    ("scheme", "abfs", "storage.objects:ObjectStorage", "the same as az"),
    ("scheme", "memory", "storage.objects:ObjectStorage", "in the memory of this process"),
    ("output_format", "parquet", "write.parquet:Parquet", "typed columns, through pyarrow"),
)

_OF_REQUESTS = (
    *("max_new_tokens", "do_sample", "seed", "temperature", "top_k", "top_p", "min_p"),
    *("stop_strings", "repetition_penalty"),
)
"""The options of ``model.generation`` that a request may set."""

_WRITES: dict[str, Any] = {
    "postprocessor": "generated_text",
    "target": "generation:GeneratedText",
    "config": tasks.GeneratedTextConfig,
    "gives": {"text": "string", "tokens?": "int64", "finish_reason?": "string"},
    "does": "generated ids to text",
    "model": "generate",
    "evaluator": "generation:TextEvaluator",
    "parameters": (
        *(f"model.generation.{name}" for name in _OF_REQUESTS),
        "postprocessor.full_text",
        "postprocessor.details",
    ),
}
TASKS: tuple[dict[str, Any], ...] = (
    dict(
        name="text-classification",
        postprocessor="classification",
        target="classification.stage:Classification",
        config=tasks.ClassificationConfig,
        gives={**_LABELS, "labels?": _SCORED},
        does="logits to labels and scores",
        head="sequence-classification",
        takes=("text", "text_pair?"),
        evaluator="classification.metrics:classification_evaluator",
        aliases=("sentiment-analysis",),
        parameters=("postprocessor.top_k", "postprocessor.function", "postprocessor.thresholds"),
        summary="One label, or several, for a text or a pair of texts.",
        tip="postprocessor.top_k=null lists every label; tokenizer=windows reads a long text to its end",
    ),
    dict(
        name="zero-shot-classification",
        postprocessor="zero_shot",
        target="zero_shot:ZeroShot",
        config=tasks.ZeroShotConfig,
        gives={**_LABELS, "labels": _SCORED},
        does="entailment logits to scores of any labels",
        head="sequence-classification",
        takes=("text", "labels?"),
        evaluator="zero_shot:zero_shot_evaluator",
        parameters=tuple(f"postprocessor.{name}" for name in ("labels", "multi_label", "hypothesis_template", "top_k")),
        summary="Any labels for a text, by a checkpoint trained on natural language inference.",
        run=f'{_OWN} postprocessor.labels=[sport,politics] --text "The match was a draw."',
        tip="postprocessor.multi_label=true",
    ),
    dict(
        name="token-classification",
        postprocessor="entities",
        target="entities.stage:Entities",
        config=tasks.EntitiesConfig,
        gives={"entities": {"list": {"struct": _ENTITY}}},
        does="a label for each token to entities with their places in the text",
        head="token-classification",
        takes=("text?", "words?"),
        evaluator="entities.metrics:SpanEvaluator",
        aliases=("ner",),
        parameters=("postprocessor.aggregation", "postprocessor.ignore_labels"),
        summary="Labels for parts of a text, such as names of people and places.",
        run=f'{_OWN} --text "My name is Sarah and I live in London."',
        tip="postprocessor.aggregation=first joins the pieces of a word by its first piece",
    ),
    dict(
        name="question-answering",
        postprocessor="answers",
        target="answers.stage:Answers",
        config=tasks.AnswersConfig,
        gives={**_ANSWER, "answers?": {"list": {"struct": _ANSWER}}},
        does="start and end logits to the best spans of the context",
        head="question-answering",
        takes=("question", "context"),
        evaluator="answers.stage:AnswerEvaluator",
        parameters=tuple(
            f"postprocessor.{name}"
            for name in ("top_k", "max_answer_len", "handle_impossible_answer", "align_to_words")
        ),
        summary="The part of a context that answers a question.",
        run=f"""{_OWN} --json '{{"question": "Where?", "context": "Sarah lives in London."}}'""",
        tip="postprocessor.top_k=3 lists three answers; postprocessor.handle_impossible_answer=true allows none",
    ),
    dict(
        name="fill-mask",
        postprocessor="fill_mask",
        target="fill_mask.stage:FillMask",
        config=tasks.FillMaskConfig,
        gives={"masks": {"list": {"list": {"struct": _TOKEN}}}},
        does="the likeliest tokens for each mask",
        head="masked-lm",
        evaluator="fill_mask.stage:MaskEvaluator",
        parameters=("postprocessor.top_k", "postprocessor.targets"),
        summary="The likeliest tokens for each mask in a text, written as the checkpoint has it: [MASK], <mask> …",
        run=f'{_OWN} --text "This film is [MASK]."',
        tip="postprocessor.targets=[good,bad] lists these words alone",
    ),
    dict(
        name="multiple-choice",
        postprocessor="choice",
        target="choice:Choice",
        config=tasks.ChoiceConfig,
        gives={"choice": "string", "score": "float64", "scores": {"list": "float64"}},
        does="the best of several choices",
        head="multiple-choice",
        takes=("text", "choices"),
        evaluator="choice:ChoiceEvaluator",
        summary="The best of several choices for a text.",
        run=f"""{_OWN} --json '{{"text": "It rains, so", "choices": ["I stay in.", "I swim."]}}'""",
        tip="tokenizer.max_length=128",
    ),
    dict(
        name="text-ranking",
        postprocessor="ranking",
        target="ranking:Ranking",
        config=tasks.RankingConfig,
        gives={"ranking": {"list": {"struct": {"index": "int64", "score": "float64"}}}},
        does="a score for each document, sorted",
        head="sequence-classification",
        takes=("query", "documents"),
        evaluator="ranking:RankingEvaluator",
        parameters=("postprocessor.top_k", "postprocessor.function"),
        summary="Documents sorted by how well they answer a query, by a cross-encoder.",
        run=f"""{_OWN} --json '{{"query": "a knot", "documents": ["Tie it.", "Cook it."]}}'""",
        tip="postprocessor.top_k=10",
    ),
    dict(
        name="sentence-embedding",
        postprocessor="pooling",
        target="embedding.stage:Pooling",
        config=tasks.PoolingConfig,
        gives={"embedding": VECTOR},
        does="token vectors to one vector per text",
        head="base",
        takes=("text", "prompt_name?"),
        evaluator="embedding.stage:EmbeddingEvaluator",
        parameters=("postprocessor.normalize", "postprocessor.dimensions", "postprocessor.prompt_name"),
        summary="One vector for a text, as the checkpoint's sentence-transformers files say, else the normalized mean.",
        run=f"checkpoint=minilm {_TEXT}",
        tip='postprocessor.dimensions=128 postprocessor.prompt="query: " postprocessor.pooling=cls',
    ),
    dict(
        name="feature-extraction",
        postprocessor="features",
        target="embedding.features:Features",
        config=tasks.FeaturesConfig,
        gives={"tokens": {"list": "string"}, "vectors": VECTORS},
        does="the token vectors themselves, without padding",
        head="base",
        summary="One vector for each token of a text, without padding.",
        tip="postprocessor.special_tokens=false leaves [CLS] and the like out",
    ),
    dict(
        name="text-generation",
        head="causal-lm",
        takes=("text?", "messages?"),
        **_WRITES,
        summary="A text carried on, or a conversation answered, by a causal language model.",
        run=f'{_OWN} --text "Once upon a time"',
        tip="model.generation.max_new_tokens=20 model.generation.do_sample=true",
    ),
    dict(
        name="text2text-generation",
        head="seq2seq-lm",
        aliases=("text2text",),
        **_WRITES,
        summary="A text made of a text, by an encoder-decoder.",
        run=f"{_OWN} {_TEXT}",
        tip="model.generation.max_new_tokens=20",
    ),
    dict(
        name="summarization",
        head="seq2seq-lm",
        **_WRITES,
        summary="A short text that says what a long one does, by an encoder-decoder.",
        run=f'{_OWN} --text "A long text."',
        tip="model.generation.max_new_tokens=60 model.generation.num_beams=4",
    ),
    dict(
        name="translation",
        head="seq2seq-lm",
        **_WRITES,
        summary="A text in another language, by an encoder-decoder.",
        run=f"{_OWN} task.src_lang=eng_Latn task.tgt_lang=fra_Latn {_TEXT}",
        tip="model.generation.num_beams=4",
    ),
)
"""The tasks, each with the postprocessor that it brings; paths are those below ``builtin/tasks``."""

DIALECTS = {
    "native": ("native:Native", "the server's own routes: /run, /explain, /health, /ready, /metrics, /docs"),
    "huggingface": ("huggingface:HuggingFace", "huggingface_hub's InferenceClient: every task at POST /"),
    "tei": ("tei:Tei", "text-embeddings-inference: /embed, /similarity, /predict, /rerank, /tokenize and others"),
    "openai": ("openai:OpenAI", "the client openai: /v1/embeddings, /v1/completions, /v1/chat/completions, /v1/models"),
    "cohere": ("cohere:Cohere", "the client cohere: /v1/rerank, /v2/rerank, /v2/embed"),
    "vllm": ("vllm:Vllm", "vLLM's routes beside OpenAI's: /classify, /score"),
    "playground": ("playground:Playground", "a page to try the pipelines on: /playground"),
    "open_inference": ("open_inference:OpenInference", "the Open Inference Protocol v2, below /v2"),
}
"""What clients of ``pipeline-kit serve`` speak; paths are those below ``serve/dialects``."""


def register(registry: Registry) -> None:
    """Add every built-in stage, task, policy, format and dialect."""
    for name, (target, summary) in DIALECTS.items():
        registry.add("dialect", name, f"pipeline_kit.serve.dialects.{target}", summary=summary)
    for kind, name, target, summary in FORMATS:
        registry.add(kind, name, f"pipeline_kit.files.{target}", summary=summary)
    for kind, config, target, summaries in POLICIES:
        for name, summary in summaries.items():
            registry.add(kind, name, f"pipeline_kit.{target}", config, summary)
    summary = "the checkpoint's fast tokenizer, through transformers' AutoTokenizer"
    registry.tokenizer("hf", f"{_TOKENIZERS}.hf:HfTokenizer", tokenizers.HfTokenizerConfig, summary=summary)
    target = f"{_TOKENIZERS}.hf:TokenizersJson"
    summary = "a tokenizer.json read by the tokenizers library alone, without transformers"
    registry.tokenizer("tokenizers_json", target, tokenizers.TokenizersJsonConfig, summary=summary)
    summary = "a transformers model with the task's head, from safetensors"
    registry.model("hf", f"{_MODELS}.hf.stage:HfModel", models.HfModelConfig, summary=summary)
    summary = "static token embeddings, averaged, with a linear head; no transformers, very fast"
    registry.model("static", f"{_MODELS}.static:StaticModel", models.StaticModelConfig, summary=summary)
    summary = "a transformers model that writes text: causal or encoder-decoder"
    registry.model("generate", f"{_MODELS}.generate.stage:GenerateModel", models.GenerateModelConfig, summary=summary)
    registry.postprocessor(
        "logits",
        f"{_TASKS}.classification.stage:Logits",
        tasks.LogitsConfig,
        gives={"labels": {"list": "string"}, "logits": VECTOR},
        summary="the raw logits with their label names",
    )
    for row in TASKS:
        task = dict(row)
        name, target = task["postprocessor"], f"{_TASKS}.{task.pop('target')}"
        registry.postprocessor(name, target, task.pop("config"), gives=task.pop("gives"), summary=task.pop("does"))
        if "evaluator" in task:
            task["evaluator"] = f"{_TASKS}.{task['evaluator']}"
        registry.task(**task)
