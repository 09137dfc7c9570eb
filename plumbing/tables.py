"""Results of evaluate.py as tables on the screen: all metrics, side by side."""

from plumbing.files import read_json
from plumbing.pool import BadInput, read_jsonl, shown, text_of


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
                print(f"  {file.stem:14s} {format_rewards(row):>6s}  {text}")


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


def format_rewards(row):
    return ", ".join("none" if r is None else f"{r:.2f}" for r in row["rewards"].values())
