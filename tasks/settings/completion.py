"""What a shell may complete behind ``effbackbones``, from the tables of the command line: a static script, no Python at each key.

One function in the language of POSIX shells answers, given the word that is being typed and those before it, with the words that may
stand there, or with nothing where a file is meant; a few lines for each shell ask it. What plug-ins bring is in it if they are named
when it is written, or installed.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

from effbackbones.errors import UserError, nearest
from effbackbones.registry import BACKBONES, DEFAULT_HEADS, TASKS
from tasks.settings.commandline import bundled
from tasks.settings.helping import heads_of
from tasks.settings.keytypes import ANY, leaves, members_of
from tasks.settings.onecommand import NAME, task_words
from tasks.settings.verboptions import OPTIONS
from tasks.settings.verbs import DEFAULT, VERBS, Verb

_WORDS = f"_{NAME}_words"
_POSIX = """\
{function}() {{
    _eb_now=$1 _eb_verb= _eb_task= _eb_last=
    shift
    for _eb_last in "$@"; do :; done
    case "${{1-}}" in
        {verbs}) _eb_verb=$1; case "${{2-}}" in {tasks}) _eb_task=$2 ;; esac ;;
        {tasks}) _eb_task=$1; _eb_verb={default}; case "${{2-}}" in {tasked}) _eb_verb=$2 ;; esac ;;
    esac
    case "$#" in 0) echo "{verb_words} {task_words} --help --version"; return ;; esac
    case "$_eb_task $_eb_last" in
        {by_task}
    esac
    case "$_eb_last" in
        {values}
        {flags}) ;;
        --*) return ;;
    esac
    case "$#" in
        1) case "$_eb_task" in "") ;; *) echo "{tasked_words}" ;; esac
           case "${{1-}}" in {tasked}) echo "{task_words} --help"; return ;; esac ;;
    esac
    case "${{1-}} ${{2-}}" in
        {positions}
    esac
    case "$_eb_verb $_eb_now" in
        *" "-*) ;;
        {files}) return ;;
    esac
    _eb_keys="{keys}"
    case "$_eb_verb" in
        {options}
    esac
}}
"""
_SHELLS = {
    "bash": """\
_{name}() {{
    local before=("${{COMP_WORDS[@]:1:COMP_CWORD-1}}") current=${{COMP_WORDS[COMP_CWORD]}}
    if [[ $current == "=" ]]; then current=""; fi  # bash takes --key=value for three words
    if [[ ${{#before[@]}} -gt 0 && ${{before[${{#before[@]}}-1]}} == "=" ]]; then unset "before[${{#before[@]}}-1]"; fi
    COMPREPLY=($(compgen -W "$({words} "$current" "${{before[@]}}")" -- "$current"))
}}
complete -o default -F _{name} {name}
""",
    "zsh": """\
_{name}() {{
    local -a found
    found=(${{=$({words} "${{words[CURRENT]}}" "${{(@)words[2,CURRENT-1]}}")//$'\\n'/ }})
    (( $#found )) && compadd -- $found || _files
}}
compdef _{name} {name}
""",
    "fish": """\
function __{name}_words
    set -l before (commandline -opc)
    set -e before[1]
    set -l current (commandline -ct | string collect --allow-empty)
    set -l found (sh -c '{script}
{words} "$@"' sh "$current" $before | string split -n " ")
    string match -q -- "$current*" $found && printf "%s\\n" $found || __fish_complete_path "$current"
end
complete -c {name} -f -a "(__{name}_words)"
""",
}
_HOW = {
    "bash": f'eval "$({NAME} completion bash)", in ~/.bashrc',
    "zsh": f'eval "$({NAME} completion zsh)", in ~/.zshrc behind compinit',
    "fish": f"{NAME} completion fish > ~/.config/fish/completions/{NAME}.fish",
}
SHELLS = tuple(_SHELLS)


def script(shell: str, positions: Mapping[str, Iterable[str]]) -> str:
    """The script of a shell. ``positions``: what may follow a verb that takes no task, or that and one more word (``list``, ``list
    heads``). An unknown shell raises :class:`UserError`."""
    if shell not in _SHELLS:
        raise UserError(f"completion {shell!r}", "no such shell", nearest(shell, _SHELLS))
    words = _posix(positions)
    made = _SHELLS[shell].format(name=NAME, words=_WORDS, script=words)
    return f"# Completion of {NAME} for {shell}: {_HOW[shell]}\n{'' if shell == 'fish' else words}{made}"


def _posix(positions: Mapping[str, Iterable[str]]) -> str:
    tasked = [verb.name for verb in VERBS.values() if verb.config != "none"]
    flags = [name for name, option in OPTIONS.items() if option.flag]
    flags += [name for verb in VERBS.values() for name, option in verb.own.items() if option.flag]
    return _POSIX.format(
        function=_WORDS,
        default=DEFAULT,
        verbs=_any(VERBS),
        tasks=_any(task_words()),
        tasked=_any(tasked),
        verb_words=" ".join(VERBS),
        task_words=" ".join(task_words()),
        tasked_words=" ".join(tasked),
        by_task=_cases(
            {f"{task} {option}": words for task in task_words() for option, words in _of_task(task).items()}
        ),
        values=_cases({f"--{name}": words for name, words in _values().items()}),
        flags=_any(dict.fromkeys(f"--{name}" for name in flags)),
        positions=_cases({key if " " in key else f"{key} ": words for key, words in positions.items()}),
        files=_any(f'"{verb.name} "*' for verb in VERBS.values() if verb.inputs),
        keys=" ".join(f"--{key}" for key, _, _ in leaves() if ANY not in key and key != "plugins"),
        options=_cases({verb.name: _options(verb) for verb in VERBS.values()}, end=""),
    )


def _any(words: Iterable[str]) -> str:
    return "|".join(words)


def _cases(answers: Mapping[str, Iterable[str]], end: str = "; return") -> str:
    """Branches of a ``case``; words of the same answer share one."""
    shared: dict[str, list[str]] = {}
    for word, answer in answers.items():
        shared.setdefault(" ".join(answer), []).append(f'"{word}"')
    return "\n        ".join(f'{_any(words)}) echo "{answer}"{end} ;;' for answer, words in shared.items())


def _of_task(task: str) -> dict[str, list[str]]:
    """Values that differ from task to task, by option."""
    heads = {"--model.head": heads_of(task)} if TASKS.canonical(task) in DEFAULT_HEADS else {}
    return {"--config": list(bundled(task)), **heads}


def _values() -> dict[str, list[str]]:
    """Values of options and keys that have few, by name."""
    options = {name: list(option.values) for name, option in OPTIONS.items() if option.values}
    own = {name: list(option.values) for verb in VERBS.values() for name, option in verb.own.items() if option.values}
    keys = {key: _choices(hint) for key, hint, _ in leaves() if ANY not in key}
    named = {"model.backbone": BACKBONES.names(), "model.weights": ["imagenet", "coco", "null"]}
    return {**{key: words for key, words in keys.items() if words}, **options, **own, **named}


def _choices(hint: Any) -> list[str]:
    """The values of a type that has few."""
    found: list[str] = []
    for member in members_of(hint):
        if member is bool:
            found += ["true", "false"]
        if get_origin(member) is Literal:
            found += map(str, get_args(member))
    return found


def _options(verb: Verb) -> list[str]:
    """The options of a verb, those of all keys among them."""
    own = [f"--{name}" for name in (*OPTIONS, *verb.own) if verb.takes(name)]
    keys = ["$_eb_keys"] if verb.config != "none" else []
    return [*own, *keys, "--plugins", "--help"]
