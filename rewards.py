"""The reward r(x, y): how good completion y of prompt x is.

A reward takes a list of prompts and one of completions and returns a number for each pair. Higher
is better:

    def shouting(prompts, completions, **kwargs):
        return [sum(c.isupper() for c in y) / max(1, len(y)) for y in completions]

It is called with keywords: prompts, completions, completion_ids, and every further column of the
prompt file, as lists. It takes those that it needs. So a function written for TRL, Hugging Face's
library, works unchanged, an `async def` too. All samples of a prompt come in one call. `None` means
"no score": the sample is left out, and counted. The paper's metrics (evaluate.py) need rewards in
[0, 1].

Reads    a JSONL file with "prompt" and "completion": a pool, or lines that you wrote by hand
Writes   to the screen the mean, the quartiles, the best and the worst; with --out, the scored rows

    python rewards.py --reward repetition --pool runs/repetition-tiny/pool/00.jsonl
    python rewards.py --reward my_reward.py:shouting --pool my_samples.jsonl --out scored.jsonl

Where we differ: the paper's toxicity reward is a commercial service that closes on 31 December
2026. Here a local classifier takes its place; --reward-model names another one.
"""

import hashlib
import math
from pathlib import Path

from tqdm import tqdm

from plumbing import options
from plumbing.files import check_outputs, check_writable, whole_file
from plumbing.pool import FIELDS, BadInput, dump_row, read_texts
from plumbing.reward_file import checked_reward, other_reward
from plumbing.summaries import print_scores

SHIPPED = Path(__file__).resolve().parent / "tiny"

# --------------------------------------------------------------------------------------- repetition


def rep_n(tokens, n):
    """rep-n = 1 - unique n-grams / all n-grams of a sequence of words or ids; 0 if it has none."""
    ngrams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def diversity(tokens):
    """(1 - rep-2) (1 - rep-3) (1 - rep-4): from 0, a loop, to 1, where no 2-gram comes twice."""
    return math.prod(1 - rep_n(tokens, n) for n in (2, 3, 4))


def repetition(prompts, completions, completion_ids=None, **kwargs):
    """The diversity of each completion, in token ids if it has them, otherwise in words.

    Fewer than four tokens cannot repeat a 4-gram. They get 0; otherwise the model would learn to
    say nothing.
    """
    ids = completion_ids or [None] * len(completions)
    sequences = [y.split() if i is None else i for y, i in zip(completions, ids)]
    return [diversity(tokens) if len(tokens) >= 4 else 0.0 for tokens in sequences]


# ------------------------------------------------------------------- sentiment and toxicity: judges


def sentiment(judge, **judge_options):
    """Returns a reward: P(positive) of prompt and completion together, as a reader would judge."""
    from plumbing.classifier import classifier

    p_positive = classifier(judge, ["positive", "pos"], **judge_options)

    def reward(prompts, completions, **kwargs):
        return p_positive([x + y for x, y in zip(prompts, completions)])

    return reward


def sentiment_label(judge, **judge_options):
    """Returns a reward: 1 if the judge says positive, else 0. The paper's, full of ties."""
    soft = sentiment(judge, **judge_options)

    def reward(prompts, completions, **kwargs):
        return [float(p >= 0.5) for p in soft(prompts=prompts, completions=completions)]

    return reward


def toxicity(judge, **judge_options):
    """Returns a reward: 1 - P(toxic) of the completion alone, as in the paper."""
    from plumbing.classifier import classifier

    p_toxic = classifier(judge, ["toxicity", "toxic"], **judge_options)

    def reward(prompts, completions, **kwargs):
        return [1 - p for p in p_toxic(completions)]

    return reward


# ------------------------------------------------------------------------- for tests and for class


def length(prompts, completions, **kwargs):
    """Longer is better, up to 100 characters."""
    return [min(1.0, len(y) / 100) for y in completions]


