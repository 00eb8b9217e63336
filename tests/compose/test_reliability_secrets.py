"""H19, H20: what is a secret is decided in one place, and no secret is on any surface."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fake_plugins import install
from harness import checkpoint
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline_kit import errors as redaction
from pipeline_kit.cli.app import main
from pipeline_kit.cli.presets import presets
from pipeline_kit.compose import plugins as discovery
from pipeline_kit.compose.compose import compose, sweep
from pipeline_kit.compose.hydra import to_yaml, written
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.compose.schema import POLICIES
from pipeline_kit.contract.options import list_options, option, parse_options
from pipeline_kit.errors import (
    HIDDEN,
    CheckpointError,
    ConfigError,
    Fault,
    RowFailure,
    declare,
    for_message,
    hidden,
    is_secret,
    learn,
    redacted,
    without_secrets,
)
from pipeline_kit.job.manifest import identity_of
from pipeline_kit.tune.report import preset_text, secrets_of
from pipeline_kit.tune.space import changes

BERT = checkpoint()
CANARY = "canary7c41e90b"
NAMES = ["key", "token", "secret", "password", "passwd", "pwd", "passphrase", "auth", "authorization", "bearer"]
NAMES += ["credential", "cookie", "private"]
PLAIN = ["tokenizer", "monkey", "author", "keyboard", "turkey", "tokenized", "keynote", "secretary", "pool"]
PLAIN += ["authority"]

KEYED = """
from dataclasses import dataclass
from typing import Any

from pipeline_kit import Postprocessor, option


@dataclass
class Config:
    api_key: str = option("", "for a service")
    where: str = option("", "declared", secret=True)
    open_token: str = option("<s>", "declared not to be one", secret=False)
    extra: Any = option(None, "anything")


class Keyed(Postprocessor):
    def __init__(self, config, context):
        self.config = config

    def __call__(self, examples, encodings, outputs):
        if any("poison" in str(example) for example in examples):
            config = self.config
            raise ValueError(f"the service refused {config.api_key!r} at {config.where} with {config.extra}")
        return [{"label": "A", "score": 0.5} for example in examples]


def register(registry):
    registry.postprocessor("keyed", __name__ + ":Keyed", Config)
"""


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """No secret is known from the test before, which would hide what a rule does not."""
    monkeypatch.setattr(redaction, "_known", {})


# ------------------------------------------------------------------------------------------------- recognition


def spelled(name: str) -> list[str]:
    """A word as a name holds it."""
    title = name.capitalize()
    found = [name, f"{name}s", name.upper(), f"my_{name}", f"my-{name}", f"x.{name}", f"the {name}", f"my{title}"]
    return [*found, f"my{title}s", f"HF{title}", f"{name}_file", f"{name}1", f"X-Api-{title}", f"{name}Value"]


@pytest.mark.parametrize("name", [*NAMES, "apikey"])
def test_h19_a_whole_word_of_a_name_says_secret(name: str) -> None:
    for spelling in spelled(name):
        assert redacted({spelling: CANARY}) == {spelling: HIDDEN}, spelling
        assert redacted({"a": [{"b": {spelling: [CANARY]}}]}) == {"a": [{"b": {spelling: HIDDEN}}]}
        if " " not in spelling:
            assert without_secrets([f"model.{spelling}={CANARY},x y"]) == [f"model.{spelling}={HIDDEN}"]


@pytest.mark.parametrize("name", PLAIN)
def test_h19_a_part_of_a_word_does_not(name: str) -> None:
    for spelling in (name, name.capitalize(), f"my_{name}", f"{name}s", f"{name}.name"):
        assert redacted({spelling: "shown"}) == {spelling: "shown"}
        assert without_secrets([f"a.{spelling}=shown"]) == [f"a.{spelling}=shown"]


def test_h19_numbers_booleans_and_null_are_shown_where_the_name_counts_something() -> None:
    shown = {"max_tokens": 1000, "pad_token_id": 0, "auth": False, "token": None, "keys": [1, 2], "api_key": ""}
    assert redacted(shown) == shown
    for text in ("x.max_tokens=1000", "x.max_new_tokens=[1,2]", "x.tokens=1,2", "x.auth=false", "x.token=null"):
        assert without_secrets([text]) == [text]
    assert redacted({"password": 123456}) == {"password": HIDDEN}, "a name that ends with the word means the number"
    assert without_secrets(["x.password=123456"]) == [f"x.password={HIDDEN}"]


def test_h19_every_builtin_option_stays_visible() -> None:
    """Of the options that there are none is hidden, whatever its name, but the server's key."""
    registry = load_registry(everything=True)
    schemas = [
        *POLICIES.items(),
        *((spec.kind, spec.config) for spec in registry.specs() if spec.source == "pipeline-kit"),
    ]
    names = [f"{group}.{found.name}" for group, schema in schemas for found in list_options(schema)]
    assert {"batching.max_tokens", "postprocessor.mask_token", "tokenizer.pad_token", "input.fields"} <= set(names)
    hidden = [name for name in names if is_secret(name) or HIDDEN in without_secrets([f"{name}=some"])[0]]
    assert hidden == ["serve.api_key"]
    assert redacted({"fields": {"token": "column"}}, "input") == {"fields": {"token": "column"}}


