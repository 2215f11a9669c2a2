"""Folders of the Hugging Face Hub, which timm and transformers read.

The folder of a Conformer holds the code of the network, so that transformers reads it where this package is
not installed. It is written from the package's own modules, with their imports made relative.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors.torch import save
from torch import Tensor, nn

from conformer_vision.errors import UserError, first_line, option, some_names
from conformer_vision.hf import to_config, to_pretrained_cfg
from conformer_vision.inference.conversion.formats import Format, Precision
from conformer_vision.models import Conformer, Ensemble
from conformer_vision.runs import HF_CONFIG, HF_WEIGHTS
from conformer_vision.spec import ModelSpec

_PACKAGE = "conformer_vision"
CARD = "README.md"
_MODELING = f"{_PACKAGE}.export.modeling_conformer"
_GREY = f"{_PACKAGE}.export.image_processing_grey"
_IMPORT = re.compile(rf"^from {_PACKAGE}(?:\.\w+)*\.(\w+) import", re.MULTILINE)


def write(
    model: nn.Module, spec: ModelSpec, path: Path, *, precision: Precision, calibration: Sequence[Tensor] = ()
) -> tuple[str, ...]:
    """Write the folder: weights with the temperature in the heads, configuration, code and model card.

    Raises:
        UserError: The model is folded or an ensemble, or has a head that the temperature cannot go into.
    """
    if isinstance(model, Ensemble):
        raise UserError(
            f"format hf holds one network, and this is an ensemble of {spec.members}; give the run folder of "
            "one of its folds, or another format"
        )
    conformer = isinstance(model, Conformer)
    if conformer and model.folded:
        raise UserError(f"these weights of {spec.model} are folded; give format hf those that training wrote")
    weights = _fold_temperature(model, spec)
    args: dict[str, Any] = dict(spec.model_kwargs)
    if isinstance(model, Conformer):
        args = asdict(model.config)  # so that the folder does not depend on this package's table of variants
    if spec.in_chans != 3:
        args["in_chans"] = spec.in_chans
    described: Any = model.pretrained_cfg
    config = to_config(
        spec,
        pretrained_cfg=to_pretrained_cfg(spec, described),
        model_args=args,
        num_features=int(model.num_features),  # type: ignore[arg-type]
    )
    code = self_contained(_MODELING) if conformer else {}
    if conformer:
        config["architectures"] = ["ConformerForImageClassification"]
        config["auto_map"] = {
            "AutoModel": "modeling_conformer.ConformerModel",
            "AutoModelForImageClassification": "modeling_conformer.ConformerForImageClassification",
        }
    else:
        config["architectures"] = ["TimmWrapperForImageClassification"]
    if spec.in_chans == 1:
        code |= self_contained(_GREY)
        config.setdefault("auto_map", {})["AutoImageProcessor"] = "image_processing_grey.GreyImageProcessor"
    path.mkdir()
    (path / HF_WEIGHTS).write_bytes(save(weights, metadata={"format": "pt"}))
    card = _card(spec, code=bool(code), license=described.get("license"))
    texts = {HF_CONFIG: json.dumps(config, indent=2, ensure_ascii=False) + "\n", CARD: card}
    for name, text in (texts | code).items():
        (path / name).write_text(text, encoding="utf-8")
    return ()


def self_contained(module: str) -> dict[str, str]:
    """Return the text of a module of the package and of all that it imports, by file name, for one folder.

    Imports of the package become relative; nothing else changes.
    """
    files: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = f"{name.rpartition('.')[2]}.py"
        if file in files:
            continue
        found = find_spec(name)
        assert found is not None and found.origin is not None
        text = Path(found.origin).read_text(encoding="utf-8")
        waiting += [
            node.module
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{_PACKAGE}.")
        ]
        files[file] = _IMPORT.sub(r"from .\1 import", text)
    return files


def check_folder(target: Path) -> None:
    """Refuse to replace anything but a folder that `write` wrote.

    Raises:
        UserError: The target is a file, or a folder with other files in it.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"output {target} is a file; format hf writes a folder, so give another name")
    own = {HF_CONFIG, HF_WEIGHTS, CARD} | self_contained(_MODELING).keys() | self_contained(_GREY).keys()
    if others := sorted({path.name for path in target.iterdir()} - own):
        raise UserError(
            f"output {target} holds other files ({some_names(others)});"
            f" give a new folder with {option('output')}"
        )


def replace_folder(written: Path, target: Path) -> None:
    """Move a folder to its place; the one that was there goes to the temporary folder of the new one."""
    replaced = written.parent / "replaced"
    if target.exists():
        os.replace(target, replaced)
    try:
        os.replace(written, target)
    except OSError:
        if replaced.exists():
            os.replace(replaced, target)
        raise


def check_repository(name: str, entry: Format) -> None:
    """Check the name of a repository on the Hub before any work.

    Raises:
        UserError: It is not one, or the format is none of the Hub's.
    """
    given = option("push_to_hub", name)
    if not entry.folder:
        raise UserError(f"{given}: only format hf is sent to the Hub, not {entry.name}; leave it out")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{given}: give the repository as user/name ({first_line(error)})") from error


def push(folder: Path, name: str) -> str:
    """Send a folder to a repository on the Hub, which is made if there is none; return its address.

    Raises:
        UserError: The Hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        return str(
            api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of conformer-vision")
        )
    except Exception as error:  # of the hub, of the network, of the token
        raise UserError(
            f"{folder} is written, but cannot be sent to {name} on the Hub ({first_line(error).rstrip('.')});"
            " check the network and your login ('hf auth login'), then try again"
        ) from error


def _fold_temperature(model: nn.Module, spec: ModelSpec) -> dict[str, Tensor]:
    """Return a model's state with the temperature in its heads, which divides every head's logits."""
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    if spec.temperature == 1.0:
        return {name: tensor.contiguous() for name, tensor in state.items()}
    found: Any = model.get_classifier()  # type: ignore[operator]
    heads = found if isinstance(found, tuple) else (found,)
    for head in heads:
        if not isinstance(head, (nn.Linear, nn.Conv2d)):
            raise UserError(
                f"the temperature {spec.temperature:.3g} cannot go into the head of {spec.model} "
                f"({type(head).__name__}); export it to another format"
            )
    parts = {id(parameter) for head in heads for parameter in head.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in parts:
            state[name] /= spec.temperature
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _card(spec: ModelSpec, *, code: bool, license: str | None) -> str:  # noqa: A002 - the Hub's word
    """Return the model card: metadata that the Hub reads, and how to load the model."""
    data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "conformer-vision"],
    )
    trust = ", trust_remote_code=True" if code else ""
    note = (
        "\nThe code of the network is in this folder, from conformer-vision "
        f"{spec.version or 'of an unknown version'} (Apache-2.0).\n"
        if code
        else ""
    )
    calibrated = "" if spec.temperature == 1.0 else "Its heads are calibrated by temperature scaling."
    height, width = spec.input_size[1:]
    return f"""---
{data.to_yaml()}
---

# {spec.model}, {spec.num_classes} classes

An image classifier, written by conformer-vision. It takes images of {height} × {width} pixels; the image
processor prepares them. {calibrated}
{note}
```python
from transformers import pipeline

classifier = pipeline("image-classification", model="PATH"{trust})
print(classifier("image.jpg"))
```

In timm, after `import conformer_vision`, it is `timm.create_model("local-dir:PATH", pretrained=True)`, or
`hf-hub:NAME` once it is on the Hub. `conformer_vision.Predictor("PATH")` reads it too.

Classes: {", ".join(spec.labels)}
"""
