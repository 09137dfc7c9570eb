r"""Task vectors: the difference of two fine-tuned models' weights, added to p0's.

DExperts adds the difference of logits at every token; here that of the weights is added once, so
the result is one ordinary model:

    theta(lambda) = theta_0 + lambda (theta_plus - theta_minus)
    theta(lambda) = theta_0 - lambda (theta_minus - theta_0)      without --expert: negation alone

Source   Ilharco et al. 2023 (arXiv 2212.04089), section 2
Reads    --model, p0; --expert and --anti-expert, folders of learn.py that started from p0
Writes   --out, a model folder, for evaluate.py --model

    python baselines/weights.py --model tiny/lm --expert runs/baselines/good \
        --anti-expert runs/baselines/bad --scale 1 --out runs/baselines/weights
    python evaluate.py --model runs/baselines/weights --reference tiny/lm --reward sentiment \
        --prompts tiny/prompts/test.jsonl --out runs/baselines/weights-measured

Where we differ: nothing in the arithmetic; lambda is chosen on prompts that are not tested.
"""

import common
import torch

from plumbing import options
from plumbing.policy import load_policy
from plumbing.pool import BadInput


def add_weights(zero, plus, minus, scale):
    """{name: tensor} of three models -> theta_0 + scale (theta_plus - theta_minus), as float32."""
    for other in (plus, minus):
        if {k: v.shape for k, v in other.items()} != {k: v.shape for k, v in zero.items()}:
            raise BadInput("the models have other weights than p0; fine-tune p0 itself")
    return {name: zero[name] + scale * (plus[name] - minus[name]) for name in zero}


def main(argv=None):
    parser = options.stage_parser(__doc__)
    add = parser.add_argument
    add("--model", required=True, help="p0, a folder or hub name")
    add("--expert", help="p0 fine-tuned on good text (default: p0 itself)")
    add("--anti-expert", required=True, help="p0 fine-tuned on bad text")
    add("--scale", type=float, default=1.0, help="lambda")
    add("--out", required=True, help="model folder to write")
    args = parser.parse_args(argv)
    names = [args.model, args.expert or args.model, args.anti_expert]
    common.check_folder(args, names)
    policy, plus, minus = (load_policy(name) for name in names)
    weights = [dict(p.model.named_parameters()) for p in (policy, plus, minus)]
    with torch.no_grad():
        for name, value in add_weights(*weights, args.scale).items():
            weights[0][name].copy_(value)
    policy.save(args.out)


if __name__ == "__main__":
    options.run_stage(main)