VALUES = [
    f"https://me:{CANARY}@host/x",
    f"https://{CANARY}@host:80/x?a=b",
    f"https://host/x?a=b&access_token={CANARY}&c=d",
    f"Authorization: Bearer {CANARY}",
    f"X-Api-Key: {CANARY}",
    f"token: {CANARY}",
    f"Bearer {CANARY}",
    f'{{"lang": "en", "apiKey": "{CANARY}, {CANARY}"}}',
    f"a=b --password='{CANARY} {CANARY}'",
    "hf_" + CANARY * 2,
]


@pytest.mark.parametrize("value", VALUES)
def test_h19_a_value_says_secret_by_its_form(value: str) -> None:
    for kept in (
        redacted([{"a": value}]),
        without_secrets([f"a.b='{value}'"]),
        without_secrets([f"a.b=[x,{written(value)}]"]),
    ):
        assert CANARY not in str(kept)
        assert HIDDEN in str(kept)


def test_h19_what_is_not_secret_in_a_value_is_kept() -> None:
    assert hidden("see https://me:x1@host/y?token=abc&lang=en") == f"see https://{HIDDEN}@host/y?token={HIDDEN}&lang=en"
    assert without_secrets(["a.h={lang: en, api_key: X, n: 1}"]) == [f"a.h={{lang: en, api_key: {HIDDEN}, n: 1}}"]
    assert hidden("postprocessor.api_key: unknown option. Did you mean 'key'?") == (
        "postprocessor.api_key: unknown option. Did you mean 'key'?"
    )
    for text in ("as of 12:30, a=b", "{text: review_body}", "http://host/x", "model=hf device.dtype=bfloat16"):
        assert hidden(text, whole=True) == text


OVERRIDES = [
    "tokenizer.headers={{api_key: {}}}",
    "++a.b.token={}",
    "a.b.token='{}, and more'",
    'a.b.token="{}"',
    "a.token={},Y",
    "a.h={{token: x y}},{{token: {}}}",
    "a.h={{lang: en, auth: {{user: me, pass: {}}}}}",
    "a.h={{lang: en, tokens: [x, {}]}}",
    'a.h="{{\\"api_key\\": \\"x, {}\\"}}"',
    'a.h=["X-Api-Key: {}","Lang: en"]',
    "a.h={{'my secret': 'it\\'s {}'}}",
    "a.token=[{}",
    "a.h={{token: {}",
    "a.tokens.first={}",
    "a.private.user={}",
]


