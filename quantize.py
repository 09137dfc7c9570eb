"""Stage 2, *quantize*: sort the pool D by reward and cut it into K equal parts D^1 ... D^K; r_K marks the best.

Reads    pool files of stage 1, one JSON object a line: {"prompt", "completion", "reward", "iteration", ...}
Writes   the same rows, each with "quantile": k in 1 ... K, as one JSONL file

    python quantize.py runs/try/pool --quantiles 5 --out runs/try/quantized/00.jsonl        # all rounds in the folder
    python quantize.py my_pool.jsonl --quantiles 3 --out q.jsonl && head -3 q.jsonl

Section 3.1 of the paper. The authors' code sorts stably, so that among equal rewards the *older* sample gets the better
token (--ties age), and leaves N mod K samples over for the worst part; here ties are broken at random and the parts
differ by at most one. --per-prompt and what bounds the pool are not in the paper: see the README on the small runs.

This file also owns the pool itself: what a row is, how it is read, checked and written; and the options that several stages
have. It imports NumPy only.
"""

import gc
import os
import signal
import sys


def _interrupted(*_):
    os.write(2, f"\n{os.path.basename(sys.argv[0])}: interrupted; every finished file is whole, start it again to go on\n".encode())
    os._exit(130)  # at once: an exception could be swallowed by a library that is in the middle of something


if os.path.basename(sys.argv[0]) in ("explore.py", "quantize.py", "learn.py", "evaluate.py", "rewards.py"):  # a stage is starting
    signal.signal(signal.SIGINT, _interrupted)  # Ctrl-C; before the other imports, which take seconds
    signal.signal(signal.SIGTERM, _interrupted)
    gc.set_threshold(100_000)  # torch and transformers make a million objects that all stay: looking at them is half a second

import argparse  # noqa: E402
import contextlib  # noqa: E402
import glob  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import shutil  # noqa: E402
from array import array  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

# ---------------------------------------------------------------------------------------------------- the quantiles


