"""What configs, overrides and plugins of any kind lead to: a fault that names the place, never an internal error."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from fake_plugins import ROOT

from pipeline_kit.cli.app import main
from pipeline_kit.compose.compose import compose, sweep
from pipeline_kit.errors import ConfigError

OUTSIDE = "defaults: [config, _self_]\nbatching: {max_tokens: 7}\n"


def said(folder: Path, name: str = "mine", *overrides: str) -> str:
    """Compose the config `name` of `folder` and return its faults."""
    with pytest.raises(ConfigError) as caught:
        compose(overrides, config_dir=[folder], config_name=name)
    assert caught.value.exit_code == 2
    return str(caught.value)


# H15: names in YAML lead nowhere but into the config folders, and all that is composed was scanned.


@pytest.mark.parametrize(
    "entry",
    [
        "../../outside",
        "../outside",
        "a/../../outside",
        "{OUT}",
        "pkg://pipeline_kit.conf/config",
        "file://{OUT}",
        "/../outside",
        "override padding: ../outside",
        "override /padding: ../../outside",
        "padding: [none, ../outside]",
        "../padding: none",
        "padding@hydra.job: none",
        "config@_global_.hydra: none",
        "optional hydra/launcher: x",
        "hydra: {searchpath: ['file:///']}",
    ],
)
def test_h15_defaults_lead_nowhere_outside(entry: str, tmp_path: Path) -> None:
    (tmp_path / "outside.yaml").write_text("x: &a [*a]\n")
    folder = tmp_path / "conf"
    folder.mkdir()
    (folder / "mine.yaml").write_text(f"defaults:\n  - {entry.replace('{OUT}', str(tmp_path / 'outside'))}\n")
    message = said(folder)
    assert "anchor" not in message, "the file outside was read"
    assert "mine.yaml:2" in message or "no such option" in message


def test_h15_a_name_made_by_a_reference_stays_inside(tmp_path: Path) -> None:
    (tmp_path / "outside.yaml").write_text(OUTSIDE)
    folder = tmp_path / "conf"
    (folder / "padding").mkdir(parents=True)
    (folder / "mine.yaml").write_text("defaults:\n  - padding: ${task}\n  - task: /../../outside\n")
    assert "max_tokens" not in said(folder)


@pytest.mark.parametrize("name", ["../outside", "../conf/../outside", "/etc/passwd", "a\0b", "x" * 300])
def test_h15_the_name_of_the_config_stays_inside(name: str, tmp_path: Path) -> None:
    (tmp_path / "outside.yaml").write_text(OUTSIDE)
    (tmp_path / "conf").mkdir()
    assert "this config does not exist" in said(tmp_path / "conf", name)


def test_h15_what_a_link_leads_to_is_scanned(tmp_path: Path) -> None:
    """A link to a file or folder works, and its YAML is scanned like any other, in folders that are no group too."""
    (tmp_path / "far" / "deep").mkdir(parents=True)
    folder = tmp_path / "conf"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "far")
    (folder / "mine.yaml").write_text("defaults: [linked/deep/one, _self_]\n")
    one = tmp_path / "far" / "deep" / "one.yaml"
    one.write_text("# @package _global_\n" + OUTSIDE.replace("config", "/config"))
    assert compose(config_dir=[folder], config_name="mine").batching.max_tokens == 7
    for text, problem in (
        ("a: &b 1\n", "anchor"),
        ("# " + "x" * 70_000, "bytes"),
        ("a: " + "[" * 30 + "]" * 30, "nested"),
        ("a: !!python/name:os.system x\n", "tag"),
        ("_target_: os.system\n", "not allowed"),
    ):
        one.write_text(text)
        assert problem in said(folder)


def test_h15_presets_of_plugins_are_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "pk_scanned" / "conf" / "padding"
    package.mkdir(parents=True)
    for place in (package.parent.parent, package.parent):
        (place / "__init__.py").touch()
    (package / "theirs.yaml").write_text("name: &n none\nside: *n\n")
    (tmp_path / "plugin.py").write_text("def register(registry):\n    registry.conf('pkg://pk_scanned.conf')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    from pipeline_kit.compose.plugins import load_registry

    with pytest.raises(ConfigError, match="anchor"):
        compose(["padding=theirs"], registry=load_registry([str(tmp_path / "plugin.py")]))


def test_h15_only_what_is_composed_matters(tmp_path: Path) -> None:
    """Files beside the config may be anything, such as another program's YAML with anchors."""
    (tmp_path / "mine.yaml").write_text(OUTSIDE)
    (tmp_path / "docker-compose.yaml").write_text("a: &a 1\nb: *a\n")
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "playbooks" / "x.yaml").write_text("- a\n")
    assert compose(config_dir=[tmp_path], config_name="mine").batching.max_tokens == 7


