"""The reward r(x, y): how good completion y of prompt x is. The file that an assignment edits.

A reward is a function of two lists of equal length that returns a list of numbers, higher is better:

    def shouting(prompts, completions, **kwargs):
        return [sum(c.isupper() for c in y) / max(1, len(y)) for y in completions]

It is called by keyword, so functions written for TRL's trainers work unchanged. `None` means "no score": that sample is
left out, and counted. Keep rewards in [0, 1] if you want the paper's metrics (evaluate.py) to mean something.

Reads    a JSONL file with "prompt" and "completion" (a pool, or lines you wrote by hand)
Writes   to the screen: the mean, the spread, the best and the worst; with --out, the rows with "reward"

    python rewards.py --reward repetition --pool runs/repetition-tiny/pool/00.jsonl
    python rewards.py --reward my_reward.py:shouting --pool my_samples.jsonl --out scored.jsonl

The paper's toxicity reward was a commercial service, which closes on 31 December 2026; here a local classifier stands in
for it, and any other is named with --reward-model.
"""

import argparse
import hashlib
import importlib.util
import inspect
import math
from pathlib import Path

from quantize import BadInput, dump_row, read_jsonl, run_stage, shown, whole_file

SHIPPED = Path(__file__).resolve().parent / "tiny"  # the small judges that come with the project

# ------------------------------------------------------------------------------------------------- repetition


def rep_n(tokens, n):
    """rep-n = 1 - unique n-grams / all n-grams of one sequence of words or ids; 0 where there is no n-gram."""
    ngrams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def diversity(tokens):
    """diversity = (1 - rep-2)(1 - rep-3)(1 - rep-4), from 0 (a loop) to 1 (no 2-gram twice)."""
    return math.prod(1 - rep_n(tokens, n) for n in (2, 3, 4))


def repetition(prompts, completions, completion_ids=None, **kwargs):
    """The diversity of each completion, in token ids (end of text included) if they are given, else in words.

    Fewer than four tokens cannot repeat a 4-gram; they get 0, or the model would learn to say nothing.
    """
    sequences = completion_ids or [y.split() for y in completions]
    return [diversity(tokens) if len(tokens) >= 4 else 0.0 for tokens in sequences]


# -------------------------------------------------------------------------------- classifiers: sentiment, toxicity


def classifier(model, label_names, device="cpu", batch_size=64):
    """texts -> probabilities of the label called one of `label_names`, by a sequence classifier (folder or hub name)."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar(), logging.set_verbosity_error()
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        net = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BadInput(f"cannot open the reward model {model}: {reason}; name a folder or hub model with --reward-model") from None
    net.eval().to(device)
    labels = {name.lower(): i for i, name in net.config.id2label.items()}
    column = next((labels[name] for name in label_names if name in labels), None)
    if column is None:
        raise BadInput(f"reward model {model} has the labels {shown(sorted(labels))}, none of {shown(label_names)}")
    # One logit, or several independent ones: a sigmoid each. Exclusive labels: a softmax over them.
    independent = net.config.num_labels == 1 or net.config.problem_type == "multi_label_classification"
    longest = min(tokenizer.model_max_length, getattr(net.config, "max_position_embeddings", 512) - 2)

    @torch.no_grad()
    def probabilities(texts):
        scores, by_length = [0.0] * len(texts), sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(texts), batch_size):
            rows = by_length[start : start + batch_size]  # similar lengths together: little padding
            batch = tokenizer([texts[i] for i in rows], padding=True, truncation=True, max_length=longest, return_tensors="pt")
            logits = net(**batch.to(device)).logits  # (rows, labels)
            p = (logits.sigmoid() if independent else logits.softmax(-1))[:, column]
            for i, value in zip(rows, p.tolist()):
                scores[i] = value
        return scores

    return probabilities


def sentiment(reward_model=None, **options):
    """P(positive) of prompt and completion together: the fragment that a reader would judge."""
    p_positive = classifier(str(reward_model or SHIPPED / "sentiment"), ["positive", "pos", "label_1"], **options)

    def reward(prompts, completions, **kwargs):
        return p_positive([x + y for x, y in zip(prompts, completions)])

    return reward


def sentiment_label(reward_model=None, **options):
    """1 if the judge calls it positive, else 0: the paper's binary reward (all ties; see quantize.py)."""
    soft = sentiment(reward_model, **options)

    def reward(prompts, completions, **kwargs):
        return [float(p >= 0.5) for p in soft(prompts=prompts, completions=completions)]

    return reward


def toxicity(reward_model=None, **options):
    """1 - P(toxic) of the completion alone, as in the paper: the model is not blamed for its prompt."""
    p_toxic = classifier(str(reward_model or SHIPPED / "toxicity"), ["toxicity", "toxic", "label_1"], **options)

    def reward(prompts, completions, **kwargs):
        return [1 - p for p in p_toxic(completions)]

    return reward


# ------------------------------------------------------------------------------------- dummies, for tests and class


def length(prompts, completions, **kwargs):
    """Longer is better, up to 100 characters."""
    return [min(1.0, len(y) / 100) for y in completions]


