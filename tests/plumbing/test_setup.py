"""plumbing/setup.sh: which Python runs, what the user's words mean, and whose folder a run is in.

`true` stands in for python where nothing needs to be made: it always succeeds, and writes nothing.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, execute
from stand_in import python_of

STAGES = ("explore.py", "quantize.py", "learn.py", "rewards.py")


def refusal(done):
    """The sentence with which run_all.sh ended. It must be one."""
    assert done.returncode == 1, done.stdout
    said = done.stderr.strip()
    assert "\n" not in said
    assert said.startswith("run_all.sh: error: ")
    return said.removeprefix("run_all.sh: error: ")


@pytest.fixture
def house(tmp_path):
    """A copy of what run_all.sh itself needs, to change, and to stand elsewhere than in it."""
    house = tmp_path / "the house"
    shutil.copytree(ROOT / "settings", house / "settings")
    shutil.copytree(ROOT / "tiny", house / "tiny", ignore=shutil.ignore_patterns("__pycache__"))
    (house / "plumbing").mkdir()
    files = ("run_all.sh", "plumbing/setup.sh", "plumbing/screen.sh", "plumbing/check_python.py")
    files += ("requirements.txt",)
    for name in (*files, *STAGES):
        shutil.copy(ROOT / name, house / name)
    return house


def recorded(run):
    """What a run's folder says about its settings."""
    lines = (run / "settings").read_text().splitlines()
    return dict(line.rsplit("=", 1) for line in lines)


# ------------------------------------------------------------------------ a folder and its settings


def test_other_settings_want_another_folder(tmp_path):
    """Finished stages are skipped, so run_all.sh refuses a folder made with other settings.

    It says which setting. Settings that only round the numbers may change.
    """
    folder = tmp_path / "run"

    def run(**settings):
        return execute("bash", "run_all.sh", **{"RUN": str(folder), "PYTHON": "true", **settings})

    for settings in ({}, {}, {"SAMPLE_BATCH": "16", "GRAD_ACCUM": "2", "BF16": ""}):
        assert run(**settings).returncode == 0
        (folder / "pool").mkdir(exist_ok=True)
        (folder / "pool" / "00.jsonl").touch()
    settings, made = folder / "settings", f"{folder} was made with "
    before = settings.read_text()
    settings.write_text(re.sub("(?m)^checksum of tiny/lm=.*\n", "", before))
    assert made + "no checksum of tiny/lm, and now" in refusal(run())  # an older run_all.sh's
    settings.write_text(before)
    assert made + "K=5, and now it is K=7" in refusal(run(K="7"))
    quantize = "QUANTIZE=--per-prompt --keep-top 0.8, and now it is QUANTIZE=;"
    assert made + quantize in refusal(run(QUANTIZE=""))
    assert made + "ITERATIONS=6, and now it is ITERATIONS=8" in refusal(run(ITERATIONS="8"))
    assert made + "LEARN=, and now" in refusal(run(LEARN="--closed-form"))
    assert made + "PROMPTS=tiny" in refusal(run(PROMPTS="README.md"))


def test_a_folder_with_settings_of_something_else(tmp_path):
    """RUN names a folder that holds a user's own file or folder `settings`: both stay."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "settings").write_text("mine=1\n")
    (tmp_path / "b" / "settings").mkdir(parents=True)
    for name in ("a", "b"):
        done = execute("bash", "run_all.sh", RUN=str(tmp_path / name), PYTHON="true")
        assert "are not those of a run" in refusal(done)
        assert os.listdir(tmp_path / name) == ["settings"]
    assert (tmp_path / "a" / "settings").read_text() == "mine=1\n"
    assert os.listdir(tmp_path / "b" / "settings") == []


def test_outputs_that_no_run_made(tmp_path):
    """A folder with a pool that was made stage by stage is not taken over, and stays as it is."""
    pool = tmp_path / "a" / "pool" / "00.jsonl"
    pool.parent.mkdir(parents=True)
    pool.write_text("mine\n")
    done = execute("bash", "run_all.sh", RUN=str(tmp_path / "a"), PYTHON="true")
    assert "holds files that run_all.sh did not make" in refusal(done)
    assert os.listdir(tmp_path / "a") == ["pool"]
    assert pool.read_text() == "mine\n"
    done = execute("bash", "run_all.sh", RUN=str(tmp_path / "a"), PYTHON="true", ADOPT="1")
    assert done.returncode == 0
    assert (tmp_path / "a" / "settings").exists()
    assert pool.read_text() == "mine\n"


def test_a_file_called_settings_tmp(tmp_path):
    """The settings are written under a name that nobody has."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "settings.tmp").write_text("mine\n")
    execute("bash", "run_all.sh", RUN=str(tmp_path / "a"), PYTHON="true")
    assert (tmp_path / "a" / "settings.tmp").read_text() == "mine\n"
    assert sorted(os.listdir(tmp_path / "a")) == ["settings", "settings.tmp"]


