"""The LLM gateway as real pods: signals, and faults that neither exceed the limit nor lose slots."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from examples.fake_model import FakeModel, post
from examples.llm_gateway import QUEUE_ID
from genesis import Queue
from genesis.queue import RedisBackend
from tests.support.asgi import Reply
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]


class Pod:
    """One process of the gateway."""

    def __init__(self, log: Path, *options: str, **environment: str) -> None:
        self.name = log.name
        self._log = log
        self._options = options
        self._environment = environment
        self.url = ""

    async def __aenter__(self) -> Pod:
        command = [sys.executable, "examples/llm_gateway.py", "--port", "0", *self._options]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        with self._log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, env=clean | self._environment, stdout=log, stderr=log
            )
        await wait_until(lambda: "running on http" in self.log or self.ended, "the pod runs", 60.0)
        self.url = self.log.split("running on ")[1].split(" ")[0]
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self.ended:
            self.process.kill()
        await self.process.wait()

    @property
    def ended(self) -> bool:
        return self.process.returncode is not None

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def send(self, name: str) -> Reply:
        return Reply(*await post(f"{self.url}/complete", b"{}", name))

    async def get(self, path: str) -> tuple[int, str]:
        def get() -> tuple[int, str]:
            try:
                with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()

        return await asyncio.to_thread(get)

    async def counts(self) -> Counter[tuple[str, str]]:
        """Of the line's counters and histograms: by name, and outcome, reason or state."""
        counts: Counter[tuple[str, str]] = Counter()
        for family in text_string_to_metric_families((await self.get("/metrics"))[1]):
            for sample in family.samples:
                if sample.labels.get("queue") == QUEUE_ID and "le" not in sample.labels:
                    kinds = [sample.labels.get(kind, "") for kind in ("outcome", "reason", "state")]
                    name = sample.name.removeprefix("genesis_queue_")
                    counts[name, "".join(kinds)] += int(sample.value)
        return counts


