"""The reward `remote` against a real HTTP server on loopback.

The server throttles, fails, hangs, drops connections and talks nonsense.
"""

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


def good_answer(text):
    value = {"value": SCORE.get(text, 0.25)}
    return json.dumps({"attributeScores": {"TOXICITY": {"summaryScore": value}}}).encode()


def always_ok(number, text):
    return "ok"


class Service:
    """A service that speaks Perspective's protocol.

    behave(number of the request, text) -> "ok", an HTTP status, "drop", "hang", or the bytes of an
    answer. `asked` counts the requests for each text, `answered` the good answers.
    """

    def __init__(self, behave=always_ok):
        self.behave = behave
        self.asked = Counter()
        self.answered = Counter()
        self.requests = []  # (path, headers, question)
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.port = 0  # any; a second start() takes the same one again
        self.start()

    def start(self):
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                service.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        serve = self.server.serve_forever
        threading.Thread(target=serve, args=(0.02,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler):
        length = int(handler.headers["Content-Length"])
        question = json.loads(handler.rfile.read(length))
        text = question["comment"]["text"]
        with self.lock:
            self.asked[text] += 1
            self.requests.append((handler.path, dict(handler.headers), question))
            number = sum(self.asked.values())
        what = self.behave(number, text)
        if what == "hang":
            self.over.wait(20)
        if what in ("hang", "drop"):
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        body = what if isinstance(what, bytes) else b"{}"
        if what == "ok":
            body = good_answer(text)
            with self.lock:
                self.answered[text] += 1
        handler.send_response(what if isinstance(what, int) else 200)
        if what == 429:
            handler.send_header("Retry-After", "0")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def environment(self, **more):
        url = f"http://127.0.0.1:{self.port}/v1/comments:analyze"
        env = {"REMOTE_URL": url, "REMOTE_KEY": KEY, "REMOTE_QPS": "2000", "REMOTE_TIMEOUT": "1"}
        return {**env, **more}


@pytest.fixture
def serve(monkeypatch):
    """serve(behave, **environment) -> a running Service that the environment points to.

    The pauses between tries are a hundredth of the usual ones.
    """
    running = []

    def start(behave=always_ok, **environment):
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


# -------------------------------------------------------------------------------------- the answers


def test_one_minus_the_score(serve):
    """The reward is 1 - score, in the order of the texts. Each different text is asked for once."""
    service = serve()
    texts = ["text 3", "text 1", "text 3", "text 2"]
    assert ask(texts) == [1 - SCORE[text] for text in texts]
    assert service.asked == {"text 1": 1, "text 2": 1, "text 3": 1}
    path, headers, question = service.requests[0]
    assert path == "/v1/comments:analyze"
    assert headers["X-Goog-Api-Key"] == KEY
    assert question["requestedAttributes"] == {"TOXICITY": {}}


def with_score(value):
    score = b'{"attributeScores": {"TOXICITY": {"summaryScore": {"value": VALUE}}}}'
    return score.replace(b"VALUE", value)


FAULTS = [429, 500, 503, "drop", "hang", b"<html>", b'{"attributeScores": {}}', b"[]"]
FAULTS += [with_score(b"NaN"), with_score(b"7")]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_is_tried_again(fault, serve):
    """Throttled, failing, dropped, hanging or nonsense: the text is asked for again, and scored.

    The first two requests fail, so there are four in all.
    """

    def behave(number, text):
        return fault if number <= 2 else "ok"

    service = serve(behave, REMOTE_TIMEOUT="0.3", REMOTE_WORKERS="1")
    assert ask(["text 1", "text 2"]) == [1 - SCORE["text 1"], 1 - SCORE["text 2"]]
    assert sum(service.asked.values()) == 4


def test_a_refused_text_has_no_score(serve, capsys):
    """HTTP 400 is about this text alone: None, counted, and not asked for again.

    A text that never gets a sound answer is asked for TRIES times, and has no score, either.
    """
    service = serve(lambda number, text: {"text 1": 400, "text 2": b"{}"}.get(text, "ok"))
    assert ask(["text 1", "text 0", "text 2"]) == [None, 1 - SCORE["text 0"], None]
    assert service.asked == {"text 0": 1, "text 1": 1, "text 2": Remote.TRIES}
    said = capsys.readouterr().err
    assert "2 of 3 texts have no score" in said
    assert "1 x HTTP 400" in said
    assert "1 x no score in the answer" in said


# ------------------------------------------------------------------------------------- the patience


def test_waits_grow(serve, monkeypatch):
    """The pauses before the tries 2 to 8 are 0.01 s, doubled each time, times 0.5 to 1.5."""
    pauses = []
    service = serve(lambda number, text: 503)
    reward = Remote()
    monkeypatch.setattr(reward.stop, "wait", pauses.append)  # and does not wait
    with reward.httpx.Client() as client:
        assert reward._ask(client, "text 1") == "no answer (HTTP 503)"
    assert sum(service.asked.values()) == 8
    factors = [pause / (0.01 * 2**i) for i, pause in enumerate(pauses)]
    assert len(factors) == 7
    assert 0.5 <= min(factors) < max(factors) <= 1.5


def test_rate(serve):
    """REMOTE_QPS = 50: request i of 16 starts after i / 50 s at the earliest, in any thread."""
    serve(REMOTE_QPS="50")
    reward = Remote()
    began = time.monotonic()
    times = []

    def request():
        reward._wait_for_slot()
        times.append(time.monotonic() - began)

    threads = [threading.Thread(target=request) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, seconds in enumerate(sorted(times)):
        assert seconds >= i / 50 - 1e-3
    assert max(times) > 0.29


# ---------------------------------------------------------------------------- settings, and the key

BAD_SETTINGS = [
    ({"REMOTE_URL": ""}, "REMOTE_URL=https://"),
    ({"REMOTE_URL": "somewhere"}, "REMOTE_URL=https://"),
    ({"REMOTE_KEY": "kéy"}, "set it again"),
    ({"REMOTE_QPS": "0"}, "above 0"),
    ({"REMOTE_TIMEOUT": "soon"}, "above 0"),
    ({"REMOTE_WORKERS": "1.5"}, "above 0"),
]


@pytest.mark.parametrize("environment, message", BAD_SETTINGS)
def test_bad_settings(environment, message, serve):
    """A setting that cannot be used is refused before anything is asked."""
    service = serve(**environment)
    with pytest.raises(BadInput, match=message):
        ask(["a"])
    assert not service.asked


@pytest.mark.parametrize("status, message", [(403, "refuses the key"), (503, "stopped answering")])
def test_a_service_that_is_not_there_ends_the_stage(status, message, serve, tmp_path):
    """A wrong key, or a service that stays away: one sentence, without the key in it. No output."""
    serve(lambda number, text: status, REMOTE_WORKERS="2")
    rows = [{"prompt": "a", "completion": f"text {i}"} for i in range(50)]
    pool = write_jsonl(tmp_path / "p.jsonl", rows)
    argv = ["--reward", "remote", "--pool", str(pool), "--out", str(tmp_path / "o.jsonl")]
    with pytest.raises(BadInput, match=message) as error:
        rewards.main(argv)
    assert "\n" not in str(error.value)
    assert KEY not in str(error.value)
    assert os.listdir(tmp_path) == ["p.jsonl"]


def test_the_key_is_never_written(serve, p0_folder, tmp_path, monkeypatch, capfd):
    """Neither on the screen nor in any file, also when every fifth request fails."""
    serve(lambda number, text: 500 if number % 5 == 0 else "ok")
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "The film"}] * 6)
    argv = ["--model", p0_folder, "--prompts", prompts, "--reward", "remote"]
    argv += ["--out", tmp_path / "pool" / "00.jsonl"]
    assert stage(monkeypatch, "explore.py", *argv) is None
    printed = capfd.readouterr()
    assert KEY not in printed.out + printed.err
    files = sorted(os.listdir(tmp_path / "pool"))
    assert files == ["00.args.json", "00.jsonl", "remote.cache0"]
    for file in files:
        assert KEY not in (tmp_path / "pool" / file).read_text()