def hash_reward(prompts, completions, **kwargs):
    """A fixed random number in [0, 1) for each pair: nothing can be learned from it."""
    values = []
    for x, y in zip(prompts, completions):
        digest = hashlib.sha256(f"{x}\0{y}".encode("utf-8", "surrogatepass")).digest()
        values.append(int.from_bytes(digest[:6], "big") / 2**48)
    return values


# -------------------------------------------------------------------------------- finding a reward

PLAIN = {"repetition": repetition, "length": length, "hash": hash_reward}
JUDGES = {  # each with the small judge in tiny/ that is used unless another one is named
    "sentiment": (sentiment, "sentiment"),
    "sentiment_label": (sentiment_label, "sentiment"),
    "toxicity": (toxicity, "toxicity"),
}


def load_reward(spec, reward_model=None, cache=None, **judge_options):
    """The reward called `spec`: a built-in name, or "path/to/file.py:function".

    Options: reward_model, device and batch_size of a judge; cache, a file for the answers of
    `remote`. Returns a function (prompts=, completions=, ...) -> list of float or None, finite and
    of the same length. Whatever else a reward does is reported as BadInput.
    """
    if spec in PLAIN:
        return checked_reward(PLAIN[spec], spec)
    if spec in JUDGES:
        make_reward, shipped = JUDGES[spec]
        judge = str(reward_model or SHIPPED / shipped)
        return checked_reward(make_reward(judge, **judge_options), spec, [judge])
    return other_reward(spec, cache, [*PLAIN, *JUDGES])


def score(rows, reward, chunk=4096):
    """r(x, y) of every row: a list of float or None.

    A call has about `chunk` rows and all samples of a prompt, so that a reward may compare them. It
    gets the rows' other columns as lists, with None where a row has none.
    """
    samples = {}
    for i, row in enumerate(rows):
        samples.setdefault(row["prompt"], []).append(i)
    calls = whole_prompts(samples, chunk)
    names = [name for name in dict.fromkeys(k for row in rows for k in row) if name not in FIELDS]
    if any(row.get("completion_ids") is not None for row in rows):
        names.append("completion_ids")
    scores = [None] * len(rows)
    for members in tqdm(calls, desc="scoring", disable=len(calls) == 1):
        call = [rows[i] for i in members]
        values = reward(
            prompts=[row["prompt"] for row in call],
            completions=[row["completion"] for row in call],
            **{name: [row.get(name) for row in call] for name in names},
        )
        for i, value in zip(members, values, strict=True):
            scores[i] = value
    return scores


def whole_prompts(samples, size):
    """{prompt: its samples} -> lists of `size` samples at most, or of one prompt's."""
    batches = [[]]
    for own in samples.values():
        if batches[-1] and len(batches[-1]) + len(own) > size:
            batches.append([])
        batches[-1] += own
    return batches


# ---------------------------------------------------------------------------------- trying a reward


def main(argv=None):
    args = parse_options(argv)
    reward = load_reward(args.reward, args.reward_model, cache=args.out and f"{args.out}.cache")
    if args.out:
        check_outputs([args.out], [args.pool, *reward.files])
        check_writable(args.out)
    rows = read_texts(args.pool)
    scores = score(rows, reward)
    if args.out:
        if all(value is None for value in scores):
            raise BadInput(
                f"reward {args.reward} scored none of the {len(rows)} rows; nothing was written"
            )
        with whole_file(args.out) as file:
            for row, value in zip(rows, scores):
                if value is not None:
                    file.write(dump_row({**row, "reward": value}) + "\n")
    print_scores(rows, scores)


def parse_options(argv=None):
    parser = options.stage_parser(__doc__)
    add = parser.add_argument
    names = ", ".join([*PLAIN, *JUDGES, "remote"])
    add("--reward", required=True, help=f"{names}, or path/to/file.py:function")
    add("--pool", required=True, help='JSONL with "prompt" and "completion"')
    add("--reward-model", help="folder or hub name of the judge (default: the one in tiny/)")
    add("--out", help="write the rows with their rewards here")
    return parser.parse_args(argv)


if __name__ == "__main__":
    options.run_stage(main)
