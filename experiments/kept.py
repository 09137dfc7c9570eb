"""What is kept of each finished run of a study, so that an interrupted study goes on without it.

A line of experiments/results/studies.jsonl is one run: {"measure", "run", "code", "machine",
"seconds", ...its numbers}. "measure" says which study's numbers they are. A line counts only while
the files in CODE are those of today: the code that draws, learns and measures, the model, the
judges and the prompts. Comments and docstrings of Python may change.
"""

import argparse
import ast
import hashlib
import io
import json
import os
import platform
import sys
import tokenize
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINES = ROOT / "experiments" / "results" / "studies.jsonl"
CODE = ["explore.py", "quantize.py", "learn.py", "evaluate.py", "rewards.py", "settings/tiny.sh"]
PLUMBING = ("policy", "tokenizer", "classifier", "quantized", "pool", "fast_cpu")
CODE += [f"plumbing/{name}.py" for name in PLUMBING] + ["plumbing/setup.sh", "run_all.sh"]
CODE += ["tiny/lm/*", "tiny/sentiment/*", "tiny/toxicity/*", "tiny/prompts/*"]
CODE += [f"experiments/{name}" for name in ("study.sh", "hidden.sh", "measures.py", "labels.py")]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def code():
    """A fingerprint of what a run depends on, besides its settings."""
    return fingerprint(path for pattern in CODE for path in sorted(ROOT.glob(pattern)))[:16]


def fingerprint(paths):
    """A checksum of files; comments and docstrings of Python do not count."""
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        if path.suffix == ".py":
            content = without_comments(content.decode()).encode()
        digest.update(path.name.encode() + content)
    return digest.hexdigest()


def without_comments(source):
    """Python source without comments, docstrings and empty lines: they change no number."""
    lines = source.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            for row in range(docstring.lineno - 1, docstring.end_lineno):
                lines[row] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


def machine():
    """The processor in words, such as "AMD EPYC, AVX512-BF16"."""
    cpu = Path("/proc/cpuinfo")
    if not cpu.exists():
        return platform.processor() or platform.machine()
    found = cpu.read_text(encoding="utf-8")
    names = {line.split(":")[1].strip() for line in found.splitlines() if "model name" in line}
    kinds = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX-512", "avx2": "AVX2"}
    has = next((word for flag, word in kinds.items() if flag in found), "")
    return ", ".join(filter(None, [*sorted(names), has]))


def kept():
    """{(measure, run): the run's line}, of today's code; of several the last one."""
    if not LINES.exists():
        return {}
    lines = [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()]
    return {(line["measure"], line["run"]): line for line in lines if line["code"] == code()}


def keep(measure, run, seconds, numbers):
    """Adds a line. One write, so that two runs that finish together do not mix.

    study.sh says as CODE with which code the run began; by now a file may have been edited.
    """
    own = os.environ.get("CODE") or code()
    head = {"measure": measure, "run": run, "code": own, "machine": machine()}
    line = json.dumps(head | {"seconds": seconds} | numbers, ensure_ascii=False) + "\n"
    LINES.parent.mkdir(exist_ok=True)
    file = os.open(LINES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def lines_of(listed):
    """The lines of a file in which study.sh lists runs, each split at its tabs."""
    return [line.split("\t") for line in listed.read_text(encoding="utf-8").splitlines()]


def not_kept(measure, listed):
    """The lines of `listed` whose run is not kept."""
    found = kept()
    return [line for line in lines_of(listed) if (measure, Path(line[3]).name) not in found]


def missing(measure, listed):
    """The lines of `listed` whose run is not kept, after the lines of the p0 runs they need.

    One seed after the other: the runs of a seed are compared, and a study may go on elsewhere.
    """
    lines = not_kept(measure, listed)
    lines.sort(key=lambda line: int(line[2]))
    places = {(task, seed) for _, task, seed, *_ in lines}
    of_p0 = lines_of(listed.with_name(f"{listed.stem}-p0.tsv"))
    return [line for line in of_p0 if (line[1], line[2]) in places] + lines


def how_long(listed, jobs):
    """What is left of the studies that these files list: "41 of 258 runs, about 150 min left"."""
    found, runs = kept(), {}
    for file, measure in listed:
        for line in lines_of(file):
            run = Path(line[3]).name
            runs[run] = runs.get(run, True) and (measure, run) in found
    n_kept = sum(runs.values())
    seconds = [line["seconds"] for (_, run), line in found.items() if run in runs]
    seconds = [s for s in seconds if s > 0]
    left = (len(runs) - n_kept) * sum(seconds) / max(1, len(seconds)) / jobs / 60
    return f"{n_kept} of {len(runs)} runs, about {left:.0f} min left"


def measure_of(study):
    """Which numbers a study keeps of its runs."""
    return study if study in ("pool", "hidden") else "study"


def parse_options(docstring, argv=None):
    """The command line of a study's script, whose docstring is `docstring`."""
    parser = argparse.ArgumentParser(description=docstring.split("\n\n")[0])
    add = parser.add_argument
    add("runs", type=Path, help="the file in which study.sh lists a study's runs")
    add("--missing", action="store_true", help="print the lines whose runs are still to be made")
    add("--keep", type=Path, metavar="RUN", help="measure a finished run, and keep its numbers")
    add("--seconds", type=int, default=0, help="how long it took; 0: another study made it")
    add("--all", nargs="+", default=[], metavar="STUDY", help="say how long these will take")
    add("--jobs", type=int, default=2, help="runs at a time")
    return parser.parse_args(argv)


def main(docstring, measure, report, argv=None):
    """Lists what is missing, keeps a run's numbers, or reports the study.

    measure(run, p0) -> {...}: what is kept of a run. report(study, [(variant, task, kept line)]).
    """
    args = parse_options(docstring, argv)
    study = args.runs.stem
    if not args.runs.exists():
        sys.exit(f"error: {args.runs} does not exist; bash experiments/{study}.sh writes it")
    if args.missing:
        for line in missing(measure_of(study), args.runs):
            print(*line, sep="\t")
    elif args.keep:
        from plumbing.policy import load_policy

        numbers = measure(args.keep, load_policy(ROOT / "tiny" / "lm"))
        # p0's runs of study 8 go on
        before = kept().get((measure_of(study), args.keep.name), {"seconds": 0})
        keep(measure_of(study), args.keep.name, args.seconds + before["seconds"], numbers)
        listed = [(args.runs.with_name(f"{s}.tsv"), measure_of(s)) for s in args.all or [study]]
        print(f"{args.keep.name}: {args.seconds} s; {how_long(listed, args.jobs)}", flush=True)
    else:
        found = kept()
        lines = lines_of(args.runs)
        if lost := not_kept(measure_of(study), args.runs):
            sys.exit(
                f"error: {len(lost)} runs of {study} are not kept, or were made by other code; "
                f"bash experiments/{study}.sh makes them"
            )
        report(
            study, [(n, t, found[measure_of(study), Path(run).name]) for n, t, _, run, *_ in lines]
        )