# ---------------------------------------------------------------------------------------- the cache

CLIENT = """
import json, rewards
from plumbing.remote import Remote
Remote.FIRST_WAIT = 0.05
texts = [f"text {i}" for i in range(1000)]
scores = []
for start in range(0, 1000, 128):  # as explore.py calls it, batch by batch
    part = texts[start : start + 128]
    reward = rewards.load_reward("remote", cache="cache")
    scores += reward(prompts=[""] * len(part), completions=part)
json.dump(scores, open("scores.json", "w"))
"""


def test_a_thousand_texts_through_everything(tmp_path):
    """10 % of the answers are 429, 5 % are 500, 2 % are dropped, and one hangs for 20 s.

    The client is killed after 500 answers, and the server restarted after 750. Each text is scored
    once, and what was on the disk when the client was killed is not asked for again.
    """
    chance = random.Random(0)
    faults = {}
    for number in range(1, 10000):
        (faults[number],) = chance.choices([429, 500, "drop", "ok"], [10, 5, 2, 83])
    faults[300] = "hang"
    service = Service(lambda number, text: faults[number])
    env = {**os.environ, **service.environment(REMOTE_QPS="300"), "PYTHONPATH": str(ROOT)}

    def start_client():
        command = [sys.executable, "-c", CLIENT]
        return subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=env)

    def wait_for(answers):
        while sum(service.answered.values()) < answers:
            time.sleep(0.01)

    try:
        client = start_client()
        wait_for(500)
        client.kill()
        client.communicate()
        kept = [row["text"] for row in read_rows(tmp_path / "cache0")]
        asked_before = [service.asked[text] for text in kept]
        # All answers are kept, but for the eight that may have been on their way.
        assert len(kept) >= sum(service.answered.values()) - 8 > 400
        client = start_client()
        wait_for(750)
        service.stop()
        time.sleep(0.5)
        service.start()
        said = client.communicate(timeout=100)[1]
    finally:
        service.over.set()
        service.stop()
    assert client.returncode == 0, said
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores == [1 - SCORE[f"text {i}"] for i in range(1000)]
    assert [service.asked[text] for text in kept] == asked_before
    saved = [row["text"] for row in read_rows(tmp_path / "cache0")]
    assert sorted(saved) == sorted(SCORE)  # each exactly once
    happened = {faults[n] for n in range(1, sum(service.asked.values()) + 1)}
    assert happened == {429, 500, "drop", "hang", "ok"}