def hash_reward(prompts, completions, **kwargs):
    """A fixed random number in [0, 1) for each pair: nothing can be learned from it."""
    digests = (hashlib.sha256(f"{x}\0{y}".encode("utf-8", "surrogatepass")).digest() for x, y in zip(prompts, completions))
    return [int.from_bytes(d[:6], "big") / 2**48 for d in digests]


PLAIN = {"repetition": repetition, "length": length, "hash": hash_reward}
MODELS = {"sentiment": sentiment, "sentiment_label": sentiment_label, "toxicity": toxicity}

# ----------------------------------------------------------------------------------- naming, loading and checking one


def load_reward(spec, reward_model=None, **options):
    """The reward called `spec`: a built-in name, or "path/to/file.py:function". Options: reward_model, device, batch_size.

    The result takes lists (prompts=, completions=, ...) and returns a list of float or None, of the same length and
    finite; anything else is reported as BadInput with the reward's name, the index and the text.
    """
    if spec in PLAIN:
        function = PLAIN[spec]
    elif spec in MODELS:
        function = MODELS[spec](reward_model, **options)
    elif ":" in spec:
        function = _from_file(*spec.rsplit(":", 1))
    else:
        names = ", ".join([*PLAIN, *MODELS])
        raise BadInput(f"no reward is called {spec!r}; built in: {names}; your own: --reward path/to/file.py:function")
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    accepted = {p.name for p in parameters}

    def checked(prompts, completions, **kwargs):
        given = {k: v for k, v in kwargs.items() if v is not None and (takes_all or k in accepted)}
        try:
            values = function(prompts=prompts, completions=completions, **given)
        except BadInput:
            raise
        except Exception as error:
            raise BadInput(f"reward {spec} raised {type(error).__name__}: {error}; it was given {len(prompts)} completions, "
                           f"the first {shown(completions[0]) if completions else 'none'}") from error  # fmt: skip
        return _check_values(spec, values, completions)

    checked.__name__ = spec
    return checked


def _from_file(path, name):
    if not Path(path).is_file():
        raise BadInput(f"reward file {path} does not exist; write --reward path/to/file.py:function")
    module_spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if module_spec is None:
        raise BadInput(f"reward file {path} is not a .py file; write --reward path/to/file.py:function")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise BadInput(f"reward file {path} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, name, None)):
        raise BadInput(f"reward file {path} has no function {name!r}; write --reward {path}:NAME_OF_YOUR_FUNCTION")
    return getattr(module, name)


def _check_values(spec, values, completions):
    values = values.tolist() if hasattr(values, "tolist") else values  # a NumPy array or a tensor will do
    if not isinstance(values, (list, tuple)) or len(values) != len(completions):
        got = f"{len(values)} values" if isinstance(values, (list, tuple)) else type(values).__name__
        raise BadInput(f"reward {spec} returned {got} for {len(completions)} completions; return a list with one number each")
    checked = []
    for i, value in enumerate(values):
        value = value.item() if hasattr(value, "item") else value
        if value is not None and (isinstance(value, str) or not isinstance(value, (int, float)) or not math.isfinite(value)):
            raise BadInput(f"reward {spec} returned {value!r} at index {i}, for {shown(completions[i])}; "
                           "return a finite number, or None for no score")  # fmt: skip
        checked.append(None if value is None else float(value))
    return checked


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog="Try a reward without a model.")
    parser.add_argument("--reward", required=True, help=f"{', '.join([*PLAIN, *MODELS])}, or path/to/file.py:function")
    parser.add_argument("--pool", required=True, help='JSONL with "prompt" and "completion"')
    parser.add_argument("--reward-model", help="folder or hub name of the classifier (default: the shipped one)")
    parser.add_argument("--out", help="write the rows with their rewards here")
    args = parser.parse_args(argv)
    reward = load_reward(args.reward, args.reward_model)
    rows = []
    for place, row in read_jsonl(args.pool):
        for field in ("prompt", "completion"):
            if not isinstance(row.get(field), str):
                raise BadInput(f'{place}: "{field}" is {shown(row.get(field))}, not a string')
        rows.append(row)
    if not rows:
        raise BadInput(f'{args.pool} holds no rows; write one {{"prompt": "...", "completion": "..."}} a line')
    ids = [r.get("completion_ids") for r in rows]
    scores = reward(prompts=[r["prompt"] for r in rows], completions=[r["completion"] for r in rows],
                    completion_ids=ids if all(ids) else None)  # fmt: skip
    scored = sorted((s, i) for i, s in enumerate(scores) if s is not None)
    print(f"{len(scored)} of {len(rows)} scored")
    if scored:
        quarter = [scored[int(q * (len(scored) - 1))][0] for q in (0, 0.25, 0.5, 0.75, 1)]
        print("min, quartiles, max: " + "  ".join(f"{q:.4f}" for q in quarter))
        print(f"mean {sum(s for s, _ in scored) / len(scored):.4f}")
        for title, part in (("worst", scored[:3]), ("best", scored[:-4:-1])):
            for s, i in part:
                print(f"{title:>6} {s:.4f}  {shown(rows[i]['prompt'] + ' |' + rows[i]['completion'], 100)}")
    if args.out:
        with whole_file(args.out) as file:
            for row, score in zip(rows, scores):
                if score is not None:
                    file.write(dump_row({**row, "reward": score}) + "\n")


if __name__ == "__main__":
    run_stage(main)
