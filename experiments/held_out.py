"""A judge of sentiment that nobody trained on: VADER, a public lexicon with rules (Hutto and Gilbert, ICWSM 2014).

    pip install vaderSentiment
    python evaluate.py --generations runs/sentiment-tiny/eval/quark.jsonl --reference tiny/lm \\
        --reward sentiment experiments/held_out.py:vader --out runs/sentiment-tiny/eval/quark-held-out

If the trained judge's reward rises and this one's does not, the policy has learned to fool the judge. Compare its `mean`: it has no
opinion of many texts, exactly 1/2, which `share_ge_half` counts as positive.
"""


def vader(prompts, completions, **kwargs):
    """(compound + 1) / 2 of prompt and completion together, as the shipped judge reads them: 1 positive, 1/2 neutral, 0 negative."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return [(analyzer.polarity_scores(x + y)["compound"] + 1) / 2 for x, y in zip(prompts, completions)]
