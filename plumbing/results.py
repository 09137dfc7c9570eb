"""The results of evaluate.py: writing them, and the options that display them."""

from pathlib import Path

from plumbing.files import whole_file, write_json
from plumbing.options import COUNT
from plumbing.people import human_sheet, tally
from plumbing.pool import dump_row
from plumbing.report import print_completions, print_tables, read_table, report


def write_result(name, table, rows, args):
    """NAME.jsonl, the rows, and then NAME.json, the table."""
    with whole_file(f"{name}.jsonl", args) as file:
        for row in rows:
            row = {k: v for k, v in row.items() if k != "prompt_number"}
            file.write(dump_row(row) + "\n")
    write_json(f"{name}.json", table)


def add_display_options(parser):
    add = parser.add_argument_group("looking at results; nothing is generated").add_argument
    add("--compare", nargs="+", metavar="JSON", help="print these results side by side")
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


def show_results(args, perplexity):
    """Does what the options ask for. Returns False if they ask for nothing."""
    if args.tally:
        tally(Path(args.tally))
    elif args.human_sheet:
        human_sheet(Path(args.human_sheet), *map(Path, args.compare), args.pairs, args.seed)
    else:
        if args.compare:
            files = [Path(f) for f in args.compare]
            stems = [f.stem for f in files]
            names = stems if len(set(stems)) == len(stems) else args.compare  # two runs' quark.json
            print_tables([read_table(f) for f in files], names)
            print_completions([f.with_suffix(".jsonl") for f in files])
        if args.report:
            report(Path(args.report), perplexity)
    return bool(args.tally or args.compare or args.report)
