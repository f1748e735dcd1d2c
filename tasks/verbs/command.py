"""What every command does around its verb: read the line, import plug-ins, and turn errors into one line and an exit code.

Exit codes: 0 every planned step ran; 2 what the user can mend; 3 training diverged; 130 and 143 a signal, after a save;
1 anything else. ``EFFBACKBONES_DEBUG=1`` shows tracebacks.
"""

import errno
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from effbackbones.errors import UserError, nearest
from effbackbones.inference.allocating import memory_kept
from effbackbones.registry import TASKS
from tasks.engine.signals import Signals, StoppedError
from tasks.settings.commandline import Request, named_plugins, parse
from tasks.settings.lent import without_unknown
from tasks.settings.onecommand import is_ordered, ordered, overview
from tasks.settings.sections import Config
from tasks.settings.tree import absolute
from tasks.settings.verbs import DEFAULT, VERBS, Verb
from tasks.telling import unfailing_streams

USER_ERROR, DIVERGED, FAILED = 2, 3, 1
LASTING = ("serve", "demo")
"""Verbs that stay for days: what a rare large image took should be given back."""


def run_command(command: str, argv: list[str]) -> int:
    """Run ``argv`` of the command ``command`` (``classify``) and return its exit code. ``--help`` raises SystemExit."""
    return _answered(lambda: _work(command, argv, started=argv, early=_early(argv, _needs_early(argv))))


def run_line(words: list[str]) -> int:
    """Run a line of the one command (:mod:`tasks.settings.onecommand`) and return its exit code. ``--help`` behind a verb raises
    SystemExit."""
    return _answered(lambda: _work_line(words))


def _work_line(words: list[str]) -> int:
    if words in ([], ["help"]) or (words[0].startswith("-") and {"-h", "--help"} & set(words)):
        _early(words, True)
        print(overview())
        return 0
    early = _early(words, not is_ordered(words))
    command, argv = ("", words) if words in (["--version"], ["-V"]) else ordered(words)
    return _work(command, argv, started=words, early=early or _early(argv, _needs_early(argv)))


def _answered(work: Callable[[], int]) -> int:
    """The exit code of ``work``, and a line for what it raises."""
    with unfailing_streams():
        try:
            with Signals():
                return work()
        except StoppedError as stopped:
            print(stopped, file=sys.stderr)
            return stopped.code
        except KeyboardInterrupt:
            return 130
        except Exception as error:
            if os.environ.get("EFFBACKBONES_DEBUG") == "1":
                raise
            line, code = explain(error)
            print(f"error: {line}", file=sys.stderr)
            return code


def _work(command: str, argv: list[str], *, started: list[str], early: tuple[str, ...]) -> int:
    request = parse(command, argv)
    # What a launcher can start again: the line that this process was ``started`` with.
    again = started == sys.argv[len(sys.argv) - len(started) :]
    return _run(VERBS[request.verb], command, request, again=again, early=early)


def _needs_early(argv: list[str]) -> bool:
    """Whether plug-ins are imported before a line is read: one has to bring its verb, or the verb reads no config, which names them."""
    return bool(argv) and not argv[0].startswith("-") and (argv[0] not in VERBS or VERBS[argv[0]].config == "none")


def _early(words: list[str], needed: bool) -> tuple[str, ...]:
    """The plug-ins that a line itself names, imported, if that is ``needed`` now."""
    plugins = named_plugins(words) if needed else ()
    import_plugins(plugins)
    return plugins


def _run(verb: Verb, command: str, request: Request, *, again: bool, early: tuple[str, ...]) -> int:
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        raise UserError(
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "is set, so that opening a checkpoint could run code", "unset it"
        )
    backend = os.environ.get("MPLBACKEND", "")  # left over from a notebook, it may name what is not installed here
    if backend.startswith("module://") and not _is_module(backend.removeprefix("module://")):
        del os.environ["MPLBACKEND"]
    # Spinning threads starve the loaders; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if verb.config == "none":
        function = getattr(importlib.import_module(verb.module), verb.name)
        return int(function(request.extras))
    import_plugins(tuple(plugin for plugin in request.config.plugins if plugin not in early))
    # Registered names are known from here on.
    config, told = without_unknown(absolute(request.config), request.extras.lent)
    told = (*request.extras.told, *told)
    idle = [key for key in request.extras.overrides if not verb.reads(key, split=request.extras.split_named)]
    if idle and request.extras.checkpoint:
        told = (*told, f"{verb.name} of a trained model makes nothing of --{', --'.join(idle)}: not used")
    if verb.name == "evaluate" and request.extras.split != "val" and "data.limit_val" in request.extras.overrides:
        told = (*told, f"evaluate of the split {request.extras.split} makes nothing of --data.limit_val: not used")
    for line in told:
        print(line, file=sys.stderr)
    # torch comes in here
    from tasks.engine import processes
    from tasks.engine.surroundings import put_back

    with put_back():
        if verb.name == DEFAULT and not again:
            processes.refuse_to_start(config.run.processes, config.run.nodes)
        function, task = getattr(importlib.import_module(verb.module), verb.name), TASKS.get(command)
        with nullcontext() if verb.name in LASTING else memory_for(config):
            return int(function(task, config, request.extras))


