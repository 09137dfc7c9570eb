"""The page RUN/report.html with its figures.

It shows what evaluate.py wrote. Only the price of each round is measured here, by its functions.
"""

import base64
import html
import io

from plumbing.figures import draw_figures
from plumbing.files import refuse_special, whole_file
from plumbing.pool import BadInput
from plumbing.price import dial_beside, rows_of, two_prompts
from plumbing.tables import (
    at,
    differences,
    first_rows,
    format_rewards,
    groups_of,
    metrics_of,
    part_of,
    read_table,
)

PAIRS = (("base", "quark"), ("base-nucleus", "quark-nucleus"))  # before and after


def report(run, perplexity, text_sums):
    """Draws RUN/report.html, one self-contained page, and RUN/figures/*.png from a run's files.

    Works at any moment of a run. perplexity and text_sums are evaluate.py's.
    """
    results = [
        f
        for f in sorted((run / "eval").glob("*.json"))
        if not f.name.endswith((".args.json", ".key.json"))
    ]
    tables = {f.stem: read_table(f) for f in results}
    if not tables and not any(run.glob("pool/*.jsonl")):
        raise BadInput(
            f"{run} has neither pool/ nor eval/; name the folder of a run, e.g. runs/sentiment-tiny"
        )
    page = run / "report.html"
    folder = run / "figures"
    for path in (page, folder):
        refuse_special(path)
    try:
        found = page.read_text(encoding="utf-8", errors="replace") if page.exists() else ""
        if page.exists() and "<title>Quark: " not in found:
            raise BadInput(f"{page} exists, and no stage wrote it; move it")
        if folder.is_file():
            raise BadInput(f"cannot write {folder}: it is a file; move it")
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot write the report in {run}: {error.strerror}") from None
    figures = draw_figures(run, tables, perplexity, text_sums)
    sections = _html_summary(run, tables)
    for name, title, caption, figure in figures:
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=150)
        with whole_file(folder / f"{name}.png") as file:
            file.buffer.write(png.getvalue())
        data = base64.b64encode(png.getvalue()).decode()
        sections.append(
            f'<figure><h2>{title}</h2><img alt="{html.escape(title)}" '
            f'src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    if "base" in tables and "quark" in tables:
        sections.append(_html_completions(run))
    for pair in PAIRS:
        if all(name in tables for name in pair):
            sections.append(_html_table(tables[pair[0]], tables[pair[1]], pair))
    title = html.escape(f"Quark: {run.resolve().name}")
    with whole_file(page) as file:
        file.write(PAGE.replace("TITLE", title).replace("SECTIONS", "\n".join(sections)))
    print(f"{page}: {len(figures)} figures, also in {folder}")


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>TITLE</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
main { display: grid; gap: 2rem;
       grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
.wide { grid-column: 1 / -1; min-width: 0; }
figure { margin: 0; min-width: 0; } img { width: 100%; height: auto; }
figcaption, .small { color: #555; font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .25rem .5rem; vertical-align: top; }
tr { border-bottom: 1px solid #ddd; }
.number { white-space: nowrap; } .scroll { overflow-x: auto; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .25rem 2rem; padding: .6rem 0;
        border-bottom: 1px solid #ddd; }
.pair p { margin: 0; overflow-wrap: anywhere; }
.pair .prompt { grid-column: 1 / -1; font-weight: 600; }
@media (max-width: 40rem) { .pair { grid-template-columns: 1fr; }
  th, td { padding: .25rem .3rem .25rem 0; } table { font-size: .8rem; } }
</style></head><body><h1>TITLE</h1><main>
SECTIONS
</main></body></html>
"""


def _html_summary(run, tables):
    """The gain, its price, the dial and two prompts, as a list of at most one section."""
    shown = {name: tables[name] for pair in PAIRS for name in pair if set(pair) <= set(tables)}
    if "quark" not in shown:
        return []
    lines = ["<tr><th></th><th></th><th>p0</th><th>Quark</th></tr>"]
    for row in rows_of(shown):
        cells = "".join(f"<td>{_html_cell(metric)}</td>" for metric in row.metrics)
        lines.append(f"<tr><td>{row.kind}</td><td>{html.escape(row.label)}</td>{cells}</tr>")
    parts = [f'<div class="scroll"><table>{"".join(lines)}</table></div>']
    files = [run / "eval" / f"{name}.json" for name in ("base", "quark")]
    if dial := dial_beside(files[1]):
        cells = ", ".join(f"{token} {mean:.3f}" for token, mean in dial)
        parts.append(f"<p>Mean reward under each reward token: {cells}.</p>")
    parts += [_html_pair(prompt, rows) for prompt, rows in two_prompts(files)]
    parts.append('<p class="small">Other methods, by the same ruler: baselines/README.md.</p>')
    title = "<h2>The gain, and its price</h2>"
    return [f'<section class="wide">{title}{"".join(parts)}</section>']


def _html_table(base, quark, names):
    """Two results side by side: all prompts, then each group in a collapsible section."""
    parts = []
    for group in groups_of([base, quark]):
        pair = [part_of(table, group) for table in (base, quark)]
        lines = [f"<tr><th></th><th>{names[0]}</th><th>{names[1]}</th></tr>"]
        for label, path in metrics_of(pair):
            cells = "".join(f"<td>{_html_cell(at(table, path))}</td>" for table in pair)
            name = html.escape(label).replace("_", "_<wbr>")
            lines.append(f"<tr><td>{name}</td>{cells}</tr>")
        table = f'<div class="scroll"><table>{"".join(lines)}</table></div>'
        if group:
            summary = f"<summary>{html.escape(group)} prompts</summary>"
            table = f"<details>{summary}{table}</details>"
        parts.append(table)
    note = (
        f"{base['n_prompts']} prompts, {base['n_samples']:g} completions a prompt, "
        f"decode {base['decode']}; in brackets 95 % intervals over prompts."
    )
    note = " ".join([note, *(f"Warning: {text}." for text in differences([base, quark], names))])
    return (
        f'<section class="wide"><h2>{names[0]} and {names[1]}</h2>{"".join(parts)}'
        f'<p class="small">{note}</p></section>'
    )


def _html_cell(metric):
    if metric.get("value") is None:
        return "-"
    value = '<span class="number">{value:.3f}</span>'.format(**metric)
    bounds = '<span class="number small">[{low:.3f}, {high:.3f}]</span>'.format(**metric)
    return f"{value} {bounds}"


def _html_completions(run, count=8):
    """What p0 and Quark wrote for the same prompts, evenly spaced in the file."""
    firsts = [first_rows(run / "eval" / f"{name}.jsonl") for name in ("base", "quark")]
    prompts = [p for p in firsts[0] if p in firsts[1]]
    pairs = []
    for prompt in prompts[:: max(1, len(prompts) // count)][:count]:
        pairs.append(_html_pair(prompt, [first[prompt] for first in firsts]))
    title = "<h2>The same prompts, before and after</h2>"
    return f'<section class="wide">{title}{"".join(pairs)}</section>'


def _html_pair(prompt, rows):
    """A prompt, and below it what p0 and Quark wrote."""
    cells = [f'<p class="prompt">{html.escape(prompt)} ...</p>']
    for name, row in zip(("base", "quark"), rows):
        label = f'<span class="small">{name} {format_rewards(row)}</span>'
        cells.append(f"<p>{label} {html.escape(row['completion'])}</p>")
    return f'<div class="pair">{"".join(cells)}</div>'