@pytest.mark.parametrize("text", OVERRIDES)
def test_h19_an_override_as_text(text: str) -> None:
    word = text.format(CANARY)
    assert CANARY not in without_secrets([word])[0]
    assert HIDDEN in without_secrets([word])[0]
    assert CANARY not in str(Fault(for_message(word, 80), f"'{word}' is wrong.", hint=f"write {word}"))


# ------------------------------------------------------------------------------------------------- declared options


@dataclass
class Inner:
    where: str = option("", "declared", secret=True)
    size: int = option(1, "a number")


@dataclass
class Declared:
    where: str = option("", "declared", secret=True)
    pin: int = option(1, "declared", secret=True, minimum=1, maximum=5)
    names: dict[str, str] = option({}, "declared not to be one", secret=False)
    key: str = option("", "by its name")
    key_size: int = option(1, "a number", maximum=10)
    inner: Inner = field(default_factory=Inner)


def test_h19_an_option_is_declared_secret_or_not() -> None:
    declare(Declared, "declared")
    data = {
        "where": "x",
        "pin": 3,
        "names": {"token": "y"},
        "key": "z",
        "key_size": 2,
        "inner": {"where": "x", "size": 2},
    }
    kept = {**data, "where": HIDDEN, "pin": HIDDEN, "key": HIDDEN, "inner": {"where": HIDDEN, "size": 2}}
    assert redacted({"declared": data}) == {"declared": kept}
    texts = ["declared.where=x", "declared.pin=3", "declared.names.token=y", "declared.inner.where=x"]
    assert without_secrets(texts) == [
        texts[0][:15] + HIDDEN,
        f"declared.pin={HIDDEN}",
        texts[2],
        texts[3][:21] + HIDDEN,
    ]


def test_h19_a_secret_wins_where_two_stages_have_an_option_of_the_same_name() -> None:
    @dataclass
    class First:
        mark: str = option("", "secret", secret=True)

    @dataclass
    class Second:
        mark: str = option("", "plain", secret=False)

    for order in ((First, Second), (Second, First)):
        group = f"doubled{order[0].__name__.lower()}"
        for schema in order:
            declare(schema, group)
        assert is_secret(f"{group}.mark")


def test_h19_a_fault_of_a_secret_option_does_not_quote_it() -> None:
    faults: list[Fault] = []
    parse_options(Declared, {"where": ["abc"], "pin": 9, "key": ["abc"], "key_size": "abc"}, "declared", faults)
    shown = [str(fault) for fault in faults]
    assert "9" not in shown[1]
    assert not any("abc" in text for text in shown[:3])
    assert "'abc' is not an integer" in shown[3], "a number's fault is quoted: what it holds is no secret"
    faults.clear()
    parse_options(Declared, {"where": HIDDEN}, "declared", faults)
    assert "pass the secret" in str(faults[0]), "a printed config is not taken for one with its secrets"


def test_h20_a_secret_seen_once_is_hidden_in_any_message() -> None:
    learn({"a": {"api_key": f'{CANARY}-"q"/é'}, "url": f"https://me:{CANARY}pw@host/"})
    for text in (f'{CANARY}-"q"/é', repr(f'{CANARY}-"q"/é'), json.dumps(f'{CANARY}-"q"/é'), f"login {CANARY}pw failed"):
        assert CANARY not in hidden(f"refused: {text} (sent)")
        assert CANARY not in for_message(text, 12), "hidden before it is cut"
        assert CANARY not in RowFailure(0, "model", "ValueError", f"not {text}").message


# ------------------------------------------------------------------------------------------------- every surface


@st.composite
def secret_values(draw: st.DrawFn) -> Any:
    """Plain nested data with a secret somewhere in it."""
    words = st.sampled_from(["a", "lang", "tokenizer", "monkey", "size"])
    plain = st.recursive(
        st.sampled_from(["en", "x y", 1, 2.5, True, None]),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
        max_leaves=4,
    )
    name = draw(st.sampled_from([spelling for word in NAMES for spelling in spelled(word) if "." not in spelling]))
    inside = draw(
        st.sampled_from([CANARY, f'it\'s {CANARY}, "so"', [CANARY, "x"], {"user": CANARY}, [{"a": [CANARY]}]])
    )
    node: Any = draw(st.sampled_from([{name: inside}, *VALUES]))
    for _ in range(draw(st.integers(0, 3))):
        beside = draw(plain)
        node = draw(st.sampled_from([{"b": beside, draw(words): node}, [beside, node], [node], {"c": node}]))
    return node