def assign_quantiles(rewards, K, seed=0, ties="random"):
    """The quantile of every reward: (N,) rewards -> (N,) int array in 1 ... K, K for the highest rewards.

    The parts' sizes differ by at most one. ties: equal rewards are ordered at random by `seed`; by "age", the earlier row
    above the later one; or kept "together" in the part of their mean rank, whatever that does to the sizes.
    Raises BadInput when K < 1, K > N (a part would be empty) or a reward is not finite.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    if K < 1 or K > len(rewards):
        raise BadInput(f"cannot cut {len(rewards)} samples into K = {K} quantiles; choose K from 1 to {len(rewards)}")
    if not np.isfinite(rewards).all():
        raise BadInput(f"reward number {int(np.argmin(np.isfinite(rewards)))} is not a finite number")
    return _cut(rewards, K, np.random.default_rng(seed), 0.5, ties)


def assign_quantiles_per_prompt(rewards, prompts, K, seed=0, ties="random"):
    """As assign_quantiles, but ranked within each prompt: (N,) rewards and (N,) integers that name the prompts.

    Global quantiles partly encode how hard a prompt is; these compare a sample only with its siblings. With fewer than
    K samples a prompt, a random offset per prompt spreads the ranks evenly over 1 ... K.
    """
    rewards, prompts = np.asarray(rewards, dtype=np.float64), np.asarray(prompts)
    rng, quantiles = np.random.default_rng(seed), np.empty(len(rewards), dtype=np.int64)
    by_prompt = np.argsort(prompts, kind="stable")
    borders = np.flatnonzero(np.diff(prompts[by_prompt])) + 1
    for rows in np.split(by_prompt, borders):
        quantiles[rows] = _cut(rewards[rows], K, rng, rng.random(), ties)
    return quantiles


def _cut(rewards, K, rng, offset, ties):
    """Rank i of N (0 = worst) falls into part floor((i + offset) K / N) + 1, for any offset in [0, 1)."""
    N = len(rewards)
    second = -np.arange(N) if ties == "age" else rng.random(N)
    ranks = np.empty(N)
    ranks[np.lexsort((second, rewards))] = np.arange(N)  # by reward; equal rewards by the second key
    if ties == "together":
        _, value = np.unique(rewards, return_inverse=True)
        ranks = (np.bincount(value, ranks) / np.bincount(value))[value]
    return np.floor((ranks + offset) * K / N).astype(np.int64) + 1


def bounded(rewards, iterations, last=None, keep_top=None, seed=0, keep_p0=False):
    """Which rows stay in a bounded pool: (N,) bool. The newest `last` iterations, then the best fraction `keep_top`.

    keep_p0: iteration 0 counts among the newest, so that there is always something bad to tell the good from.
    """
    rewards, iterations = np.asarray(rewards, dtype=np.float64), np.asarray(iterations)
    keep = np.ones(len(rewards), dtype=bool)
    if last is not None:
        keep &= (iterations > iterations.max() - last) | (keep_p0 & (iterations == 0))
    if keep_top is not None:
        rows = np.flatnonzero(keep)
        tiebreak = np.random.default_rng([seed, 1]).random(len(rows))
        worst_first = rows[np.lexsort((tiebreak, rewards[rows]))]
        keep[worst_first[: len(rows) - math.ceil(keep_top * len(rows) - 1e-9)]] = False
    return keep


# ---------------------------------------------------------------------------------------- the pool: JSONL, one row a line


class BadInput(Exception):
    """Something the user gave cannot be used. The message is one sentence: place, value, remedy."""


def read_jsonl(path):
    """Yields (place, row) for every line that is not blank: place is "file:line", row a dict."""
    path = Path(path)
    if path.is_dir():
        raise BadInput(f"{path} is a folder; name a .jsonl file in it")
    try:
        lines = path.open("rb")  # bytes, split at \n only: U+2028 inside a string is no line end
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; check the path") from None
    with lines:
        for number, line in enumerate(lines, 1):
            place = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                row = json.loads(text) if text else None
                if "\\ud" in text or "\\uD" in text:  # half a surrogate pair is valid JSON, but no text: it could not be written again
                    dump_row(row).encode()
            except UnicodeDecodeError as error:
                raise BadInput(f"{place}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
            except UnicodeEncodeError:
                raise BadInput(f"{place}: half a surrogate pair, \\ud..., stands in it without its other half; remove it") from None
            except (ValueError, RecursionError) as error:  # JSONDecodeError has .msg; the others are numbers or nesting too large
                reason = getattr(error, "msg", "a number or a nesting is too large")
                cut = "" if line.endswith(b"\n") else " (the file ends within this line: is it cut off?)"
                raise BadInput(f"{place}: not valid JSON: {reason}{cut}; write one object a line") from None
            if not text:
                continue
            if not isinstance(row, dict):
                raise BadInput(f"{place}: is {shown(row)}, not an object; write one {{...}} a line")
            yield place, row


def shown(value, limit=60):
    """A value as it stands in an error message, cut to `limit` characters."""
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def text_of(row, field, place):
    value = row.get(field)
    if field not in row:
        raise BadInput(f'{place}: "{field}" is missing; every row needs it')
    if not isinstance(value, str):
        raise BadInput(f'{place}: "{field}" is {shown(value)}, not a string')
    return value


def group_of(row, place):
    group = row.get("group")
    if group is not None and not isinstance(group, str):
        raise BadInput(f'{place}: "group" is {shown(group)}, not a string')
    return group


def check_row(row, place):
    """Raises BadInput unless `row` is a valid pool row (README, "The pool")."""
    text_of(row, "prompt", place), text_of(row, "completion", place)
    reward = row.get("reward")
    if "reward" not in row:
        raise BadInput(f'{place}: "reward" is missing; score the pool first: python rewards.py --help')
    if isinstance(reward, bool) or not isinstance(reward, (int, float)):
        raise BadInput(f'{place}: "reward" is {shown(reward)}, not a number')
    if not (abs(reward) <= sys.float_info.max and math.isfinite(reward)):
        raise BadInput(f'{place}: "reward" is {shown(reward)}; rewards must be finite, drop or rescore the row')
    for field in ("iteration", "quantile"):
        value, least = row.get(field, 1), 1 if field == "quantile" else 0
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
            raise BadInput(f'{place}: "{field}" is {shown(value)}, not a whole number from {least}')
    for field in ("prompt_ids", "completion_ids"):
        ids = row.get(field, [])
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 2**31 for i in ids):
            raise BadInput(f'{place}: "{field}" is {shown(ids)}, not a list of token ids')


def read_pool(paths):
    """Yields (place, row) of every pool file in `paths` (files, or folders of *.jsonl), each row checked."""
    for path in pool_files(paths):
        for place, row in read_jsonl(path):
            check_row(row, place)
            yield place, row


def pool_files(paths):
    files = []
    for path in map(Path, paths):
        inside = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not inside:
            raise BadInput(f"{path} holds no .jsonl file; name the folder that explore.py writes to")
        files += inside
    return list({file.resolve(): file for file in files}.values())  # a file that is named twice, or stands in a named folder, counts once


def read_prompts(path):
    """The prompts of a JSONL file, as a list of {"prompt": str, "group": str or None}.

    "prompt" may be a string or {"text": ...}, so that RealToxicityPrompts can be used unchanged.
    """
    prompts = []
    for place, row in read_jsonl(path):
        if isinstance(row.get("prompt"), dict):
            row = {**row, "prompt": row["prompt"].get("text")}
        prompts.append({"prompt": text_of(row, "prompt", place), "group": group_of(row, place)})
    if not prompts:
        raise BadInput(f'{path} holds no prompts; write one {{"prompt": "..."}} a line')
    return prompts


def dump_row(row):
    return json.dumps(row, ensure_ascii=False)


# -------------------------------------------------------------------------- outputs appear whole, or not at all


@contextlib.contextmanager
def whole_file(path, args=None):
    """A text file to write to that appears under its name only when the block ends well (write, fsync, rename).

    `args`, the settings that made it, are written beside it just before: where the file is, its settings are too.
    """
    path = Path(path)
    beside, file = _open_beside(path)
    with _or_nothing(path, lambda: beside.unlink(missing_ok=True)):
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if args is not None:
            write_args(path, args)
        os.replace(beside, path)
        _fsync(path.parent)


def check_writable(path):
    """Raises BadInput if the file `path` cannot be written: better before hours of sampling than after them."""
    beside, file = _open_beside(Path(path))
    file.close()
    beside.unlink(missing_ok=True)


def _open_beside(path):
    if path.is_dir():
        raise BadInput(f"cannot write {path}: it is a folder; name a file in it with --out")
    beside = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return beside, beside.open("w", encoding="utf-8", newline="\n")
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; choose another --out") from None


@contextlib.contextmanager
def whole_folder(path):
    """The same for a folder: yields a Path to fill, which takes the place of `path` when the block ends well."""
    check_replaceable(path)
    path = Path(path).resolve()
    beside, before = path.with_name(path.name + ".tmp"), path.with_name(path.name + ".replaced")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; choose another --out") from None

    def clean_up():
        shutil.rmtree(beside, ignore_errors=True)
        if before.exists() and not path.exists():
            os.replace(before, path)

    with _or_nothing(path, clean_up):
        yield beside
        for file in beside.iterdir():
            _fsync(file)
        _fsync(beside)
        if path.exists():
            os.replace(path, before)  # killed after this line, the next start puts it back: check_replaceable
        os.replace(beside, path)
        _fsync(path.parent)
        shutil.rmtree(before, ignore_errors=True)


def check_replaceable(path):
    """Only a checkpoint or an empty folder is ever replaced: a slip in --out must not erase what else a person has."""
    path = Path(path).resolve()
    before = path.with_name(path.name + ".replaced")
    if (before / "config.json").exists():  # whole_folder was killed between its two renames, or after them
        shutil.rmtree(before) if path.exists() else os.replace(before, path)
    if path.is_file() or path.is_dir() and any(path.iterdir()) and not (path / "config.json").exists():
        raise BadInput(f"{path} exists and is no checkpoint; choose another --out")


@contextlib.contextmanager
def _or_nothing(path, clean_up):
    """Whatever ends the block early, Ctrl-C too: clean up. A disk that is full is the user's to mend, so one sentence."""
    try:
        yield
    except BaseException as error:
        clean_up()
        if isinstance(error, OSError):
            raise BadInput(f"cannot write {path}: {error.strerror or error}; nothing was changed, make room and start again") from None
        raise