def memory_for(config: Config) -> AbstractContextManager[object]:
    """How a process of ours treats freed memory: on a CPU it is kept. Beside a GPU the processor only reads images: nothing to gain, and
    such runs last for weeks."""
    import torch  # not on the way to --help

    return nullcontext() if config.run.device != "cpu" and torch.cuda.is_available() else memory_kept()


_OF_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EEXIST, errno.ENOTDIR)
"""What a system says of places that cannot be written to; the last two where a file stands in the place of a folder."""


def explain(error: Exception) -> tuple[str, int]:
    """One line for an error, and the exit code that it deserves."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UserError):
        # What a loader process raised comes with its traceback in front; the last line is the message.
        if "Original Traceback" in str(error):
            text = re.split(r"\bUserError: ", text)[-1]
        # An argument of `build_model` by the name that it has in a config of several tasks.
        return re.sub(r"^head_options\['(\w+)'\]", r"heads.\1.options", text), USER_ERROR
    if isinstance(error, OSError) and error.errno in _OF_OUTPUT:
        return (
            f"{error.filename or 'output'}: {error.strerror}; make room, mend the permissions, or write elsewhere",
            USER_ERROR,
        )
    name = type(error).__name__
    if re.search(r"Could not determine home directory|getpwuid", text):  # what a library asks for, such as a cache
        return "account: this user id has no name or no home folder here; set HOME and USER", USER_ERROR
    if (
        isinstance(error, MemoryError)
        or name == "OutOfMemoryError"
        or re.search("not enough memory|can't allocate memory", text)
    ):
        remedy = (
            "lower data.batch_size (evaluation: data.eval_batch_size), raise optim.accumulate, or lower data.image_size"
        )
        return f"memory: {text[:200]}; {remedy}", USER_ERROR
    if name == "DivergedError":
        return f"training: {text}; lower optim.lr, lengthen optim.warmup_epochs, or set optim.clip_norm", DIVERGED
    # What a loader process raised comes as the text of its traceback, notes last.
    lines = [*str(error).strip().splitlines()[-1:], *getattr(error, "__notes__", [])]
    note = next((line for line in lines if line.startswith("while reading ")), None)
    if note or "Original Traceback" in str(error):  # a mistake in code that makes samples or batches
        return f"data: {(note or lines[0])[:600]}; EFFBACKBONES_DEBUG=1 shows where", FAILED
    return f"{name}: {text[:300]}; EFFBACKBONES_DEBUG=1 shows where", FAILED


def import_plugins(plugins: tuple[str, ...]) -> None:
    """Import modules and Python files, telling each: they run code."""
    for plugin in plugins:
        print(f"plug-in {plugin}", file=sys.stderr)
        path = Path(plugin)
        try:
            _import_plugin(plugin, path)
        except UserError:
            raise
        except Exception as error:  # of its code, whatever that is
            frames = traceback.extract_tb(error.__traceback__)
            line = next(
                (f", line {frame.lineno}" for frame in reversed(frames) if Path(frame.filename) == path.resolve()), ""
            )
            what = f"cannot be imported ({type(error).__name__}: {' '.join(str(error).split())[:200]}{line})"
            raise UserError(f"plugins: {plugin}", what, "correct it; EFFBACKBONES_DEBUG=1 shows where") from error


def _import_plugin(plugin: str, path: Path) -> None:
    if path.suffix != ".py":
        _import_module(plugin)
    elif not path.is_file():
        raise UserError(f"plugins: {plugin}", "no such file", "correct the path, relative to the working folder")
    else:
        _import_file(path.resolve())


def _is_module(name: str) -> bool:
    """Whether there is such a module, also where what is around it is missing."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _import_module(name: str) -> None:
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        known = [path.stem for path in Path().glob("*.py")]
        raise UserError(f"plugins: {name}", "no such module", f"install it, or name a file: {nearest(name, known)}")
    importlib.import_module(name)


def _import_file(path: Path) -> None:
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main and Path(main).resolve() == path:  # the plug-in is what was started: it has registered what it has
        sys.modules.setdefault(path.stem, sys.modules["__main__"])
        return
    # By its plain name and on the path, so that loader processes that start from nothing can import it too.
    if path.stem in sys.modules and getattr(sys.modules[path.stem], "__file__", None) != str(path):
        raise UserError(f"plugins: {path}", f"a module called {path.stem!r} is loaded already", "rename the file")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    if path.stem not in sys.modules:
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[path.stem]
            raise