@settings(max_examples=100, deadline=None)
@given(secret_values())
def test_h20_no_generated_secret_is_left_in_data_or_text(value: Any) -> None:
    text = f"model.extra={written(value)}"
    surfaces = [
        redacted({"model": {"extra": value}}),
        redacted({"extra": value}, "model"),
        without_secrets([text]),
        without_secrets(["~x", "++" + text, f"{text},{written(value)}"]),
        str(Fault(for_message(text, 80), f"'{for_message(value)}' is wrong.", hint=for_message(repr(value)))),
        str(ConfigError([Fault("", f"{text} cannot be used")])),
        hidden(f"'{for_message(value)}' is wrong"),
        for_message(json.dumps(value)),
        RowFailure(0, "model", "ValueError", f"cannot use {value!r}").message,
    ]
    assert [shown for shown in surfaces if CANARY in str(shown)] == []


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plugin") / "keyed_secrets.py"
    path.write_text(KEYED)
    return str(path)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(secret_values())
@example({"Authorization": f"Bearer {CANARY}"})
def test_h20_no_generated_secret_is_on_a_surface_of_a_config(plugin: str, tmp_path: Path, value: Any) -> None:
    registry = load_registry([plugin])
    overrides = [f"checkpoint.path={BERT}", "postprocessor=keyed", f"postprocessor.extra={written(value)}"]
    config = compose(overrides, registry=registry)
    assert config.postprocessor.options.extra == value, "what runs has it"
    other = compose(overrides[:2], registry=registry)
    (tmp_path / "postprocessor").mkdir(exist_ok=True)
    (tmp_path / "postprocessor" / "mine.yaml").write_text(to_yaml({"defaults": ["keyed"], "extra": value}))
    assert CANARY in to_yaml({"extra": value})
    shown = [preset.text for preset in presets(registry, [str(tmp_path)], ("postprocessor",))]
    again = [without_secrets(job) for job in sweep([*overrides, "padding=longest,none"], registry=registry)]
    surfaces = [identity_of(config, [{"sha256": "x"}]), redacted(config.data), shown, again]
    surfaces.append(without_secrets(changes(other, config)))
    surfaces.append(without_secrets(secrets_of(config)))
    assert [each for each in surfaces if CANARY in str(each)] == []
    assert any(CANARY in text for text in secrets_of(config)), "and the user is told what to give again"
    with pytest.raises(ConfigError) as caught:
        compose(
            [*overrides, "postprocessor.extras=1", f"nothing.api_key={CANARY}", f"x.token={CANARY},y"],
            registry=registry,
        )
    assert CANARY not in str(caught.value)


def test_h20_a_tuned_preset_holds_no_secret(plugin: str) -> None:
    registry, given = (
        load_registry([plugin]),
        [f"postprocessor.where=my{CANARY}", f"postprocessor.extra={{a: {{token: [{CANARY}]}}}}"],
    )
    config = compose([f"checkpoint.path={BERT}", "postprocessor=keyed", *given], registry=registry)
    text = preset_text(config, ["What: mine"], [plugin])
    assert CANARY not in text
    assert HIDDEN not in text, "what is secret is left out, and given again by the user"
    assert secrets_of(config) == [f"postprocessor.where=my{CANARY}", f"postprocessor.extra.a.token=[{CANARY}]"]


