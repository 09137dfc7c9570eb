"""Holds every table of the pages against the JSON files that it comes from.

    python experiments/check.py        # a line for each; exit 1 if one of them differs

The numbers are those of kept runs and studies; a page is made anew by the command beside its table.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "experiments"))
sys.path.insert(0, str(ROOT / "baselines"))

import defaults
import page as comparators  # baselines/page.py
import seeds
import study
import table as rows  # baselines/table.py


def parts():
    """Yields (page, what, the text that stands in it)."""
    yield "README.md", "how a run ends", seeds.readme_summary()
    yield "README.md", "results", seeds.readme_table()
    yield "docs/metrics.md", "the dials", seeds.dial_table()
    yield "docs/running.md", "another judge", seeds.held_out_table()
    for name in ("README.md", "docs/metrics.md", "docs/running.md"):
        yield name, "where its runs were made", seeds.made_on()
    tries = json.loads(defaults.RESULTS.read_text(encoding="utf-8"))
    for task in tries:
        yield "docs/small-runs.md", f"tries of {task}", defaults.table(task, tries[task])
    for name in study.CLAIMS:
        result = ROOT / "experiments" / "results" / f"{name}.json"
        text = ""
        if result.exists():
            content = json.loads(result.read_text(encoding="utf-8"))
            text = study.as_text(name, content["results"])
        yield "experiments/README.md", name, f"<!-- {name} -->\n{text or NOT_YET}<!-- end -->"
    text = f"<!-- times -->\n{study.times()}<!-- end -->"
    yield "experiments/README.md", "what the studies took", text
    for task, methods in rows.METHODS.items():
        made = rows.Table(task)
        text = comparators.text(made, methods) if made.is_complete() else NOT_YET
        yield "baselines/README.md", task, f"<!-- {task} -->\n{text}<!-- end -->"
    yield "bench/README.md", "speeds of CPUs", printed("bench/table.py")
    yield "docs/running.md", "memory of an update", printed("bench/memory.py", "--table")
    yield "bench/README.md", "speeds of a GPU", printed("bench/gpu.py", "--table")


NOT_YET = "Not made yet.\n"


def printed(*command):
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def in_one_line(text):
    """Pages break long sentences."""
    return " ".join(text.split())


def main():
    differs = 0
    for page, what, text in parts():
        is_right = in_one_line(text) in in_one_line((ROOT / page).read_text(encoding="utf-8"))
        differs += not is_right
        print(f"{'as its JSON' if is_right else 'DIFFERS':12s} {page}: {what}")
    return 1 if differs else 0


if __name__ == "__main__":
    sys.exit(main())