class HeldModel(FakeModel):
    """Answers when `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    async def _answered(self, request_id: str, reader: asyncio.StreamReader) -> bool:
        self.seen.append(request_id)
        return await self.go.wait()


async def test_sigterm_finishes_who_waits_and_refuses_newcomers(tmp_path: Path) -> None:
    """The pod still answers while it does so, and then ends, with its spans exported."""
    model = HeldModel()
    async with model, FakeModel(seconds=0.0) as collector:
        export = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
        options = ["--model", model.url, "--limit", "1"]
        async with Pod(tmp_path / "log", *options, **export) as pod:
            calls = [asyncio.create_task(pod.send("0"))]
            await wait_until(lambda: model.seen == ["0"], "the model has the first")
            calls.append(asyncio.create_task(pod.send("1")))

            async def one_waits() -> bool:
                return (await pod.counts())["waiting", ""] == 1

            await wait_until(one_waits, "the second waits")
            pod.process.send_signal(signal.SIGTERM)

            await wait_until(lambda: "draining" in pod.log, "the pod drains")
            assert await pod.get("/ready") == (503, "not ready: the queue is draining\n")
            late = await pod.send("late")
            assert (late.status, late.json["error"]) == (503, "QueueDrainingError")
            model.go.set()
            assert [(await call).status for call in calls] == [200, 200]
            assert collector.seen == []
            assert await asyncio.wait_for(pod.process.wait(), 20) == 0
        assert model.seen == ["0", "1"]
        assert "Application shutdown complete" in pod.log
        assert len(collector.seen) == 1


async def test_a_second_signal_breaks_off_who_waits_or_runs(tmp_path: Path) -> None:
    """Each gives back what it has: nothing is lost."""
    model = HeldModel()
    async with model:
        async with Pod(tmp_path / "log", "--model", model.url, "--limit", "1") as pod:
            calls = [asyncio.create_task(pod.send(str(number))) for number in range(2)]

            async def one_waits() -> bool:
                return (await pod.counts())["waiting", ""] == 1

            await wait_until(one_waits, "one waits and one runs")
            pod.process.send_signal(signal.SIGTERM)
            await wait_until(lambda: "draining" in pod.log, "the pod drains")
            pod.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(pod.process.wait(), 20) == 0
            assert {(await call).status for call in calls} == {503}
            model.go.set()
        assert "Traceback" not in pod.log
        events = Counter(json.loads(line)["event"] for line in pod.log.splitlines() if line[:1] == "{")
        assert (events["granted"], events["released"], events["lost"]) == (1, 1, 0)


@pytest.mark.slow
async def test_faults_neither_exceed_the_limit_nor_lose_slots(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    """Three pods, 300 requests, 8 at the model; a pod is killed, 50 requests are cancelled, and Redis
    loses all. All clients but those of the dead pod are answered or refused in time."""
    wait, answering, lease = 25.0, 0.25, 2.0
    took: dict[str, float] = {}
    replies: dict[str, Reply] = {}
    calls: dict[str, asyncio.Task[None]] = {}

    async def send(pod: Pod, name: str) -> None:
        began = time.monotonic()
        replies[name] = await pod.send(name)
        took[name] = time.monotonic() - began

    async def send_to(pods: list[Pod], count: int) -> None:
        for number in range(count):
            pod = pods[number % len(pods)]
            name = f"{pod.name}-{len(calls)}"
            calls[name] = asyncio.create_task(send(pod, name))
            await asyncio.sleep(0.005)  # the rate of the load, so that the pods' requests mix

    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(FakeModel(answering))
        options = ["--redis", own_redis.url, "--model", model.url, "--lease", str(lease)]
        options += ["--limit", "8", "--max-waiting", "140", "--wait", str(wait)]
        pods = [Pod(tmp_path / name, *options) for name in ("dead", "living", "other")]
        for pod in pods:
            await stack.enter_async_context(pod)
        living = pods[1:]
        await send_to(pods, 200)

        def dead_pod_calls() -> bool:
            return len(model.seen) >= 20 and any(name.startswith("dead") for name in model.seen[-8:])

        await wait_until(dead_pod_calls, "some are served, and the pod to be killed calls the model")
        pods[0].process.kill()
        ours = [name for name in calls if not name.startswith("dead") and not calls[name].done()]
        cancelled = [name for name in ours if name in model.seen][:3]
        cancelled += [name for name in ours if name not in model.seen][: 50 - len(cancelled)]
        for name in cancelled:
            calls[name].cancel()

        async def are_reclaimed() -> bool:
            return (await sum_of_counts(living))["reclaimed_total", "holding"] > 0

        await wait_until(are_reclaimed, "the dead pod's slots are taken back")
        await send_to(living, 50)
        await wait_until(lambda: model.active == 8, "the model is busy")
        assert model.most == 8

        own_redis.kill()
        await send_to(living, 50)
        own_redis.start()
        # The recovery window, and until the calls that began in it have ended.
        served = len(model.seen)
        await wait_until(lambda: len(model.seen) > served, "calls are served again")
        await asyncio.sleep(lease / 2 + answering)  # the documented window is the subject
        assert model.most <= 16
        model.most = 0
        await asyncio.gather(*calls.values(), return_exceptions=True)
        assert model.most == 8

        counts = await sum_of_counts(living)
        async with Queue(RedisBackend(own_redis.url, lease=lease)) as queue:
            assert (await queue.stats(QUEUE_ID))[:2] == (0, 0)

    of_living = {name for name in calls if not name.startswith("dead")} - set(cancelled)
    assert {len(calls), len(cancelled)} == {300, 50}
    assert of_living <= replies.keys()
    assert max(took[name] for name in of_living) < wait + answering + 2.0
    statuses = Counter(replies[name].status for name in of_living)
    assert statuses.keys() <= {200, 429, 503}, statuses
    assert statuses[200] >= 150
    # The metrics agree with the replies and with the model.
    at_model = [name for name in model.seen if not name.startswith("dead")]
    assert len(at_model) == len(set(at_model))
    assert counts["refused_total", "full"] == statuses[429]
    granted = counts["wait_seconds_count", "granted"]
    assert len(at_model) <= granted <= len(at_model) + len(set(cancelled) - set(at_model))
    holds = sum(count for (name, _), count in counts.items() if name == "hold_seconds_count")
    waits = sum(count for (name, _), count in counts.items() if name == "wait_seconds_count")
    assert holds == granted
    assert waits == len(of_living) + len(cancelled) - statuses[429]
    assert (counts["waiting", ""], counts["holding", ""]) == (0, 0)


async def sum_of_counts(pods: list[Pod]) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    for pod in pods:
        counts.update(await pod.counts())
    return counts
