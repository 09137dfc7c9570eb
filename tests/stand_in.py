"""A stand-in for python: it notes what run_all.sh starts, and writes what the stages would write.

Each output holds its origin, what the stage was given, as JSON: for a model, the pool it learned
from and the model it started from, each with its own origin, back to p0. `python_of` makes the
program that PYTHON names.
"""

import json
import os
import sys
from pathlib import Path


def python_of(folder):
    """Writes the program folder/python, which notes its command lines in folder/log."""
    program = folder / "python"
    program.write_text(
        f'#!/bin/sh\nLOG="{folder}/log" exec "{sys.executable}" -S "{__file__}" "$@"\n'
    )
    program.chmod(0o755)
    return program


def split_command(words):
    """["explore.py", "--seed", "7"] -> ("explore.py", [], {"--seed": ["7"]}).

    The second item is the files in front of the first option. Of an option that is given twice, the
    last one counts, as for argparse.
    """
    script, *words = words
    files, options, name = [], {}, None
    for word in words:
        if word.startswith("--"):
            name = word
            options[name] = []
        elif name:
            options[name].append(word)
        else:
            files.append(word)
    return script, files, options


def origin(name):
    """What an output's maker was given. Of p0, which nobody made here, its name."""
    file = Path(name, "origin.json") if Path(name).is_dir() else Path(name)
    return json.loads(file.read_text()) if file.exists() else name


def write(file, value):
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def stage(script, files, options):
    def given(name):
        (value,) = options[name]
        return value

    if script == "explore.py":
        write(given("--out"), {"sampled by": origin(given("--model"))})
    elif script == "quantize.py":
        write(given("--out"), {"quantized": [origin(file) for file in files]})
    elif script == "learn.py":
        made = {"learned from": origin(given("--pool")), "start": origin(given("--model"))}
        made["reference"] = origin(given("--reference"))
        write(Path(given("--out"), "origin.json"), made)
    elif "--compare" in options:
        compared = [origin(file) for file in options["--compare"]]
        write(Path(given("--report"), "report.html"), {"compared": compared})
    else:
        last = "-none" if options.get("--reward-token") == ["all"] else ""
        made = {"evaluated": origin(given("--model")), "under": origin(given("--ppl-model"))}
        write(given("--out") + last + ".json", made)


def main():
    words = sys.argv[1:]
    if words[0].startswith("-"):  # run_all.sh's own questions, such as python -c ...
        os.execv(sys.executable, [sys.executable, *words])
    with open(os.environ["LOG"], "a") as log:
        log.write(json.dumps(words) + "\n")
    while not words[0].endswith(".py"):  # the words of LAUNCH
        del words[0]
    stage(*split_command(words))


if __name__ == "__main__":
    main()
