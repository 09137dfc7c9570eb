"""Going on after a stop: the samples that explore.py has scored, and the optimiser of learn.py."""

import errno
import glob
import hashlib
import json
import pickle
from pathlib import Path

import torch

from plumbing.append_log import AppendLog
from plumbing.files import checksums, first_line, write_json
from plumbing.pool import BadInput
from plumbing.processes import processes

# What loading a damaged optimizer.pt can raise.
DAMAGED = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, LookupError)

# ------------------------------------------------------------------------------------ explore.py


def open_log(policy, prompts, args, reward_files):
    """The append log for exactly this job, and the rows that it already has as {number: row}.

    Its name is OUT.CHECKSUM.part. The checksum covers settings, prompts, the model's weights and
    the files of the reward, so another job does not reuse its rows.
    """
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "device")}
    digest = hashlib.sha256(json.dumps([settings, prompts], sort_keys=True).encode())
    digest.update(checksums(reward_files).encode())
    for weights in policy.model.state_dict().values():
        digest.update(weights.cpu().float().numpy().tobytes())  # NumPy has no bfloat16
    log = AppendLog(f"{args.out}.{digest.hexdigest()[:8]}.part", ["number", "reward"])
    rows = {row.pop("number"): row for row in log.rows}
    if rows and processes()[0] == 0:
        total = len(prompts) * args.num_samples
        print(f"going on: {len(rows)} of {total} samples were kept in {log.own}", flush=True)
    return log, rows


def remove_logs(out):
    """Removes the append logs of a finished output, those of all processes."""
    name = glob.escape(Path(out).name)
    for part in Path(out).parent.glob(f"{name}.{'[0-9a-f]' * 8}.part[0-9]*"):
        part.unlink(missing_ok=True)


# -------------------------------------------------------------------------------------- learn.py


def write_training_state(folder, optimiser, step, metrics, args):
    """Adds to a checkpoint what the next round of learn.py needs, and its metrics and settings."""
    try:
        torch.save({"optimizer": optimiser.state_dict(), "step": step}, folder / "optimizer.pt")
    except RuntimeError as error:
        if "inline_container" not in str(error):  # PyTorch's words for a file that it cannot write
            raise
        raise OSError(errno.ENOSPC, "optimizer.pt could not be written as a whole") from error
    lines = "".join(json.dumps(m) + "\n" for m in metrics)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    write_json(folder / "args.json", vars(args))


def load_training_state(optimiser, model, device):
    """Loads the optimiser's state from the checkpoint `model`, if it has one. Returns its step."""
    file = Path(model) / "optimizer.pt"
    if not file.exists():
        return 0
    try:
        state = torch.load(file, map_location=device, weights_only=True)  # never runs code
        optimiser.load_state_dict(state["optimizer"])
        for p in optimiser.param_groups[0]["params"]:  # PyTorch itself does not compare the shapes
            for name in ("exp_avg", "exp_avg_sq"):
                if (moment := optimiser.state[p][name]).shape != p.shape:
                    raise ValueError(f"{name} is {list(moment.shape)} for {list(p.shape)} weights")
        if not (isinstance(state["step"], int) and state["step"] >= 0):
            raise ValueError(f"its step is {state['step']!r}")
        return state["step"]
    except (*DAMAGED, OSError) as error:
        raise BadInput(
            f"{file} holds no state of this optimiser: {first_line(error)}; "
            "remove it to start afresh"
        ) from None
