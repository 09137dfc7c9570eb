"""The remote reward against a real HTTP server on loopback that throttles, fails, hangs, drops connections, talks nonsense."""

import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT, read_rows, stage, write_jsonl

import explore
import rewards
from plumbing.pool import BadInput
from plumbing.remote import Remote
from plumbing.resume import open_log

KEY = "s3cret-key"
SCORE = {f"text {i}": round(random.Random(i).random(), 6) for i in range(1000)}


class Service:
    """`behave(number, text)` -> "ok", an HTTP code, "drop", "hang", or bytes to answer with; `answered` counts good answers."""

    def __init__(self, behave=lambda number, text: "ok"):
        self.behave, self.asked, self.answered, self.times, self.headers = behave, Counter(), Counter(), [], []
        self.lock, self.over = threading.Lock(), threading.Event()
        self.port = None
        self.start()

    def start(self):
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = question["comment"]["text"]
                with service.lock:
                    service.asked[text] += 1
                    service.times.append(time.monotonic())
                    service.headers.append((self.path, dict(self.headers), question))
                    number = sum(service.asked.values())
                what = service.behave(number, text)
                if what == "hang":
                    service.over.wait(20)
                if what in ("hang", "drop"):
                    return self.connection.shutdown(socket.SHUT_RDWR)
                body = what if isinstance(what, bytes) else b"{}"
                if what == "ok":
                    body = json.dumps({"attributeScores": {"TOXICITY": {"summaryScore": {"value": SCORE.get(text, 0.25)}}}}).encode()
                    with service.lock:
                        service.answered[text] += 1
                self.send_response(what if isinstance(what, int) else 200)
                if what == 429:
                    self.send_header("Retry-After", "0")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port or 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def environment(self, **more):
        return {"REMOTE_URL": f"http://127.0.0.1:{self.port}/v1/comments:analyze", "REMOTE_KEY": KEY, "REMOTE_QPS": "2000",
                "REMOTE_TIMEOUT": "1", **more}  # fmt: skip


@pytest.fixture
def serve(monkeypatch):
    """serve(behave, **environment) -> a running Service that the environment points to, with waits of milliseconds."""
    running = []

    def start(behave=lambda number, text: "ok", **environment):
        running.append(Service(behave))
        for name, value in running[-1].environment(**environment).items():
            monkeypatch.setenv(name, value)
        return running[-1]

    monkeypatch.setattr(Remote, "FIRST_WAIT", 0.01)
    yield start
    for service in running:
        service.over.set()
        service.stop()


def ask(texts, cache=None):
    return rewards.load_reward("remote", cache=cache)(prompts=[""] * len(texts), completions=texts)


def test_one_minus_the_score(serve):
    """The reward is 1 - score, in the order of the texts; the same text twice is asked for once."""
    service = serve()
    texts = ["text 3", "text 1", "text 3", "text 2"]
    assert ask(texts) == [1 - SCORE[t] for t in texts] and service.asked == {"text 1": 1, "text 2": 1, "text 3": 1}
    path, headers, question = service.headers[0]
    assert path == "/v1/comments:analyze" and headers["X-Goog-Api-Key"] == KEY and question["requestedAttributes"] == {"TOXICITY": {}}


@pytest.mark.parametrize("fault", [429, 500, 503, "drop", "hang", b"<html>", b'{"attributeScores": {}}', b"[]",
                                   b'{"attributeScores": {"TOXICITY": {"summaryScore": {"value": NaN}}}}',
                                   b'{"attributeScores": {"TOXICITY": {"summaryScore": {"value": 7}}}}'])  # fmt: skip
def test_a_passing_fault_is_tried_again(fault, serve):
    """Throttled, failing, hanging, dropped, nonsense: asked again, and scored."""
    service = serve(lambda number, text: fault if number <= 2 else "ok", REMOTE_TIMEOUT="0.3", REMOTE_WORKERS="1")
    assert ask(["text 1", "text 2"]) == [1 - SCORE["text 1"], 1 - SCORE["text 2"]] and sum(service.asked.values()) == 4


