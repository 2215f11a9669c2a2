"""The kinds of inputs of the fuzz run: how each is damaged, and what of the package it is given to."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import good
import mutate
import structured
from watch import DefectError, Harness

from conformer_vision.data import BrokenImageError, open_image
from conformer_vision.data.loader import evaluation_loader, training_loader
from conformer_vision.data.opening import open_images
from conformer_vision.data.stream import ImageStream
from conformer_vision.data.transforms import build_transform
from conformer_vision.errors import UserError
from conformer_vision.spec import Preprocessing

SHARES = {
    "images": 600,
    "tables": 100,
    "archives": 80,
    "parquet": 50,
    "exclusions": 50,
    "shards": 40,
    "recipes": 50,
    "run folders": 24,
    "resumes": 6,
}
"""Kinds, and how many of 1,000 inputs are of each."""

_BATCH = 300  # images in a folder
# fmt: off
_WORDS = (
    "", " ", "\t", "\0", '"', "'", ",", ";", "#", "\\", "/", "..", "~", "-", "\r", "\udcff", "é", "犬",
    "\u2028", "nan", "inf", "-1", "0", "1e999", "9" * 400, "x" * 300, "x" * 200_000, "None", "[1]", "{}",
    "/dev/zero", "train", "val", "test", "label", "path", "*", "[", "%s", "${HOME}", "../../../etc/passwd",
    "/", '"a', 'b"c',
)
# fmt: on
# fmt: off
_YAML = (
    "null", "nan", ".nan", ".inf", "-.inf", "1e400", "1e15", "-1", "0", "0.0", "9" * 5000, "yes", "'2'",
    "''", "~", "[1, 2]", "[]", "{}", "{a: b}", "[[[[1]]]]", "[" * 3000, "{a: " * 500, "- 1", "? x", ": ",
    "&a [*a]", "*a", "&a", "!!python/object/apply:os.system [ls]", "!!binary x", "!!timestamp 2001-99-99",
    "2001-12-14", "!!set {a, b}", "!x y", "<<: *a", "%YAML 9.9", "---", "...", "\t", "'", '"', "|", ">",
    "@", "`", "=", "0x7fffffffffffffffffff", "1_000", "0o17", "1:30", "auto", "true", "cuda", "x: y: z",
    "épochs: 3", "\udcff", "\0", "# comment", "epochs: 3", "epohcs: 3", "resume: x", "recipe: x",
    "config: x", "model: resnet18", "model: nothing", "model: conformer_tiny_patch16_224",
    "optimizer: lion", "optimizer: nothing", "augment: 3", "augment: null",
    "model_kwargs: {depths: [1, 0, 1]}", "model_kwargs: {depths: x}", "model_kwargs: {embed_dim: -1}",
    "model_kwargs: {num_classes: 3}", "model_kwargs: {1: 2}", "model_kwargs: {pretrained: true}",
    "folds: 3", "fold: 7", "exclude: nothing.txt", "checkpoint: nothing.pth", "input_size: [32, 1]",
    "input_size: 1", "in_chans: 1", "batch_size: auto", "batch_size: 1", "batch_size: 100000",
    "accumulate: 3", "val_fraction: 0.99", "val_fraction: 1e-9", "crop_pct: 1e-9", "layer_decay: 1e-300",
    "lr: 1e30", "mixup: 1e9", "drop_path_rate: 0.999", "ema_decay: 0.9", "sampling: balanced",
    "aug_repeats: 3", "clip_grad: 1e-30", "augment: {auto_augment: rand-m9}",
    "augment: {auto_augment: nothing}", "augment: {pad: 1000}", "augment: {scale: [1e-9, 1e-9]}",
    "augment: {ratio: [1e-9, 1e9]}", "augment: {color_jitter: 1}", "freeze_blocks: 99",
    "freeze_branch: conv", "loggers: [nothing]", "loggers: tensorboard", "nodes: 0", "devices: 3",
    "precision: bf16-mixed", "precision: 16-mixed", "seed: -1", "seed: 1e3",
    "max_minutes: 1e-9", "patience: 0", "save_top_k: 2", "save_minutes: 1e-9", "max_broken: 1",
    "output: /dev/null/x",
)
# fmt: on


def shares(count: int, kinds: Sequence[str] | None) -> dict[str, int]:
    """How many inputs of each kind make up ``count``."""
    parts = {kind: share for kind, share in SHARES.items() if kinds is None or kind in kinds}
    whole, made = sum(parts.values()), {}
    for kind, share in parts.items():
        made[kind] = max(round(count * share / whole), 1)
    first = next(iter(made))
    made[first] += count - sum(made.values())
    return made


class Fuzz:
    """Makes damaged inputs and gives them to the package.

    Args:
        harness: watches the calls.
        work: an empty folder.
        seed: of all damage.
    """

    def __init__(self, harness: Harness, work: Path, *, seed: int) -> None:
        self.harness = harness
        self.work = work
        self.seed = seed
        self.photos = good.class_folders(work / "photos")
        self.originals = good.images()
        self._runs: dict[str, Path] = {}
        self.transform = build_transform(Preprocessing((3, 32, 32), (0.5,) * 3, (0.2,) * 3, crop_pct=1.0))

    def run(self, kind: str, count: int) -> None:
        """Give the package so many inputs of a kind."""
        if kind == "images":
            for start in range(0, count, _BATCH):
                self._images(range(start, min(start + _BATCH, count)))
            return
        one = getattr(self, "_" + kind.replace(" ", "_").removesuffix("s"))
        for number in range(count):
            folder = self.work / kind.replace(" ", "-") / str(number)
            folder.mkdir(parents=True)
            rng = random.Random(f"{self.seed} {kind} {number}")
            call = one(rng, folder)
            refused = self.harness.attempt(kind, f"{number}", call, inputs=folder)
            self.harness.input(kind, refused=refused is not False)
            shutil.rmtree(folder, ignore_errors=True)

    # Images

    def _images(self, numbers: range) -> None:
        folder = self.work / "mutated"
        everything = [data for _, data in self.originals]
        broken = 0
        paths = []
        for number in numbers:
            rng = random.Random(f"{self.seed} images {number}")
            suffix, data = rng.choice(self.originals)
            data = mutate.damage_image(rng, data, everything)
            if rng.random() < 0.01:
                suffix, data = structured.image(rng)
            if rng.random() < 0.1:
                suffix = rng.choice(self.originals)[0]
            path = folder / good.CLASSES[number % 3] / f"{number}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            refused = self.harness.attempt("images", path.name, lambda path=path: _open(path), inputs=path)
            self.harness.input("images", refused=refused is not False)
            broken += refused is not False
            paths.append(path)
        name, run = f"{numbers.start}-{numbers.stop - 1}", self.trained()
        calls: dict[str, Callable[[], bool]] = {
            "  evaluation_loader": lambda: _same(broken, self._broken(folder)),
            "  training_loader": lambda: self._train_on(folder, numbers.start),
            "  Predictor.predict": lambda: _same(broken, _predict(run, folder)),
            "  predict": lambda: self.harness.command("predict", run, folder, "--csv", "--device=cpu") == 2,
            "  evaluate": lambda: (
                self.harness.command("evaluate", run, "--data", folder, "--split=all", "--device=cpu") == 2
            ),
        }
        if numbers.start == 0 and len(numbers) >= 100:  # its processes take seconds to start
            calls["  check"] = lambda: self.harness.command("check", folder, "--workers=1") == 2
        for kind, call in calls.items():
            self.harness.attempt(kind, name, call, inputs=folder, times=5)
        shutil.rmtree(folder)

    def _broken(self, data: object) -> int:
        """Images of the folder that the loader names as broken."""
        source = open_images(str(data), split="all")
        loader = evaluation_loader(source, self.transform, batch_size=32, workers=0)
        return sum(len(batch.broken) for batch in loader)

    def _train_on(self, data: object, seed: int) -> bool:
        source = open_images(str(data), split="train")
        images = 64 if isinstance(source, ImageStream) else None
        loader = training_loader(
            source, self.transform, batch_size=8, workers=0, seed=seed, epoch_images=images
        )
        for _ in loader:
            pass
        return False

    def _reading(self, rng: random.Random, data: object) -> Callable[[], bool]:
        """Opens a set and reads all its images."""
        split: Any = rng.choice(["train", "val", "all"])
        classes = rng.choice([None, None, good.CLASSES])

        def read() -> bool:
            source = open_images(str(data), split, classes=classes)
            for _ in evaluation_loader(source, self.transform, batch_size=32, workers=0):
                pass
            return False

        training = rng.random() < 0.3
        return lambda: _refused((lambda: self._train_on(data, 0)) if training else read)

    # Tables, lists, archives

    def _table(self, rng: random.Random, folder: Path) -> Callable[[], bool]:
        separator, suffix = rng.choice([(",", ".csv"), (";", ".csv"), ("\t", ".tsv"), ("\t", ".csv")])
        text = good.table(self.photos, separator=separator)
        words = (*_WORDS, str(self.photos), str(self.photos / "ant" / "0.png"), separator * 30)
        path = folder / f"table{suffix}"
        path.write_bytes(mutate.damage_text(rng, text, words))
        return self._reading(rng, path)

    def _exclusion(self, rng: random.Random, folder: Path) -> Callable[[], bool]:
        from conformer_vision.data.exclude import exclude, read_exclusions

        path = folder / "exclude.csv"
        words = (*_WORDS, *(str(image) for image in sorted(self.photos.rglob("*.png"))), "digits row 3")
        path.write_bytes(mutate.damage_text(rng, good.exclusions(self.photos), words))
        if rng.random() < 0.05:
            run = self.trained()
            return lambda: (
                self.harness.command(
                    "evaluate", run, "--data", self.photos, "--exclude", path, "--device=cpu"
                )
                == 2
            )

        def call() -> bool:
            exclude(open_images(self.photos, split="all"), read_exclusions(path))
            return False

        return lambda: _refused(call)

    def _archive(self, rng: random.Random, folder: Path) -> Callable[[], bool]:
        kind, suffix = rng.choice(
            [("zip", ".zip"), ("w", ".tar"), ("w:gz", ".tar.gz"), ("w:bz2", ".tar.bz2"), ("w:xz", ".txz")]
        )
        draw = rng.random()
        data = structured.archive(rng, kind) if draw < 0.3 else good.archive(kind)
        if draw > 0.2:
            data = mutate.damage(rng, data, [good.archive("zip"), good.archive("w")])
        if rng.random() < 0.1:
            suffix = rng.choice([".zip", ".tar", ".tgz"])
        path = folder / f"set{suffix}"
        path.write_bytes(data)
        return self._reading(rng, path)

    def _parquet(self, rng: random.Random, folder: Path) -> Callable[[], bool]:
        path = folder / "set.parquet"
        path.write_bytes(structured.parquet(rng))
        return self._reading(rng, path if rng.random() < 0.8 else folder)

    def _shard(self, rng: random.Random, folder: Path) -> Callable[[], bool]:
        for number in range(rng.choice([1, 2])):
            data = (
                structured.shard(rng)
                if rng.random() < 0.4
                else mutate.damage(rng, good.shard(rng.choice(["cls", "json"])))
            )
            (folder / f"set-{number:03d}.tar").write_bytes(data)
        if rng.random() < 0.5:
            words = (*_WORDS, "ant", "[1]", "{}")
            texts = {
                "classes.txt": "ant\nbee\ncat\n",
                "_info.json": json.dumps(
                    {
                        "splits": {
                            "train": {"filenames": ["set-000.tar"], "shard_lengths": [9], "num_samples": 9}
                        }
                    },
                    indent=1,
                ),
                "dataset_info.json": json.dumps(
                    {"features": {"label": {"names": list(good.CLASSES)}}}, indent=1
                ),
            }
            name = rng.choice(sorted(texts))
            (folder / name).write_bytes(mutate.damage_text(rng, texts[name], words))
        return self._reading(rng, f"wds/{folder}")

    # Recipes and runs

    def _recipe(self, rng: random.Random, folder: Path) -> Callable[[], bool]:
        path = folder / "recipe.yaml"
        data = mutate.damage_text(rng, good.recipe(self.photos), _YAML)
        if rng.random() < 0.03:
            levels = "\n".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefghi"))
            data = f"a: &a [x, x]\n{levels}\nmodel_kwargs: {{x: *i}}\n".encode()
        path.write_bytes(data)
        trains = rng.random() < 0.25
        short = ["--data", self.photos, "--max_steps=1", "--epochs=1", "--workers=0", "--batch_size=8"]
        short += ["--model=conformer_nano_patch8_64", "--input_size=32", "--device=cpu", "--report=false"]
        options = short if trains else ["--data", folder / "nothing"]
        return lambda: (
            self.harness.command("train", "--recipe", path, *options, "--output", folder / "run") == 2
        )

    def _run_folder(self, rng: random.Random, folder: Path) -> Callable[[], bool]:
        run = folder / "run"
        command = rng.choice(["evaluate", "predict", "report", "resume", "resume"])
        shutil.copytree(self.interrupted() if command == "resume" else self.trained(), run)
        names = ["config.yaml", "metrics.csv", "best.safetensors", "classes.txt"]
        if command == "resume":
            names = ["config.yaml", "last.ckpt", "last.ckpt", "last.ckpt", "metrics.csv", "last.safetensors"]
        path = run / rng.choice([name for name in names if (run / name).exists()])
        path.write_bytes(structured.run_file(rng, path, _YAML))
        if command == "resume":
            # What a damaged config.yaml asks for is asked for: only its errors are looked at, on data gone.
            if path.name == "config.yaml" and rng.random() < 0.8:
                path.write_bytes(path.read_bytes().replace(str(self.photos).encode(), b"/nothing/there"))
            return lambda: self._status_of_resuming(run, but=path.name) == 2
        options: dict[str, list[object]] = {
            "evaluate": ["--data", self.photos],
            "predict": [self.photos / "ant"],
            "report": [],
        }
        return lambda: self.harness.command(command, run, *options[command], "--device=cpu") == 2

    def _status_of_resuming(self, run: Path, *, but: str = "") -> int:
        """Resume; where it is refused what a later resumption needs must still be there."""
        before = {path.name for path in run.iterdir()}
        status = self.harness.command("train", "--resume", run)
        if status == 2:
            kept = ("config.yaml", "last.ckpt", "last.safetensors")
            for name in kept:
                if name != but and name in before and not (run / name).is_file():
                    raise DefectError(f"resume was refused, and {name} is gone")
        return status

    def _resume(self, rng: random.Random, folder: Path) -> Callable[[], bool]:
        """The data changes between an interruption and the resumption, and then is mended."""
        shutil.copytree(self.photos, folder / "photos")
        listed = folder / "exclude.csv"
        listed.write_text(good.exclusions(folder / "photos"), encoding="utf-8")
        run = folder / "run"
        _interrupt(run, folder / "photos", exclude=str(listed))
        shutil.copytree(folder / "photos", folder / "safe")
        good_list = listed.read_bytes()
        structured.folder(rng, folder / "photos", listed, self.originals)

        def call() -> bool:
            status = self._status_of_resuming(run)
            shutil.rmtree(folder / "photos", ignore_errors=True)
            (folder / "safe").rename(folder / "photos")
            listed.write_bytes(good_list)
            if status == 2 and self.harness.command("train", "--resume", run) != 0:
                raise DefectError("with the data mended the run cannot be resumed")
            if (
                not (run / "last.ckpt").is_file()
                or self.harness.command("evaluate", run, "--data", self.photos) == 2
            ):
                raise DefectError("the run is lost")
            return status == 2

        return call

    def trained(self) -> Path:
        """The folder of a run that ended well."""
        if "trained" not in self._runs:
            from conformer_vision.training import TrainConfig, train

            config = TrainConfig.from_options(
                data=str(self.photos), output=str(self.work / "trained"), max_steps=2, **good.TINY
            )
            self._runs["trained"] = self._quietly(lambda: train(config))
        return self._runs["trained"]

    def interrupted(self) -> Path:
        """The folder of a run that Ctrl-C ended after two of its four steps."""
        if "interrupted" not in self._runs:
            folder = self.work / "interrupted"
            self._quietly(lambda: _interrupt(folder, self.photos))
            self._runs["interrupted"] = folder
        return self._runs["interrupted"]

    def _quietly(self, call: Callable[[], Any]) -> Any:
        kept = []

        def run() -> bool:
            kept.append(call())
            return False

        self.harness.attempt("good runs", "training", run, inputs=None)
        return kept[0]


def _open(path: Path) -> bool:
    try:
        image = open_image(path)
    except BrokenImageError as error:
        _one_line(error)
        return True
    if image.mode != "RGB":
        raise DefectError(f"mode {image.mode}")
    return False


def _predict(run: Path, folder: Path) -> int:
    """Images of the folder without an answer."""
    from conformer_vision.inference import Predictor

    return sum(answer.error is not None for answer in Predictor(run, device="cpu").predict(folder))


def _same(wanted: int, found: int) -> bool:
    if wanted != found:
        raise DefectError(f"{found} broken images, but {wanted} alone")
    return False


def _refused(call: Callable[[], bool]) -> bool:
    try:
        return call()
    except UserError as error:
        _one_line(error)
        return True


def _one_line(error: UserError) -> None:
    text = str(error)
    if not text.strip() or len(text.splitlines()) != 1:
        raise DefectError(f"not one line: {text!r}")


def _interrupt(folder: Path, data: Path, **changes: Any) -> None:
    """Train, with Ctrl-C in the second of four steps."""
    from conformer_vision.training import TrainConfig, TrainingInterrupted, train
    from conformer_vision.training.module import ClassifierModule

    step, seen = ClassifierModule.training_step, 0

    def counted(self: Any, batch: Any, batch_idx: int) -> Any:
        nonlocal seen
        seen += 1
        if seen == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    config = TrainConfig.from_options(
        data=str(data), output=str(folder), max_steps=4, val_fraction=0.25, **good.TINY, **changes
    )
    ClassifierModule.training_step = counted  # type: ignore[method-assign]
    try:
        train(config)
    except TrainingInterrupted:
        return
    finally:
        ClassifierModule.training_step = step  # type: ignore[method-assign]
    raise DefectError("training was not interrupted")