def test_h15_references_do_not_grow_to_gigabytes(tmp_path: Path) -> None:
    lines = "".join(f"x{i}: '${{x{i - 1}}}${{x{i - 1}}}'\n" for i in range(1, 40))
    (tmp_path / "mine.yaml").write_text("defaults: [config, _self_]\nx0: aaaaaaaaaa\n" + lines)
    assert "characters at the most" in said(tmp_path)


# H16: pipes, devices, folders.


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "dangling", "loop"])
def test_h16_only_regular_files_are_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(path: Path) -> None:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to({"device": "/dev/zero", "dangling": "nowhere", "loop": path.name}[kind])

    (tmp_path / "padding").mkdir()
    (tmp_path / "sub").mkdir()
    for path in ("mine.yaml", "sub/padding.py", "sub/deep.yaml", "padding/odd.yaml"):
        make(tmp_path / path)
    assert "cannot be read" in said(tmp_path)
    assert main(["validate", "--config", str(tmp_path / "mine.yaml")]) == 2
    assert main(["validate", "--plugin", str(tmp_path / "sub" / "padding.py")]) == 2
    assert main(["ls", "padding", "--config-dir", str(tmp_path)]) == 0
    (tmp_path / "padding" / "odd.yaml").rename(tmp_path / "sub" / "x")
    (tmp_path / "good.yaml").write_text("defaults: [config, sub/deep]\n")
    assert "no such option" in said(tmp_path, "good")
    assert "Traceback" not in capsys.readouterr().err


