"""The README: every file, function, test, option and variable that it names exists."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.S)
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def names_in(path):
    """Functions, classes and methods of a Python file, "Class.method" too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{f.name}" for f in node.body if isinstance(f, ast.FunctionDef)}
    return names


def test_every_function_of_the_paper_map_exists():
    """`learn.py: quark_loss` and `tests/test_learn.py: test_kl_by_hand`, with what follows as `, name`."""
    rows = re.findall(r"`([\w/]+\.py): ([\w.]+)`((?:, `[\w.]+`)*)", README)
    assert len(rows) > 20
    for file, first, more in rows:
        for name in [first, *re.findall(r"`([\w.]+)`", more)]:
            if not name.endswith(".py"):
                assert name in names_in(ROOT / file), f"README names {file}: {name}"


def test_every_file_exists():
    """Whatever looks like a path of this repository, in links and in code; what a run writes is not there yet."""
    paths = set(re.findall(r"\]\((?!http|#)([^)]+)\)", README)) | set(re.findall(r"`((?:tiny|tests|experiments|exercises)/[\w./-]*)[:`]", README))
    paths |= {word for command in COMMANDS for word in command.split() if re.match(r"(tiny|tests|experiments|exercises)/[\w./-]+$", word)}
    assert len(paths) > 5
    for path in paths:
        assert (ROOT / path.split("#")[0]).exists(), f"README names {path}"


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.search(r"python \w+\.py", c)])
def test_every_option_exists(command):
    """Options of the commands to paste are options of the script."""
    script = re.search(r"python (\w+\.py)", command)[1]
    known = set(re.findall(r'"(--[\w-]+)"', (ROOT / script).read_text(encoding="utf-8") + (ROOT / "plumbing" / "options.py").read_text(encoding="utf-8")))
    for option in re.findall(r"(?<=\s)--[\w-]+", command):
        assert option in known, f"{script} has no {option}"


def test_every_variable_of_run_all_exists():
    """NAME=value in front of `bash run_all.sh`, and `NAME=` in code, is a variable that run_all.sh reads."""
    script = (ROOT / "run_all.sh").read_text(encoding="utf-8")
    rewards = (ROOT / "plumbing" / "remote.py").read_text(encoding="utf-8")  # the service's address and key
    used = {name for command in COMMANDS if "run_all.sh" in command for name in re.findall(r"\b([A-Z][A-Z0-9_]+)=", command)}
    used |= set(re.findall(r"`([A-Z][A-Z0-9_]+)=", README)) - {"OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"}
    assert used
    for name in used:
        assert re.search(rf"\$\{{?{name}\b", script) or f'env.get("{name}"' in rewards, f"run_all.sh does not read {name}"


def test_links_within_the_page():
    """[below](#what-...) leads to a heading."""
    headings = {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", README, re.M)}
    for target in re.findall(r"\]\(#([^)]+)\)", README):
        assert target in headings, target


def test_the_table_of_speeds_is_the_results():
    """The README shows what `python bench/table.py` and bench/gpu.py print from bench/results."""
    printed = subprocess.run([sys.executable, "bench/table.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.strip() and printed.strip() in README
    script = 'import json; from gpu import ROOT, table; print("\\n".join(table(json.load(open(ROOT / "bench/results/gpu.json")))))'
    printed = subprocess.run([sys.executable, "-c", script], cwd=ROOT / "bench", capture_output=True, text=True, check=True).stdout
    assert printed.count("learn.py") == 2 and printed.strip() in README


STAGES = ["quantize.py", "rewards.py", "explore.py", "learn.py", "evaluate.py"]


@pytest.mark.parametrize("script", STAGES)
def test_help_is_printed(script):
    """argparse formats the help texts only when they are asked for: a lone percent sign in one of them would be a traceback."""
    help = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert help.returncode == 0 and help.stdout.startswith(f"usage: {script}") and not help.stderr