def test_a_refused_text_has_no_score(serve, capsys):
    """HTTP 400 is for this text alone: None, counted, and not asked again; so is a text that never gets a sound answer."""
    service = serve(lambda number, text: {"text 1": 400, "text 2": b"{}"}.get(text, "ok"))
    assert ask(["text 1", "text 0", "text 2"]) == [None, 1 - SCORE["text 0"], None]
    assert service.asked == {"text 0": 1, "text 1": 1, "text 2": Remote.TRIES}
    said = capsys.readouterr().err
    assert "2 of 3 texts have no score" in said and "1 x HTTP 400" in said and "1 x no score in the answer" in said


def test_waits_grow(serve, monkeypatch):
    """Exponential: the pauses before attempts 2, 3, 4 ... double, up to the jitter of 0.5 to 1.5; Retry-After counts."""
    pauses = []
    service = serve(lambda number, text: 503)
    reward = Remote()
    monkeypatch.setattr(reward.stop, "wait", lambda seconds: pauses.append(seconds))
    with reward.httpx.Client() as client:
        assert reward._ask(client, "text 1") == "no answer (HTTP 503)"
    assert len(pauses) == 7 and sum(service.asked.values()) == 8
    assert all(0.5 <= p / (0.01 * 2**i) <= 1.5 for i, p in enumerate(pauses)) and len({p / 2**i for i, p in enumerate(pauses)}) > 1


def test_rate(serve):
    """No more than REMOTE_QPS requests start in a second, though eight threads want to; the first waits for nothing."""
    serve(REMOTE_QPS="50")
    reward, began, times = Remote(), time.monotonic(), []
    threads = [threading.Thread(target=lambda: (reward._wait_for_slot(), times.append(time.monotonic() - began))) for _ in range(16)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert all(t >= i / 50 - 1e-3 for i, t in enumerate(sorted(times))) and max(times) > 0.29


@pytest.mark.parametrize(("environment", "message"), [
    ({"REMOTE_URL": ""}, "REMOTE_URL=https://"), ({"REMOTE_URL": "somewhere"}, "REMOTE_URL=https://"), ({"REMOTE_KEY": "kéy"}, "set it again"),
    ({"REMOTE_QPS": "0"}, "above 0"), ({"REMOTE_TIMEOUT": "soon"}, "above 0"),
    ({"REMOTE_WORKERS": "1.5"}, "above 0")])  # fmt: skip
def test_bad_settings(environment, message, serve):
    serve(**environment)
    with pytest.raises(BadInput, match=message):
        ask(["a"])


@pytest.mark.parametrize("fault", [403, 503])
def test_a_service_that_is_not_there_ends_the_stage(fault, serve, tmp_path):
    """A wrong key and a service that stays away end with one sentence, soon, and without the key in it."""
    serve(lambda number, text: fault, REMOTE_WORKERS="2")
    rows = [{"prompt": "a", "completion": f"text {i}"} for i in range(50)]
    pool = write_jsonl(tmp_path / "p.jsonl", rows)
    with pytest.raises(BadInput, match="refuses the key" if fault == 403 else "stopped answering") as error:
        rewards.main(["--reward", "remote", "--pool", str(pool), "--out", str(tmp_path / "o.jsonl")])
    assert "\n" not in str(error.value) and KEY not in str(error.value) and os.listdir(tmp_path) == ["p.jsonl"]


def test_the_key_is_never_written(serve, p0_folder, tmp_path, monkeypatch, capfd):
    """Neither to the screen nor to any file, whatever the run does."""
    serve(lambda number, text: 500 if number % 5 == 0 else "ok")
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "The film"}] * 6)
    assert stage(monkeypatch, "explore.py", "--model", p0_folder, "--prompts", prompts, "--reward", "remote",
                 "--out", tmp_path / "pool" / "00.jsonl") is None  # fmt: skip
    out = capfd.readouterr()
    assert KEY not in out.out + out.err
    assert sorted(os.listdir(tmp_path / "pool")) == ["00.args.json", "00.jsonl", "remote.cache0"]
    assert not any(KEY in file.read_text() for file in tmp_path.rglob("*") if file.is_file())