def _fsync(path):
    """Asks the disk to keep a file, or the names in a folder, before the next line runs."""
    if os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Growing:
    """A JSONL file that grows while its rows come in, so that after a crash nothing done or paid for is done again.

    `path` + the number of the process (RANK under torchrun, else 0): each process adds to its own and reads all of them
    into `rows`, whatever their number was last time. A last line that was cut off is dropped.
    """

    def __init__(self, path):
        self.own, self.file, self.size = Path(f"{path}{os.environ.get('RANK', 0)}"), None, 0
        self.rows = []
        for part in sorted(self.own.parent.glob(glob.escape(Path(path).name) + "[0-9]*")):
            for number, line in enumerate(part.read_bytes().split(b"\n")[:-1], 1):
                try:
                    self.rows.append(json.loads(line))
                except ValueError:
                    raise BadInput(f"{part}:{number}: damaged; remove this line, or the file to do without what it kept") from None

    def add(self, rows):
        """Whole rows, on the disk when this returns, or none of them."""
        data = b"".join(dump_row(row).encode() + b"\n" for row in rows)
        try:
            if self.file is None:
                self.own.parent.mkdir(parents=True, exist_ok=True)
                self.file = self.own.open("a+b", buffering=0)
                _lock(self.file)
                self.file.seek(0)
                self.size = self.file.read().rfind(b"\n") + 1
                self.file.truncate(self.size)
            while data:
                data = data[self.file.write(data) :]
            os.fsync(self.file.fileno())
            self.size = self.file.tell()
        except BlockingIOError:
            raise BadInput(f"another process is writing {self.own}; wait for it, or choose another --out") from None
        except OSError as error:
            if self.file:
                self.file.truncate(self.size)
                if not self.size:
                    self.own.unlink(missing_ok=True)
            raise BadInput(f"cannot write {self.own}: {error.strerror}; make room and start again to go on") from None


