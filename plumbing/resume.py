"""Going on after a stop: the samples that explore.py has scored, and the optimiser of learn.py."""

import glob
import hashlib
import json
import os
import pickle
from pathlib import Path

import torch

from plumbing.files import AppendLog, write_json
from plumbing.pool import BadInput
from plumbing.processes import processes

# What loading a damaged optimizer.pt can raise.
DAMAGED = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, KeyError)

# ------------------------------------------------------------------------------------ explore.py


def open_log(policy, prompts, args):
    """The append log for exactly this job, and the rows that it already has as {number: row}.

    Its name is OUT.CHECKSUM.part. The checksum covers settings, prompts, an own reward's file and
    a part of the model's weights, so another job does not reuse its rows.
    """
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "device")}
    service = None
    if args.reward == "remote":
        service = [os.environ.get("REMOTE_URL"), os.environ.get("REMOTE_ATTRIBUTE")]
    digest = hashlib.sha256(json.dumps([settings, prompts, service], sort_keys=True).encode())
    if ":" in args.reward:
        digest.update(Path(args.reward.rsplit(":", 1)[0]).read_bytes())
    last_layer_norm = list(policy.model.base_model.children())[-1]  # stands for all weights
    digest.update(last_layer_norm.weight.detach().cpu().numpy().tobytes())
    log = AppendLog(f"{args.out}.{digest.hexdigest()[:8]}.part")
    rows = {row.pop("number"): row for row in log.rows}
    if rows and processes()[0] == 0:
        total = len(prompts) * args.num_samples
        print(f"going on: {len(rows)} of {total} samples were kept in {log.own}", flush=True)
    return log, rows


def remove_logs(out):
    """Removes the append logs of a finished output, those of all processes."""
    for part in Path(out).parent.glob(glob.escape(Path(out).name) + ".*.part*"):
        part.unlink(missing_ok=True)


# -------------------------------------------------------------------------------------- learn.py


def write_training_state(folder, optimiser, step, metrics, args):
    """Adds to a checkpoint what the next round of learn.py needs, and its metrics and settings."""
    torch.save({"optimizer": optimiser.state_dict(), "step": step}, folder / "optimizer.pt")
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
        return int(state["step"])
    except DAMAGED as error:
        reason = str(error).strip().split("\n")[0]
        raise BadInput(
            f"{file} holds no state of this optimiser: {reason}; remove it to start afresh"
        ) from None