NUMBERS = ["ITERATIONS", "K", "SEED", "NUM_PROMPTS", "NUM_SAMPLES", "DIAL_SAMPLES"]


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_are_none(name, tmp_path):
    """Told before anything is made."""
    for value in ("abc", "-1", "1.5"):
        settings = {"RUN": str(tmp_path / "a"), "PYTHON": "true", name: value}
        done = execute("bash", "run_all.sh", **settings)
        assert f"{name}={value} is not a whole number" in refusal(done)
        assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "made, counts",
    [
        ("pool/00.jsonl", True),
        ("eval/base.json", True),
        ("model/01/config.json", True),
        ("pool/00.jsonl.0123abcd.part0", False),
        ("pool/remote.cache0", False),
        ("model/.01.unfinished/config.json", False),
        ("quantized/.00.jsonl.unfinished", False),
    ],
)
def test_settings_hold_once_something_was_made(made, counts, tmp_path):
    """Until then a mistake can be corrected. Unfinished files do not count.

    The samples of a killed explore.py are in a file that belongs to its settings.
    """
    given = {"RUN": str(tmp_path / "run"), "PYTHON": "true", "ITERATIONS": "1"}
    assert execute("bash", "run_all.sh", LR="5e4", **given).returncode == 0
    (tmp_path / "run" / made).parent.mkdir(parents=True)
    (tmp_path / "run" / made).touch()
    corrected = execute("bash", "run_all.sh", LR="5e-4", **given)
    if counts:
        assert "LR=5e4, and now it is LR=5e-4" in refusal(corrected)
    else:
        assert corrected.returncode == 0
        assert recorded(tmp_path / "run")["LR"] == "5e-4"


def test_another_content_wants_another_folder(house, tmp_path):
    """Prompts, models, judges, rewards and stages are known by their content, not by name alone."""
    for name in ("p0", "larger"):
        shutil.copytree(house / "tiny" / "lm", house / name)
    shutil.copytree(house / "tiny" / "sentiment", house / "judge")
    for name in ("train.jsonl", "test.jsonl", "my.py"):
        (house / name).write_text("before\n")
    mine = {"MODEL": "p0", "PPL_MODEL": "larger", "PROMPTS": "train.jsonl"}
    mine |= {"TEST_PROMPTS": "test.jsonl", "ITERATIONS": "1", "PYTHON": "true"}

    def run(task, **settings):
        return execute("bash", "run_all.sh", task, cwd=house, **mine, RUN="run", **settings)

    common = {"train.jsonl": "train.jsonl", "test.jsonl": "test.jsonl"}
    common |= {"p0/model.safetensors": "p0", "p0/vocab.json": "p0", "p0/merges.txt": "p0"}
    common |= {"larger/config.json": "larger", "larger/tokenizer_config.json": "larger"}
    common |= {name: name for name in STAGES}
    judge = {"judge/tokenizer.json": "judge"}
    for task, settings, edits in (
        ("toxicity", {"REWARD_MODEL": "judge"}, {**common, **judge}),
        ("sentiment", {"REWARD": "my.py:f"}, {"my.py": "my.py"}),
    ):
        assert run(task, **settings).returncode == 0
        (house / "run" / "pool").mkdir()
        (house / "run" / "pool" / "00.jsonl").touch()
        assert run(task, **settings).returncode == 0
        for file, named in edits.items():
            before = (house / file).read_bytes()
            (house / file).write_bytes(before + b"# another\n")
            assert f"{named} has changed since run was made; choose" in refusal(
                run(task, **settings)
            )
            (house / file).write_bytes(before)
        assert run(task, **settings).returncode == 0
        shutil.rmtree(house / "run")


