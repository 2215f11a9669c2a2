"""Classify a large set of images on a cluster, part by part, and go on where an earlier command ended."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformer_vision.errors import UserError, first_line, option
from conformer_vision.model_version import version_of
from conformer_vision.runs import ModelSource

from .cluster import Shares, open_cluster
from .folder import AnswerFolder, Part, part_size
from .listing import list_images
from .stores import Input
from .worker import Job, Worker

if TYPE_CHECKING:
    from conformer_vision.inference import Predictor

_ROUNDS = 3
"""How often in a row no part may be answered, because processes die, before that is an error."""

Progress = Callable[[int, int], None]
"""Is told how many images are done, and of how many."""


@dataclass(frozen=True)
class Model:
    """What answers, and how."""

    source: ModelSource
    build: Callable[[], Predictor]
    """Makes the predictor; it is sent to the processes."""
    options: Mapping[str, Any]
    """What the answers depend on besides the model, as JSON has it; not how they are computed."""
    top_k: int | None
    batch_size: int
    device: str


@dataclass
class Summary:
    """What a command did, in numbers of images."""

    images: int
    """All of the folder of answers."""
    before: int
    """Answered by earlier commands."""
    changed: int
    """That have changed since an earlier command listed them; their answers stay."""
    answered: int = 0
    """Answered by this one, broken ones included."""
    broken: int = 0
    unfetched: int = 0
    """Broken ones that their store did not give; the next command asks for them again."""
    unsure: int = 0


def classify(
    model: Model, inputs: Sequence[str], output: Path, *, workers: int | None, progress: Progress
) -> Generator[Summary, None, None]:
    """Answer all images that are not answered yet; yield the summary as it stands, after each part.

    Args:
        model: What answers.
        inputs: Images and folders of images: paths that every machine of the cluster has, or addresses of
            stores.
        output: The folder of answers, which every machine of the cluster has too.
        workers: Processes, each with one predictor; None for one on each GPU, or else on each CPU.
        progress: Is told about the images of this command.

    Raises:
        UserError: Ray is missing or its cluster not reached; inputs that are not there; a folder of other
            answers; or images that no process survives.
    """
    opened = [Input.open(each) for each in inputs]
    folder = AnswerFolder(output)
    version = version_of(model.source)
    path = str(model.source.path)
    named = f"{path} {version}" if model.source.kind == "published" else version
    own = {
        "model": {"path": path, "version": named},
        "inputs": [each.place for each in opened],
        "options": dict(model.options),
    }
    settings = json.loads(json.dumps(own))  # as it will be read again
    folder.claim(settings)
    images, changed = folder.without_listed(list_images(opened))
    if not len(images) and not (found := folder.progress()).missing:
        yield Summary(found.images, found.answered, changed)
        return
    with open_cluster(workers=workers, device=model.device) as shares:
        if len(images):
            size = part_size(len(images), workers=shares.workers, batch_size=model.batch_size)
            folder.add(images, settings, part_size=size)
        del images
        found = folder.progress()
        summary = Summary(found.images, found.answered, changed)
        yield summary
        job = Job(
            model.build,
            model.source,
            version=version,
            batch_size=model.batch_size,
            top_k=model.top_k,
            folder=output.absolute(),  # other processes work in other folders
            stores=[each.store for each in opened],
        )
        for outcome in _outcomes(job, folder, found.missing, shares):
            summary.answered += outcome["images"]
            summary.broken += outcome["broken"]
            summary.unfetched += outcome["unfetched"]
            summary.unsure += outcome["unsure"]
            progress(summary.answered, found.images - found.answered)
            yield summary
    folder.tidy()


def _outcomes(
    job: Job, folder: AnswerFolder, parts: Sequence[Part], shares: Shares
) -> Iterator[Mapping[str, Any]]:
    """Yield what came of each part as it is done; parts whose process died are done again by others.

    Raises:
        UserError: A part cannot be answered, or the processes that try all die.
    """
    left, failures = set(parts), 0
    while left:
        before = len(left)
        for outcome in _round(job, sorted(left), shares):
            if outcome["failed"]:
                raise UserError(outcome["failed"])
            left.discard(Part(outcome["list"], outcome["number"]))
            yield outcome
        failures = failures + 1 if len(left) == before else 0
        if failures == _ROUNDS:
            raise UserError(
                f"processes died again and again with the images of {min(left).file}, the first of which is "
                f"{folder.first_of(min(left))}; give fewer {option('workers')} if memory is short, or remove "
                "the image that is to blame"
            )


def _round(job: Job, parts: Sequence[Part], shares: Shares) -> Iterator[Mapping[str, Any]]:
    """Let the cluster answer parts; yield the outcomes of those whose process did not die."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # a process that dies costs its part this round, and nothing else
    context.max_consecutive_actor_init_deaths = shares.workers
    rows = [part._asdict() for part in parts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the last two arguments go with Ray 2.64, which the extra excludes
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Worker,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=ActorPoolStrategy(size=min(shares.workers, len(rows))),
            num_cpus=shares.cpus,
            num_gpus=shares.gpus,
            max_restarts=-1,  # a new process takes the place of one that dies
            max_task_retries=0,  # but its part waits for the next round, for whoever is free
        )
    try:
        for batch in data.iter_batches(batch_size=None, prefetch_batches=0):
            names = list(batch)
            for values in zip(*(batch[name].tolist() for name in names), strict=True):
                yield dict(zip(names, values, strict=True))
    except ray.exceptions.RayError as error:
        raise UserError(
            f"the Ray cluster is gone ({first_line(error)}); give the same command again"
        ) from error
