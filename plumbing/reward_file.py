"""A user's own reward: importing "path/to/file.py:function", and checking what a reward returns."""

import importlib.util
import inspect
import sys
from pathlib import Path

from plumbing.pool import BadInput, shown


def import_function(path, name):
    """The function `name` of the Python file `path`."""
    usage = "write --reward path/to/file.py:function"
    if not Path(path).is_file():
        raise BadInput(f"reward file {path} does not exist; {usage}")
    module_spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if module_spec is None:
        raise BadInput(f"reward file {path} is not a .py file; {usage}")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except (
        Exception,
        SystemExit,
    ) as error:  # a stray exit() must not end the stage as if all were well
        raise BadInput(
            f"reward file {path} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(getattr(module, name, None)):
        raise BadInput(
            f"reward file {path} has no function {name!r}; write --reward {path}:YOUR_FUNCTION"
        )
    return getattr(module, name)


def checked_reward(function, spec):
    """`function`, called with the keywords that it accepts, its result checked.

    The result is a list of float or None, one for each completion. Anything else is BadInput, with
    the reward's name, the index and the text.
    """
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    accepted = {p.name for p in parameters}

    def reward(prompts, completions, **kwargs):
        given = {}
        for key, value in kwargs.items():
            if value is not None and (takes_all or key in accepted):
                given[key] = value
        try:
            values = function(prompts=prompts, completions=completions, **given)
        except BadInput:
            raise
        except (Exception, SystemExit) as error:
            first = shown(completions[0]) if completions else "none"
            raise BadInput(
                f"reward {spec} raised {type(error).__name__}: {error}; it was given "
                f"{len(prompts)} completions, the first {first}"
            ) from error
        return _check_values(spec, values, completions)

    reward.__name__ = spec
    return reward


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
    if hasattr(value, "item"):
        value = value.item()
    if value is None:
        return None
    if not (isinstance(value, (int, float)) and abs(value) <= sys.float_info.max):
        raise BadInput(
            f"reward {spec} returned {value!r} at index {i}, for {shown(completion)}; "
            "return a finite number, or None for no score"
        )
    return float(value)
