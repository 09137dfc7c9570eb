"""The reward: repetition by hand, the judges against an independent computation, the command."""

import hashlib
import json
import math
import os
import sys

import pytest
import torch
from conftest import execute, one_sentence, read_rows, stage, write_jsonl, write_reward

import rewards
from plumbing.pool import BadInput
from rewards import diversity, load_reward, rep_n, repetition

# --------------------------------------------------------------------------------------- repetition


def test_rep_n_by_hand():
    """a b a b a: how many n-grams are repeated, and the product.

        2-grams  ab ba ab ba   2 of 4 are different, so rep-2 = 1 - 2/4 = 1/2
        3-grams  aba bab aba   2 of 3 are different, so rep-3 = 1 - 2/3 = 1/3
        4-grams  abab baba     both are different, so rep-4 = 0

    diversity = (1 - 1/2) (1 - 1/3) (1 - 0) = 1/3.
    """
    tokens = ["a", "b", "a", "b", "a"]
    assert rep_n(tokens, 2) == pytest.approx(1 / 2)
    assert rep_n(tokens, 3) == pytest.approx(1 / 3)
    assert rep_n(tokens, 4) == 0
    assert diversity(tokens) == pytest.approx(1 / 3)


def test_rep_n_of_a_loop_and_of_too_little():
    """Ten equal tokens have 9 2-grams, 8 3-grams and 7 4-grams, one different each.

    Without any n-gram rep-n is 0. Five different tokens have a diversity of 1.
    """
    assert diversity([4] * 10) == pytest.approx(1 / 9 * 1 / 8 * 1 / 7)
    assert rep_n([], 2) == rep_n([1], 2) == rep_n([1, 2, 3], 4) == 0
    assert diversity([1, 2, 3, 4, 5]) == 1


def test_ngrams_keep_their_order():
    """1 2 1: the 2-grams (1, 2) and (2, 1) are different."""
    assert rep_n([1, 2, 1], 2) == 0


def test_repetition_counts_ids_when_it_has_them():
    """Token ids if they are given, otherwise words. Fewer than four get 0: saying nothing must not
    pay.

    Six equal words have 5, 4 and 3 n-grams; four equal ids have 3, 2 and 1.
    """
    texts = ["a b c d e", "a a a a a a", "a b c", ""]
    assert repetition(None, texts) == pytest.approx([1, 1 / 5 / 4 / 3, 0, 0])
    ids = [[5, 5, 5, 5], [1, 2, 3, 4]]
    assert repetition(None, ["one", "two"], completion_ids=ids) == pytest.approx([1 / 3 / 2, 1])
    assert repetition(None, ["a b c d"], completion_ids=[[1, 2, 3]]) == [0]
    reward = load_reward("repetition")
    values = reward(prompts=["x"], completions=["a b c d"], completion_ids=[[7, 7, 7, 7]])
    assert values == pytest.approx([1 / 6])


# --------------------------------------------------------------------------------------- the judges

TEXTS = [
    "the film was good",
    "bad !",
    "",
    "the film was long . " + "a b " * 14 + "good",  # longer than the judges' 22 tokens
    "a dull film",
]


