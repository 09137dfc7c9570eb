"""The reward `remote`: 1 - the score of a service that speaks Perspective's protocol.

It POSTs {"comment": {"text": y}, "requestedAttributes": {A: {}}, ...}. Settings are environment
variables:

    REMOTE_URL        address of the service's analyze method
    REMOTE_KEY        sent as the header X-Goog-Api-Key, stored nowhere
    REMOTE_ATTRIBUTE  A (default TOXICITY)
    REMOTE_QPS        maximum requests per second (default 10)
    REMOTE_WORKERS    requests at a time (default 8)
    REMOTE_TIMEOUT    of a request, in seconds (default 10)
"""

import math
import os
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed

from plumbing.append_log import AppendLog
from plumbing.pool import BadInput


class Remote:
    """A reward function. A text that gets no score gets None.

    Throttling (429), server errors (5xx) and network errors are tried again, TRIES times in all,
    after 1, 2, 4 ... seconds times a random factor, or after as many as the server asks for, at
    most LONGEST_WAIT. Each answer is saved in the file `cache` as soon as it arrives.
    """

    TRIES = 8
    FIRST_WAIT = 1.0
    LONGEST_WAIT = 60.0

    def __init__(self, cache=None):
        import httpx  # not at the top: no other reward needs it

        self.httpx = httpx
        self._read_settings()
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.next_slot = 0.0
        self.service = f"{self._address()} {self.attribute}"
        self.cache = AppendLog(cache, ["url", "attribute", "text", "score"]) if cache else None
        self.known = {}
        for row in self.cache.rows if cache else []:
            if (row["url"], row["attribute"]) == (self._address(), self.attribute):
                self.known[row["text"]] = row["score"]

    def _read_settings(self):
        env = os.environ
        self.url = env.get("REMOTE_URL", "")
        self.key = env.get("REMOTE_KEY", "").strip()
        self.attribute = env.get("REMOTE_ATTRIBUTE", "TOXICITY")
        if not self.url.startswith(("http://", "https://")):
            raise BadInput(
                "--reward remote needs the service's address in the environment: "
                "REMOTE_URL=https://... REMOTE_KEY=..."
            )
        if not (self.key.isascii() and self.key.isprintable()):
            raise BadInput("REMOTE_KEY contains characters that no key has; set it again")
        try:
            self.qps = float(env.get("REMOTE_QPS", 10))
            self.timeout = float(env.get("REMOTE_TIMEOUT", 10))
            self.workers = int(env.get("REMOTE_WORKERS", 8))
            valid = 0 < self.qps < math.inf and 0 < self.timeout < math.inf and self.workers > 0
        except ValueError:
            valid = False
        if not valid:
            raise BadInput("REMOTE_QPS, REMOTE_TIMEOUT and REMOTE_WORKERS must be numbers above 0")
        # the limit belongs to the key: processes share it
        self.qps /= int(env.get("WORLD_SIZE", 1))

    def __call__(self, prompts, completions, **kwargs):
        new = [y for y in dict.fromkeys(completions) if y not in self.known]  # each text once
        failures = Counter()
        unanswered = 0  # consecutive requests
        self.stop.clear()
        headers = {"X-Goog-Api-Key": self.key} if self.key else {}
        with (
            self.httpx.Client(timeout=self.timeout, headers=headers) as client,
            ThreadPoolExecutor(self.workers) as pool,
        ):
            pending = [pool.submit(self._ask, client, y) for y in new]
            try:
                for answer in as_completed(pending):
                    reason = answer.result()
                    if reason:
                        failures[reason] += 1
                    unanswered = unanswered + 1 if (reason or "").startswith("no answer") else 0
                    if unanswered >= self.workers:
                        remedy = "its answers so far are kept, start again to go on"
                        raise BadInput(
                            f"the service at {self._address()} has stopped answering ({reason}); "
                            f"{remedy if self.cache else 'try again later'}"
                        )
            finally:
                self.stop.set()  # after an error or Ctrl-C, no thread tries again
                pool.shutdown(wait=False, cancel_futures=True)
        if failures:
            reasons = ", ".join(f"{n} x {reason}" for reason, n in failures.most_common())
            print(
                f"remote: {sum(failures.values())} of {len(new)} texts have no score: {reasons}",
                file=sys.stderr,
            )
        return [1 - self.known[y] if y in self.known else None for y in completions]

    def _ask(self, client, text):
        """Gets and keeps the score of a text. Returns None, or the reason if there is no score."""
        question = {
            "comment": {"text": text},
            "requestedAttributes": {self.attribute: {}},
            "languages": ["en"],
            "doNotStore": True,
        }
        for attempt in range(self.TRIES):
            self._wait_for_slot()
            pause = min(self.LONGEST_WAIT, self.FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.5)
            try:
                answer = client.post(self.url, json=question)
            except self.httpx.HTTPError as error:
                reason = f"no answer ({type(error).__name__})"
            else:
                status = answer.status_code
                if status in (401, 403):
                    raise BadInput(
                        f"the service at {self._address()} refuses the key ({status}); "
                        "set REMOTE_KEY"
                    )
                if status == 200:
                    score = _summary_score(answer, self.attribute)
                    if score is not None:
                        self._keep(text, score)
                        return None
                    reason = "no score in the answer"
                elif status == 429 or status >= 500:
                    reason = f"no answer (HTTP {status})"
                    asked_for = answer.headers.get("Retry-After", "")
                    if asked_for.isdecimal():
                        pause = max(pause, min(self.LONGEST_WAIT, float(asked_for)))
                else:
                    return f"HTTP {status}"  # the service rejects this text: no use in asking again
            if attempt + 1 == self.TRIES or self.stop.wait(pause):
                return reason

    def _wait_for_slot(self):
        """Keeps the starts of requests at least 1 / QPS seconds apart, across all threads."""
        with self.lock:
            now = time.monotonic()
            start = max(now, self.next_slot)
            self.next_slot = start + 1 / self.qps
        time.sleep(start - now)

    def _keep(self, text, score):
        with self.lock:
            self.known[text] = score
            if self.cache:
                place = {"attribute": self.attribute, "url": self._address()}
                self.cache.append([{"text": text, "score": score, **place}])

    def _address(self):
        """The URL without user, password and query, which may be secret."""
        url = self.httpx.URL(self.url)
        port = f":{url.port}" if url.port else ""
        return f"{url.scheme}://{url.host}{port}{url.path}"


def _summary_score(answer, attribute):
    """The score in [0, 1] of a service's answer, or None."""
    try:
        score = answer.json()["attributeScores"][attribute]["summaryScore"]["value"]
    except (ValueError, KeyError, TypeError):
        return None
    return float(score) if isinstance(score, (int, float)) and 0 <= score <= 1 else None
