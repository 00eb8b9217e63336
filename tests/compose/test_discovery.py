"""Installed plugins: imported only when asked for, reported when broken, never in each other's way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, distributions
from pathlib import Path

import pytest
from fake_plugins import BODY, install, marker

from pipeline_kit.cli.app import main
from pipeline_kit.compose import plugins as discovery
from pipeline_kit.compose.compose import compose
from pipeline_kit.compose.plugins import load_all_plugins, load_needed, load_registry
from pipeline_kit.errors import ConfigError, RegistryError


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for plugins, all of them allowed; what else this environment has installed is not seen."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def entry_points_here(group: str) -> list[EntryPoint]:
        return [ep for dist in distributions(path=[str(folder)]) for ep in dist.entry_points if ep.group == group]

    monkeypatch.setattr(discovery, "entry_points", entry_points_here)
    monkeypatch.delenv("PIPELINE_KIT_PLUGINS")
    before = set(sys.modules)
    discovery._entry_points.cache_clear()
    yield folder
    discovery._entry_points.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("pk_"):
            del sys.modules[name]


def test_a_plugin_that_is_not_named_is_not_imported(site: Path, tmp_path: Path) -> None:
    install(site, "pk_hostile")
    (tmp_path / "mine" / "postprocessor").mkdir(parents=True)
    (tmp_path / "mine" / "postprocessor" / "raw.yaml").write_text("defaults: [logits, _self_]\n")
    compose(["postprocessor=raw", "padding=none"], config_dir=[tmp_path / "mine"])
    compose(["task=sentence-embedding"])
    assert not marker(site, "pk_hostile").exists()


def test_a_plugin_is_imported_when_its_stage_is_named(site: Path) -> None:
    install(site, "pk_wanted")
    install(site, "pk_hostile")
    config = compose(["postprocessor=wanted", "postprocessor.limit=5"])
    assert config.postprocessor.options.limit == 5
    assert config.postprocessor.spec.source == "dist-of-wanted 0.7"
    assert marker(site, "pk_wanted").exists()
    assert not marker(site, "pk_hostile").exists()


def test_a_plugin_is_imported_when_yaml_names_it(site: Path, tmp_path: Path) -> None:
    install(site, "pk_wanted")
    install(site, "pk_hostile")
    (tmp_path / "mine" / "postprocessor").mkdir(parents=True)
    (tmp_path / "mine" / "postprocessor" / "strict.yaml").write_text("defaults: [wanted, _self_]\nlimit: 9\n")
    config = compose(["postprocessor=strict"], config_dir=[tmp_path / "mine"])
    assert config.postprocessor.options.limit == 9
    assert not marker(site, "pk_hostile").exists()


def test_dashes_and_underscores_are_the_same(site: Path) -> None:
    install(site, "pk_my_stage", name="my-stage", stage="my_stage")
    install(site, "pk_hostile")
    assert compose(["postprocessor=my_stage"]).postprocessor.name == "my_stage"
    assert not marker(site, "pk_hostile").exists()


def test_a_stage_called_otherwise_than_its_plugin_is_found(site: Path) -> None:
    install(site, "pk_bundle", stage="one_of_many")
    assert compose(["postprocessor=one_of_many"]).postprocessor.name == "one_of_many"


def test_a_worker_loads_the_installed_plugins_that_its_config_needs_and_no_others(site: Path) -> None:
    install(site, "pk_wanted")
    install(site, "pk_hostile")
    data: dict[str, dict[str, str | None]] = {
        "postprocessor": {"name": "wanted"},
        "padding": {"name": "none"},
        "input": {"format": None},
    }
    assert load_needed(load_registry(), data).get("postprocessor", "wanted").name == "wanted"
    assert not marker(site, "pk_hostile").exists()
    install(site, "pk_bundle", stage="one_of_many")
    discovery._entry_points.cache_clear()
    data["postprocessor"] = {"name": "one_of_many"}
    assert load_needed(load_registry(), data).get("postprocessor", "one_of_many").source.startswith("dist-of-bundle")


BROKEN = {
    "error": ("raise RuntimeError('no such device')\n", "RuntimeError: no such device"),
    "missing": ("import a_module_that_nobody_has\n", "ModuleNotFoundError: No module named 'a_module_that_nobody_has'"),
    "syntax": ("def register(registry:\n", "SyntaxError"),
    "exits": ("raise SystemExit(3)\n", "SystemExit: 3"),
    "no_function": ("", "AttributeError"),
    "not_callable": ("register = 5\n", "not a function register(registry)"),
    "wrong_signature": ("def register():\n    pass\n", "TypeError"),
    "bad_name": ("def register(registry):\n    registry.model('Bad Name', 'a:B', type)\n", "not a name of this kind"),
    "bad_target": (
        "def register(registry):\n    registry.model('x', 'os.system', type)\n",
        "not 'package.module:Name'",
    ),
    "bad_conf": ("def register(registry):\n    registry.conf('pkg://pk_bad_conf.conf')\n", "__init__.py"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_reported_and_fatal_only_to_who_asks_for_it(case: str, site: Path) -> None:
    body, why = BROKEN[case]
    owner = install(site, f"pk_{case}", body=body)
    install(site, "pk_healthy")
    registry = load_registry(everything=True)
    [(who, error)] = registry.failed.items()
    assert who == f"{case} ({owner})"
    assert why in f"{type(error).__name__}: {error}"
    compose(["postprocessor=healthy"], registry=registry)
    with pytest.raises(ConfigError) as caught:
        compose([f"postprocessor={case}"])
    assert owner in str(caught.value)
    assert "no such option" in str(caught.value)


def test_a_broken_plugin_keeps_no_command_from_working(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    owner = install(site, "pk_broken", body="raise RuntimeError('no such device')\n")
    assert main(["ls", "postprocessor"]) == 0
    out, err = capsys.readouterr()
    assert "classification" in out
    assert owner in out + err
    assert main(["validate"]) == 0
    assert main(["validate", "postprocessor=broken"]) == 2
    err = capsys.readouterr().err
    assert owner in err
    assert "Traceback" not in err


def test_a_stage_whose_module_is_broken_names_its_owner(site: Path) -> None:
    owner = install(site, "pk_half")
    (site / "pk_half" / "stage.py").write_text("import a_module_that_nobody_has\n")
    config = compose(["postprocessor=half"])
    with pytest.raises(RegistryError, match=r"a_module_that_nobody_has[\s\S]*doctor") as caught:
        config.postprocessor.spec.load()
    assert owner in str(caught.value)


def test_strict_makes_a_broken_plugin_fatal(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = install(site, "pk_broken", body="raise RuntimeError('no such device')\n")
    monkeypatch.setenv("PIPELINE_KIT_STRICT_PLUGINS", "1")
    with pytest.raises(RegistryError, match="no such device") as caught:
        load_registry(everything=True)
    assert owner in str(caught.value)
    monkeypatch.setenv("PIPELINE_KIT_STRICT_PLUGINS", "0")
    assert load_registry(everything=True).failed


HALF = """
def register(registry):
    registry.model("first_half", "pk_half.stage:First", type("C", (), {"__dataclass_fields__": {}}))
    registry.conf("pkg://pk_half.conf")
    raise RuntimeError("half-way")