def slow_logits(folder, text):
    """The logits of one text alone, without padding. Of a long text, the last 20 words count."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    net = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [2, *words[-20:], 3]  # [CLS], the words, [SEP]
    with torch.no_grad():
        return net(torch.tensor([ids])).logits[0].tolist()


def softmax(z):
    weights = [math.exp(value) for value in z]
    return [w / sum(weights) for w in weights]


def test_sentiment_is_the_softmax_of_the_positive_label(judges):
    """The label is found by its name: it is column 0 of three in one judge, 1 of two in the other.

    Prompt and completion are judged together, in that order. sentiment_label is 1 from 1/2 on.
    """
    prompts = [text[: len(text) // 2] for text in TEXTS]
    completions = [text[len(text) // 2 :] for text in TEXTS]
    for name, column in (("sentiment", 0), ("two", 1)):
        reward = load_reward("sentiment", judges / name)
        values = reward(prompts=prompts, completions=completions)
        for text, value in zip(TEXTS, values, strict=True):
            p = softmax(slow_logits(judges / name, text))
            assert value == pytest.approx(p[column], abs=1e-5)
    labels = load_reward("sentiment_label", judges / "two")
    labelled = labels(prompts=prompts, completions=completions)
    assert labelled == [float(value >= 0.5) for value in values]
    assert set(labelled) == {0, 1}


def test_toxicity_is_one_minus_the_sigmoid(judges):
    """A single logit, or labels that do not exclude each other: a sigmoid of the one called toxic.

    A softmax would be 1 for a single label. The completion alone is judged, whatever the prompt.
    """
    prompts = ["bad bad bad !"] * len(TEXTS)
    for name, column in (("toxicity", 0), ("labels", 1)):
        reward = load_reward("toxicity", str(judges / name))
        values = reward(prompts=prompts, completions=TEXTS)
        for text, value in zip(TEXTS, values, strict=True):
            z = slow_logits(judges / name, text)[column]
            assert value == pytest.approx(1 - 1 / (1 + math.exp(-z)), abs=1e-5)


# -------------------------------------------------------------------------- for tests and for class


def test_length():
    """A character is worth 0.01, up to 1."""
    values = load_reward("length")(prompts=[""] * 3, completions=["", "a" * 30, "a" * 250])
    assert values == pytest.approx([0, 0.3, 1])


def test_hash():
    """The first 48 bits of sha256(prompt NUL completion), as a fraction: the same on every machine.

    Prompt and completion are not exchanged.
    """
    reward = load_reward("hash")
    values = reward(prompts=["é", "é", " b"], completions=[" b", "b", "é"])
    digest = hashlib.sha256("é\0 b".encode()).hexdigest()
    assert values[0] == pytest.approx(int(digest[:12], 16) / 2**48)
    assert len(set(values)) == 3
    assert all(0 <= value < 1 for value in values)


# -------------------------------------------------------------------------------------- the command


def test_main_scores_a_file(tmp_path, capsys):
    """The rows come back with their rewards, a new one for an old one, other fields untouched.

    The screen shows the mean, the quartiles, the worst and the best.
    """
    rows = [{"prompt": "p", "completion": "a" * n, "note": n} for n in (10, 50, 30, 20, 40)]
    rows[0]["reward"] = 77
    pool, out = write_jsonl(tmp_path / "p.jsonl", rows), tmp_path / "o.jsonl"
    rewards.main(["--reward", "length", "--pool", str(pool), "--out", str(out)])
    assert read_rows(out) == [{**row, "reward": row["note"] / 100} for row in rows]
    printed = capsys.readouterr().out
    assert "5 of 5 scored" in printed
    assert "mean 0.3000" in printed
    quartiles = printed.split("max: ")[1].split("\n")[0].split()
    assert quartiles == ["0.1000", "0.2000", "0.3000", "0.4000", "0.5000"]
    assert printed.index("worst 0.1000") < printed.index("best 0.5000")


def test_main_leaves_out_what_has_no_score(tmp_path, capsys):
    """None is counted, and not written."""
    body = "def reward(prompts, completions): return [None if y == 'b' else 1 for y in completions]"
    spec = write_reward(tmp_path, body)
    pool = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "p", "completion": y} for y in "abc"])
    out = tmp_path / "o.jsonl"
    rewards.main(["--reward", spec, "--pool", str(pool), "--out", str(out)])
    assert [row["completion"] for row in read_rows(out)] == ["a", "c"]
    assert "2 of 3 scored" in capsys.readouterr().out
    write_reward(tmp_path, "def reward(prompts, completions): return [None for y in completions]")
    with pytest.raises(BadInput, match="scored none of the 3 rows; nothing was written"):
        rewards.main(["--reward", spec, "--pool", str(pool), "--out", str(out)])
    assert len(read_rows(out)) == 2


def test_main_bad_input(tmp_path, monkeypatch):
    """One sentence for a missing file, a bad row, an empty file, and a reward that fails."""
    good = write_jsonl(tmp_path / "good.jsonl", [{"prompt": "p", "completion": "c"}])
    rows = [{"prompt": "p", "completion": "c"}, {"prompt": "p"}]
    bad = write_jsonl(tmp_path / "bad.jsonl", rows)
    (tmp_path / "empty.jsonl").write_text("")
    nan = write_reward(tmp_path, "def reward(prompts, completions): return [float('nan')]\n")
    for pool, reward, message in [
        (tmp_path / "no.jsonl", "length", "cannot read"),
        (bad, "length", 'bad.jsonl:2: "completion"'),
        (tmp_path / "empty.jsonl", "length", "no rows"),
        (good, "lenght", "no reward is called"),
        (good, nan, "returned nan at index 0"),
    ]:
        argv = ["--reward", reward, "--pool", pool, "--out", tmp_path / "o.jsonl"]
        exit = stage(monkeypatch, "rewards.py", *argv)
        assert one_sentence(exit)
        assert message in exit
    assert not [name for name in os.listdir(tmp_path) if name.startswith("o.")]


def test_exit_status_and_no_torch(tmp_path):
    """As the shell sees it. A plain reward does not import torch, which would take seconds."""
    pool = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "p", "completion": "a b c d"}])
    code = f"""
