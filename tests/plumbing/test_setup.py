"""plumbing/setup.sh: a run's folder belongs to the settings it was made with."""

import os
import shutil
import subprocess

from conftest import ROOT, execute


def test_other_settings_want_another_folder(tmp_path):
    """Finished stages are skipped, so run_all.sh refuses a folder made with other settings.

    It says which setting, and notices an edited reward file. Settings that only round the numbers
    may change. `true` stands in for python: it makes nothing, and always succeeds.
    """
    my_reward, folder = tmp_path / "my.py", tmp_path / "run"
    my_reward.write_text("def f(): pass\n")

    def run(**settings):
        given = {"RUN": str(folder), "REWARD": f"{my_reward}:f", "PYTHON": "true", **settings}
        done = execute("bash", "run_all.sh", **given)
        return done.returncode, done.stderr.strip()

    def refused(**settings):
        status, said = run(**settings)
        assert status == 1
        assert "\n" not in said
        return said

    for settings in ({}, {}, {"SAMPLE_BATCH": "16", "GRAD_ACCUM": "2", "BF16": ""}):
        assert run(**settings)[0] == 0
    made = f"{folder} was made with "
    assert made + "K=5, and now it is K=7" in refused(K="7")
    quantize = "QUANTIZE=--per-prompt --keep-top 0.8, and now it is QUANTIZE=;"
    assert made + quantize in refused(QUANTIZE="")
    assert made + "ITERATIONS=6, and now it is ITERATIONS=8" in refused(ITERATIONS="8")
    assert made + "LEARN=, and now" in refused(LEARN="--closed-form")
    my_reward.write_text("def f(): return\n")
    assert "checksum of" in refused()
    assert "PYTHON=no-such-python does not start" in refused(PYTHON="no-such-python")


def test_an_edited_stage_wants_another_folder(tmp_path):
    """Who edits the loss and starts the same run again must not be shown the old results."""
    house = tmp_path / "house"
    shutil.copytree(ROOT / "settings", house / "settings")
    (house / "plumbing").mkdir()
    stages = ("explore.py", "quantize.py", "learn.py", "rewards.py")
    for name in ("run_all.sh", "plumbing/setup.sh", *stages):
        shutil.copy(ROOT / name, house / name)

    def run():
        environment = {**os.environ, "PYTHON": "true", "RUN": str(tmp_path / "run")}
        command = ["bash", house / "run_all.sh"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert run().returncode == run().returncode == 0
    for name in stages:
        source = (house / name).read_text()
        (house / name).write_text(source + "# another loss\n")
        done = run()
        assert done.returncode == 1
        assert f"made with checksum of {name}=" in done.stderr
        (house / name).write_text(source)
    assert run().returncode == 0
