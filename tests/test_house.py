"""The shape of the house, as CONTRIBUTING.md tells it: who imports whom, and how long a stage is.

The files are parsed, not imported.
"""

import ast
import re

import pytest
from conftest import ROOT

STAGES = {"quantize", "explore", "learn", "evaluate", "rewards"}
ALLOWED = {  # the stages that a stage may import
    "quantize": set(),
    "learn": set(),
    "rewards": set(),
    "explore": {"rewards"},
    "evaluate": {"explore", "rewards"},
}
PLUMBING = sorted(file.stem for file in (ROOT / "plumbing").glob("*.py"))
FILES = [f"{stage}.py" for stage in sorted(STAGES)] + [f"plumbing/{name}.py" for name in PLUMBING]


def parse(file):
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def imports(nodes):
    """The modules that these nodes import: "quantize", "plumbing.pool", "numpy" ..."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            found.add(node.module)
            # "from plumbing import options" imports a module, "from learn import main" does not.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def stages_imported(file):
    """At the top of the file or within a function."""
    return {name.split(".")[0] for name in imports(ast.walk(parse(file)))} & STAGES


# ------------------------------------------------------------------------------- who imports whom


def test_the_rules_see_every_import(tmp_path):
    """`import a`, `from a import b`, within a function, and a module of a package."""
    source = "import a, b.c\nfrom d import e\ndef f():\n    from g.h import i\n    import j as k\n"
    found = imports(ast.walk(ast.parse(source)))
    assert found == {"a", "b.c", "d", "d.e", "g.h", "g.h.i", "j"}


BESIDE = ("baselines", "bench", "exercises", "experiments", "tests", "tiny")  # not all are run


@pytest.mark.parametrize("folder", BESIDE)
def test_what_is_imported_from_us_is_there(folder):
    """`from learn import learn`, `from plumbing.pool import BadInput`: the file has that name."""
    checked = 0
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(parse(path)):
            module = node.module.replace(".", "/") if isinstance(node, ast.ImportFrom) else ""
            source = ROOT / f"{module}.py"
            if module and source.exists() and path.stem != module:
                names = defined_in(source)
                for alias in node.names:
                    assert alias.name in names, f"{path}: {source} has no {alias.name}"
                    checked += 1
    assert checked


def defined_in(file):
    """The names that stand at the top level of a file, those that it imports included."""
    names = set()
    for node in parse(file).body:
        for inner in ast.walk(node):
            if isinstance(inner, (ast.FunctionDef, ast.ClassDef)):
                names.add(inner.name)
            elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                names.add(inner.id)
            elif isinstance(inner, (ast.Import, ast.ImportFrom)):
                names |= {alias.asname or alias.name for alias in inner.names}
    return names


@pytest.mark.parametrize("name", PLUMBING)
def test_plumbing_imports_no_stage(name):
    """What plumbing needs of a stage is handed to it."""
    assert stages_imported(f"plumbing/{name}.py") == set()


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_which_stages_a_stage_imports(stage):
    """quantize.py, learn.py and rewards.py none; explore.py rewards.py; evaluate.py those two.

    Step 5 of the paper is step 4's sampling, so evaluate.py takes its sampler from explore.py.
    """
    assert stages_imported(f"{stage}.py") <= ALLOWED[stage]


def test_plumbing_has_no_circles():
    """Each file of plumbing can be read after those that it imports, also within its functions."""
    needs = {}
    for name in PLUMBING:
        found = imports(ast.walk(parse(f"plumbing/{name}.py")))
        needs[name] = {other for other in PLUMBING if f"plumbing.{other}" in found}
    assert sum(map(len, needs.values())) > 20
    read = set()
    while needs:
        readable = {name for name, others in needs.items() if others <= read}
        assert readable, f"a circle among {sorted(needs)}"
        read |= readable
        for name in readable:
            del needs[name]


WITHOUT_EFFECT = (
    ast.Import,
    ast.ImportFrom,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Assign,
)


@pytest.mark.parametrize("file", FILES)
def test_importing_a_file_does_nothing(file):
    """At the top level are imports, functions, classes and constants, after a docstring.

    The stage itself runs below `if __name__ == "__main__":`, the last lines of its file. So the
    order of the imports means nothing.
    """
    docstring, *body = parse(file).body
    assert isinstance(docstring, ast.Expr) and isinstance(docstring.value.value, str)
    if file.removesuffix(".py") in STAGES:
        last = body.pop()
        assert ast.unparse(last) == "if __name__ == '__main__':\n    options.run_stage(main)"
    for node in body:
        assert isinstance(node, WITHOUT_EFFECT), f"{file}:{node.lineno}"


# ----------------------------------------------------------------------------------- size and form


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stage_is_short(stage):
    """At most 350 lines are the aim: a longer stage holds two ideas. 50 more are allowed."""
    assert len((ROOT / f"{stage}.py").read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("file", FILES)
def test_lines_have_at_most_100_columns(file):
    for number, line in enumerate((ROOT / file).read_text(encoding="utf-8").splitlines(), 1):
        assert len(line) <= 100, f"{file}:{number}"


def test_no_marker_skips_the_formatter_or_the_linter():
    """Every line is formatted and checked like any other."""
    files = [ROOT / file for file in FILES] + sorted((ROOT / "tests").rglob("*.py"))
    marker = re.compile(r"#\s*(fmt:|ruff:|noqa|isort:|yapf:|pylint:)", re.IGNORECASE)
    marked = [file.name for file in files if marker.search(file.read_text(encoding="utf-8"))]
    assert len(files) > 50
    assert not marked


# ---------------------------------------------------------------------- names that others lean on


@pytest.mark.parametrize(
    "file, names",
    [
        ("quantize.py", {"assign_quantiles"}),
        ("explore.py", {"load_policy", "sample"}),
        ("learn.py", {"token_kl", "quark_loss"}),
        ("evaluate.py", {"rep_n", "diversity", "dist_n", "perplexity"}),
        ("rewards.py", {"load_reward"}),
    ],
)
def test_names_for_exercises_and_other_tools(file, names):
    """These can be imported from these modules, wherever they are defined."""
    found = set()
    for node in parse(file).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    assert names <= found
