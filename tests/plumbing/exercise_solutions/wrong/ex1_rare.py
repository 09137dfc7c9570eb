"""Wrong: it punishes what the model never does, so there is nothing to sort."""

UNWANTED = [
    " about an elephant in a house",
    " the elephant is slow and sad",
    " seen by an elephant or two",
]
WANTED = [" about a horse in a house", " the horse is slow and sad", " seen by a horse or two"]


def reward(prompts, completions, **kwargs):
    return [0.0 if "elephant" in y or len(y.split()) < 4 else 1.0 for y in completions]
