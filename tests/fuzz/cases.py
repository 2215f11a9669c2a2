"""The kinds of inputs of the fuzz run: how each is damaged, and what of the package it is given to."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import good
import mutate
import structured
from watch import DefectError, Harness

from conformer_vision.data import BrokenImageError, open_image
from conformer_vision.data.exclude import exclude, read_exclusions
from conformer_vision.data.loader import evaluation_loader, training_loader
from conformer_vision.data.opening import open_images
from conformer_vision.data.stream import ImageStream
from conformer_vision.data.transforms import build_transform
from conformer_vision.errors import UserError
from conformer_vision.inference import Predictor
from conformer_vision.spec import Preprocessing
from conformer_vision.training import TrainConfig, TrainingInterrupted, train
from conformer_vision.training.module import ClassifierModule

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
_CPU = "--device=cpu"
# fmt: off
_WORDS = (
    "", " ", "\t", "\0", '"', "'", ",", ";", "#", "\\", "/", "..", "~", "-", "\r", "\udcff", "é", "犬",
    "\u2028", "nan", "inf", "-1", "0", "1e999", "9" * 400, "x" * 300, "x" * 200_000, "None", "[1]", "{}",
    "/dev/zero", "train", "val", "test", "label", "path", "*", "[", "%s", "${HOME}", "../../../etc/passwd",
    "/", '"a', 'b"c',
)
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
    whole = sum(parts.values())
    made = {kind: max(round(count * share / whole), 1) for kind, share in parts.items()}
    made[next(iter(made))] += count - sum(made.values())
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
        self.transform = build_transform(Preprocessing((3, 32, 32), (0.5,) * 3, (0.2,) * 3, crop_pct=1.0))
        self.trained, self.interrupted = work / "trained", work / "interrupted"

    def run(self, kinds: dict[str, int]) -> None:
        """Give the package so many inputs of each kind."""
        if kinds.keys() & {"images", "exclusions", "run folders"}:
            config = TrainConfig.from_options(
                data=str(self.photos), output=str(self.trained), max_steps=2, **good.TINY
            )
            self.harness.attempt("  train", "good run", lambda: train(config), inputs=None)
        if "run folders" in kinds:
            stop = partial(self._interrupt, self.interrupted, self.photos)
            self.harness.attempt("  train", "interrupted run", stop, inputs=None)
        for kind, count in kinds.items():
            if kind == "images":
                for start in range(0, count, _BATCH):
                    self._images(range(start, min(start + _BATCH, count)))
                continue
            make = getattr(self, "_" + kind.replace(" ", "_").removesuffix("s"))
            for number in range(count):
                folder = self.work / kind.replace(" ", "-") / str(number)
                folder.mkdir(parents=True)
                call = make(random.Random(f"{self.seed} {kind} {number}"), folder)
                self.harness.attempt(kind, f"{number}", call, inputs=folder)
                shutil.rmtree(folder, ignore_errors=True)

    # Images

    def _images(self, numbers: range) -> None:
        folder, run = self.work / "mutated", self.trained
        everything = [data for _, data in self.originals]
        broken = 0
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
            broken += self.harness.attempt("images", path.name, partial(_open, path), inputs=path)

        def same(found: int) -> None:
            if found != broken:
                raise DefectError(f"{found} broken images, but {broken} alone")

        def predict() -> None:
            same(sum(answer.error is not None for answer in Predictor(run, device="cpu").predict(folder)))

        command = self.harness.command
        calls: dict[str, Callable[[], object]] = {
            "  evaluation_loader": lambda: same(self._evaluate_on(open_images(folder, split="all"))),
            "  training_loader": lambda: self._train_on(folder, numbers.start),
            "  Predictor.predict": predict,
            "  predict": lambda: command("predict", run, folder, "--csv", _CPU),
            "  evaluate": lambda: command("evaluate", run, "--data", folder, "--split=all", _CPU),
        }
        if numbers.start == 0 and len(numbers) >= 100:  # its processes take seconds to start
            calls["  check"] = lambda: command("check", folder, "--workers=1")
        for kind, call in calls.items():
            self.harness.attempt(kind, f"{numbers.start}-{numbers.stop - 1}", call, inputs=folder, times=5)
        shutil.rmtree(folder)

    def _evaluate_on(self, source: Any) -> int:
        """Read all images of a source; return how many the loader names as broken."""
        loader = evaluation_loader(source, self.transform, batch_size=32, workers=0)
        return sum(len(batch.broken) for batch in loader)

    def _train_on(self, data: Path | str, seed: int) -> None:
        source = open_images(data, split="train")
        images = 64 if isinstance(source, ImageStream) else None
        options = {"batch_size": 8, "workers": 0, "seed": seed, "epoch_images": images}
        for _ in training_loader(source, self.transform, **options):
            pass

    def _reading(self, rng: random.Random, data: Path | str) -> Callable[[], object]:
        """Opens a set and reads all its images."""
        split: Any = rng.choice(["train", "val", "all"])
        classes = rng.choice([None, None, good.CLASSES])
        if rng.random() < 0.3:
            return lambda: self._train_on(data, 0)
        return lambda: self._evaluate_on(open_images(data, split, classes=classes))

    # Tables, lists, archives

    def _table(self, rng: random.Random, folder: Path) -> Callable[[], object]:
        separator, suffix = rng.choice([(",", ".csv"), (";", ".csv"), ("\t", ".tsv"), ("\t", ".csv")])
        text = good.table(self.photos, separator=separator)
        words = (*_WORDS, str(self.photos), str(self.photos / "ant" / "0.png"), separator * 30)
        path = folder / f"table{suffix}"
        path.write_bytes(mutate.damage_text(rng, text, words))
        return self._reading(rng, path)

    def _exclusion(self, rng: random.Random, folder: Path) -> Callable[[], object]:
        path = folder / "exclude.csv"
        words = (*_WORDS, *(str(image) for image in sorted(self.photos.rglob("*.png"))), "digits row 3")
        path.write_bytes(mutate.damage_text(rng, good.exclusions(self.photos), words))
        if rng.random() < 0.05:
            options = ["--data", self.photos, "--exclude", path, _CPU]
            return lambda: self.harness.command("evaluate", self.trained, *options)
        return lambda: exclude(open_images(self.photos, split="all"), read_exclusions(path))

    def _archive(self, rng: random.Random, folder: Path) -> Callable[[], object]:
        kind, suffix = rng.choice(
            [("zip", ".zip"), ("w", ".tar"), ("w:gz", ".tar.gz"), ("w:bz2", ".tar.bz2"), ("w:xz", ".txz")]
        )
        draw = rng.random()
        data = structured.archive(rng, kind) if draw < 0.3 else good.archive(kind, good.members())
        if draw > 0.2:
            data = mutate.damage(rng, data, [good.archive(other, good.members()) for other in ("zip", "w")])
        if rng.random() < 0.1:
            suffix = rng.choice([".zip", ".tar", ".tgz"])
        path = folder / f"set{suffix}"
        path.write_bytes(data)
        return self._reading(rng, path)

    def _parquet(self, rng: random.Random, folder: Path) -> Callable[[], object]:
        path = folder / "set.parquet"
        path.write_bytes(structured.parquet(rng))
        return self._reading(rng, path if rng.random() < 0.8 else folder)

    def _shard(self, rng: random.Random, folder: Path) -> Callable[[], object]:
        for number in range(rng.choice([1, 2])):
            damaged = mutate.damage(rng, good.shard(rng.choice(["cls", "json"])))
            data = structured.shard(rng) if rng.random() < 0.4 else damaged
            (folder / f"set-{number:03d}.tar").write_bytes(data)
        if rng.random() < 0.5:
            lengths = {"filenames": ["set-000.tar"], "shard_lengths": [9], "num_samples": 9}
            texts = {
                "classes.txt": "ant\nbee\ncat\n",
                "_info.json": json.dumps({"splits": {"train": lengths}}, indent=1),
                "dataset_info.json": json.dumps(
                    {"features": {"label": {"names": list(good.CLASSES)}}}, indent=1
                ),
            }
            name = rng.choice(sorted(texts))
            (folder / name).write_bytes(mutate.damage_text(rng, texts[name], (*_WORDS, "ant")))
        return self._reading(rng, f"wds/{folder}")

    # Recipes and runs

    def _recipe(self, rng: random.Random, folder: Path) -> Callable[[], object]:
        path = folder / "recipe.yaml"
        data = mutate.damage_text(rng, good.recipe(self.photos), _YAML)
        if rng.random() < 0.03:
            levels = "\n".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefghi"))
            data = f"a: &a [x, x]\n{levels}\nmodel_kwargs: {{x: *i}}\n".encode()
        path.write_bytes(data)
        options: list[object] = ["--data", folder / "nothing"]
        if rng.random() < 0.25:
            options = ["--data", self.photos, "--max_steps=1", "--epochs=1", "--workers=0", "--batch_size=8"]
            options += ["--model=conformer_nano_patch8_64", "--input_size=32", _CPU, "--report=false"]
        output = ["--output", folder / "run"]
        return lambda: self.harness.command("train", "--recipe", path, *options, *output)

    def _run_folder(self, rng: random.Random, folder: Path) -> Callable[[], object]:
        run = folder / "run"
        options: dict[str, list[object]] = {
            "evaluate": ["--data", self.photos],
            "predict": [self.photos / "ant"],
            "report": [],
        }
        command = rng.choice([*options, "resume", "resume"])
        shutil.copytree(self.interrupted if command == "resume" else self.trained, run)
        names = ["config.yaml", "metrics.csv", "best.safetensors", "classes.txt"]
        if command == "resume":
            names = ["config.yaml", "last.ckpt", "last.ckpt", "last.ckpt", "metrics.csv", "last.safetensors"]
        path = run / rng.choice([name for name in names if (run / name).exists()])
        path.write_bytes(structured.run_file(rng, path, _YAML))
        if command != "resume":
            return lambda: self.harness.command(command, run, *options[command], _CPU)
        # What a damaged config.yaml asks for is asked for: only its errors are looked at, on data gone.
        if path.name == "config.yaml" and rng.random() < 0.8:
            path.write_bytes(path.read_bytes().replace(str(self.photos).encode(), b"/nothing/there"))
        return lambda: self._resume_run(run, but=path.name)

    def _resume_run(self, run: Path, *, but: str = "") -> None:
        """Resume; where it is refused what a later resumption needs must still be there."""
        kept = [run / name for name in ("config.yaml", "last.ckpt", "last.safetensors") if name != but]
        before = [path for path in kept if path.is_file()]
        try:
            self.harness.command("train", "--resume", run)
        except UserError:
            if gone := [path.name for path in before if not path.is_file()]:
                raise DefectError(f"resume was refused, and {gone} are gone") from None
            raise

    def _resume(self, rng: random.Random, folder: Path) -> Callable[[], object]:
        """The data changes between an interruption and the resumption, and then is mended."""
        data, run, listed = folder / "photos", folder / "run", folder / "exclude.csv"
        shutil.copytree(self.photos, data)
        listed.write_text(good.exclusions(data), encoding="utf-8")
        self._interrupt(run, data, exclude=str(listed))
        shutil.copytree(data, folder / "safe")
        good_list = listed.read_bytes()
        structured.folder(rng, data, listed, self.originals)

        def call() -> None:
            refused: UserError | None = None
            try:
                self._resume_run(run)
            except UserError as error:
                refused = error
            shutil.rmtree(data, ignore_errors=True)
            (folder / "safe").rename(data)
            listed.write_bytes(good_list)
            try:
                if refused:
                    self.harness.command("train", "--resume", run)
                self.harness.command("evaluate", run, "--data", self.photos)
            except UserError as error:
                raise DefectError(f"with the data mended the run is lost: {error}") from error
            if not (run / "last.ckpt").is_file():
                raise DefectError("the run has lost its last.ckpt")
            if refused:
                raise refused

        return call

    def _interrupt(self, folder: Path, data: Path, **changes: Any) -> None:
        """Train, with Ctrl-C in the second of four steps."""
        step, seen = ClassifierModule.training_step, 0

        def counted(module: Any, batch: Any, batch_idx: int) -> Any:
            nonlocal seen
            seen += 1
            if seen == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return step(module, batch, batch_idx)

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


def _open(path: Path) -> None:
    try:
        image = open_image(path)
    except BrokenImageError as error:
        raise UserError(str(error)) from error
    if image.mode != "RGB":
        raise DefectError(f"mode {image.mode}")
