"""The pages: every file, function, test, option, variable and message that they name exists."""

import ast
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from evaluate import measure

STAGES = ["quantize.py", "rewards.py", "explore.py", "learn.py", "evaluate.py"]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *ROOT.glob("CONTRIBUTING.md")]
PAGES += [ROOT / folder / "README.md" for folder in ("baselines", "bench")]
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}
SHELL = [ROOT / "run_all.sh", *sorted(ROOT.glob("settings/*.sh")), *ROOT.glob("plumbing/*.sh")]

# The variables of run_all.sh that hold options, and whose options they are.
OPTIONS_FOR = {
    "EXPLORE_P0": "explore.py",
    "EXPLORE": "explore.py",
    "QUANTIZE": "quantize.py",
    "LEARN": "learn.py",
    "BF16": "learn.py",
    "EVALUATE": "evaluate.py",
}
ASSIGNMENT = r"""\b([A-Z][A-Z0-9_]*)=("[^"]*"|[^\s"]*)"""
OF_OTHERS = {"OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"}


def read(*files):
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def code_of(text):
    """What a page shows as code: its commands, one a line, and the `words` within its sentences."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = []
    for language, block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            if language == "bash" or line.startswith("+ "):
                lines.append(line.split("  #")[0].removeprefix("+ ").strip())
    sentences = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [*filter(None, lines), *re.findall(r"`([^`]+)`", sentences)]


CODE = [(page.relative_to(ROOT), code) for page in PAGES for code in code_of(TEXT[page])]


def names_in(path):
    """Functions, classes and methods of a Python file, "Class.method" too."""
    names = set()
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{f.name}" for f in node.body if isinstance(f, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_function_and_test_exists(page):
    """`learn.py: token_kl`, `tests/test_learn.py: test_kl_by_hand`, and the `name`s that follow."""
    rows = re.findall(r"`([\w/]+\.py): ([\w.]+)`((?:, `[\w.]+`)*)", TEXT[page])
    assert len(rows) > 20 or page.parent != ROOT or page.name != "README.md"
    for file, first, more in rows:
        for name in [first, *re.findall(r"`([\w.]+)`", more)]:
            assert name in names_in(ROOT / file), f"{page.name} names {file}: {name}"


def headings(page):
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", TEXT.get(page) or read(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    """To a file, from the page's own folder, and to a heading of it."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT[page]):
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in headings(linked), f"{page.name} links to {target}"


def test_every_file_exists():
    """Whatever looks like a path of this repository. What a run writes does not."""
    folders = "tiny|tests|experiments|exercises|baselines|plumbing|settings|bench|docs"
    path = re.compile(rf"(?:(?:{folders})/[\w./-]*|\w+\.(?:py|sh)|requirements\.txt)(?=[:\s]|$)")
    found = set()
    for page, code in CODE:
        for word in code.split():
            if path.match(word) and not word.startswith("my_"):
                name = path.match(word)[0]
                assert (ROOT / name).exists(), f"{page} names {name}"
                found.add(name)
    assert {*STAGES, "run_all.sh", "tiny/lm", "bench/table.py"} <= found


def known_options(script):
    files = [ROOT / script, ROOT / "plumbing" / "options.py"]
    if script == "evaluate.py":  # its options for looking at results have a file of their own
        files.append(ROOT / "plumbing" / "results.py")
    if script.startswith("bench/"):
        files.append(ROOT / "bench" / "common.py")
    source = read(*files)
    return {"--help", *re.findall(r'"(--[\w-]+)"', source)}


def options_in(code):
    """(script, option) of each option in `code`; script is None where the page names none."""
    for name, value in re.findall(ASSIGNMENT, code):
        if name in OPTIONS_FOR:
            for option in re.findall(r"--[\w-]+", value):
                yield OPTIONS_FOR[name], option
    code = re.sub(ASSIGNMENT, "", code).strip()
    called = re.match(r"(?:python )?((?:bench/)?\w+\.py)\s", code)
    if called or code.startswith("--"):
        for option in re.findall(r"(?:^|(?<=\s))--[\w-]+", code):
            yield called and called[1], option


def test_every_option_exists():
    """In commands, after a script's name, on their own, and in variables such as QUANTIZE."""
    found = set()
    for page, code in CODE:
        for script, option in options_in(code):
            scripts = [script] if script else STAGES
            known = set().union(*map(known_options, scripts))
            assert option in known, f"{page}: {script or 'no stage'} has no {option}: {code}"
            found.add((script, option))
    assert {("learn.py", "--steps"), ("quantize.py", "--last"), (None, "--closed-form")} <= found


def test_every_variable_exists():
    """run_all.sh, what it sources, a study or plumbing/remote.py reads each NAME=value, `NAME`."""
    shell = read(*SHELL, *ROOT.glob("experiments/*.sh"), *ROOT.glob("baselines/*.sh"))
    remote = read(ROOT / "plumbing" / "remote.py")
    found = set()
    for page, code in CODE:
        names = {name for name, _ in re.findall(ASSIGNMENT, code)}
        names |= set(re.findall(r"^[A-Z][A-Z0-9_]*$", code))
        for name in names - OF_OTHERS:
            read_by_shell = re.search(rf"\$\{{?{name}\b", shell)
            assert read_by_shell or f'env.get("{name}"' in remote, f"{page}: nothing reads {name}"
            found.add(name)
    assert {"K", "MODEL", "REMOTE_URL"} <= found


def test_every_setting_is_explained():
    """docs/running.md names every variable with a default: NAME=${NAME...} in the shell files."""
    explained = {code for page, code in CODE if page.name == "running.md"}
    explained |= {code.split("=")[0] for code in explained}
    settings = set(re.findall(r"\b([A-Z][A-Z0-9_]*)=\$\{\1\b", read(*SHELL)))
    assert "K" in settings and not settings - explained


def test_every_message_is_one_of_ours():
    """The pieces between the dots of "Messages and remedies" stand in the code."""
    source = read(*[ROOT / stage for stage in STAGES], *ROOT.glob("plumbing/*.py"), *SHELL)
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a string that goes on in the next line
    source = re.sub(r'"\s*\\\n\s*"', " ", source)  # the same in the shell
    table = TEXT[ROOT / "docs" / "running.md"].split("## Messages and remedies")[1]
    messages = re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE)
    assert len(messages) > 5
    for message in messages:
        for piece in message.split("..."):
            assert piece.strip() in source, f"no stage says {message}"


def test_every_metric_is_explained():
    """docs/metrics.md names whatever evaluate.py prints."""
    row = {"prompt_number": 0, "completion": "a b", "completion_ids": [1, 2], "rewards": {"r": 1.0}}
    table = measure([row], np.ones((1, 2)), ["r"])
    metrics = {*table, *table["rewards"]["r"]} - {"rewards", "groups"}
    explained = {code for page, code in CODE if page.name == "metrics.md"}
    assert len(metrics) > 10 and not metrics - explained


def test_the_readme_is_short():
    assert len(TEXT[ROOT / "README.md"].splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_has_at_most_100_columns(page):
    """Tables, headings, pictures and code may be wider."""
    prose = re.sub(r"^```.*?^```", "", TEXT[page], flags=re.DOTALL | re.MULTILINE)
    wide = [line for line in prose.splitlines() if len(line) > 100 and line[0] not in "|#!<"]
    assert not wide


@pytest.mark.parametrize("script", STAGES)
def test_help_is_printed(script):
    """argparse formats help texts only when asked: a lone % in one would be a traceback."""
    command = [sys.executable, script, "--help"]
    help = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert help.returncode == 0 and help.stdout.startswith(f"usage: {script}") and not help.stderr