import runpy, sys
sys.argv = ["rewards.py", "--reward", "repetition", "--pool", {json.dumps(str(pool))}]
runpy.run_path("rewards.py", run_name="__main__")
print("torch" in sys.modules)
"""
    done = execute(sys.executable, "-c", code)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "False"
    failed = execute(sys.executable, "rewards.py", "--reward", "x", "--pool", pool)
    assert failed.returncode == 1
    assert one_sentence(failed.stderr.strip())
    assert failed.stdout == ""


# ------------------------------------------------------------------------------------------- score


def test_score_keeps_a_prompt_together_and_the_order():
    """However small a call is meant to be, all samples of a prompt are in it; values go back."""
    rows = [{"prompt": p, "completion": str(i)} for i, p in enumerate("abcabcaab")]
    for chunk in (1, 2, 3, 4, 100):
        calls = []

        def reward(prompts, completions, calls=calls, **kwargs):
            calls.append(prompts)
            return [float(y) for y in completions]

        assert rewards.score(rows, reward, chunk) == list(range(9))
        for letter in "abc":
            (own,) = [call for call in calls if letter in call]
            assert own.count(letter) == "abcabcaab".count(letter)
        assert sum(map(len, calls)) == 9
    assert len(calls) == 1


def test_score_passes_columns_and_no_fields():
    """Columns of the prompt file, None where a row has none; ids; nothing that a stage wrote."""
    row = {"prompt": "a", "completion": "b", "iteration": 1, "quantile": 2, "prompt_number": 0}
    row |= {"reward": 1, "rewards": {}, "prompt_ids": [1], "number": 3}
    rows = [{**row, "completion_ids": [5], "answer": 7}, {**row, "group": "g"}]
    given = []

    def reward(**keywords):
        given.append(keywords)
        return [0.0] * len(keywords["prompts"])

    rewards.score(rows, reward)
    ids = {"completion_ids": [[5], None]}
    expected = {"prompts": ["a", "a"], "completions": ["b", "b"]}
    expected |= {"answer": [7, None], "group": [None, "g"]}
    assert given == [expected | ids]
    rewards.score([{"prompt": "b", "completion": "c"}, *rows], reward, 1)
    first, second = given[1:]  # a call has the columns of all rows
    assert first == {"prompts": ["b"], "completions": ["c"], "answer": [None], "group": [None]} | {
        "completion_ids": [None]
    }
    assert second == given[0]
    del rows[0]["completion_ids"]
    rewards.score(rows, reward)
    assert given[-1] == expected


def test_one_row_without_ids(tmp_path, capsys):
    """It is measured in words, and the others still in tokens; a line says so."""
    ids = [1, 2, 1, 2, 1]
    row = {"prompt": "p", "completion": "a b c d e"}
    pool = write_jsonl(tmp_path / "p.jsonl", [{**row, "completion_ids": ids}, row])
    out = tmp_path / "o.jsonl"
    rewards.main(["--reward", "repetition", "--pool", str(pool), "--out", str(out)])
    assert [r["reward"] for r in read_rows(out)] == pytest.approx([diversity(ids), 1])
    assert diversity(ids) < 0.5
    assert "1 of 2 rows have no completion_ids" in capsys.readouterr().out


def test_main_keeps_the_answers_of_a_service_beside_the_output(tmp_path, monkeypatch):
    """OUT.cache with --out, and nothing without it."""
    caches = []

    def load(spec, reward_model, cache):
        caches.append(cache)
        return load_reward("length")

    monkeypatch.setattr(rewards, "load_reward", load)
    pool = str(write_jsonl(tmp_path / "p.jsonl", [{"prompt": "p", "completion": "c"}]))
    rewards.main(["--reward", "remote", "--pool", pool])
    rewards.main(["--reward", "remote", "--pool", pool, "--out", str(tmp_path / "o")])
    assert caches == [None, f"{tmp_path / 'o'}.cache"]
    for missing in (["--reward", "length"], ["--pool", pool]):
        with pytest.raises(SystemExit):
            rewards.main(missing)
