"""Results as tables on the screen, and as the page RUN/report.html with its figures.

Nothing is measured here. evaluate.py hands over what it computed, and a function for the
perplexity.
"""

import base64
import html
import io

from plumbing.figures import draw_figures
from plumbing.files import read_json, refuse_special, whole_file
from plumbing.pool import BadInput, read_jsonl, shown, text_of

# -------------------------------------------------------------------------------- on the screen


def read_table(path):
    """A result of evaluate.py: {"rewards": {...}, metric: {"value", "low", "high"}, ...}."""
    table = read_json(path, "a .json file that evaluate.py wrote")
    if not isinstance(table.get("rewards"), dict):
        raise BadInput(f"{path} is {shown(table)}, not a result of evaluate.py")
    return table


def print_tables(tables, names):
    """Prints several results side by side: all prompts, then each group."""
    width = max(len(label) for label, _ in metrics_of(tables)) + 2
    for group in groups_of(tables):
        parts = [part_of(table, group) for table in tables]
        title = f"{group} prompts" if group else "all prompts"
        print(f"\n{title:{width}s}" + "".join(f"{name:>28s}" for name in names))
        for label, path in metrics_of(parts):
            cells = "".join(f"{in_brackets(at(part, path)):>28s}" for part in parts)
            print(f"  {label:{width - 2}s}{cells}")


def differences(tables, names):
    """A sentence for each setting on which numbers depend and in which the tables differ."""
    settings = ["n_prompts", "prompts_sha256", "n_samples", "decode", "top_p", "top_k"]
    settings += ["temperature", "max_new_tokens", "min_new_tokens", "ppl_model"]
    sentences = []
    for setting in settings:
        values = [table.get(setting, "not recorded") for table in tables]
        if any(value != values[0] for value in values):
            each = [f"{name} {str(value)[:12]}" for name, value in zip(names, values)]
            sentence = f"{setting} differs: {', '.join(each)}"
            if setting == "n_samples":
                sentence += "; avg_max_unwanted and unwanted_prob grow with it"
            sentences.append(sentence)
    for reward in dict.fromkeys(name for table in tables for name in table["rewards"]):
        judges = [table.get("reward_sha256", {}).get(reward, "?") for table in tables]
        known = [sha for sha, table in zip(judges, tables) if reward in table["rewards"]]
        if len(set(known)) > 1:
            sentences.append(f"{reward} was measured by different judges or files")
    return sentences


def print_range(rows):
    """Notes which rewards leave [0, 1]."""
    for name in rows[0]["rewards"]:
        if any(r is not None and not 0 <= r <= 1 for r in (row["rewards"][name] for row in rows)):
            print(f"note: {name} has rewards outside of [0, 1]; only their mean has a meaning")


def print_differences(tables, names):
    """Warns that results were not measured alike."""
    for sentence in differences(tables, names):
        print(f"warning: {sentence}")


def print_completions(files, prompts=3):
    """Prints what each result wrote for the same few prompts."""
    firsts = [first_rows(file) for file in files]
    for prompt in list(firsts[0])[:prompts]:
        print(f"\n{prompt} ...")
        for file, first in zip(files, firsts):
            if row := first.get(prompt):
                text = shown(row["completion"], 160)
                print(f"  {file.stem:14s} {_format_rewards(row):>6s}  {text}")


def part_of(table, group):
    """The table of one group of prompts; the whole table for None."""
    return table.get("groups", {}).get(group, {}) if group else table


def groups_of(tables):
    """None, which stands for all prompts, and the groups of any of the tables."""
    return list(dict.fromkeys([None, *(group for t in tables for group in t.get("groups", {}))]))


def metrics_of(tables):
    """[(label, path to it in a table)] of every metric that some table has."""
    found = {}
    for table in tables:
        for name, metrics in table.get("rewards", {}).items():
            found |= {f"{name} {metric}": ("rewards", name, metric) for metric in metrics}
    for table in tables:
        for key, value in table.items():
            if isinstance(value, dict) and "value" in value:
                found[key] = (key,)
    return list(found.items())


