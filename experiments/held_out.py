"""A judge of sentiment that no model was trained against: VADER, a public lexicon with rules.

    pip install vaderSentiment
    python evaluate.py --generations runs/sentiment-tiny/eval/quark.jsonl --reference tiny/lm \\
        --reward sentiment experiments/held_out.py:vader \\
        --out runs/sentiment-tiny/eval/quark-held-out

(Hutto and Gilbert, ICWSM 2014.) If the reward of the trained judge rises and that of this one does
not, the policy has learned to fool the judge. Compare its `mean`. Of many texts it has no opinion
and says exactly 1/2, which `share_ge_half` counts as positive.
"""


def vader(prompts, completions, **kwargs):
    """(compound + 1) / 2 of prompt and completion together: 1 positive, 1/2 neutral, 0 negative."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    scores = [analyzer.polarity_scores(x + y)["compound"] for x, y in zip(prompts, completions)]
    return [(score + 1) / 2 for score in scores]
