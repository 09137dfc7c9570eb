"""The results of evaluate.py: writing them, and the options that display them."""

import hashlib
import json
from pathlib import Path

from plumbing.files import (
    args_file,
    check_outputs,
    check_own,
    check_writable,
    whole_file,
    write_json,
)
from plumbing.options import COUNT
from plumbing.people import human_sheet, tally
from plumbing.pool import dump_row
from plumbing.price import SAMPLED, print_short, summary_lines
from plumbing.report import report
from plumbing.tables import (
    print_completions,
    print_differences,
    print_range,
    print_tables,
    read_table,
)


def settings_of(rows, args=None):
    """What the numbers of a table depend on besides the models. args None: rows of others."""
    prompts = {row["prompt_number"]: row["prompt"] for row in rows}
    sha256 = hashlib.sha256(json.dumps(sorted(prompts.values())).encode()).hexdigest()
    settings = {
        "n_prompts": len(prompts),
        "n_samples": len(rows) / len(prompts) if args is None else args.num_samples,
        "prompts_sha256": sha256,
    }
    of_sampling = ("top_p", "top_k", "temperature")
    for name in ("decode", *of_sampling, "max_new_tokens", "min_new_tokens"):
        unused = args is None or args.decode == "greedy" and name in of_sampling
        settings[name] = None if unused else getattr(args, name)
    return settings


def check_result(name, reads):
    """Raises BadInput unless NAME.json, NAME.jsonl and NAME.args.json can be written."""
    files = [f"{name}.json", f"{name}.jsonl", args_file(name)]
    check_outputs(files, reads)
    for file in files:
        check_own(file, name)
        check_writable(file)


def write_result(name, table, rows, args):
    """NAME.jsonl, the rows, and then NAME.json, the table."""
    with whole_file(f"{name}.jsonl", args) as file:
        for row in rows:
            file.write(dump_row(row) + "\n")
    write_json(f"{name}.json", table)


def print_result(name, table, rows, args):
    """A new result on the screen: all of its metrics, or with --short the gain and the price."""
    if args.short:
        print("\n".join(summary_lines({name.name: table}, [], [])))
    else:
        print_tables([table], [name.name])
    print_range(rows)


def add_display_options(parser):
    add = parser.add_argument_group("looking at results; nothing is generated").add_argument
    add("--compare", nargs="+", metavar="JSON", help="print these results side by side")
    text = "print only the gain and its price; with --compare also the dial and two texts"
    add("--short", action="store_true", help=text)
    text = "draw a run of run_all.sh: RUN/report.html and RUN/figures/*.png"
    add("--report", metavar="RUN", help=text)
    text = "with --compare of two results: write blinded pairs for people"
    add("--human-sheet", metavar="CSV", help=text)
    add("--pairs", type=COUNT, default=50, help="rows of the --human-sheet")
    add("--tally", metavar="CSV", help="count a filled --human-sheet; its key lies beside it")


def looks_at_results(parser, args):
    """Whether the command line only asks to look at results."""
    if args.human_sheet and len(args.compare or []) != 2:
        parser.error("--human-sheet needs --compare with two results")
    return bool(args.tally or args.compare or args.report)


def show_results(args, perplexity, text_sums):
    """Does what the options ask for. Returns False if they ask for nothing."""
    if args.tally:
        tally(Path(args.tally))
    elif args.human_sheet:
        human_sheet(Path(args.human_sheet), *map(Path, args.compare), args.pairs, args.seed)
    else:
        if args.report:  # before anything is printed: a closed pipe must not cost the report
            report(Path(args.report), perplexity, text_sums)
        if args.compare:
            files = [Path(f) for f in args.compare]
            stems = [f.stem for f in files]
            names = stems
            if len(set(stems)) < len(stems):  # two runs' quark.json
                names = [str(f.with_suffix("")) for f in files]
            tables = [read_table(f) for f in files]
            if args.short:
                print_short(dict(zip(names, tables)), dict(zip(names, files)))
            else:
                print_tables(tables, names)
                print_completions([f.with_suffix(".jsonl") for f in files])
            for sampled in (False, True):  # NAME-nucleus is not meant to be like NAME
                part = [i for i, name in enumerate(names) if name.endswith(SAMPLED) == sampled]
                print_differences([tables[i] for i in part], [names[i] for i in part])
    return bool(args.tally or args.compare or args.report)
