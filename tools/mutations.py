r"""Break important lines of pipeline_kit one at a time, and check that the test suite notices each.

    python tools/mutations.py                # all of them
    python tools/mutations.py --only 3 17    # some, by number
    python tools/mutations.py --list

It works on copies of the tracked files, never on the tree itself. First the chosen tests run unchanged and must
pass. Then each mutation runs its own tests, which must fail. The exit code is 1 if a mutation survives or is stale,
which means that its line is no longer there once: mend the table below together with the line.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from time import monotonic

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutation:
    """One line made wrong.

    :param file: below ``pipeline_kit/``.
    :param old: text that stands there exactly once; `new` takes its place.
    :param tests: the files or tests, below ``tests/``, that must fail, separated by blanks.
    :param why: what the line guarantees.
    """

    file: str
    old: str
    new: str
    tests: str
    why: str


# fmt: off
MUTATIONS = (
    # runtime
    Mutation("runtime/batching.py", "rows > batching.max_rows)", "rows > batching.max_rows + 1)",
             "runtime/test_batching.py", "a batch has at most max_rows rows"),
    Mutation("runtime/batching.py", "max(1, batching.max_tokens // width)", "max(1, -(-batching.max_tokens // width))",
             "runtime/test_batching.py", "a batch has at most max_tokens tokens"),
    Mutation("runtime/batching.py", "np.argsort(-np.asarray(lengths", "np.argsort(np.asarray(lengths",
             "runtime/test_batching.py", "the longest rows come first"),
    Mutation("runtime/padding.py", 'if policy.side == "right" else columns', 'if policy.side == "left" else columns',
             "runtime/test_batching.py", "padding stands on the side that was asked for"),
    Mutation("runtime/padding.py", "else value[width - length :]", "else value[:length]",
             "runtime/test_pipeline.py::test_results_come_in_order_whatever_the_policy",
             "left padding is cut off on the left"),
    Mutation("runtime/calls.py", "call, items[:half], rows[:half]", "call, items[half:], rows[half:]",
             "runtime/test_retry.py", "the halves of a failed batch keep their order"),
    Mutation("runtime/calls.py", "if len(items) == 1:\n                return [RowFailure.of(",
             "if len(items) == 1 or is_out_of_memory(error):\n                return len(items) * [RowFailure.of(",
             "runtime/test_pipeline.py::test_lack_of_memory_halves_the_batch_down_to_one_row_and_goes_on",
             "a batch without enough memory is halved"),
    Mutation("runtime/calls.py", "tried == self.retries", "tried > self.retries",
             "runtime/test_retry.py", "a call is retried as often as the option says"),
    # builtin/tasks
    Mutation("builtin/tasks/common/merge.py", "np.add.at(steps, ends, -1)", "np.add.at(steps, ends, 0)",
             "runtime/test_long_documents.py::test_weights_by_hand", "a token that windows share counts once in all"),
    Mutation("builtin/tasks/common/merge.py", "np.maximum.reduceat", "np.minimum.reduceat",
             "builtin/tasks/classification/test_classification.py::test_windows_are_merged_by_tokens_or_by_the_largest_score",
             "merge=max takes the largest score"),
    Mutation("builtin/tasks/classification/stage.py", "torch.softmax(logits, dim=-1)", "torch.softmax(logits, dim=0)",
             "builtin/tasks/classification/test_classification.py::test_softmax_by_hand",
             "softmax goes over the labels, not the rows"),
    Mutation("builtin/tasks/classification/stage.py", ' or labels == 1 else "softmax"', ' else "softmax"',
             "builtin/tasks/classification/test_classification.py::test_one_label_gives_a_sigmoid",
             "one label means a sigmoid"),
    Mutation("builtin/tasks/classification/stage.py", "[:, : self._top_k]", "[:, :]",
             "builtin/tasks/classification/test_classification.py::test_top_k_lists_the_best_first_and_ties_in_label_order",
             "top_k limits the list"),
    Mutation("builtin/tasks/classification/stage.py", "scores >= self._thresholds", "scores > self._thresholds",
             "builtin/tasks/classification/test_classification.py::test_a_score_equal_to_its_threshold_reaches_it",
             "a score equal to its threshold reaches it"),
    Mutation("builtin/tasks/entities/words.py", "pieces.ends[lasts]", "pieces.ends[at]",
             "builtin/tasks/entities/test_entities.py::test_b_begins_anew_and_i_goes_on_across_a_space",
             "an entity ends where its last word ends"),
    Mutation("builtin/tasks/entities/labels.py", 'in ("B", *_ONLY) for', "in _ONLY for",
             "builtin/tasks/entities/test_entities.py::test_b_begins_anew_and_i_goes_on_across_a_space",
             "B- begins a new entity"),
    Mutation("builtin/tasks/answers/spans.py", "longest = min(longest, count)", "longest = min(longest + 1, count)",
             "builtin/tasks/answers/test_answers.py::test_an_answer_has_at_most_so_many_tokens",
             "an answer is no longer than the limit"),
    Mutation("builtin/tasks/fill_mask/stage.py", "np.argsort(-scores[columns]", "np.argsort(scores[columns]",
             "builtin/tasks/fill_mask/test_fill_mask.py::test_scores_are_of_the_whole_vocabulary_by_hand",
             "the best target comes first"),
    Mutation("builtin/tasks/common/merge.py", "powers / powers.sum()", "powers / powers.max()",
             "builtin/tasks/test_zero_shot.py::test_entailment_over_all_labels",
             "the scores of the candidates add up to 1"),
    Mutation("builtin/tasks/common/merge.py", 'argsort(-values, kind="stable")', 'argsort(values, kind="stable")',
             "builtin/tasks/test_ranking.py::test_best_first_with_the_place_of_each_document",
             "the best document comes first"),
    Mutation("builtin/tasks/embedding/modules.py", "hidden.masked_fill(padding, -torch.inf).amax", "hidden.amax",
             "builtin/tasks/embedding/test_pooling.py::test_each_mode_by_hand_whatever_stands_at_padding",
             "padding is not pooled"),
    Mutation("builtin/tasks/embedding/stage.py", "np.maximum(lengths, 1e-12)", "np.maximum(lengths, 1.0)",
             "builtin/tasks/embedding/test_pooling.py", "a normalized vector has length 1"),
    Mutation("builtin/tasks/generation.py", "text[: min(places)]", "text[: max(places)]",
             "builtin/tasks/test_generated_text.py::test_text_ends_before_the_first_of_several_stop_strings",
             "text ends before the first stop string"),
    Mutation("builtin/tasks/answers/stage.py", "return 2 * common /", "return common /",
             "evaluate/test_evaluate_metrics.py::test_squad_f1", "F1 of answers"),
    # builtin/tokenizers and builtin/models
    Mutation("builtin/tokenizers/encode.py", "start + count - keep) if left", "start + count - keep) if not left",
             "builtin/tokenizers/test_tokenizers.py", "text is cut at the end that was asked for"),
    Mutation("builtin/tokenizers/encode.py", "begin += room - overlap", "begin += room",
             "builtin/tokenizers/test_tokenizer_windows.py", "neighbouring windows overlap"),
    Mutation("builtin/models/hf/batches.py", 'RIGHT if head in ("sequence-classification", ',
             "RIGHT if head in (", "builtin/models/test_models.py",
             "a classifier is not padded where that changes it"),
    Mutation("builtin/models/hf/batches.py", '{"float32": 3e-6,', '{"float32": 3e6,',
             "builtin/models/test_packed.py::test_a_kernel_that_answers_otherwise_is_not_kept",
             "a kernel with other answers is refused"),
    Mutation("builtin/models/generate/choosing.py", "    return high\n", "    return low\n",
             "builtin/models/test_generate.py::test_end_of", "the token that completes a stop string is kept"),
    # job
    Mutation("job/folder.py", "        self.put(begun, receipt.content)\n", "",
             "job/test_reliability_folders.py::test_h4_what_a_kill_left_is_removed_though_the_row_does_not_fail_again",
             "what a shard will write is noted before it is written"),
    Mutation("files/atomic.py", "        os.fsync(descriptor)\n        if only_new", "        if only_new",
             "files/test_atomic.py", "a file is on the disk before it has its name"),
    Mutation("job/ledger.py", "[1] + 1 if number else 0", "[1] if number else 0",
             "job/test_job.py::test_a_job_goes_on_where_it_stopped_with_the_same_bytes",
             "rows that are done are skipped"),
    Mutation("job/shard.py", "        if dead:\n", "        if not dead:\n",
             "job/test_reliability_rows.py::test_rows_around_bad_ones_have_the_bytes_of_a_clean_run",
             "failed rows become dead letters"),
    Mutation("job/ledger.py", "len(self._timed_out) + dead", "len(self._timed_out)",
             "job/test_job.py::test_the_budget", "the failed rows of this shard count, too"),
    Mutation("job/folder.py", "stack.enter_context(lock_file(path, wait=False, on_locked=sign))", "pass",
             "job/test_job.py::test_one_writer_at_a_time", "one process writes to a folder"),
    Mutation("job/manifest.py", "elif before != now:", "elif type(before) is not type(now):",
             "job/test_reliability_resume.py::test_one_option_changed_is_refused_and_named",
             "a job is not resumed with another config"),
    # files
    Mutation("files/write/text.py", r"'*[=+\-@\t", r"'*[=+\-\t",
             "files/write/test_sinks_csv.py", "no cell of a CSV file is a formula"),
    Mutation("files/json_text.py", "if len(found) < len(pairs):", "if len(found) > len(pairs):",
             "files/read/test_records.py::test_jsonl",
             "a key that is there twice is refused"),
    Mutation("files/json_text.py", "parse_constant=_constant, ", "",
             "files/read/test_records.py::test_jsonl",
             "NaN and Infinity are refused"),
    Mutation("files/read/opened.py", "given > self.max_ratio * taken", "taken > self.max_ratio * given",
             "files/read/test_records_unpack.py::test_a_bomb_stops_at_the_ratio", "a compression bomb is stopped"),
    Mutation("files/read/text_lines.py", r'data.removesuffix(b"\n").removesuffix(b"\r")',
             "(data.splitlines() or [data])[0]",
             "files/read/test_records.py", "only a newline ends a line"),
    Mutation("files/read/columns.py", "self._carried(row, column)", "self._carried(row, self.carry[0])",
             "files/read/test_records_source.py::test_columns_are_carried_and_ids_read",
             "each column keeps its values"),
    # safety
    Mutation("compose/yaml_scan.py", "isinstance(event, yaml.AliasEvent) or", "False and",
             "compose/test_reliability_config.py::test_h15_what_a_link_leads_to_is_scanned",
             "YAML aliases are refused"),
    Mutation("compose/yaml_scan.py", '{"_target_", ', "{",
             "compose/test_compose.py::test_python_resolvers_and_hydras_own_options_are_refused",
             "a config cannot name Python to run"),
    Mutation("compose/yaml_scan.py", 'if "${" in _REFERENCE', 'if "$${" in _REFERENCE',
             "compose/test_compose.py::test_python_resolvers_and_hydras_own_options_are_refused",
             "a config cannot call a resolver"),
    Mutation("checkpoint/scan.py", '".pickle", ".pkl", ', '".pickle", ',
             "checkpoint/test_checkpoint_safety.py::test_pickles", "pickles are refused"),
    Mutation("checkpoint/scan.py", '    "auto_map": ', '    "auto_maps": ',
             "checkpoint/test_checkpoint_safety.py::test_forbidden_keys", "code of a checkpoint is refused"),
    Mutation("compose/compose.py", 'node.get("trust") == "pickle"', 'node.get("trust") == ""',
             "checkpoint/test_own_format.py::test_nothing_but_an_override_can_trust", "no config can trust a pickle"),
    Mutation("checkpoint/scan.py", "return suffix in CODE_SUFFIXES or (", "return (",
             "checkpoint/test_own_format.py::test_code_is_never_trusted", "code beside a trusted pickle is refused"),
    Mutation("checkpoint/weights.py", "except (SafetensorError, OSError) as error:", "except OSError as error:",
             "checkpoint/test_checkpoint.py::test_broken_weights", "broken weights are refused by name"),
    Mutation("errors.py", "not _is_harmless(value, path):\n        return HIDDEN", "False:\n        return HIDDEN",
             "compose/test_reliability_secrets.py::test_h19_a_whole_word_of_a_name_says_secret",
             "secrets are not shown"),
    # compose, cli, registry, explain
    Mutation("contract/options.py", "        if key not in known:", "        if not known:",
             "contract/test_config.py", "an unknown option is an error"),
    Mutation("contract/options.py", "high is not None and value > high)", "high is not None and value > high + 1)",
             "contract/test_config.py", "an option stays in its range"),
    Mutation("contract/registry.py", "(other.target, other.config, other.detail) == (target, config, detail):", "True:",
             "contract/test_config.py", "a name is registered once"),
    Mutation("cli/app.py", "return error.exit_code", "return 1",
             "cli/test_cli_parsing.py", "wrong usage ends with exit code 2"),
    Mutation("cli/app.py", "return 141", "return 0",
             "cli/test_cli_process.py::test_a_reader_that_leaves_ends_the_run_quietly",
             "a reader that leaves is not a success"),
    Mutation("explain/describe.py", "int(offsets[1]),", "int(offsets[1]) - 1,",
             "explain/test_explain.py", "a token's offsets are those of its text"),
)
# fmt: on


def copy_of_the_tree(folder: Path) -> Path:
    """Copy the tracked files; the package finds its presets by a link, as an installed one has them inside."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "pipeline_kit" / "conf").symlink_to(Path("..", "conf"))
    return folder


