"""For run_all.sh: whether a Python that the user names has the packages that the stages need."""

import importlib.metadata
import re
import shlex
import sys
from pathlib import Path

VERSIONS = {"torch": (2, 11), "transformers": (5, 0)}  # the least; of the others, any
TOO_NEW = {"transformers": (6, 0)}
NO_LIBRARY = {"ruff"}


def check():
    """Ends with one sentence if a package is missing, too old or too new. Imports none of them.

    The arguments are the interpreter, as the user named it, and requirements files.
    """
    python, *files = sys.argv[1:]
    for file in files:
        names = re.findall(r"^[\w-]+", Path(file).read_text(encoding="utf-8"), re.MULTILINE)
        for name in names:
            problem = problem_with(name)
            if problem and name not in NO_LIBRARY:
                install = " ".join([shlex.quote(python), "-m pip install -r", " -r ".join(files)])
                sys.exit(f"run_all.sh: error: PYTHON={python} has {problem}: {install}")


def problem_with(name):
    """Such as "torch 2.4.0, and 2.11 or later is needed". None: this version will do."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"no {name}, which is needed"
    least, too_new = VERSIONS.get(name), TOO_NEW.get(name)
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if least and numbers < least:
        return f"{name} {version}, and {least[0]}.{least[1]} or later is needed"
    if too_new and numbers >= too_new:
        return f"{name} {version}, and an earlier one than {too_new[0]}.{too_new[1]} is needed"
    return None