@pytest.mark.parametrize(
    "settings, judge",
    [
        ({}, "tiny/sentiment"),
        ({"REWARD": "sentiment_label"}, "tiny/sentiment"),
        ({"REWARD": "toxicity"}, "tiny/toxicity"),
        ({"REWARD": "toxicity", "REWARD_MODEL": "tiny/sentiment"}, "tiny/sentiment"),
        ({"REWARD": "toxicity", "REWARD_MODEL": "of-the/hub"}, None),
        ({"REWARD": "repetition"}, None),
    ],
)
def test_the_judge_that_a_run_uses_is_recorded(settings, judge, tmp_path):
    given = {"RUN": str(tmp_path / "run"), "PYTHON": "true", "ITERATIONS": "0", **settings}
    assert execute("bash", "run_all.sh", **given).returncode == 0
    judges = [name for name in recorded(tmp_path / "run") if re.search("tiny/(sent|tox)|hub", name)]
    assert judges == ([f"checksum of {judge}"] if judge else [])


def test_only_our_own_leftovers_go(tmp_path):
    """Beside a finished output: the rows it was made of, and the folder whose place it took."""
    run = tmp_path / "run"
    given = {"RUN": str(run), "PYTHON": str(python_of(tmp_path)), "ITERATIONS": "1"}
    assert execute("bash", "run_all.sh", **given).returncode == 0
    gone = ["pool/00.jsonl.0123abcd.part0", "pool/00.jsonl.0123abcd.part12"]
    gone += ["model/.01.replaced/config.json"]
    kept = [
        "pool/00.jsonl.my.part0",
        "pool/00.jsonl.0123abcd.notes",
        "pool/00.jsonl.ABCDEFGH.part0",
    ]
    kept += ["model/01.replaced/mine", "model/.02.replaced/mine", "pool/01.jsonl.0123abcd.part0"]
    for name in gone + kept:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    assert execute("bash", "run_all.sh", **given).returncode == 0
    assert [name for name in gone if (run / name).exists()] == []
    assert [name for name in kept if not (run / name).exists()] == []


# ----------------------------------------------------------------------- what the user's words mean


@pytest.mark.parametrize(
    "settings, said",
    [
        (
            {"PROMPTS": "trian.jsonl"},
            "PROMPTS=trian.jsonl: there is no such file; correct the path",
        ),
        ({"TEST_PROMPTS": "tiny"}, "TEST_PROMPTS=tiny: there is no such file"),
        ({"REWARD": "mien.py:f"}, "REWARD=mien.py: there is no such file"),
        ({"PYTHON": "no-such-python"}, "PYTHON=no-such-python does not start"),
    ],
)
def test_a_wrong_name_is_told_before_anything_is_made(settings, said, tmp_path):
    given = {"RUN": str(tmp_path / "run"), "PYTHON": "true", **settings}
    assert said in refusal(execute("bash", "run_all.sh", **given))
    assert not (tmp_path / "run").exists()


def test_names_are_relative_to_where_the_user_stands(house, tmp_path):
    """But the default folder is the project's, and a model that is not there is a name."""
    here = tmp_path / "some where"
    shutil.copytree(house / "tiny" / "sentiment", here / "my judge")
    for name in ("train.jsonl", "test.jsonl", "my.py"):
        (here / name).touch()
    python_of(here)

    def run(folder, **settings):
        settings = {"PYTHON": "./python", "ITERATIONS": "0", **settings}
        done = execute("bash", house / "run_all.sh", cwd=folder, **settings)
        assert done.returncode == 0, done.stderr
        return done

    files = {"PROMPTS": "train.jsonl", "TEST_PROMPTS": "../some where/test.jsonl"}
    models = {"MODEL": "of-the/hub", "PPL_MODEL": "tiny/lm", "REWARD_MODEL": "my judge"}
    run(here, **files, **models, REWARD="my.py:f", RUN="my run")
    found = recorded(here / "my run")
    assert found["PROMPTS"] == f"{here}/train.jsonl"
    assert found["TEST_PROMPTS"] == f"{here}/../some where/test.jsonl"
    assert found["REWARD"] == f"{here}/my.py:f"
    assert found["REWARD_MODEL"] == f"{here}/my judge"
    assert (found["MODEL"], found["PPL_MODEL"]) == ("of-the/hub", "tiny/lm")

    run(here, REWARD="length", PYTHON="true")  # both are names, not files
    assert recorded(house / "runs" / "length-tiny")["REWARD"] == "length"

    run(house, PYTHON=f"{here}/python", TEST_PROMPTS="tiny/prompts/train.jsonl", RUN="r")
    assert recorded(house / "r")["TEST_PROMPTS"] == "tiny/prompts/train.jsonl"


