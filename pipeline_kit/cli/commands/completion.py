"""Print the completion script of a shell; ``__complete``, which the scripts call, is here too."""

from __future__ import annotations

import argparse

from pipeline_kit.cli.app import COMMANDS, Parser, command_and_parser, parse
from pipeline_kit.cli.stdio import print_out
from pipeline_kit.errors import PipelineKitError

EPILOG = """\
set up:
  bash   echo 'eval "$(pipeline-kit completion bash)"' >> ~/.bashrc
  zsh    echo 'eval "$(pipeline-kit completion zsh)"' >> ~/.zshrc
  fish   pipeline-kit completion fish > ~/.config/fish/completions/pipeline-kit.fish
"""

# bash splits words at '=', so of a candidate it wants only what follows the last one.
_BASH = """\
_pipeline_kit() {
    local line="${COMP_LINE:0:$COMP_POINT}" item
    local word="${line##* }"
    local cut="${word%"${word##*=}"}"
    [[ $COMP_WORDBREAKS == *=* ]] || cut=""
    COMPREPLY=()
    while IFS= read -r item; do
        COMPREPLY+=("${item#"$cut"}")
        [[ $item == *[=./] ]] && compopt -o nospace
    done < <("${COMP_WORDS[0]}" __complete "$line" 2>/dev/null)
}
complete -o default -F _pipeline_kit pipeline-kit
"""

_ZSH = """\
#compdef pipeline-kit
_pipeline_kit() {
    local -a found
    found=(${(f)"$("${words[1]}" __complete "${LBUFFER}" 2>/dev/null)"})
    if (( $#found )); then
        compadd -S '' -- $found
    else
        _files
    fi
}
if [[ ${funcstack[1]} == _pipeline_kit ]]; then
    _pipeline_kit "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
    compdef _pipeline_kit pipeline-kit
fi
"""

_FISH = """\
complete -c pipeline-kit -a '(pipeline-kit __complete (commandline -cp) 2>/dev/null)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``completion``."""
    parser.add_argument("shell", metavar="SHELL", choices=SCRIPTS, help="bash, zsh or fish")


def execute(args: argparse.Namespace) -> int:
    """Print the script."""
    print_out(SCRIPTS[args.shell])
    return 0


_OFTEN = {"--vs": ("transformers", "transformers:8"), "--format": ("table",)}  # values of a flag that takes others too
_REGISTERED = {"--format": "output_format", "--input-format": "input_format"}
_COMPOSING = ("run", "explain", "bench", "evaluate", "tune", "cfg", "validate")


class Complete:
    """Print what the last word of a command line may become."""

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        """Add the argument: the line up to the cursor."""
        parser.add_argument("line")

    @staticmethod
    def execute(args: argparse.Namespace) -> int:
        """Print the candidates, one a line; none for a line that makes no sense."""
        try:
            found = completions(args.line)
        except (PipelineKitError, OSError, ValueError):
            return 0
        if found:
            print_out("\n".join(found))
        return 0


def completions(line: str) -> list[str]:
    """Return what the last word of `line` may become, whole words."""
    *before, word = line.split(" ")
    before = [item for item in before if item][1:]
    if not before:
        return [name for name in (*COMMANDS, "--help", "--version") if name.startswith(word)]
    command, rest = before[0], before[1:]
    if command not in COMMANDS:
        return []
    parser = command_and_parser(command)[1]
    if rest and parser.flags.get(rest[-1]):
        known = parser._option_string_actions[rest[-1]].choices
        if known is None:
            known = [*_OFTEN.get(rest[-1], ()), *_registered(parser, rest)]
        return [value for value in known if value.startswith(word)]
    if word.startswith("-"):
        return sorted(flag for flag in parser.flags if flag.startswith(word) and flag.startswith("--"))
    return _overrides(parser, rest, word) if command in _COMPOSING else _names(command, word)


def _registered(parser: Parser, rest: list[str]) -> list[str]:
    """Return the formats that the last flag may name, those of plugins too."""
    from pipeline_kit.compose.plugins import load_registry

    if rest[-1] not in _REGISTERED:
        return []
    registry = load_registry(parse(parser, rest[:-1], words="override").plugin, everything=True)
    return [spec.name for spec in registry.specs(_REGISTERED[rest[-1]])]


def _overrides(parser: Parser, rest: list[str], word: str) -> list[str]:
    from pipeline_kit.compose.compose import complete
    from pipeline_kit.compose.plugins import load_registry

    args = parse(parser, rest, words="override")
    registry = load_registry(args.plugin, everything=True)
    line = " ".join([*(item for item in args.words if "=" in item), word])
    return complete(line, registry, args.config_dir)


def _names(command: str, word: str) -> list[str]:
    from pipeline_kit.compose.overrides import options
    from pipeline_kit.compose.plugins import load_registry

    if command == "completion":
        return [name for name in SCRIPTS if name.startswith(word)]
    if command not in ("ls", "show"):
        return []
    groups = options(load_registry(everything=True))
    names = [*groups] if command == "ls" else [f"{group}/{name}" for group in groups for name in sorted(groups[group])]
    return [name for name in names if name.startswith(word)]
