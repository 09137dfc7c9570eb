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

from quantize import BadInput, Growing, dump_row, read_jsonl, run_stage, shown, text_of, whole_file  # first: from here on Ctrl-C is one line

import argparse
import hashlib
import importlib.util
import inspect
import math
import os
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

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
    """texts -> probabilities of the label called one of `label_names`, by a sequence classifier (folder or hub name).

    Of a text longer than it reads, the end is read: behind a long prompt, the completion.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar(), logging.set_verbosity_error()
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, truncation_side="left")
        net, loading = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32, use_safetensors=True,
                                                                          output_loading_info=True)  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BadInput(f"cannot open the reward model {model}: {reason}; name a folder or hub model with --reward-model") from None
    if loading["missing_keys"]:  # transformers fills them at random: a reward that means nothing
        raise BadInput(f"reward model {model} is no classifier: it has no weights for {shown(sorted(loading['missing_keys']))}; name another")
    net.eval().to(device)
    labels = {name.lower(): i for i, name in net.config.id2label.items()}
    if net.config.num_labels == 2:
        label_names = [*label_names, "label_1"]  # of two nameless labels the second; of three it would be the middle
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
    p_positive = classifier(str(reward_model or SHIPPED / "sentiment"), ["positive", "pos"], **options)

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
    p_toxic = classifier(str(reward_model or SHIPPED / "toxicity"), ["toxicity", "toxic"], **options)

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


def load_reward(spec, reward_model=None, cache=None, **options):
    """The reward called `spec`: a built-in name, or "path/to/file.py:function".

    Options: reward_model, device, batch_size of a classifier; cache, a path for the answers of `remote`.
    The result takes lists (prompts=, completions=, ...) and returns a list of float or None, of the same length and
    finite; anything else is reported as BadInput with the reward's name, the index and the text.
    """
    if spec in PLAIN:
        function = PLAIN[spec]
    elif spec in MODELS:
        function = MODELS[spec](reward_model, **options)
    elif spec == "remote":
        function = Remote(cache)
    elif ":" in spec:
        function = _from_file(*spec.rsplit(":", 1))
    else:
        names = ", ".join([*PLAIN, *MODELS, "remote"])
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
        except (Exception, SystemExit) as error:  # a stray exit() must not end the stage as if all were well
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
    except (Exception, SystemExit) as error:
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
        if value is not None and not (isinstance(value, (int, float)) and abs(value) <= sys.float_info.max):
            raise BadInput(f"reward {spec} returned {value!r} at index {i}, for {shown(completions[i])}; "
                           "return a finite number, or None for no score")  # fmt: skip
        checked.append(None if value is None else float(value))
    return checked


# ------------------------------------------------------------------------- remote: a service that is asked over the net


class Remote:
    """1 - the score that a Perspective-compatible service gives the completion; None where it gives none.

    POST {"comment": {"text": y}, "requestedAttributes": {A: {}}, ...} to the URL. The environment holds
        REMOTE_URL   of the service's analyze method              REMOTE_KEY      sent as the header X-Goog-Api-Key
        REMOTE_ATTRIBUTE, A; default TOXICITY                     REMOTE_QPS      requests a second at most; default 10
        REMOTE_TIMEOUT   of one request, in seconds; default 10   REMOTE_WORKERS  requests at once; default 8
    Throttling (429), faults of the server (5xx) and of the net are tried again, TRIES times in all, after 1, 2, 4 ... s
    times a random factor, or as long as the server asks for. An answer goes to the file `cache` the moment it arrives.
    """

    TRIES, FIRST_WAIT, LONGEST_WAIT = 8, 1.0, 60.0

    def __init__(self, cache=None):
        import httpx  # here, because it takes a fifth of a second that no other reward needs

        env, self.httpx = os.environ, httpx
        self.url, self.key = env.get("REMOTE_URL", ""), env.get("REMOTE_KEY", "").strip()
        self.attribute = env.get("REMOTE_ATTRIBUTE", "TOXICITY")
        if not self.url.startswith(("http://", "https://")):
            raise BadInput("--reward remote needs the service's address in the environment: REMOTE_URL=https://... REMOTE_KEY=...")
        if not (self.key.isascii() and self.key.isprintable()):
            raise BadInput("REMOTE_KEY holds characters that no key has; set it again")
        try:
            self.qps, self.timeout = float(env.get("REMOTE_QPS", 10)), float(env.get("REMOTE_TIMEOUT", 10))
            self.workers = int(env.get("REMOTE_WORKERS", 8))
            ok = 0 < self.qps < math.inf and 0 < self.timeout < math.inf and self.workers > 0
        except ValueError:
            ok = False
        if not ok:
            raise BadInput("REMOTE_QPS, REMOTE_TIMEOUT and REMOTE_WORKERS must be numbers above 0")
        self.qps /= int(env.get("WORLD_SIZE", 1))  # the limit is the key's, shared by all processes
        self.lock, self.next_slot, self.stop = threading.Lock(), 0.0, threading.Event()
        self.cache = Growing(cache) if cache else None
        rows = self.cache.rows if cache else []
        self.known = {row["text"]: row["score"] for row in rows if (row["url"], row["attribute"]) == (self._place(), self.attribute)}

    def __call__(self, prompts, completions, **kwargs):
        new = [y for y in dict.fromkeys(completions) if y not in self.known]  # each text once
        reasons, silent = Counter(), 0
        self.stop.clear()
        with self.httpx.Client(timeout=self.timeout, headers={"X-Goog-Api-Key": self.key} if self.key else {}) as client, \
                ThreadPoolExecutor(self.workers) as pool:  # fmt: skip
            waiting = [pool.submit(self._ask, client, y) for y in new]
            try:
                for answer in as_completed(waiting):
                    if reason := answer.result():
                        reasons[reason] += 1
                        silent = silent + 1 if reason.startswith("no answer") else 0
                    else:
                        silent = 0
                    if silent >= self.workers:
                        raise BadInput(f"the service at {self._place()} has stopped answering ({reason}); what it answered is "
                                       "kept, start again to go on")  # fmt: skip
            finally:
                self.stop.set()  # after an error or Ctrl-C the threads shall not go on trying
                pool.shutdown(wait=False, cancel_futures=True)
        if reasons:
            print(f"remote: {sum(reasons.values())} of {len(new)} texts have no score: "
                  + ", ".join(f"{n} x {reason}" for reason, n in reasons.most_common()), file=sys.stderr)  # fmt: skip
        return [1 - self.known[y] if y in self.known else None for y in completions]

    def _ask(self, client, text):
        """Asks for one text; puts its score into `known` and the cache. Returns None, or why there is no score."""
        question = {"comment": {"text": text}, "requestedAttributes": {self.attribute: {}}, "languages": ["en"], "doNotStore": True}
        for attempt in range(self.TRIES):
            self._wait_for_slot()
            pause = min(self.LONGEST_WAIT, self.FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.5)
            try:
                answer = client.post(self.url, json=question)
            except self.httpx.HTTPError as error:
                reason = f"no answer ({type(error).__name__})"
            else:
                if answer.status_code in (401, 403):
                    raise BadInput(f"the service at {self._place()} refuses the key ({answer.status_code}); set REMOTE_KEY")
                if answer.status_code == 200:
                    score = _summary_score(answer, self.attribute)
                    if score is not None:
                        return self._keep(text, score)
                    reason = "no score in the answer"
                elif answer.status_code == 429 or answer.status_code >= 500:
                    reason = f"no answer (HTTP {answer.status_code})"
                    asked_for = answer.headers.get("Retry-After", "")
                    pause = max(pause, min(self.LONGEST_WAIT, float(asked_for))) if asked_for.isdecimal() else pause
                else:
                    return f"HTTP {answer.status_code}"  # this text is not taken: asking again would not help
            if attempt + 1 == self.TRIES or self.stop.wait(pause):
                return reason

    def _wait_for_slot(self):
        """Requests start at least 1 / QPS seconds apart, whichever thread they come from."""
        with self.lock:
            now = time.monotonic()
            self.next_slot = max(now, self.next_slot) + 1 / self.qps
            wait = self.next_slot - 1 / self.qps - now
        time.sleep(max(0.0, wait))

    def _keep(self, text, score):
        with self.lock:
            self.known[text] = score
            if self.cache:
                self.cache.add([{"text": text, "score": score, "attribute": self.attribute, "url": self._place()}])

    def _place(self):
        """The URL without what may be secret in it: no user, no query."""
        url = self.httpx.URL(self.url)
        return f"{url.scheme}://{url.host}{f':{url.port}' if url.port else ''}{url.path}"


def _summary_score(answer, attribute):
    """The score in [0, 1] of a service's answer, None if it holds none."""
    try:
        score = answer.json()["attributeScores"][attribute]["summaryScore"]["value"]
    except (ValueError, KeyError, TypeError):
        return None
    return float(score) if isinstance(score, (int, float)) and 0 <= score <= 1 else None


# ------------------------------------------------------------------------------------------------- the command line


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog="Try a reward without a model.")
    parser.add_argument("--reward", required=True, help=f"{', '.join([*PLAIN, *MODELS, 'remote'])}, or path/to/file.py:function")
    parser.add_argument("--pool", required=True, help='JSONL with "prompt" and "completion"')
    parser.add_argument("--reward-model", help="folder or hub name of the classifier (default: the shipped one)")
    parser.add_argument("--out", help="write the rows with their rewards here")
    args = parser.parse_args(argv)
    if args.out and Path(args.out).resolve() == Path(args.pool).resolve():
        raise BadInput(f"--out {args.out} is the pool itself, and rows without a score would be lost; choose another --out")
    reward = load_reward(args.reward, args.reward_model, cache=args.out and f"{args.out}.cache")
    rows = []
    for place, row in read_jsonl(args.pool):
        text_of(row, "prompt", place), text_of(row, "completion", place)
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