@pytest.mark.parametrize("written", ["tiny/lm/", "./tiny/lm", "plumbing/../tiny/lm", "ABSOLUTE"])
def test_the_small_model_is_known_however_it_is_written(written, tmp_path):
    """It brings its prompts and settings."""
    model = str(ROOT / "tiny" / "lm") if written == "ABSOLUTE" else written
    given = {"RUN": str(tmp_path / "run"), "PYTHON": "true", "ITERATIONS": "0", "MODEL": model}
    assert execute("bash", "run_all.sh", **given).returncode == 0
    found = recorded(tmp_path / "run")
    assert (found["MODEL"], found["STEPS"]) == ("tiny/lm", "60")


def test_the_dial_that_is_asked_for(tmp_path):
    """Repetition is greedy, so one completion is the default. More may be asked for."""
    for samples, expected in (
        ({}, "1"),
        ({"DIAL_SAMPLES": "6"}, "6"),
        ({"DIAL_SAMPLES": "0"}, "0"),
    ):
        run = tmp_path / expected
        given = {"RUN": str(run), "PYTHON": "true", "ITERATIONS": "0", **samples}
        assert execute("bash", "run_all.sh", "repetition", **given).returncode == 0
        assert recorded(run)["DIAL_SAMPLES"] == expected


# ------------------------------------------------------------------------------------- which Python


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


# A python of one version: it makes a venv with itself in it, and notes what pip is to install.
PYTHON = """
case "$*" in
    *version_info*) [ {minor} -ge 11 ] ;;
    -V) echo Python 3.{minor}.0 ;;
    "-m venv --clear .venv") rm -rf .venv; mkdir -p .venv/{bin}; cp "$0" .venv/{bin}/python ;;
    *pip*) echo "3.{minor} $*" >>pip.log; exit {pip_exits} ;;
esac
"""