"""


def test_a_plugin_that_fails_half_way_leaves_nothing(site: Path) -> None:
    install(site, "pk_half", body=HALF)
    untouched = load_registry()
    registry = load_registry(everything=True)
    assert list(registry.failed) == ["half (dist-of-half 0.7)"]
    assert list(registry.specs()) == list(untouched.specs())
    assert registry.conf_packages == untouched.conf_packages


@pytest.mark.parametrize(
    ("allowed", "imported"),
    [("", set()), ("one", {"one"}), (" one , two ", {"one", "two"}), ("On", set()), ("one,absent", {"one"})],
)
def test_the_allowlist(allowed: str, imported: set[str], site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        install(site, f"pk_{name}")
    monkeypatch.setenv("PIPELINE_KIT_PLUGINS", allowed)
    load_registry(everything=True)
    for name in ("one", "two"):
        if name not in imported:
            with pytest.raises(ConfigError, match="PIPELINE_KIT_PLUGINS") as caught:
                compose([f"postprocessor={name}"])
            assert f"dist-of-{name} 0.7" in str(caught.value)
    assert {name for name in ("one", "two") if marker(site, f"pk_{name}").exists()} == imported


@pytest.mark.parametrize("names", [("same", "same"), ("same", "other")])
def test_two_plugins_with_one_stage_are_both_named(names: tuple[str, str], site: Path) -> None:
    owners = [install(site, f"pk_{i}", name=name, stage="same") for i, name in enumerate(names)]
    registry = load_registry(everything=True)
    [error] = registry.failed.values()
    assert all(owner in str(error) for owner in owners)
    with pytest.raises(ConfigError, match="registered twice") as caught:
        compose(["postprocessor=same"], registry=registry)
    assert all(owner in str(caught.value) for owner in owners)
    compose(registry=registry)


def test_a_plugin_cannot_take_the_place_of_a_built_in_stage(site: Path) -> None:
    owner = install(site, "pk_taker", stage="classification")
    registry = load_registry(everything=True)
    [error] = registry.failed.values()
    assert owner in str(error)
    assert "by pipeline-kit (" in str(error)
    config = compose(registry=registry)
    assert config.postprocessor.spec.source == "pipeline-kit"


def test_one_plugin_installed_and_given_is_no_conflict(site: Path) -> None:
    install(site, "pk_wanted")
    registry = load_registry(["pk_wanted"], everything=True)
    assert not registry.failed
    assert registry.get("postprocessor", "wanted").source == "pk_wanted"


NAMES = ["os", "this", "os.path", "os:system", "pk_hostile.stage:Stage", "a/b", "../x", "a\0b", "_target_", "", " "]
NAMES += ["x" * 10_000, "\u202e", "caf\u00e9", "a,b", "[a]", "${oc.env:HOME}", "-", "hydra"]


@pytest.mark.parametrize("key", ["postprocessor", "tokenizer.name", "model.name"])
def test_no_name_imports_anything(key: str) -> None:
    with pytest.raises(ConfigError):  # whatever Hydra itself imports late is there after this
        compose(["tokenizer.name=nothing"])
    before = set(sys.modules)
    for name in NAMES:
        with pytest.raises(ConfigError):
            compose([f"{key}={name}"])
        assert set(sys.modules) == before, name


@pytest.mark.parametrize("name", ["os.path", "a/b", "a\0b", "x" * 10_000, "pk_hostile:register", "pk_hostile.stage"])
def test_what_cannot_be_a_name_is_asked_of_no_plugin(name: str, site: Path) -> None:
    install(site, "pk_hostile")
    with pytest.raises(ConfigError):
        compose([f"postprocessor={name}"])
    assert not marker(site, "pk_hostile").exists()


def test_an_unknown_name_lists_the_known_ones() -> None:
    registry = load_registry()
    for name in NAMES:
        with pytest.raises(RegistryError) as caught:
            registry.get("postprocessor", name)
        [fault] = caught.value.faults
        assert "classification" in fault.allowed
        assert len(str(caught.value)) < 1000
        assert "\0" not in str(caught.value)


def test_loading_everything_twice_changes_nothing(site: Path) -> None:
    install(site, "pk_wanted")
    registry = load_registry(everything=True)
    load_all_plugins(registry)
    assert not registry.failed
    assert [spec.name for spec in registry.specs()].count("wanted") == 1


def test_the_body_used_here_registers(site: Path) -> None:
    """So that a test which says 'not imported' cannot pass because nothing could be imported."""
    install(site, "pk_wanted", body=BODY)
    assert load_registry(everything=True).get("postprocessor", "wanted").summary == "for a test"
