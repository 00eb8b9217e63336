"""Downloads from the Hugging Face hub: data files only, cached, usable without a network afterwards.

The environment variables of huggingface_hub (``HF_HOME``, ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE`` ...) mean
here what they mean there. Its exceptions for a dead network differ between its versions, so this module
sorts errors by what they are not: anything that is not an answer from a hub counts as "not reached".
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, errors, snapshot_download

from pipeline_kit.checkpoint import weights
from pipeline_kit.checkpoint.scan import PICKLE_SUFFIXES
from pipeline_kit.errors import CheckpointError, for_message, hidden

DOWNLOADED = ["*.json", "*.jinja", "*.txt", "*.model", "*.spm", "model*.safetensors", weights.MODULE_WEIGHTS]
"""What is fetched: never a pickle, never code, and of the weights only the set that transformers loads."""

SKIPPED = ["onnx/*", "openvino/*", "coreml/*", "original/*", "checkpoint-*/*"]
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)
_ANSWER_SECONDS = 5.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Wanted:
    repository: str
    revision: str | None
    cache_dir: str | None
    hint: str

    def fetch(self, *, offline: bool) -> Path:
        """Let huggingface_hub complete the cached snapshot, or with `offline` only find it."""
        return Path(
            snapshot_download(
                self.repository,
                revision=self.revision,
                cache_dir=self.cache_dir,
                local_files_only=offline,
                allow_patterns=DOWNLOADED,
                ignore_patterns=SKIPPED,
                library_name="pipeline-kit",
            )
        )

    @property
    def cache(self) -> str:
        return self.cache_dir or constants.HF_HUB_CACHE


def download(repository: str, revision: str | None, offline: bool, cache_dir: str | None, hint: str = "") -> Path:
    """Return the local snapshot of `repository`, downloading what is missing; the folder's name is the commit.

    A full commit hash that is cached needs no network. When the hub cannot be reached or refuses, a
    cached copy of the revision is used and a warning logged.

    :param hint: what else the user may have meant, put behind errors.
    :raises CheckpointError: if it is neither cached nor downloadable; says why and what to do.
    """
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise CheckpointError(
            f"checkpoint.revision={for_message(revision)} is not a revision; pass a commit, a tag or a branch"
        )
    wanted = _Wanted(repository, revision, os.path.expanduser(cache_dir) if cache_dir else None, hint)
    if offline or constants.HF_HUB_OFFLINE:
        reason = "checkpoint.offline=true" if offline else "HF_HUB_OFFLINE is set"
        return _cached(wanted, f"the network is off ({reason})", None)
    if revision is not None and _COMMIT.fullmatch(revision) and (snapshot := _complete(wanted)) is not None:
        return snapshot
    try:
        _check_listing(wanted, _list_files(wanted))
    except CheckpointError:
        raise
    except Exception as error:
        snapshot = _cached(wanted, _explain(wanted, error), error)
        _log.warning(
            "%s; using the downloaded copy, commit %s. checkpoint.offline=true uses it without asking",
            _explain(wanted, error),
            snapshot.name[:12],
        )
        return snapshot
    try:
        return wanted.fetch(offline=False)
    except Exception as error:
        raise CheckpointError(
            f"the download of '{repository}' broke off: {_explain(wanted, error)}. Run again to resume it"
        ) from error


def _list_files(wanted: _Wanted) -> set[str]:
    """Ask the hub which files the revision has, once, with a short patience for the answer."""
    patience = float(constants.HF_HUB_ETAG_TIMEOUT) if "HF_HUB_ETAG_TIMEOUT" in os.environ else _ANSWER_SECONDS
    # snapshot_download would wait without limit here when packets are dropped.
    info = HfApi(library_name="pipeline-kit").model_info(wanted.repository, revision=wanted.revision, timeout=patience)
    return {sibling.rfilename for sibling in info.siblings or ()}


def _check_listing(wanted: _Wanted, names: Collection[str]) -> None:
    """Refuse a repository that lacks what every checkpoint needs, before anything is downloaded."""
    where = f"the hub repository '{wanted.repository}'"
    # Older sentence-transformers repositories have their network in a folder.
    nested = weights.MODULES_NAME in names and "config.json" not in names and "0_Transformer/config.json" in names
    inner = "0_Transformer/" if nested else ""
    if f"{inner}config.json" not in names:
        formats = sorted({Path(name).suffix for name in names} & {".gguf", ".onnx"})
        kind = f"; it holds {', '.join(formats)} files, use the repository they were made from" if formats else ""
        raise CheckpointError(f"{where} has no config.json, so it is not a transformers checkpoint{kind}")
    if f"{inner}{weights.WEIGHTS_NAME}" in names or f"{inner}{weights.INDEX_NAME}" in names:
        return
    pickles = sorted(name for name in names if Path(name).suffix in PICKLE_SUFFIXES)
    if pickles:
        raise CheckpointError(
            f"{where} holds no safetensors, only {for_message(', '.join(pickles[:3]))}: such a file can run code and "
            "is never downloaded. Many such repositories have a conversion as a pull request: look for it at "
            f"{hidden(constants.ENDPOINT)}/{wanted.repository}/discussions and use checkpoint.revision=refs/pr/NUMBER"
        )
    raise CheckpointError(f"{where} holds no {weights.WEIGHTS_NAME}; use a repository with safetensors weights")


def _complete(wanted: _Wanted) -> Path | None:
    """Return the snapshot if all of it is cached, without a network."""
    try:
        snapshot = wanted.fetch(offline=True)
        folder = weights.network_folder(snapshot)
        whole = (folder / "config.json").is_file() and all(
            path.is_file() for path in weights.weight_files(folder) or (folder / weights.WEIGHTS_NAME,)
        )
    except (OSError, ValueError, CheckpointError):
        return None
    return snapshot if whole else None


def _cached(wanted: _Wanted, reason: str, cause: Exception | None) -> Path:
    """Return the snapshot from the cache, or the error that says how to get by without a network."""
    if (snapshot := _complete(wanted)) is not None:
        return snapshot
    what = f"'{wanted.repository}'" + (f" at revision {wanted.revision}" if wanted.revision else "")
    status = cause.response.status_code if isinstance(cause, errors.HfHubHTTPError) else 500
    if cause is not None and status < 500 and status != 429:  # a useful answer, which waiting would not change
        raise CheckpointError(f"{reason}.{wanted.hint}") from cause
    command = " ".join(
        ["hf download", wanted.repository]
        + [f"--revision {wanted.revision}"] * (wanted.revision is not None)
        + [f"--include '{pattern}'" for pattern in DOWNLOADED]
    )
    raise CheckpointError(
        f"{reason}, and the cache ({wanted.cache}) has no complete copy of {what}.{wanted.hint} "
        f"Where there is a network, run\n  {command} --local-dir my-model\n"
        "then copy the folder my-model here and use checkpoint.path=./my-model (checkpoint=tiny_sentiment needs no "
        "download at all)"
    ) from cause


def _explain(wanted: _Wanted, error: Exception) -> str:
    """Return in one line what the hub answered, or that it did not."""
    name, host = f"'{wanted.repository}'", hidden(constants.ENDPOINT)
    sign_in = "sign in with 'hf auth login' or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated: accept its terms at {host}/{wanted.repository}, then {sign_in}"
    if isinstance(error, errors.RevisionNotFoundError):
        revision = wanted.revision or "main"
        return f"{name} has no revision '{revision}'; its branches and tags are at {host}/{wanted.repository}/tree/main"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{host} has no repository {name}, or it is private: check the spelling; if it is private, {sign_in}"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        meaning = {
            401: f"it takes no anonymous access, or the token is not valid; {sign_in}",
            403: "the token lacks the right to read this repository",
            404: "no such repository; check the spelling",
            429: "too many requests; wait a while, or sign in for a higher limit",
        }.get(status, "it has trouble of its own; try again later" if status >= 500 else "it refused the request")
        return f"the hub answered {status} for {name}: {meaning}"
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _explain(wanted, error.__cause__)
    detail = for_message(str(error).strip().partition("\n")[0] or type(error).__name__, 120)
    if isinstance(error, OSError) and (error.errno in _FULL or None not in (error.errno, error.filename)):
        return f"the cache {wanted.cache} cannot be written ({detail}); set checkpoint.cache_dir to another folder"
    return f"the hub at {host} cannot be reached ({detail})"