@pytest.fixture
def install(house, tmp_path):
    """install({"python3": 9}, pip_exits=0): runs with these Pythons, the minor versions of 3.x.

    Returns the process, and what pip was told since the last call, each with the Python.
    """
    programs, log = tmp_path / "programs", house / "pip.log"
    tools = "bash sh env dirname basename cat cp rm mkdir mktemp mv cmp cksum grep find touch"
    for name in tools.split():
        found = shutil.which(name)
        if found:
            write_program(programs / name, f'exec {found} "$@"\n')

    def run(pythons, pip_exits=0, folder="bin", **settings):
        for old in programs.glob("python*"):
            old.unlink()
        for name, minor in pythons.items():
            text = PYTHON.format(minor=minor, pip_exits=pip_exits, bin=folder)
            write_program(programs / name, text)
        log.unlink(missing_ok=True)
        environment = {"PATH": str(programs), "RUN": str(tmp_path / "run"), "ITERATIONS": "0"}
        done = subprocess.run(
            [shutil.which("bash"), "run_all.sh"],
            cwd=house,
            env=environment | settings,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done, log.read_text().splitlines() if log.exists() else []

    return run


PIP = "-m pip install -q --disable-pip-version-check -r requirements.txt"


def test_a_python_of_3_11_or_later_is_looked_for(install):
    """python3, or one that has its version in its name. Once installed, nothing is installed."""
    done, told = install({"python3": 9, "python3.8": 8, "python3.12": 12})
    assert (done.returncode, told) == (0, [f"3.12 {PIP}"])
    done, told = install({"python3": 9})  # .venv has the other one
    assert (done.returncode, told) == (0, [])


def test_without_such_a_python_one_sentence(install, house):
    for pythons in ({}, {"python3": 9, "python3.10": 10}):
        done, told = install(pythons)
        assert "Python 3.11 or later is needed, and none was found" in refusal(done)
        assert told == []
        assert not (house / ".venv").exists()


@pytest.mark.parametrize("fault", ["too old", "does not start", "its base is gone"])
def test_a_venv_that_cannot_serve_is_made_anew(fault, install, house):
    """With all that was in it: its packages are another Python's."""
    python = house / ".venv" / "bin" / "python"
    write_program(python, PYTHON.format(minor=9, pip_exits=0, bin="bin"))
    (house / ".venv" / "installed-requirements.txt").write_text(
        (house / "requirements.txt").read_text()
    )
    if fault == "does not start":
        write_program(python, "exit 1")
    elif fault == "its base is gone":
        python.unlink()
        python.symlink_to(house / "no such python")
    done, told = install({"python3": 11})
    assert (done.returncode, told) == (0, [f"3.11 {PIP}"])


def test_an_install_that_failed_is_done_again(install):
    done, told = install({"python3": 11}, pip_exits=1)
    assert (done.returncode, told) == (1, [f"3.11 {PIP}"])
    done, told = install({"python3": 13})  # in the .venv that is there
    assert (done.returncode, told) == (1, [f"3.11 {PIP}"])


def test_a_venv_without_pip_gets_it(install, house):
    """Such as one whose making was interrupted."""
    answers = """case "$*" in
        *"sys, pip;"*) [ -e .venv/pip ] ;;
        "-m ensurepip") touch .venv/pip ;;
        *"pip install"*) [ -e .venv/pip ] && echo "$*" >>pip.log ;;
    esac"""
    write_program(house / ".venv" / "bin" / "python", answers)
    done, told = install({})
    assert (done.returncode, told) == (0, [PIP])


def test_a_venv_of_windows(install):
    done, told = install({"python": 12}, folder="Scripts", OS="Windows_NT")
    assert (done.returncode, told) == (0, [f"3.12 {PIP}"])


def test_the_packages_alone(tmp_path):
    """`run_all.sh install` makes no run."""
    done = execute(
        "bash", "run_all.sh", "install", PYTHON=sys.executable, RUN=str(tmp_path / "run")
    )
    assert done.returncode == 0 and not done.stderr
    assert not (tmp_path / "run").exists()


def test_a_python_of_the_user_that_is_too_old(install, tmp_path):
    old = write_program(tmp_path / "my old" / "python", PYTHON.format(minor=9, pip_exits=0, bin=""))
    done, _ = install({}, PYTHON=str(old))
    assert f"PYTHON={old} is Python 3.9.0, and Python 3.11 or later is needed" in refusal(done)


def write_package(folder, name, version):
    """What importlib.metadata takes for an installed package."""
    metadata = folder / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(
    "package, version, said",
    [
        ("torch", "2.10.1+cpu", "torch 2.10.1+cpu, and 2.11 or later is needed"),
        ("transformers", "4.57.0", "transformers 4.57.0, and 5.0 or later is needed"),
        ("transformers", "6.0.0", "transformers 6.0.0, and an earlier one than 6.0 is needed"),
        ("httpx", None, "no httpx, which is needed"),
        (None, None, None),
    ],
)
def test_the_packages_of_the_user_s_python(package, version, said, tmp_path):
    """A missing, too old or too new one is told with the remedy, before anything is made.

    The Python here sees no package but those in a folder.
    """
    packages = {"torch": "2.11.0", "transformers": "5.0.0rc1", "numpy": "1", "tiktoken": "0.1"}
    packages |= {"matplotlib": "3", "httpx": "0.2", "tqdm": "4", package: version}
    for name in packages:
        if packages[name]:
            write_package(tmp_path / "packages", name, packages[name])
    text = f'PYTHONPATH="{tmp_path}/packages" exec "{sys.executable}" -S "$@"\n'
    python = write_program(tmp_path / "my python", f'[ "$1" = -c ] || exit 0\n{text}')
    given = {"RUN": str(tmp_path / "run"), "PYTHON": str(python), "ITERATIONS": "0"}
    done = execute("bash", "run_all.sh", **given)
    if said:
        remedy = f"'{python}' -m pip install -r requirements.txt"
        assert refusal(done) == f"PYTHON={python} has {said}: {remedy}"
    else:
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run").exists() == (said is None)


def test_without_fcntl_there_is_no_lock(tmp_path):
    """Windows has no such module. The run goes on."""
    text = (
        f'exec "{sys.executable}" -c "import sys; sys.modules[\'fcntl\'] = None; exec(sys.argv[1])"'
    )
    python = write_program(
        tmp_path / "python", f'case "$2" in *fcntl*) {text} "$2" ;; esac\nexit 0\n'
    )
    given = {"RUN": str(tmp_path / "run"), "PYTHON": str(python), "ITERATIONS": "0"}
    done = execute("bash", "run_all.sh", **given)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_holds_one_run_at_a_time(tmp_path):
    import fcntl

    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        given = {"RUN": str(tmp_path), "PYTHON": str(python_of(tmp_path)), "ITERATIONS": "0"}
        said = refusal(execute("bash", "run_all.sh", **given))
    finally:
        os.close(handle)
    assert f"another run is at work in {tmp_path}" in said


# --------------------------------------------------------------- what macOS and Windows do not have

NOT_EVERYWHERE = {
    "bash 3.2": [
        r"\b(mapfile|readarray|coproc|BASHPID|EPOCHSECONDS|EPOCHREALTIME)\b",
        r"\b(declare|local|typeset) -[a-zA-Z]*[Ang]",
        r"\$\{\w+(\[[^]]*\])?(,|\^|@\w\})",  # ${x,,} ${x^} ${x@Q}
        r"\$\{\w+\[-\d|\$\{\w+:\s*\d+:\s*-",  # ${x[-1]} ${x:0:-1}
        r"&>>|\|&|;;?&(\s|$)|\bwait -n|\bshopt -s (globstar|lastpipe)",
        r"\[\[? -v |\bprintf '?%\(|\{\d+\.\.\d+\.\.\d+\}|\bread .*-[iN]\b|\bexec \{",
        r"\$\([^)]*\bcase\b",  # its parser ends $(...) at the first bracket of a case
    ],
    "the tools of BSD": [
        r"\bxargs\b[^|]* -[dra]\b|\bfind\b[^|]* -(printf|regextype)|\bgrep -\w*P|\bmktemp --",
        r"\bsed\b[^|]* -(i|r|z)\b|\bhead -[nc] -|\bcp -[tT]|\bstat -c|\bsort -V|\breadlink -f",
        r"\bdate\b[^|]*(%N| -d)|\b(tac|timeout|shuf|md5sum|sha256sum|realpath|nproc)\b",
        r"\b(cp|rm|mv|ls|mkdir|cut|sort|tail|head|du|date|xargs|grep|find) [^|#]*--\w",
    ],
}
EXAMPLES = {
    "bash 3.2": "mapfile -t x|declare -A x|${x,,}|${x[1]^}|${x@Q}|${x[-1]}|${x:0:-1}|a &>>b|"
    "wait -n|[[ -v x ]]|{1..9..2}|$(case a in a) ;; esac)",
    "the tools of BSD": "xargs -P 2 -d x|sed -i s/a/b/ c|readlink -f a|date +%N|head -n -1|"
    "cp -t a b|grep -oP a|tac a|sort --reverse a",
}


@pytest.mark.parametrize("what", list(NOT_EVERYWHERE))
def test_no_construct_that_macos_lacks(what):
    """There is no bash 3.2 here to try, so this looks for what came later."""

    def is_missing(code):
        return any(re.search(pattern, code) for pattern in NOT_EVERYWHERE[what])

    assert [code for code in EXAMPLES[what].split("|") if not is_missing(code)] == []
    scripts = [ROOT / "run_all.sh"]
    for folder in ("settings", "plumbing", "experiments"):
        scripts += sorted((ROOT / folder).glob("*.sh"))
    assert len(scripts) >= 14
    for script in scripts:
        for number, line in enumerate(script.read_text(encoding="utf-8").splitlines(), 1):
            assert not is_missing(re.sub(r"(^|\s)#.*", "", line)), f"{script}:{number}: {line}"


def test_git_leaves_line_feeds_alone(tmp_path):
    """A checkout on Windows, where git writes carriage returns by default, has line feeds."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git = ["git", "-C", tmp_path, "-c", "core.autocrlf=true"]
    names = ["run_all.sh", "plumbing/setup.sh", "tiny/lm/merges.txt", "tiny/lm/vocab.json"]
    for name in [".gitattributes", *names]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for command in (["init", "-q"], ["add", "."], ["checkout-index", "-a", "-f", "--prefix=out/"]):
        assert execute(*git, *command).returncode == 0
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (ROOT / name).read_bytes()
        assert b"\r" not in (ROOT / name).read_bytes()