CLIENT = """
import sys, json, rewards
from plumbing.remote import Remote
from plumbing.resume import open_log
Remote.FIRST_WAIT = 0.05
texts = [f"text {i}" for i in range(1000)]
scores = []
for start in range(0, 1000, 128):                      # as explore.py calls it, batch by batch
    part = texts[start : start + 128]
    scores += rewards.load_reward("remote", cache="cache")(prompts=[""] * len(part), completions=part)
json.dump(scores, open("scores.json", "w"))
"""


def test_a_thousand_texts_through_everything(tmp_path):
    """10 % 429, 5 % 500, 2 % dropped, one hang of 20 s, the server restarted, the client killed: each text scored once, and
    what was on the disk when the client was killed is never asked for again."""
    chance = random.Random(0)
    faults = {n: chance.choices([429, 500, "drop", "ok"], [10, 5, 2, 83])[0] for n in range(1, 10000)} | {300: "hang"}
    service = Service(lambda number, text: faults[number])
    client = lambda: subprocess.Popen([sys.executable, "-c", CLIENT], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                                      env={**os.environ, **service.environment(REMOTE_QPS="300"), "PYTHONPATH": str(ROOT)})  # fmt: skip
    try:
        process = client()
        while sum(service.answered.values()) < 500:
            time.sleep(0.01)
        process.kill()
        process.wait()
        kept = {row["text"] for row in read_rows(tmp_path / "cache0")}
        asked = Counter({text: service.asked[text] for text in kept})
        assert len(kept) > 400 and len(kept) >= sum(service.answered.values()) - 8  # all but what was on its way

        process = client()
        while sum(service.answered.values()) < 750:
            time.sleep(0.01)
        service.stop()
        time.sleep(0.5)
        service.start()
        said = process.communicate(timeout=100)[1]
    finally:
        service.over.set()
        service.stop()
    assert process.returncode == 0, said
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores == [1 - SCORE[f"text {i}"] for i in range(1000)]
    assert Counter({text: service.asked[text] for text in kept}) == asked  # nothing kept was asked for again
    assert Counter(row["text"] for row in read_rows(tmp_path / "cache0")) == Counter([*SCORE])  # each scored exactly once
    assert {429, 500, "drop", "hang"} <= {faults[n] for n in range(1, sum(service.asked.values()) + 1)}


def test_an_unfinished_line_of_the_cache_is_dropped(serve, tmp_path):
    """A power cut in the middle of a line costs that one answer only; another address or attribute is another answer."""
    service = serve()
    ask(["text 1", "text 2"], tmp_path / "cache")
    file = tmp_path / "cache0"
    file.write_bytes(file.read_bytes()[:-5])
    assert ask(["text 1", "text 2"], tmp_path / "cache") == [1 - SCORE["text 1"], 1 - SCORE["text 2"]]
    assert sorted(service.asked.values()) == [1, 2] and len(read_rows(file)) == 2
    os.environ["REMOTE_ATTRIBUTE"] = "OTHER"
    try:
        assert ask(["text 1"], tmp_path / "cache") == [None] and sum(service.asked.values()) > 3
    finally:
        del os.environ["REMOTE_ATTRIBUTE"]


def test_a_damaged_line_of_the_cache(serve, tmp_path):
    """Not the last one, which a power cut explains: one sentence with file and line, and the file stays."""
    serve()
    ask(["text 1", "text 2"], tmp_path / "cache")
    file = tmp_path / "cache0"
    file.write_bytes(file.read_bytes().replace(b"{", b"?", 1))
    before = file.read_bytes()
    with pytest.raises(BadInput, match="cache0:1: damaged"):
        ask(["text 1"], tmp_path / "cache")
    assert file.read_bytes() == before


def test_half_an_exploration_is_not_finished_by_another_service(p0, monkeypatch):
    """What explore.py has kept of an interrupted run is for the same attribute of the same service; other rewards ask neither."""
    options = "--model m --prompts p --out o --reward".split()
    names = []
    for reward, attribute in (("remote", "TOXICITY"), ("remote", "INSULT"), ("hash", "TOXICITY"), ("hash", "INSULT")):
        monkeypatch.setenv("REMOTE_ATTRIBUTE", attribute)
        log, _ = open_log(p0, [], explore.parse_options([*options, reward]))
        names.append(log.own.name)
    assert names[0] != names[1] and names[2] == names[3]