@pytest.fixture
def command(
    plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run with secrets in the environment and the options; return what was printed."""
    monkeypatch.setenv("HF_TOKEN", f"{CANARY}env")
    argv = [f"checkpoint.path={BERT}", "device=cpu", "--plugin", plugin, "postprocessor=keyed"]
    secrets = [f"postprocessor.api_key={CANARY}", f"postprocessor.where=hidden{CANARY}"]
    secrets += [
        f"postprocessor.extra={{headers: {{Authorization: Bearer {CANARY}}}, urls: ['https://u:{CANARY}@h/?key={CANARY}']}}"
    ]

    def call(name: str, *more: str, code: int = 0, bare: bool = False) -> str:
        assert main([name, *more] if bare else [name, *argv, *secrets, *more]) == code
        printed = capsys.readouterr()
        assert CANARY not in printed.out + printed.err
        return printed.out + printed.err

    return call


def files_with_canary(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


def test_h20_cfg_and_validate(command: Callable[..., str]) -> None:
    assert f"api_key: {HIDDEN}" in command("cfg")
    assert command("cfg", "--package", "postprocessor.api_key").strip() == HIDDEN
    assert f"where: {HIDDEN}" in command("cfg", "--resolve")
    sweeping = ["-m", f"postprocessor.where=one{CANARY},two{CANARY}"]
    assert f"postprocessor.where={HIDDEN}" in command("cfg", *sweeping)
    command("validate", *sweeping)
    command("run", "--cfg", "job")


def test_h20_run_job_and_rows_that_fail(command: Callable[..., str], tmp_path: Path) -> None:
    texts = ["--text", "a", "--text", "poison"]
    assert f"refused '{HIDDEN}' at {HIDDEN}" in command("run", *texts, code=1)
    command("run", *texts, "-m", f"postprocessor.where=one{CANARY},two{CANARY}", code=1)
    command("run", *texts, "--output", str(tmp_path / "out"), "job.max_failed_rows=null", "--log-json", code=1)
    command("run", *texts, "--output", str(tmp_path / "out"), "padding=none", code=2)
    assert list((tmp_path / "out" / "_dead").iterdir())
    command("run", *texts, "--output", str(tmp_path / "out.csv"), code=1)
    assert files_with_canary(tmp_path) == []


def test_h20_explain(command: Callable[..., str], tmp_path: Path) -> None:
    texts = ["--text", "poison", "--vs", f"postprocessor.where=other{CANARY} postprocessor.api_key={CANARY}2"]
    assert f"postprocessor.api_key={HIDDEN}" in command("explain", *texts, code=1)
    command("explain", *texts, "--format", "json", "--html", str(tmp_path / "page.html"), code=1)
    assert files_with_canary(tmp_path) == []


def test_h20_bench(command: Callable[..., str], tmp_path: Path) -> None:
    other = ["--vs", f"postprocessor.where=other{CANARY}", "--repeats", "1", "--text", "a"]
    shown = command("bench", *other, "--output", str(tmp_path / "report.jsonl"))
    assert f"postprocessor.where={HIDDEN}" in shown
    assert f"postprocessor.where={HIDDEN}" in (tmp_path / "report.jsonl").read_text()
    command("bench", "--vs", f"'postprocessor.api_key={CANARY}", code=2)
    assert files_with_canary(tmp_path) == []


def test_h20_show_and_doctor(command: Callable[..., str], plugin: str, tmp_path: Path) -> None:
    (tmp_path / "postprocessor").mkdir()
    (tmp_path / "postprocessor" / "mine.yaml").write_text(
        f"# Run: pipeline-kit run postprocessor.api_key={CANARY}\ndefaults:\n  - keyed\napi_key: {CANARY} # mine\n"
        f"extra:\n  passwords:\n    - {CANARY}\n    - |\n      {CANARY}\n  lang: en\n  'bearer': >\n    {CANARY}\n"
        "open_token: shown\n"
    )
    where = ["--plugin", plugin, "--config-dir", str(tmp_path)]
    shown = command("show", "postprocessor/mine", *where, bare=True)
    assert f"api_key: {HIDDEN} # mine" in shown
    assert "lang: en" in shown
    assert "open_token: shown" in shown
    command("show", "postprocessor/mine", *where, "--json", bare=True)
    command("ls", "postprocessor", *where, bare=True)
    broken = tmp_path / "broken.py"
    broken.write_text(f"raise ValueError('cannot log in with Authorization: Bearer {CANARY}')\n")
    for more in ([], ["--json"]):
        command("doctor", "--plugin", str(broken), *more, code=2, bare=True)


def test_h20_a_report_of_the_doctor(
    command: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of variables, no values; no home folder; a plugin's error without the secret it quotes."""
    body = f"def register(registry):\n    raise ValueError('api_key={CANARY}, {CANARY}env is wrong')\n"
    install(tmp_path / "site", "pk_leaky", body=body)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    configs = tmp_path / "home" / "configs"
    (configs / "postprocessor").mkdir(parents=True)
    (configs / "postprocessor" / "mine.yaml").write_text(f"# {CANARY}\nname: logits\napi_key: {CANARY}\n")
    monkeypatch.setenv("PIPELINE_KIT_PLUGINS", "leaky")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{CANARY}@proxy")
    monkeypatch.setenv("OMP_NUM_THREADS", CANARY)
    monkeypatch.setenv("A_VARIABLE_OF_MINE", CANARY)
    discovery._entry_points.cache_clear()
    try:
        printed = command("doctor", "--report", "--config-dir", str(configs), code=1, bare=True)
    finally:
        discovery._entry_points.cache_clear()
    first, *_, last, _ = printed.split("\n")
    assert (first, last) == ("```text", "```")
    assert re.search(r"^fail  plugin +leaky.*api_key=\(hidden\)", printed, re.M)
    assert "--config-dir ~/configs" in printed
    assert str(tmp_path / "home") not in printed
    variables = re.search(r"^ok +variables +(.*)$", printed, re.M)
    assert variables is not None
    assert {"HF_TOKEN", "HTTPS_PROXY", "OMP_NUM_THREADS"} <= set(variables[1].split(", "))
    assert "A_VARIABLE_OF_MINE" not in printed


WRONG = [
    [f"postprocessor.api_key=[{CANARY}]"],
    [f"postprocessor.where=a{CANARY},b"],
    [f"postprocessor.where={{{CANARY}"],
    [f"postprocesor.api_key={CANARY}"],
    [f"~postprocessor.api_key={CANARY}"],
    [f"postprocessor.api_key=${{oc.env:{CANARY}}}"],
    [f"hydra.token={CANARY}"],
    [f"postprocessor.api_key@x={CANARY}"],
    [f"postprocessor.token={CANARY}"],
    [f"checkpoint.path=https://me:{CANARY}@host/x"],
    ["--vs", f"token={CANARY}"],
    [f"--token={CANARY}"],
    ["-m", f"postprocessor.where=interval(1,{CANARY})"],
]


@pytest.mark.parametrize("words", WRONG, ids=range(len(WRONG)))
def test_h20_error_messages(command: Callable[..., str], words: list[str]) -> None:
    command("run", "--text", "a", *words, code=2)


def test_h20_more_error_messages(command: Callable[..., str]) -> None:
    command(f"postprocessor.api_key={CANARY}", code=2, bare=True)
    command("run", f"Authorization: Bearer {CANARY}", code=2, bare=True)
    command("run", "--debug", f"postprocessor.api_key={CANARY},x", code=2)


def test_h20_the_hub_and_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from pipeline_kit.checkpoint import hub

    monkeypatch.setenv("HF_TOKEN", f"{CANARY}\n")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"https://me:{CANARY}@hub.invalid")

    def refuse(wanted: Any) -> None:
        raise ValueError(f"Illegal header value b'Bearer {CANARY}'")

    monkeypatch.setattr(hub, "_list_files", refuse)
    with pytest.raises(CheckpointError) as caught:
        hub.download("me/no-such-model", None, False, None)
    assert CANARY not in str(caught.value)
    assert f"https://{HIDDEN}@hub.invalid" in str(caught.value)
