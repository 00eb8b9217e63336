"""Print the completion script of a shell."""

from __future__ import annotations

import argparse

from pipeline_kit.cli.stdio import print_out

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
