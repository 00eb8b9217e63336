"""Panels of token vectors and of sentence embeddings, held against transformers' own hidden states."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import checkpoint
from panels_helpers import (
    LONG,
    TEXTS,
    WINDOWS,
    Told,
    ask,
    assemble,
    close,
    column,
    last_number,
    network,
    padded,
    reference,
    shown,
    token_weights,
)
from safetensors.torch import save_file

from pipeline_kit import Pipeline
from pipeline_kit.testing.checkpoints import tiny_checkpoint

NAMES = ("bert", "xlnet")
POOLED: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda h: h.mean(dim=0),
    "cls": lambda h: h[0],
    "last": lambda h: h[-1],
    "max": lambda h: h.max(dim=0).values,
    "mean_sqrt_len": lambda h: h.sum(dim=0) / len(h) ** 0.5,
    "weighted_mean": lambda h: (h * torch.arange(1, len(h) + 1)[:, None]).sum(dim=0) / (len(h) * (len(h) + 1) / 2),
}


@pytest.fixture(scope="module")
def folders() -> Mapping[str, Path]:
    return {name: checkpoint(name, head="base") for name in NAMES}


def embedder(folder: Path, tokenizer: Mapping[str, Any] | None = WINDOWS, **options: Any) -> Pipeline:
    return assemble(folder, "sentence-embedding", {"name": "pooling", **options}, tokenizer)


def hidden_of(model: Any, told: Told) -> list[torch.Tensor]:
    return [row["last_hidden_state"].double() for row in reference(model, told)]


@pytest.mark.parametrize("mode", POOLED)
@pytest.mark.parametrize("name", NAMES)
def test_pooling(folders: Mapping[str, Path], name: str, mode: str) -> None:
    pipe, model = embedder(folders[name], pooling=mode), network(folders[name], "AutoModel")
    for side in sorted(pipe.model.safe_padding_sides):
        for told in ask(padded(pipe, side), (*TEXTS, LONG)):
            hidden = hidden_of(model, told)
            vectors = torch.stack([POOLED[mode](own) for own in hidden])
            panel = told.panel(f"pooling ({mode})")
            several = len(hidden) > 1
            for row in panel.rows:
                window, at, made, divided, found = row if several else (0, *row)
                close([found], vectors[window, at][None])
                if mode in ("mean", "mean_sqrt_len", "weighted_mean"):
                    assert made / divided == pytest.approx(found, abs=1e-6, rel=1e-6)
                    count = len(hidden[window])
                    divisor = {"mean": count, "mean_sqrt_len": count**0.5}.get(mode, count * (count + 1) / 2)
                    close([divided], [divisor])
                else:
                    close([found], hidden[window][made, at][None])
            assert len(panel.rows) == min(50, 8 * len(hidden))
            if mode not in ("cls", "last"):
                assert last_number(panel) == shown(float(vectors[0, 0]))
            steps = told.panel("vector, step by step")
            close(steps.rows[0][1:], [32, vectors[0].norm(), vectors[0, 0]])

            weights = token_weights(told.encodings)[:, None]
            merged = (vectors * weights).sum(dim=0) / weights.sum()
            final = told.panel("normalising")
            close(column(final, "before"), merged[:8])
            close(column(final, "embedding"), (merged / merged.norm())[:8])
            assert column(final, "embedding") == told.result["embedding"][:8]
            lines = final.formula.replace("\n    ", " ").split("\n")
            norm, first, length = (float(line.rpartition("= ")[2]) for line in lines)
            assert (norm, first, length) == (shown(float(merged.norm())), shown(told.result["embedding"][0]), 1.0)
            if several:
                windows = told.panel("windows put together")
                assert last_number(windows) == shown(float(merged[0]))
                for label, window, _, _, weight, found in windows.rows:
                    close([found, weight], [vectors[window, int(label.removeprefix("number "))], weights[window, 0]])


def test_an_embedding_that_is_cut_and_not_normalised(folders: Mapping[str, Path]) -> None:
    pipe, model = embedder(folders["bert"], normalize=False, dimensions=5), network(folders["bert"], "AutoModel")
    for told in ask(pipe, TEXTS):
        [hidden] = hidden_of(model, told)
        steps, final = told.panel("vector, step by step"), told.panel("no normalising")
        assert column(steps, "step") == ["pooling mean", "the first 5 numbers"]
        close(column(steps, "norm"), [hidden.mean(dim=0).norm(), hidden.mean(dim=0)[:5].norm()])
        assert column(final, "before") == column(final, "embedding") == told.result["embedding"]


def modules(folder: Path, *, include_prompt: bool = True) -> dict[str, torch.Tensor]:
    """Put a Dense, a LayerNorm and a Normalize behind the network, as sentence-transformers writes them."""
    kinds = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize")
    paths = ("", *(f"{i}_{kind}" for i, kind in enumerate(kinds[1:], 1)))
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    generator = torch.Generator().manual_seed(0)
    dense = {
        "linear.weight": torch.randn(12, 96, generator=generator),
        "linear.bias": torch.randn(12, generator=generator),
    }
    norm = {"norm.weight": torch.randn(12, generator=generator), "norm.bias": torch.randn(12, generator=generator)}
    settings: tuple[Mapping[str, Any], ...] = (
        {
            "word_embedding_dimension": 32,
            "pooling_mode": ["mean", "max", "weightedmean"],
            "include_prompt": include_prompt,
        },
        {"in_features": 96, "out_features": 12, "activation_function": "torch.nn.modules.activation.Tanh"},
        {"dimension": 12},
        {},
    )
    for path, config, weights in zip(paths[1:], settings, ({}, dense, norm, {}), strict=True):
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(config))
        if weights:
            save_file(weights, folder / path / "model.safetensors")
    (folder / "modules.json").write_text(json.dumps(listed))
    return dense | norm


def test_layers_behind_the_pooling_and_a_prompt_left_out(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "modules", head="base")
    weights = {name: value.double() for name, value in modules(folder, include_prompt=False).items()}
    pipe, model = embedder(folder, prompt="so good: "), network(folder, "AutoModel")
    for told in ask(padded(pipe, "right"), TEXTS[:3]):
        [hidden] = hidden_of(model, told)
        kept = hidden[4:]  # [CLS], so, good, :
        places = torch.arange(5, len(hidden) + 1)[:, None]
        weighted = (kept * places).sum(dim=0) / places.sum()
        pooled = torch.cat([kept.mean(dim=0), kept.max(dim=0).values, weighted])
        dense = torch.tanh(weights["linear.weight"] @ pooled + weights["linear.bias"])
        normed = torch.nn.functional.layer_norm(dense, (12,), weights["norm.weight"], weights["norm.bias"])
        steps = told.panel("vector, step by step")
        assert column(steps, "step") == ["pooling mean + max + weighted_mean", "Dense 96 to 12, tanh", "LayerNorm"]
        assert column(steps, "numbers") == [96, 12, 12]
        close(column(steps, "norm"), [pooled.norm(), dense.norm(), normed.norm()])
        close(column(steps, "first number"), [pooled[0], dense[0], normed[0]])
        assert "the 4 tokens of the prompt left out" in told.panel("pooling (mean)").note
        close(column(told.panel("pooling (mean)"), "pooled"), pooled[:8])
        close(column(told.panel("pooling (max)"), "pooled"), pooled[32:40])
        by_place = told.panel("pooling (weighted_mean)")
        close(column(by_place, "sum"), (kept * places).sum(dim=0)[:8])
        close(column(by_place, "pooled"), weighted[:8])
        assert set(column(by_place, "divided by")) == {float(places.sum())}
        close(column(told.panel("normalising"), "embedding"), (normed / normed.norm())[:8])
        assert column(told.panel("normalising"), "embedding") == told.result["embedding"][:8]


def test_only_the_first_window_leaves_the_prompt_out(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "modules", head="base")
    modules(folder, include_prompt=False)
    [told] = ask(embedder(folder, prompt="so good: "), [LONG])
    hidden = hidden_of(network(folder, "AutoModel"), told)
    pooled = [hidden[0][4:].mean(dim=0), *[own.mean(dim=0) for own in hidden[1:]]]
    for window, number, _, divided, found in told.panel("pooling (mean)").rows:
        close([found], pooled[window][number][None])
        assert divided == len(hidden[window]) - (0 if window else 4)


@pytest.mark.parametrize("special_tokens", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_features(folders: Mapping[str, Path], name: str, special_tokens: bool) -> None:
    model = network(folders[name], "AutoModel")
    post = {"name": "features", "special_tokens": special_tokens}
    pipe = assemble(folders[name], "feature-extraction", post)
    for told in ask(padded(pipe, sorted(pipe.model.safe_padding_sides)[0]), TEXTS):
        [hidden] = hidden_of(model, told)
        panel = told.panel("token vectors")
        close(column(panel, "norm"), hidden.norm(dim=1))
        close(column(panel, "first number"), hidden[:, 0])
        assert [row[1] for row in panel.rows if row[-1]] == told.result["tokens"]
        assert [row[2] for row in panel.rows if row[-1]] == [vector[0] for vector in told.result["vectors"]]
        assert last_number(panel) == shown(float(hidden[0].norm()))


def test_features_of_windows(folders: Mapping[str, Path]) -> None:
    pipe = assemble(folders["bert"], "feature-extraction", {"name": "features"}, {**WINDOWS, "max_length": 22})
    [told] = ask(pipe, [LONG[:120]])
    panel = told.panel("token vectors")
    assert len(told.encodings) == 2
    assert [row[2] for row in panel.rows if row[-1]] == told.result["tokens"]
    assert [row[1] for row in panel.rows if not row[-1]] == list(range(1, 7))  # those that the windows share