def at(table, path):
    """The entry of a table at `path`; {} if there is none."""
    for key in path:
        table = table.get(key, {})
    return table


def in_brackets(metric):
    """A metric as "value [low, high]"."""
    if metric.get("value") is None:
        return "-"
    return "{value:.3f} [{low:.3f}, {high:.3f}]".format(**metric)


def first_rows(file):
    """{prompt: its first row} of a result's completions."""
    first = {}
    for place, row in read_jsonl(file):
        text_of(row, "completion", place)
        first.setdefault(text_of(row, "prompt", place), row)
    return first


def _format_rewards(row):
    return ", ".join("none" if r is None else f"{r:.2f}" for r in row["rewards"].values())


# ------------------------------------------------------------------------------------- the page


def report(run, perplexity):
    """Draws RUN/report.html, one self-contained page, and RUN/figures/*.png from a run's files.

    Works at any moment of a run. perplexity(policy, rows) is evaluate.py's.
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
    if page.exists() and "<title>Quark: " not in page.read_text(encoding="utf-8", errors="replace"):
        raise BadInput(f"{page} exists, and no stage wrote it; move it")
    if folder.is_file():
        raise BadInput(f"cannot write {folder}: it is a file; move it")
    figures = draw_figures(run, tables, perplexity)
    sections = _html_price(tables)
    for pair in (("base", "quark"), ("base-nucleus", "quark-nucleus")):
        if all(name in tables for name in pair):
            sections.append(_html_table(tables[pair[0]], tables[pair[1]], pair))
    if "base" in tables and "quark" in tables:
        sections.append(_html_completions(run))
    folder.mkdir(exist_ok=True)
    for name, title, caption, figure in figures:
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=150)
        refuse_special(folder / f"{name}.png")
        (folder / f"{name}.png").write_bytes(png.getvalue())
        data = base64.b64encode(png.getvalue()).decode()
        sections.append(
            f'<figure><h2>{title}</h2><img alt="{html.escape(title)}" '
            f'src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
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


def _html_price(tables):
    """The gain and the price in one short table, as a list of at most one section."""
    rows = []  # kind, label, path of the metric, suffix of the results' names
    if "base" in tables and "quark" in tables:
        names = tables["base"]["rewards"]
        rows += [("gain", f"mean {name}", ("rewards", name, "mean"), "") for name in names]
        rows += [("price", name, (name,), "") for name in ("perplexity", "dist_2", "dist_3")]
    if "base-nucleus" in tables and "quark-nucleus" in tables:
        rows.append(("price", "diversity of sampled text", ("diversity",), "-nucleus"))
    if not rows:
        return []
    lines = ["<tr><th></th><th></th><th>p0</th><th>Quark</th></tr>"]
    for kind, label, path, suffix in rows:
        pair = (tables["base" + suffix], tables["quark" + suffix])
        cells = "".join(f"<td>{_html_cell(at(table, path))}</td>" for table in pair)
        lines.append(f"<tr><td>{kind}</td><td>{html.escape(label)}</td>{cells}</tr>")
    table = f'<div class="scroll"><table>{"".join(lines)}</table></div>'
    return [f'<section class="wide"><h2>The gain, and its price</h2>{table}</section>']


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
        f"{base['n_prompts']} prompts, {base['n_samples']} completions a prompt, "
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
    names = ("base", "quark")
    firsts = [first_rows(run / "eval" / f"{name}.jsonl") for name in names]
    prompts = [p for p in firsts[0] if p in firsts[1]]
    pairs = []
    for prompt in prompts[:: max(1, len(prompts) // count)][:count]:
        cells = [f'<p class="prompt">{html.escape(prompt)} ...</p>']
        for name, first in zip(names, firsts):
            row = first[prompt]
            label = f'<span class="small">{name} {_format_rewards(row)}</span>'
            cells.append(f"<p>{label} {html.escape(row['completion'])}</p>")
        pairs.append(f'<div class="pair">{"".join(cells)}</div>')
    title = "<h2>The same prompts, before and after</h2>"
    return f'<section class="wide">{title}{"".join(pairs)}</section>'