def run_in(tree: Path, arguments: Sequence[str], limit: float | None = None) -> tuple[int | None, str]:
    """Run Python on a copy. Return its exit code, None if it did not end within `limit` seconds, and its output."""
    settings = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=tree,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        output = process.communicate(timeout=limit)[0]
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            return None, ""
        raise
    return process.returncode, output


def pytest_on(tests: Sequence[str]) -> list[str]:
    """Return the arguments for a run that ends with the first failure."""
    options = ("-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-o", "timeout=0", "--no-header", "--tb=line")
    return ["-m", "pytest", *options, *(f"tests/{test}" for test in tests)]


def stale(mutation: Mutation) -> str | None:
    """Return why a mutation cannot be made, None if it can."""
    path = ROOT / "pipeline_kit" / mutation.file
    if not path.is_file():
        return "STALE: the file is not there"
    count = path.read_text(encoding="utf-8").count(mutation.old)
    return None if count == 1 else f"STALE: the text to replace is there {count} times, not once"


def tried(tree: Path, number: int, mutation: Mutation, limit: float) -> str:
    """Make a mutation in a copy, run its tests and take it back. Return "caught", or what happened in its place."""
    path = tree / "pipeline_kit" / mutation.file
    before, times = path.read_bytes(), path.stat()
    path.write_text(before.decode("utf-8").replace(mutation.old, mutation.new), encoding="utf-8", newline="")
    # Python compiles a file again if its size or its time in whole seconds changed: this time no other version has.
    os.utime(path, (number, number))
    try:
        code, output = run_in(tree, pytest_on(mutation.tests.split()), limit)
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    if code == 1:
        return "caught"
    if code == 0:
        return "SURVIVED"
    return f"TIMEOUT after {limit:.0f} s" if code is None else f"EXIT CODE {code}: {output.strip()[-300:]}"


