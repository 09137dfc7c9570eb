"""Going on after a stop: which samples of an interrupted explore.py are used again."""

import json
import os

from conftest import read_rows, stage, write_jsonl

# Fails in its third batch of two, unless the file `mended` exists.
FAILS = """
import os
def f(prompts, completions, **kwargs):
    with open(r"FOLDER/asked", "a") as file:
        file.write("x" * len(prompts))
    assert os.path.getsize(r"FOLDER/asked") < 5 or os.path.exists(r"FOLDER/mended"), "out of money"
    return [0.5] * len(prompts)
"""


def test_kept_samples_are_used_by_the_same_settings_only(quark_folder, tmp_path, monkeypatch):
    """A reward that fails in its third batch leaves two batches behind, four samples of six.

    The same settings go on from there, and score only the other two. Another seed, another nucleus
    or an edited reward file starts afresh.
    """
    my_reward, asked = tmp_path / "my.py", tmp_path / "asked"
    my_reward.write_text(FAILS.replace("FOLDER", str(tmp_path)))
    words = ["The", "film", "was", "good", "it", "is"]
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt": word} for word in words])
    out = tmp_path / "pool" / "00.jsonl"

    def explore(*more):
        argv = ["--model", quark_folder, "--prompts", prompts, "--reward", f"{my_reward}:f"]
        argv += ["--batch-size", 2, "--max-new-tokens", 5, "--device", "cpu", "--out", out]
        return stage(monkeypatch, "explore.py", *argv, *more)

    def number_scored(*more):
        """Explores with success. How many samples were scored for it?"""
        asked.unlink()
        assert explore(*more) is None
        assert len(read_rows(out)) == 6
        return len(asked.read_text())

    assert "out of money" in explore()
    (part,) = (tmp_path / "pool").iterdir()
    kept = part.read_bytes()
    assert [json.loads(line)["reward"] for line in kept.splitlines()] == [0.5] * 4
    (tmp_path / "mended").touch()
    for other in (["--seed", 1], ["--top-p", 0.5]):
        assert number_scored(*other) == 6
        part.write_bytes(kept)
    assert number_scored() == 2
    assert sorted(os.listdir(out.parent)) == ["00.args.json", "00.jsonl"]
    assert [row["prompt"] for row in read_rows(out)] == words
    part.write_bytes(kept)
    my_reward.write_text(my_reward.read_text() + "# edited\n")
    assert number_scored() == 6
