"""Text of varied length, written by networks of GPT-2's and T5's small shapes, against ``generate()`` of transformers.

    python benchmarks/generation.py [--rounds 3] [--batch-sizes 8 32] [--rows 64] [--shapes gpt2 t5]

Each row ends by an end token of its own, drawn so that the rows write 5 to 120 tokens. ``generate()`` gets prompts that
are sorted by length, since that is its best. All sides must write the same tokens.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from common.checkpoints import kept, override
from common.script import Measurement, finish, flags, tell
from common.texts import labelled

from pipeline_kit.bench.machine import paired_ratio
from pipeline_kit.bench.rounds import turns
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.compose.build import build
from pipeline_kit.compose.compose import compose
from pipeline_kit.errors import StageError
from pipeline_kit.runtime.device import emulated
from pipeline_kit.runtime.padding import collate

FEWEST, MOST = 5, 120
SHAPES = {"gpt2": "text-generation", "t5": "text2text-generation"}
VOCABULARY = {"gpt2": 50257, "t5": 32128}
ENGINES = {
    "float32": (),
    "bfloat16": ("device.dtype=bfloat16",),
    "int8_per_token": ("model.quantization=int8_per_token",),
}
Ids = list[list[int]]


def make_writer(folder: Path, shape: str, texts: Sequence[str], quick: bool) -> None:
    """Write a checkpoint whose words are tokens, with random weights that write something else for each text."""
    import tokenizers
    import torch
    import transformers

    size = VOCABULARY[shape]
    words = dict.fromkeys(word for text in texts for word in text.split())
    names = ["<pad>", "<unk>", *words, *(f"word{number}" for number in range(size))][:size]
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, "decoder_start_token_id": 0}
    torch.manual_seed(0)
    with quiet(), torch.no_grad():
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>", padding_side="left", model_max_length=512
        )
        if shape == "gpt2":
            sizes = {"n_layer": 2, "n_embd": 64, "n_head": 4} if quick else {}
            network = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ids))
            last = network.transformer.h[-1].mlp
            turn_vectors(network.transformer.wte.weight, last.c_fc.weight.t(), last.c_proj.weight.t())
        else:
            sizes = {"num_layers": 2, "d_model": 64, "d_ff": 128, "num_heads": 2} if quick else {}
            settings = transformers.T5Config(initializer_factor=1.0, vocab_size=size, **sizes, **ids)
            network = transformers.T5ForConditionalGeneration(settings)
            for block in network.decoder.block:
                for output in (block.layer[0].SelfAttention.o, block.layer[1].EncDecAttention.o):
                    output.weight.mul_(0.1)
                block.layer[2].DenseReluDense.wo.weight.mul_(0.1)
            last = network.decoder.block[-1].layer[2].DenseReluDense
            turn_vectors(network.shared.weight, last.wi.weight, last.wo.weight)
        network.eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({k: v for k, v in ids.items() if v is not None}))


def turn_vectors(words: Any, inner: Any, outer: Any) -> None:
    """Let a network's last layer turn the word's vector: with random weights alone it writes a few words over and over.

    The activation between takes a number and its negative, of which one, or the difference of both, is left.

    :param inner: the weight of the layer before the activation, ``[wide, H]``; `outer`, ``[H, wide]``, is behind it.
    """
    import torch

    size = words.shape[1]
    words.div_(words.square().mean(dim=1, keepdim=True).sqrt() / words.std())  # a longer one would come too often
    turn = torch.linalg.qr(torch.randn(size, size)).Q
    inner.zero_()[: 2 * size] = torch.cat([torch.eye(size), -torch.eye(size)])
    outer.zero_()[:, : 2 * size] = 64 * float(words.std()) * torch.cat([turn, -turn], dim=1)


def end_tokens(free: Ids) -> tuple[list[int], list[int]]:
    """Choose end tokens for rows that were written without any, and return them with the length that each row has then.

    A row's is the token that it writes first at about a drawn place; no row before it may write that one earlier.
    """
    chance = Random(0)
    ends: list[int] = []
    lengths: list[int] = []
    for number, row in enumerate(free):
        own = next((place for place, token in enumerate(row) if token in ends), MOST)
        wanted = chance.randint(FEWEST, MOST)
        good = [
            place
            for place in range(FEWEST, own)
            if row.index(row[place]) == place
            and not any(row[place] in other[:FEWEST] for other in free)
            and not any(row[place] in before[:length] for before, length in zip(free[:number], lengths, strict=False))
        ]
        place = min(good, key=lambda place: abs(place - wanted), default=own)
        if place < own:
            ends.append(row[place])
        lengths.append(place)
    return ends, lengths


def writers(folder: Path, shape: str, rows: Any, args: argparse.Namespace, ends: Sequence[int]) -> dict[str, Any]:
    """Return the sides by name: each writes all rows once and returns their ids."""
    import torch
    import transformers

    def of(*overrides: str) -> Callable[[], Ids]:
        generation = f"model.generation.max_new_tokens={MOST}"
        pipe = build(compose([f"task={SHAPES[shape]}", override(folder), generation, "device=cpu", *overrides]))
        model: Any = pipe.model
        model._config.eos_token_id, model._ends = list(ends) or None, list(ends)

        def write() -> Ids:
            outputs: dict[int, list[int]] = {}
            for batch in pipe.batch(rows):
                written: Any = pipe.forward([rows[i] for i in batch])
                for place, found in zip(batch, written, strict=True):
                    outputs[place] = found["sequences"][: int(found["sequence_lengths"])].tolist()
            return [outputs[place] for place in range(len(rows))]

        return write

    sides: dict[str, Any] = {f"pipeline-kit {name}": of(*ENGINES[name]) for name in args.engines}
    auto = transformers.AutoModelForCausalLM if shape == "gpt2" else transformers.AutoModelForSeq2SeqLM
    with quiet():
        network = auto.from_pretrained(folder).eval()
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place].input_ids))
    settings = transformers.GenerationConfig(
        max_new_tokens=MOST, do_sample=False, pad_token_id=0, eos_token_id=list(ends) or None, decoder_start_token_id=0
    )
    padding = build(compose([f"task={SHAPES[shape]}", override(folder), "device=cpu"])).padding

    def generate(size: int) -> Ids:
        found: Ids = [[] for _ in rows]
        for start in range(0, len(order), size):
            places = order[start : start + size]
            batch = collate([rows[place] for place in places], padding, "cpu")
            with quiet(), torch.inference_mode():
                written = network.generate(
                    batch.input_ids, attention_mask=batch.attention_mask, generation_config=settings
                )
            skipped = 1 if network.config.is_encoder_decoder else batch.input_ids.shape[1]
            for place, row in zip(places, written[:, skipped:].tolist(), strict=True):
                found[place] = row[: next((i for i, token in enumerate(row) if token in ends), MOST)]
        return found

    def continuous() -> Ids:
        with quiet():
            found = network.generate_batch([list(row.input_ids) for row in rows], generation_config=settings)
        written = [found[f"req_{place}"].generated_tokens for place in range(len(rows))]
        return [row[: next((i for i, token in enumerate(row) if token in ends), MOST)] for row in written]

    for size in dict.fromkeys(args.batch_sizes):
        sides[f"generate() batch {size}"] = lambda size=size: generate(size)
    if shape == "gpt2" and args.generate_batch:
        sides["generate_batch()"] = continuous
    return sides


def compare(shape: str, args: argparse.Namespace) -> Measurement:
    """Let all sides take turns on the rows."""
    texts = [text for text, _ in labelled("short")][: 12 if args.quick else args.rows]
    every = [text for text, _ in labelled("short")]
    name = f"writer-{shape}-{'quick-' if args.quick else ''}3"
    folder = kept(args.work / name, lambda folder: make_writer(folder, shape, every, args.quick))
    tell(f"{shape}: writing without end tokens, to draw them")
    pipe = build(compose([f"task={SHAPES[shape]}", override(folder), "device=cpu"]))
    rows = [encoding for found in pipe.encode(texts) if isinstance(found, list) for encoding in found]
    drawn = folder / f"free-{len(rows)}.json"
    if not drawn.exists():
        drawn.write_text(json.dumps(next(iter(writers(folder, shape, rows, args, ()).values()))()))
    ends, lengths = end_tokens(json.loads(drawn.read_text()))
    sides = writers(folder, shape, rows, args, ends)
    names = list(sides)
    seconds = {name: list[float]() for name in names}
    written: dict[str, Ids] = {}
    for number in range(args.rounds):
        for place in turns(len(names), number):
            gc.collect()
            start = time.perf_counter()
            written[names[place]] = sides[names[place]]()
            seconds[names[place]].append(round(time.perf_counter() - start, 3))
        tell(f"round {number + 1} of {args.rounds}: " + ", ".join(f"{n} {seconds[n][-1]} s" for n in names))
    first, peers = written[names[0]], [name for name in names if name.startswith("generate")]
    best = min(peers, key=lambda name: sorted(seconds[name])[len(seconds[name]) // 2])
    if [len(row) for row in first] != lengths:
        raise StageError(f"{names[0]} writes rows of {[len(row) for row in first]} tokens, expected {lengths}")
    lines = []
    for name in names:
        ratio = paired_ratio(seconds[names[0]], seconds[name])
        same = sum(one == other for one, other in zip(written[name], first, strict=True))
        middle = sorted(seconds[name])[len(seconds[name]) // 2]
        faster = f"{ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f})"
        lines.append([name, round(sum(lengths) / middle, 1), middle, faster, f"{same} of {len(rows)}"])
    return {
        "name": f"generation/{shape}",
        "title": f"{shape}-small shape, {len(rows)} rows that write {min(lengths)} to {max(lengths)} tokens, greedy",
        "kind": "figures",
        "columns": ("side", "new tokens/s", "seconds", "our float32 is", "rows with the same tokens"),
        "rows": lines,
        "value": paired_ratio(seconds[names[0]], seconds[best]),
    }


def main() -> None:
    """Run the comparison."""
    parser = flags(__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 32], help="of generate()")
    parser.add_argument("--rows", type=int, default=64, help="default: 64")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="default: both")
    # Emulated, bfloat16 takes over nine minutes a round.
    engines = ["float32"] if emulated("bfloat16") else ["float32", "bfloat16"]
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=engines)
    parser.add_argument("--generate-batch", action="store_true", help="transformers' continuous batching too")
    args = parser.parse_args()
    finish(args, "generation", lambda: [compare(shape, args) for shape in args.shapes])


if __name__ == "__main__":
    main()