# H23: YAML of every kind.


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("defaults: null\n", "mine.yaml:1: 'defaults' must be a list"),
        ("a: 1\ndefaults: config\n", "mine.yaml:2: 'defaults' must be a list"),
        ("defaults: [1]\n", "mine.yaml:1: 'defaults' has '1'"),
        ("defaults: [null]\n", "quoted if a number"),
        ("defaults: [[config]]\n", "a sequence"),
        ("defaults: [{a: b, c: d}]\n", "a mapping"),
        ("defaults: [{}]\n", "a mapping"),
        ("defaults: [config, override padding: no]\n", "override padding: no"),
        ("defaults: [config, override padding: [1]]\n", "a sequence"),
        ("defaults: [mine]\n", "lead back to itself"),
        ("defaults: [other, _self_]\n", "lead back to itself"),
        ("defaults: ['???']\n", "config 'mine': cannot be composed"),
        ("defaults: [config, override task: _self_]\n", "cannot be composed"),
        ("", "is empty"),
        ("- a\n- b\n", "holds a list"),
        ("just words\n", "holds a value"),
        ("a: 1\n---\nb: 2\n", "single document"),
        ("a: 1\nb:\n  null: 1\n", "mine.yaml:3: YAML reads the key 'null' as null"),
        ("on: 1\n", "the key 'on' as bool"),
        ("task: {no: 1}\n", "the key 'no' as bool"),
        ("2024-01-01: 1\n", "as timestamp"),
        ("1e3: 1\n", "as float"),
        ("1:30: 1\n", "as int"),
        ("defaults: [config, _self_]\n7: 1\n", "7: unknown option"),
        ("a: 1\n<<: {b: 2}\n", "mine.yaml:2: the merge key"),
        ("a:\n  b: 1\n  b: 2\n", "mine.yaml:3: has the duplicate key 'b'"),
        ("? [a]\n: b\n", "cannot be a key"),
        ("? " + "k" * 60_000 + "\n: 1\n", "unknown option"),
        ("k" * 60_000 + ": 1\n", "not valid YAML"),
        ("# @package hydra\na: 1\n", "mine.yaml:1"),
        ("# @other\na: 1\n", "mine.yaml:1"),
        ("defaults: [config, _self_]\ninput: {max_ratio: .inf}\n", "input.max_ratio: inf"),
        ("defaults: [config, _self_]\ninput: {max_ratio: .nan}\n", "input.max_ratio: nan"),
        ("defaults: [config, _self_]\ncheckpoint: {path: no}\n", "checkpoint.path"),
        ("defaults: [config, _self_]\npadding: 5\n", "padding"),
        ("defaults: [config, _self_]\ntokenizer: null\n", "tokenizer"),
    ],
)
def test_h23_yaml_of_every_kind_is_a_fault_with_its_place(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text("defaults: [mine, _self_]\na: 1\n")
    message = said(tmp_path)
    assert problem in message
    assert len(message) < 2500


@pytest.mark.parametrize(
    ("data", "line"), [(b"a: caf\xe9\n", 1), ("a: 1\n".encode("utf-16"), 1), (b"a: 1\nb: \xff\n", 2)]
)
def test_h23_another_encoding_names_the_line(data: bytes, line: int, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(data)
    assert f"mine.yaml:{line}: " in said(tmp_path)
    assert "save it as UTF-8" in said(tmp_path)


def test_h23_a_byte_order_mark_hides_no_header(tmp_path: Path) -> None:
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "mine.yaml").write_bytes(b"\xef\xbb\xbf# @package padding\nname: none\n")
    assert compose(["device=mine"], config_dir=[tmp_path]).padding.name == "none"


def test_h23_a_bomb_of_includes_is_stopped(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"b{i}.yaml").write_text(f"defaults: [b{i + 1}, b{i + 1}]\n")
    (tmp_path / "b40.yaml").write_text("a: 1\n")
    assert "200 included files at the most" in said(tmp_path, "b0")


# H26: plugins of every kind, in every command.

GOOD = """
from __future__ import annotations
from dataclasses import dataclass, field
from enum import Enum
from pipeline_kit import Postprocessor, option

@dataclass
class Config:
    x: {type} = {default}
{post}
class Stage(Postprocessor):
    def __init__(self, config, context): pass
    def __call__(self, examples, encodings, outputs): return [{{"ok": 1}} for _ in examples]

def register(registry):
    registry.postprocessor("mine", f"{{__name__}}:Stage", Config)
"""


def plugin(type: str = "int", default: str = "option(1, 'x')", post: str = "") -> str:
    """The source of a plugin with one option."""
    return GOOD.format(type=type, default=default, post=post)


COMMANDS = (
    ("run", "--text", "I love this."),
    ("ls",),
    ("show", "postprocessor/mine"),
    ("cfg",),
    ("validate",),
    ("doctor",),
)
RAISING = ("SystemExit", "SystemExit(0)", "KeyboardInterrupt", "GeneratorExit", "BaseException('x')", "MemoryError")
BROKEN = {
    "unresolved": (plugin("Undefined"), "NameError"),
    "unresolved_deep": (plugin("list[Undefined]"), "NameError"),
    "syntax": (plugin("'list['"), "options cannot be read"),
    "unchecked": (plugin("set[int]"), "set[int]"),
    "unchecked_deep": (plugin("list[tuple[int, ...]] | None"), "tuple[int, ...]"),
    "default_factory": (plugin(default="field(default_factory=lambda: 1 / 0)"), "ZeroDivisionError"),
    "default_object": (plugin("object", "field(default_factory=object)"), "not plain data"),
    "no_dataclass": (plugin().replace("@dataclass", ""), "not a dataclass"),
    "register": (plugin().replace("    registry.", "    raise RuntimeError('no'); registry."), "RuntimeError: no"),
    "garbage": (plugin().replace("    registry.", "    registry._specs = 5; registry."), "failed"),
    **{raised: (f"raise {raised}\n", "failed to load") for raised in RAISING},
    **{f"register {raised}": (f"def register(r):\n    raise {raised}\n", "failed") for raised in RAISING},
}


@pytest.mark.parametrize("case", BROKEN)
def test_h26_a_broken_plugin_is_a_fault_in_every_command(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All commands for a plugin that ends the process, which one of them might let through; else one is enough."""
    source, why = BROKEN[case]
    path = tmp_path / "mine.py"
    path.write_text(source)
    for command in COMMANDS if "SystemExit(0)" in case else COMMANDS[1:2]:
        assert main([*command, "--plugin", str(path)]) == 2, command
        out, err = capsys.readouterr()
        assert why in err
        assert str(path) in err
        assert "Traceback" not in err
        assert out == ""
    assert main(["__complete", f"pipeline-kit run --plugin {path} postprocessor."]) == 0


@pytest.mark.parametrize(
    "source",
    [
        plugin("int", "field(default=1, init=False)"),
        plugin("int", "'three'"),
        plugin(post="    def __post_init__(self): raise KeyError('x')\n"),
    ],
)
def test_h26_options_that_cannot_be_made_name_the_stage(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(source)
    assert main(["validate", "--plugin", str(path), "postprocessor=mine"]) == 2
    assert "error: postprocessor" in capsys.readouterr().err
    assert main(["validate", "--plugin", str(path)]) == 0


@pytest.mark.parametrize("raised", ["RuntimeError('x')", "SystemExit(0)", "NameError('x')"])
def test_h26_a_stage_whose_module_raises_is_a_fault(
    raised: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"pk_raising_{abs(hash(raised))}"
    (tmp_path / f"{name}.py").write_text(f"raise {raised}\n")
    (tmp_path / "mine.py").write_text(plugin().replace('f"{__name__}:Stage"', f"'{name}:Stage'"))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["run", "--plugin", str(tmp_path / "mine.py"), "postprocessor=mine", "--text", "a"]) == 2


def test_h26_a_plugin_cannot_take_stages_away(tmp_path: Path) -> None:
    from pipeline_kit.compose.plugins import load_registry

    path = tmp_path / "mine.py"
    path.write_text(
        plugin().replace("    registry.p", "    registry._specs.clear(); registry.conf_packages.clear(); registry.p")
    )
    before = list(load_registry().specs())
    registry = load_registry([str(path)])
    assert set(before) < set(registry.specs())


NOISY = """
import os, sys
print("NOISE import"); os.write(1, b"NOISE native\\n"); sys.__stdout__.write("NOISE dunder\\n")
""" + plugin().replace(
    "    def __call__(self, examples, encodings, outputs):",
    """    def __call__(self, examples, encodings, outputs):
        print("NOISE stage"); os.write(1, b"NOISE stage native\\n"); os.system("echo NOISE child")
        {close}
       """,
)


@pytest.mark.parametrize("close", ["sys.stdout.close(); sys.stderr.close()", "os.close(1); os.close(2)"])
def test_h26_stdout_belongs_to_the_results(close: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    source = NOISY.replace("{close}", close)
    future = "from __future__ import annotations\n"
    path.write_text(future + source.replace(future, ""))
    argv = [sys.executable, "-m", "pipeline_kit", "run", "--plugin", str(path), "postprocessor=mine", "--text", "a"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=120, check=False)
    assert done.stdout == '{"ok": 1}\n', done.stderr
    assert done.returncode == 0
    for noise in ("import", "native", "dunder", "stage", "stage native", "child"):
        assert f"NOISE {noise}\n" in done.stderr


# H27: any text as an override, any word as an argument.

PIECES = ["a", "task", "padding", "tokenizer.max_length", ".", "=", ",", "[", "]", "{", "}", "(", ")", ":", "'", '"']
PIECES += ["\\", "${", "${task}", "+", "++", "~", "@", "/", "1", "1e9", "null", "true", " ", "\t", "\n", "\x00"]
PIECES += ["\x07", "\udcff", "é", "\u202e", "range(", "glob(*)", "choice(", "sort(", "int(", "tag(", "_target_"]
PIECES += ["hydra", "%", "*", "-"]


def test_h27_random_overrides_compose_or_are_faults() -> None:
    dice = random.Random(12)
    for _ in range(12):
        texts = ["".join(dice.choices(PIECES, k=dice.randint(1, 12))) for _ in range(3)]
        key = dice.choice(["", "checkpoint.path=", "postprocessor.thresholds=", "task.takes="])
        for act in (compose, sweep):
            with suppress(ConfigError):
                act([key + text for text in texts])


@pytest.mark.parametrize(
    "override",
    [
        "a" * 60_000 + "=1",
        "checkpoint.path=" + "[" * 3000,
        "checkpoint.path=" + "[" * 300 + "]" * 300,
        "checkpoint.path=" + "{a:" * 300 + "1" + "}" * 300,
        "checkpoint.path=" + "(" * 3000,
        "padding.max_length=" + "9" * 5000,
        "postprocessor.thresholds={null:1}",
        "task.takes={1:2}",
        "device.index=${device.index}",
        "++a.b=",
        "a@b=c",
        "a:b=c",
    ],
)
def test_h27_odd_overrides_are_faults(override: str) -> None:
    with pytest.raises(ConfigError):
        compose([override])


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["batching.max_rows=range(1,1000000000)"], "1000 at the most"),
        (["batching.max_rows=shuffle(range(1,1000000000))"], "1000 at the most"),
        (["batching.max_rows=range(0,1,1e-300)"], "1000 at the most"),
        (["batching.max_rows=range(1,inf)"], "1000 at the most"),
        (["batching.max_rows=range(0,1,0)"], "must not be zero"),
        ([f"a{i}=0,1" for i in range(40)], "1000 at the most"),
        (["a=" + ",".join(map(str, range(2000)))], "1000 at the most"),
        (["checkpoint.path=glob(*)"], "matches no option"),
        (["a=" + "[" * 3000], "cannot be parsed"),
    ],
)
def test_h27_sweeps_are_bounded(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sweep(overrides)
    assert problem in str(caught.value)


def test_h27_random_yaml_composes_or_is_a_fault(tmp_path: Path) -> None:
    dice = random.Random(13)
    pieces = [*PIECES, "defaults: ", "- ", "\n  ", "config", "_self_", "override ", ": ", "? "]
    pieces += ["&a ", "*a", "!!x ", "|\n"]
    for _ in range(60):
        text = "".join(dice.choices(pieces, k=dice.randint(1, 15)))
        (tmp_path / "mine.yaml").write_bytes(text.encode("utf-8", errors="surrogateescape"))
        with suppress(ConfigError):
            compose(config_dir=[tmp_path], config_name="mine")


LONG = "a" * 300
WORDS = ("\udcff", "a\0", LONG, "~nobody-there/x", "", "'")


@pytest.mark.parametrize("word", WORDS)
def test_h27_no_word_is_an_internal_error(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for argv in (
        ["ls", word],
        ["show", word],
        ["show", f"task/{word}!"],
        ["completion", word],
        ["new-plugin", word, "x"],
        ["new-plugin", "model", word],
        ["validate", f"{word}.yaml"],
        ["validate", word],
        ["validate", "--config-name", f"{word}!"],
        ["cfg", "--package", f"{word}!"],
        ["cfg", f"checkpoint.path={word}["],
        ["ls", "--config-dir", f"{word}!"],
        ["doctor", "--config-dir", f"{word}!"],
        ["cfg", "--config-dir", f"{word}!"],
        ["ls", "--plugin", word],
        ["ls", "--plugin", f"{word}!.py"],
    ):
        assert main(argv) == 2, argv
    main(["new-plugin", "model", "ok", "--output", word])
    for line in (word, f"pipeline-kit {word}", f"pipeline-kit run {word}", f"pipeline-kit run -cd {word} padding."):
        assert main(["__complete", line]) == 0
    err = capsys.readouterr().err
    assert "internal error" not in err
    assert "Traceback" not in err
