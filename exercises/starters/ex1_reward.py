"""Exercise 1: a reward of your own. The model will unlearn what it marks down.

Try it on samples without training:

    python explore.py --model tiny/lm --prompts tiny/prompts/train.jsonl --reward length --num-prompts 100 --out runs/ex1/00.jsonl
    python rewards.py --reward exercises/starters/ex1_reward.py:reward --pool runs/ex1/00.jsonl
"""

UNWANTED = []  # three or more completions, as the model could write them, that show what it should unlearn
WANTED = []  # three or more that are fine


def reward(prompts, completions, **kwargs):
    """r(x, y) of every pair: two lists of N strings -> a list of N numbers from 0 (unwanted) to 1 (fine).

    At least 0.5 for every text of WANTED, less for every text of UNWANTED. Saying nothing must not be a way out.
    """
    raise NotImplementedError