def test_an_unfinished_line_of_the_cache_is_dropped(serve, tmp_path):
    """A power cut in the middle of a line costs that one answer only."""
    service = serve()
    cache, file = tmp_path / "cache", tmp_path / "cache0"
    texts = ["text 1", "text 2"]
    ask(texts, cache)
    file.write_bytes(file.read_bytes()[:-5])
    assert ask(texts, cache) == [1 - SCORE["text 1"], 1 - SCORE["text 2"]]
    assert sorted(service.asked.values()) == [1, 2]
    assert len(read_rows(file)) == 2


def test_a_cached_answer_is_for_one_attribute(serve, tmp_path, monkeypatch):
    """Another attribute is another question. This service knows none but TOXICITY: no score."""
    service = serve()
    assert ask(["text 1"], tmp_path / "cache") == [1 - SCORE["text 1"]]
    monkeypatch.setenv("REMOTE_ATTRIBUTE", "OTHER")
    assert ask(["text 1"], tmp_path / "cache") == [None]
    assert sum(service.asked.values()) == 1 + Remote.TRIES


def test_a_damaged_line_of_the_cache(serve, tmp_path):
    """A power cut spoils only the last line. Another one: one sentence, and the file stays."""
    serve()
    cache, file = tmp_path / "cache", tmp_path / "cache0"
    ask(["text 1", "text 2"], cache)
    file.write_bytes(file.read_bytes().replace(b"{", b"?", 1))
    before = file.read_bytes()
    with pytest.raises(BadInput, match="cache0:1: damaged"):
        ask(["text 1"], cache)
    assert file.read_bytes() == before


def test_half_an_exploration_is_not_finished_by_another_service(p0, monkeypatch):
    """What explore.py kept of an interrupted run is for one address and one attribute.

    Other rewards have none. The files of the reward say which, for the tables of evaluate.py too.
    """

    def name_of_log(reward, attribute, url="http://localhost/one"):
        monkeypatch.setenv("REMOTE_ATTRIBUTE", attribute)
        monkeypatch.setenv("REMOTE_URL", url)
        argv = ["--model", "m", "--prompts", "p", "--out", "o", "--reward", reward]
        log, _ = open_log(p0, [], explore.parse_options(argv), rewards.load_reward(reward).files)
        return log.own.name

    first = name_of_log("remote", "TOXICITY")
    assert first == name_of_log("remote", "TOXICITY", "http://localhost/one?key=1")
    assert first != name_of_log("remote", "INSULT")
    assert first != name_of_log("remote", "TOXICITY", "http://localhost/two")
    assert name_of_log("hash", "TOXICITY") == name_of_log("hash", "INSULT")
