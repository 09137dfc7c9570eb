r"""Exercise 1: a reward of your own. The model will unlearn what gets a low reward.

Try it on samples, without training:

    python explore.py --model tiny/lm --prompts tiny/prompts/train.jsonl --reward length \
        --num-prompts 100 --out runs/ex1/00.jsonl
    python rewards.py --reward exercises/starters/ex1_reward.py:reward --pool runs/ex1/00.jsonl
"""

# Three or more completions that show what the model should unlearn. They should be texts that the
# model could write. All examples are scored as completions of the prompt "The film".
UNWANTED = []

# Three or more completions that are fine.
WANTED = []


def reward(prompts, completions, **kwargs):
    """r(x, y) of every pair: two lists of N strings -> a list of N numbers from 0 to 1.

    1 is fine and 0 is unwanted. Every text of WANTED gets at least 0.5, every text of UNWANTED gets
    less. So do texts without words, or the model would learn to write them.
    """
    raise NotImplementedError
