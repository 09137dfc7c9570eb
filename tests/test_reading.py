"""docs/reading.md: the lines of code that it quotes are the lines of the code."""

import re

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
STEPS = PAGE.split("\n## ")[1:]


def quotations():
    """(file, quoted block) of every block of code. Its file is the last one named before it."""
    file = None
    for part in re.split(r"(```(?:python|bash)\n.*?```)", PAGE, flags=re.DOTALL):
        if part.startswith("```"):
            yield file, part.split("\n", 1)[1].removesuffix("```")
        elif names := re.findall(r"`(\w+\.(?:py|sh))`", part):
            file = names[-1]


@pytest.mark.parametrize("file, block", list(quotations()))
def test_a_quotation_is_the_code(file, block):
    """Whole lines, one after the other, as they stand in the file; at most a dozen."""
    assert 1 <= block.count("\n") <= 12
    assert "\n" + block in "\n" + (ROOT / file).read_text(encoding="utf-8"), (
        f"{file} has no\n{block}"
    )


def test_every_step_has_its_parts():
    """An equation (or, for the loop, its lines), code, and a question."""
    assert len(STEPS) == 7
    for step in STEPS:
        assert "$$" in step and "```python" in step and "**Question.**" in step, step[:30]
        assert step.count("```") % 2 == 0
