"""The queue: what is computed together, what is refused, and what is dropped before it is computed.

The model is a stub whose forward passes begin and end when the test says so.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from conformer_vision.errors import UserError
from conformer_vision.serve.app import build_app
from conformer_vision.serve.limits import Limits
from http_server import PNG, Stub, png, run, served, serving


def test_images_that_come_meanwhile_are_computed_together() -> None:
    stub = Stub(free=False)

    async def test() -> None:
        async with serving(stub, limits=Limits(max_batch=4)) as server, asyncio.TaskGroup() as group:
            tasks = [group.create_task(server.predict("first"))]
            await stub.entered()
            for number in range(6):
                tasks.append(group.create_task(server.predict(f"n{number}")))
                await server.queued(number + 1)
            stub.let(3)
        answers = [task.result().json()["predictions"][0]["name"] for task in tasks]
        assert answers == ["first", *(f"n{number}" for number in range(6))]
        assert stub.batches == [["first"], ["n0", "n1", "n2", "n3"], ["n4", "n5"]]
        assert len(stub.threads) == 1

    run(test)


def test_images_of_one_request_are_one_batch_though_they_are_decoded_one_by_one() -> None:
    stub = Stub()

    async def test() -> None:
        async with serving(stub, limits=Limits(max_batch=4, max_wait_ms=10_000)) as server:
            answer = await server.predict(**{f"n{number}": png(number) for number in range(4)})
        assert [each["name"] for each in answer.json()["predictions"]] == ["n0", "n1", "n2", "n3"]
        assert [sorted(batch) for batch in stub.batches] == [["n0", "n1", "n2", "n3"]]

    run(test)


def test_an_image_alone_does_not_wait_for_others() -> None:
    """Though it might for an hour."""

    async def test() -> None:
        async with serving(Stub(), limits=Limits(max_wait_ms=3_600_000)) as server:
            assert (await server.predict()).status_code == 200

    run(test)


def test_requests_with_other_parameters_are_computed_apart() -> None:
    stub = Stub(free=False)

    async def test() -> None:
        async with serving(stub) as server, asyncio.TaskGroup() as group:
            tasks = [group.create_task(server.predict("first"))]
            await stub.entered()
            for number, top_k in enumerate((3, 7, 3)):
                tasks.append(group.create_task(server.predict(f"n{number}", query=f"?top_k={top_k}")))
                await server.queued(number + 1)
            stub.let(3)
        labels = [task.result().json()["predictions"][0]["labels"][0] for task in tasks]
        assert labels == ["top None", "top 3", "top 7", "top 3"]
        assert stub.batches == [["first"], ["n0", "n2"], ["n1"]]

    run(test)


def test_a_full_queue_refuses_at_once_and_reads_no_body() -> None:
    stub, read = Stub(free=False), []

    async def body() -> AsyncIterator[bytes]:
        read.append(True)
        yield png()

    async def test() -> None:
        async with (
            serving(stub, limits=Limits(max_queue=2, max_images=2)) as server,
            asyncio.TaskGroup() as group,
        ):
            tasks = [group.create_task(server.predict("first"))]
            await stub.entered()
            tasks.append(group.create_task(server.predict("second")))
            await server.queued(1)
            two = await server.predict(a=png(), b=png())  # one place is left
            assert two.status_code == 503
            assert server.service.batcher.waiting == 1
            tasks.append(group.create_task(server.predict("third")))
            await server.queued(2)
            for path in ("/predict", "/predict?top_k=1"):
                refused = await server.client.post(path, content=body(), headers=PNG)
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) >= 1
                assert "full" in refused.json()["error"]
            assert not read
            metrics = (await server.client.get("/metrics")).text
            stub.let(3)
        assert [task.result().status_code for task in tasks] == [200] * 3
        assert 'conformer_vision_rejected_total{reason="queue_full"} 3.0' in metrics
        assert "conformer_vision_queue_images 2.0" in metrics

    run(test)


def test_what_expires_in_the_queue_is_not_computed() -> None:
    stub = Stub(free=False)

    async def test() -> None:
        async with serving(stub, limits=Limits(deadline_seconds=0.3)) as server, asyncio.TaskGroup() as group:
            first = group.create_task(server.predict("first"))
            await stub.entered()
            late = await server.predict("late")  # while the first is computed, for longer than that
            assert (await first).status_code == 504  # it was begun, but not done
            assert server.service.batcher.waiting == 0
            stub.let(2)
            assert (await server.predict("next")).status_code == 200
        assert late.status_code == 504
        assert late.json()["error"].startswith("the answer was not ready within 0.3 s")
        assert stub.batches == [["first"], ["next"]]

    run(test)


def scope(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"content-type", b"image/png")],
    }


def test_an_image_whose_client_has_gone_is_not_computed() -> None:
    stub = Stub(free=False)

    async def test() -> None:
        async with serving(stub) as server:
            gone, sent, body = asyncio.Event(), list[Any](), [png()]

            async def receive() -> dict[str, Any]:
                if body:
                    return {"type": "http.request", "body": body.pop(), "more_body": False}
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                sent.append(message)

            async with asyncio.TaskGroup() as group:
                first = group.create_task(server.predict("first"))
                await stub.entered()
                app, held = build_app(server.service), server.service.bodies.held
                request = group.create_task(app(scope("/predict"), receive, send))
                await server.queued(1)
                gone.set()
                await request
                assert server.service.batcher.waiting == 0
                assert server.service.bodies.held == held
                stub.let(2)
                assert (await first).status_code == 200
                assert (await server.predict("next")).status_code == 200
        assert stub.batches == [["first"], ["next"]]

    run(test)


def test_a_client_that_goes_while_it_sends_leaves_nothing_behind() -> None:
    async def test() -> None:
        async with serving(Stub()) as server:
            messages = [
                {"type": "http.disconnect"},
                {"type": "http.request", "body": b"begin", "more_body": True},
            ]

            async def receive() -> Any:
                return messages.pop()

            async def send(message: Any) -> None:
                pass

            await build_app(server.service)(scope("/predict"), receive, send)
            assert server.service.bodies.held == server.service.uploads.held == 0
            assert server.service.batcher.waiting == 0
            assert 'status="499"' in (await server.client.get("/metrics")).text

    run(test)


def test_a_forward_pass_that_fails_is_repeated_image_by_image(caplog: pytest.LogCaptureFixture) -> None:
    stub = Stub(poison="bad")

    async def test() -> None:
        async with serving(stub, limits=Limits(max_wait_ms=10_000)) as server:
            answer = await server.predict(good=png(), bad=png(), fine=png())
            alone = await server.predict("bad")
        assert answer.status_code == 200
        good, bad, fine = answer.json()["predictions"]
        assert (good["error"], fine["error"]) == (None, None)
        assert bad["error"] == "the model failed; the log of the server says why"
        assert alone.status_code == 500
        assert alone.json()["error"] == bad["error"]  # without the path that the model's error has
        assert "poison at /secret" in caplog.text

    run(test)


def test_a_reload_drops_no_request_and_mixes_no_models() -> None:
    old, new = Stub(free=False), Stub()
    models = [served(new, version="2"), served(old, version="1")]

    async def test() -> None:
        async with serving(models.pop) as server, asyncio.TaskGroup() as group:
            tasks = [group.create_task(server.predict("first"))]
            await old.entered()
            tasks.append(group.create_task(server.predict("second")))
            await server.queued(1)
            await server.service.reload()
            tasks.append(group.create_task(server.predict("third")))
            await server.queued(2)
            old.let(2)
        contents = [task.result().json() for task in tasks]
        assert [each["predictions"][0]["name"] for each in contents] == ["first", "second", "third"]
        assert [each["model"]["version"] for each in contents] == ["1", "1", "2"]
        assert (old.batches, new.batches) == ([["first"], ["second"]], [["third"]])

    run(test)


def test_a_broken_new_model_keeps_the_old_one(capsys: pytest.CaptureFixture[str]) -> None:
    loads: list[Any] = [UserError("runs/a/best.safetensors is damaged"), served(Stub())]

    def load() -> Any:
        found = loads.pop()
        if isinstance(found, Exception):
            raise found
        return found

    async def test() -> None:
        async with serving(load) as server:
            with pytest.raises(UserError, match="is damaged"):
                await server.service.reload()
            assert (await server.predict()).json()["model"]["version"] == "1"
            assert 'reloads_total{outcome="failed"} 1.0' in (await server.client.get("/metrics")).text

    run(test)
    line = "the new model cannot be loaded, so stub 1 stays: runs/a/best.safetensors is damaged\n"
    assert capsys.readouterr().err == line


def test_draining_answers_what_has_begun_and_refuses_the_rest() -> None:
    stub = Stub(free=False)

    async def test() -> None:
        async with serving(stub) as server, asyncio.TaskGroup() as group:
            first = group.create_task(server.predict("first"))
            await stub.entered()
            server.service.draining = True
            for answer in (await server.predict("late"), await server.client.get("/ready")):
                assert answer.status_code == 503
                assert "about to end" in answer.json()["error"]
                assert int(answer.headers["retry-after"]) >= 1
            assert (await server.client.get("/health")).status_code == 200
            stub.let()
            assert (await first).status_code == 200

    run(test)


def test_until_the_model_is_loaded_the_server_lives_but_is_not_ready() -> None:
    async def test() -> None:
        async with serving(Stub()) as server:
            model, server.service._model = server.service._model, None
            for answer in (await server.predict(), await server.client.get("/ready")):
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                assert "still being loaded" in answer.json()["error"]
            assert (await server.client.get("/health")).status_code == 200
            server.service._model = model
            assert (await server.client.get("/ready")).status_code == 200

    run(test)


def test_explanations_take_turns_with_batches() -> None:
    """A queue full of explanations delays a prediction by one of them."""
    stub, mark = Stub(free=False), ["explained"]

    async def test() -> None:
        async with serving(stub) as server, asyncio.TaskGroup() as group:
            batcher = server.service.batcher
            first = group.create_task(server.predict("first"))
            await stub.entered()
            explained = [group.create_task(batcher.run(lambda: stub.batches.append(mark))) for _ in range(3)]
            await server.until(lambda: len(batcher._tasks) == 3)
            second = group.create_task(server.predict("second"))
            await server.queued(1)
            stub.let(2)
            await asyncio.gather(first, second, *explained)
        assert stub.batches == [["first"], mark, ["second"], mark, mark]

    run(test)


def test_a_batching_loop_that_died_shows_in_the_health() -> None:
    async def test() -> None:
        async with serving(Stub()) as server:
            await server.service.batcher.stop()
            assert (await server.client.get("/health")).status_code == 500
            assert (await server.client.get("/ready")).status_code == 503

    run(test)