def check_unchanged(tree: Path, tests: Sequence[str]) -> str | None:
    """Return why the tests cannot judge a mutation, None if they can: they import the copy, and pass on it."""
    code, output = run_in(tree, ["-c", "import pipeline_kit, pipeline_kit.conf as c; print(pipeline_kit.__file__, c)"])
    if code != 0 or output.count(str(tree)) != 2:
        return f"the copy in {tree} is not what Python imports: {output}"
    code, output = run_in(tree, pytest_on(tests))
    return None if code == 0 else f"the tests do not pass without a mutation:\n{output}"


def run_all(chosen: Sequence[int], jobs: int, limit: float) -> bool:
    """Try mutations by their numbers, from 1, and print a line for each. Return whether all were caught."""
    trees: SimpleQueue[Path] = SimpleQueue()

    def one(number: int) -> bool:
        mutation, tree, start = MUTATIONS[number - 1], trees.get(), monotonic()
        try:
            outcome = tried(tree, number, mutation, limit)
        finally:
            trees.put(tree)
        seconds = f"{monotonic() - start:5.0f} s"
        print(f"{number:3}  {seconds}  {mutation.file:38}  {mutation.why:55}  {outcome}", flush=True)
        return outcome == "caught"

    with tempfile.TemporaryDirectory(prefix="pipeline-kit-mutations-") as folder:
        for job in range(jobs):
            trees.put(copy_of_the_tree(Path(folder).resolve() / str(job)))
        first = trees.get()
        tests = sorted({test for number in chosen for test in MUTATIONS[number - 1].tests.split()})
        problem = check_unchanged(first, tests)
        trees.put(first)
        if problem is not None:
            print(problem)
            return False
        with ThreadPoolExecutor(jobs) as pool:
            caught = list(pool.map(one, chosen))
    print(f"{sum(caught)} of {len(caught)} mutations caught")
    return all(caught)


def main() -> int:
    """Read the command line. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="the numbers of the mutations to try")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many to try at once (default: 1)")
    parser.add_argument("--limit", type=float, default=300.0, metavar="SECONDS", help="time for the tests of each")
    parser.add_argument("--list", action="store_true", help="print the table, check that it is not stale, run nothing")
    args = parser.parse_args()
    chosen = args.only or list(range(1, len(MUTATIONS) + 1))
    if not all(1 <= number <= len(MUTATIONS) for number in chosen) or args.jobs < 1:
        parser.error(f"--only takes numbers from 1 to {len(MUTATIONS)}, --jobs takes 1 or more")
    found = {number: stale(MUTATIONS[number - 1]) for number in chosen}
    for number, problem in found.items():
        if args.list or problem:
            mutation = MUTATIONS[number - 1]
            print(f"{number:3}  {mutation.file:38}  {mutation.why:55}  {problem or ''}".rstrip())
    if any(found.values()):
        return 1
    return 0 if args.list or run_all(chosen, args.jobs, args.limit) else 1


if __name__ == "__main__":
    sys.exit(main())