def _lock(file):
    """Raises BlockingIOError while another process holds the lock; it goes with the process, however that ends."""
    with contextlib.suppress(ImportError):  # Windows has no fcntl, and no lock here
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_json(path, value):
    with whole_file(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False, default=str, allow_nan=False) + "\n")


def write_args(path, args):
    """The settings that made an output file, beside it: pool/00.jsonl -> pool/00.args.json."""
    path = Path(path)
    write_json(path.with_name(path.name.removesuffix(".jsonl") + ".args.json"), vars(args))


def run_stage(main):
    """What every stage's last line calls: bad input ends with one line and a non-zero exit, no traceback."""
    try:
        main()
    except BadInput as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")


# ------------------------------------ options of several stages; here, so that their --help need not wait for PyTorch


def add_sampling_arguments(parser, num_samples, top_p):
    """The options that explore.py and evaluate.py share."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--num-samples", type=int, default=num_samples, help=f"completions a prompt (default {num_samples})")
    group.add_argument("--max-new-tokens", type=int, default=20, help="length of y in tokens (default 20)")
    group.add_argument("--min-new-tokens", type=int, default=3, help="tokens before y may end (default 3, as the authors)")
    group.add_argument("--decode", choices=["sample", "greedy", "mixed"], default="sample",
                       help="mixed: half greedy, half sampled, as the paper explores repetition (default sample)")  # fmt: skip
    group.add_argument("--bf16", action="store_true", help="multiply in bfloat16 while sampling: faster on GPUs and on CPUs with\nAVX512-BF16 or AMX")
    group.add_argument("--temperature", type=float, default=1.0, help="T; logits are divided by it (default 1)")
    group.add_argument("--top-k", type=int, default=0, help="only the k likeliest tokens; 50 in the authors' code (default 0: all)")
    group.add_argument("--top-p", type=float, default=top_p, help=f"nucleus mass (default {top_p})")
    group.add_argument("--batch-size", type=int, default=128, help="rows sampled together (default 128)")
    group.add_argument("--seed", type=int, default=0, help="of the random numbers (default 0)")
    group.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="auto: a GPU if there is one (default auto)")
    group.add_argument("--reward-model", help="folder or hub name of the reward's classifier (default: the shipped one)")


def check_sampling_arguments(parser, args):
    check_options(parser, args, [
        ("num_samples", args.num_samples >= 1, "at least 1"),
        ("max_new_tokens", args.max_new_tokens >= 1, "at least 1"),
        ("min_new_tokens", 0 <= args.min_new_tokens <= args.max_new_tokens, "from 0 to --max-new-tokens"),
        ("temperature", 0 < args.temperature < 1e6, "above 0 (for the likeliest token: --decode greedy)"),
        ("top_k", args.top_k >= 0, "at least 0"),
        ("top_p", 0 < args.top_p <= 1, "above 0 and at most 1"),
        ("batch_size", args.batch_size >= 1, "at least 1"),
        ("seed", 0 <= args.seed < 2**31, "from 0 to 2^31 - 1"),
        ("iteration", 0 <= getattr(args, "iteration", 0) < 2**31, "from 0"),
        ("num_prompts", getattr(args, "num_prompts", None) is None or args.num_prompts >= 1, "at least 1"),
    ])  # fmt: skip


def check_options(parser, args, rules):
    """rules: [(option, ok, what it must be)]; the first one that is not ok ends the stage with one sentence."""
    for name, ok, rule in rules:
        if not ok:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be {rule}")


# ---------------------------------------------------------------------------------------------------------- stage 2


def quantize(paths, K, out, seed=0, per_prompt=False, last=None, keep_top=None, keep_p0=False, ties="random", random=False, args=None):
    """Two passes over the files: the first keeps a number a row (10^6 rows: tens of MB), the second writes."""
    out, files = Path(out), pool_files(paths)
    if any(out.resolve() == f.resolve() for f in files) or any(out.parent.resolve() == Path(p).resolve() for p in paths):
        raise BadInput(f"--out {out} would be one of the pool files; pool files are never changed, choose another folder")
    rewards, iterations, prompts, number_of = array("d"), array("i"), array("q"), {}
    for place, row in read_pool(files):
        if last is not None and "iteration" not in row:
            raise BadInput(f'{place}: "iteration" is missing; --last needs it in every row')
        rewards.append(row["reward"])
        iterations.append(row.get("iteration", 0))
        if per_prompt:
            prompts.append(number_of.setdefault(row["prompt"], len(number_of)))
    if not rewards:
        raise BadInput(f"{', '.join(map(str, files))}: no rows to quantize; run explore.py first")

    rewards = np.frombuffer(rewards)
    keep = bounded(rewards, np.frombuffer(iterations, dtype=np.int32), last, keep_top, seed, keep_p0)
    quantiles = np.zeros(len(rewards), dtype=np.int64)  # 0: left out
    ranked_by = np.random.default_rng([seed, 2]).random(len(rewards)) if random else rewards
    if per_prompt:
        prompts = np.frombuffer(prompts, np.int64)[keep]
        if np.bincount(prompts).max() == 1 and K > 1:
            raise BadInput("--per-prompt needs several samples of a prompt, and here every prompt has one; raise --num-samples or --last")
        if not 1 <= K <= len(prompts):
            raise BadInput(f"cannot cut {len(prompts)} samples into K = {K} quantiles; choose --quantiles from 1 to {len(prompts)}")
        quantiles[keep] = assign_quantiles_per_prompt(ranked_by[keep], prompts, K, seed, ties)
    else:
        quantiles[keep] = assign_quantiles(ranked_by[keep], K, seed, ties)

    with whole_file(out, args) as file:
        n = 0
        for n, (_, row) in enumerate(read_pool(files), 1):
            if n <= len(rewards) and quantiles[n - 1]:
                file.write(dump_row({**row, "quantile": int(quantiles[n - 1])}) + "\n")
        if n != len(rewards):
            raise BadInput(f"the pool had {len(rewards)} rows when it was ranked and {n} when it was written; "
                           "if another program is writing it, wait; a pipe must be saved to a file first")  # fmt: skip
    return rewards, quantiles


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0] + " Prints each part's size and rewards.",
        epilog="example: python quantize.py runs/repetition-tiny/pool --quantiles 5 --out q.jsonl")  # fmt: skip
    parser.add_argument("pool", nargs="+", help="pool files, or folders of them")
    parser.add_argument("--quantiles", type=int, default=5, metavar="K", help="K, number of parts (default 5)")
    parser.add_argument("--out", required=True, help="JSONL file to write, e.g. quantized/00.jsonl")
    parser.add_argument("--seed", type=int, default=0, help="breaks ties between equal rewards (default 0)")
    parser.add_argument("--ties", choices=["random", "age", "together"], default="random",
                        help="equal rewards: in random order; by age, the older one better (the authors' code); or all in one part, "
                        "which makes the parts unequal (default random)")  # fmt: skip
    parser.add_argument("--random", action="store_true", help="ignore the rewards, every sample gets a random quantile: the paper's ablation")
    other = parser.add_argument_group("not in the paper")
    other.add_argument("--per-prompt", action="store_true", help="rank each sample among its own prompt's samples only")
    other.add_argument("--last", type=int, metavar="N", help="keep the newest N iterations (default: all)")
    other.add_argument("--keep-p0", action="store_true", help="with --last: keep iteration 0, which p0 wrote, as well")
    other.add_argument("--keep-top", type=float, metavar="F", help="keep the best fraction F, 0 < F <= 1 (default: all)")
    args = parser.parse_args(argv)
    if args.last is not None and args.last < 1:
        parser.error(f"--last {args.last}: keep at least 1 iteration")
    if args.keep_p0 and args.last is None:
        parser.error("--keep-p0 says what stays besides the newest iterations; add --last N")
    if args.keep_top is not None and not 0 < args.keep_top <= 1:
        parser.error(f"--keep-top {args.keep_top}: a fraction above 0 and at most 1")
    if not 0 <= args.seed < 2**31:
        parser.error(f"--seed {args.seed}: a whole number from 0 to 2^31 - 1")

    rewards, quantiles = quantize(args.pool, args.quantiles, args.out, args.seed, args.per_prompt, args.last, args.keep_top, args.keep_p0,
                                  args.ties, args.random, args)  # fmt: skip
    if (quantiles == 0).any():
        print(f"left out {int((quantiles == 0).sum())} of {len(rewards)} rows")
    for k in range(args.quantiles, 0, -1):
        part = rewards[quantiles == k]
        span = f"reward {part.min():.4f} to {part.max():.4f}, mean {part.mean():.4f}" if len(part) else "empty"
        print(f"r_{k}  {len(part):7d} rows  {span}")


if __name__ == "__main__":
    run_stage(main)
