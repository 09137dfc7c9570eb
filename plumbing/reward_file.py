"""A user's own reward: importing "path/to/file.py:function", and checking what a reward returns."""

import asyncio
import atexit
import copy
import functools
import importlib.util
import inspect
import os
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

from plumbing.pool import BadInput, shown


def import_function(path, name):
    """The function `name` of the Python file `path`, imported as `import` would do it.

    Returns it and a list of files: `path`, and what it imports from its own folder. That folder is
    searched last, so its modules are found, and none of them takes the place of one of ours. A file
    named like an existing module is imported under another name.
    """
    usage = "write --reward path/to/file.py:function"
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"reward file {path} does not exist; {usage}")
    if path.suffix != ".py":
        raise BadInput(f"reward file {path} is not a .py file; {usage}")
    module, files = _imported(path.resolve(), path.read_bytes())
    if not callable(getattr(module, name, None)):
        raise BadInput(
            f"reward file {path} has no function {name!r}; write --reward {path}:YOUR_FUNCTION"
        )
    return getattr(module, name), files


@functools.lru_cache  # two functions of one file: it is run once
def _imported(path, content):
    folder, module_name, before = str(path.parent), path.stem, set(sys.modules)
    if folder not in sys.path:
        sys.path.append(folder)
    is_taken = module_name in sys.modules or "." in module_name
    spec = None if is_taken else importlib.util.find_spec(module_name)
    if spec is None or spec.origin != str(path):
        number = zlib.crc32(bytes(path) + content)  # two files of one name
        module_name = f"reward_file_{module_name}_{number:08x}".replace(".", "_")
        _write_alias(module_name, path)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # exit() must not end the stage as if all were well
        sys.modules.pop(module_name, None)
        raise BadInput(
            f"reward file {path} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    files = [str(path)]
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(folder + os.sep) and not file.startswith(sys.prefix + os.sep):
            files.append(file)
    return module, sorted(set(files))


ALIAS = """import importlib.util, sys
spec = importlib.util.spec_from_file_location(__name__, {path!r})
sys.modules[__name__] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
"""


def _write_alias(module_name, path):
    """A module of that name, which is the file: worker processes find it by its name, too."""
    folder = tempfile.mkdtemp(prefix="quark-reward-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Path(folder, f"{module_name}.py").write_text(ALIAS.format(path=str(path)), encoding="utf-8")
    sys.path.append(folder)
    importlib.invalidate_caches()


def other_reward(spec, cache, built_in):
    """The reward "remote" or "path/to/file.py:function", checked."""
    if spec == "remote":
        from plumbing.remote import Remote

        remote = Remote(cache)
        return checked_reward(remote, spec, [remote.service])
    if ":" not in spec:
        raise BadInput(
            f"no reward is called {spec!r}; built in: {', '.join([*built_in, 'remote'])}; "
            "your own: --reward path/to/file.py:function"
        )
    path, name = spec.rsplit(":", 1)
    function, files = import_function(path, name)
    return checked_reward(function, spec, files)


def checked_reward(function, spec, files=()):
    """`function`, called with the keywords that it accepts, its result checked.

    The result is a list of float or None, one for each completion. Anything else is BadInput, with
    the reward's name, the index and the text. files: what decides the result, a judge's folder, a
    user's file, or a name of the service.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError as error:  # of a function written in C
        raise BadInput(f"reward {spec} cannot be called by keyword: {error}") from None
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    accepted = {p.name for p in parameters}
    runner = asyncio.Runner()  # of an `async def`: one event loop for all calls

    def reward(prompts, completions, **columns):
        columns |= {"prompts": prompts, "completions": completions}
        given = {}
        for name, column in columns.items():
            if column is not None and (takes_all or name in accepted):
                given[name] = copy.deepcopy(column)  # it may change what it gets
        try:
            values = function(**given)
            if inspect.isawaitable(values):
                values = runner.run(_awaited(values))
        except BadInput:
            raise
        except (Exception, SystemExit) as error:
            first = shown(completions[0]) if completions else "none"
            hint = ""
            if str(error).startswith(("string indices must", "'str' object has no attribute")):
                hint = " (prompts and completions are strings here, not lists of messages)"
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise BadInput(
                f"reward {spec} raised {reason}{hint}; it was given "
                f"{len(prompts)} completions, the first {first}"
            ) from error
        return _check_values(spec, values, completions)

    reward.__name__, reward.files = spec, list(files)
    return reward


async def _awaited(values):
    return await values


def _check_values(spec, values, completions):
    if hasattr(values, "tolist"):  # a NumPy array or a tensor
        values = values.tolist()
    is_list = isinstance(values, (list, tuple))
    if not is_list or len(values) != len(completions):
        got = f"{len(values)} values" if is_list else type(values).__name__
        raise BadInput(
            f"reward {spec} returned {got} for {len(completions)} completions; "
            "return a list with one number each"
        )
    return [_check_value(spec, i, value, completions[i]) for i, value in enumerate(values)]


def _check_value(spec, i, value, completion):
    if hasattr(value, "tolist"):  # a number of NumPy or torch
        value = value.tolist()
    if value is None:
        return None
    if not (isinstance(value, (int, float)) and abs(value) <= sys.float_info.max):
        is_long = isinstance(value, int) and abs(value) > 10**60
        raise BadInput(
            f"reward {spec} returned {'a huge number' if is_long else repr(value)[:60]} at index "
            f"{i}, for {shown(completion)}; return a finite number, or None for no score"
        )
    return float(value)
