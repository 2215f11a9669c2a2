"""Parameter names of the public Conformer implementations, and their translation to ours.

Three layouts hold the same values under different names: ours, the one of the paper's authors
("official") and OpenMMLab's (mmpretrain). The tables below are the only place where foreign names
are written; they are read from left to right by :func:`convert_state_dict` and from right to left by
:func:`to_official` and :func:`to_openmmlab`.
"""

from collections.abc import Mapping

from torch import Tensor

from conformer_vision.errors import UserError

# Keys under which training code wraps its weights; averaged (EMA) weights first, as timm prefers them.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
# Prefixes that wrapper modules put before every name: DDP, torch.compile, lightning, OpenMMLab.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.", "timm_model.", "backbone.")

_MAX_BLOCKS = 64  # more than any variant has; the names of blocks beyond it are left alone

# Where a name starts: official -> ours. Official blocks count from 1 and block 1 has names of its own.
_PREFIXES = {
    "cls_token": "cls_token",
    "conv1": "stem.conv",
    "bn1": "stem.bn",
    "trans_patch_conv": "patch_embed",
    "trans_norm": "norm",
    "conv_cls_head": "conv_head",
    "trans_cls_head": "trans_head",
    "conv_1": "blocks.0.bottleneck",
    "trans_1": "blocks.0.transformer",
} | {
    f"conv_trans_{index + 1}.{official}": f"blocks.{index}.{own}"
    for index in range(1, _MAX_BLOCKS)
    for official, own in {
        "cnn_block": "bottleneck",
        "fusion_block": "fusion",
        "squeeze_block.conv_project": "fcu_down.proj",
        "squeeze_block.ln": "fcu_down.norm",
        "expand_block.conv_project": "fcu_up.proj",
        "expand_block.bn": "fcu_up.bn",
        "trans_block": "transformer",
    }.items()
}
# What follows inside a block, where it differs: official -> ours, OpenMMLab -> official.
_OFFICIAL_INNER = {"residual_conv": "shortcut_conv", "residual_bn": "shortcut_bn"}
_OPENMMLAB_INNER = {"ln1": "norm1", "ln2": "norm2", "ffn.layers.0.0": "mlp.fc1", "ffn.layers.1": "mlp.fc2"}
_HEADS = ("conv_cls_head", "trans_cls_head")  # OpenMMLab: in the module "head", the rest in "backbone"

# Names that other networks use too (ResNet has conv1 and bn1) say nothing about the layout.
_AMBIGUOUS = {"cls_token", "conv1", "bn1"}
# The coupling projections: 1x1 convolutions there, Linear here.
_PROJECTIONS = (".fcu_down.proj.weight", ".fcu_up.proj.weight")


def unwrap_state_dict(checkpoint: Mapping[str, object]) -> Mapping[str, object]:
    """Return the weights inside a checkpoint: averaged ones if it holds them, as timm does.

    Looks under ``state_dict_ema``, ``model_ema``, ``state_dict`` and ``model``, repeatedly.
    """
    for _ in _WRAPPERS:  # nested no deeper than there are wrappers; a pickled dict can contain itself
        inner = [value for key in _WRAPPERS if isinstance(value := checkpoint.get(key), Mapping)]
        if not inner:
            break
        checkpoint = inner[0]
    return checkpoint


def check_tensors(state_dict: Mapping[str, object]) -> dict[str, Tensor]:
    """Return `state_dict` as a new plain dict, having checked that it maps names to tensors.

    Raises:
        UserError: An entry has another type, or there is no entry.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"entry {str(name)[:80]!r} is of type {type(value).__name__}, not a named tensor; give the "
                "weights themselves, as model.state_dict() returns them"
            )
        tensors[name] = value
    if not tensors:
        raise UserError("no entries; give the weights as model.state_dict() returns them")
    return tensors


def convert_state_dict(state_dict: Mapping[str, object]) -> dict[str, Tensor]:
    """Rename the entries of a checkpoint to our own layout.

    The layout is recognised by its names: official, OpenMMLab or our own, which passes unchanged, as do
    the weights of any other network. Wrappers (``state_dict``, ``model``, ``state_dict_ema``,
    ``model_ema``) are opened, the prefixes ``module.``, ``_orig_mod.``, ``model.``, ``timm_model.`` (of
    transformers), ``backbone.`` and ``head.`` removed. Coupling projections of shape
    (out, in, 1, 1) become (out, in).

    Args:
        state_dict: Names to tensors, possibly wrapped; not modified.

    Returns:
        A new dict in the order of `state_dict`, holding the same tensors or views of them.

    Raises:
        UserError: A value is no tensor, or two entries have the same name in our layout.
    """
    entries = check_tensors(unwrap_state_dict(state_dict))
    stripped = {name: _strip_prefixes(name) for name in entries}
    foreign = any(_split(name)[0] not in _AMBIGUOUS | {""} for name in stripped.values())

    converted: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    for name, tensor in entries.items():
        own = _from_official(stripped[name]) if foreign else stripped[name]
        if own in converted:
            raise UserError(f"entries {sources[own]!r} and {name!r} both mean {own!r}; remove one of them")
        is_conv = foreign and own.endswith(_PROJECTIONS) and tensor.ndim == 4 and tensor.shape[2:] == (1, 1)
        converted[own] = tensor.flatten(1) if is_conv else tensor
        sources[own] = name
    return converted


def to_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of our own layout to the names and shapes of the authors' code.

    The inverse of :func:`convert_state_dict`: Linear coupling projections (out, in) become 1x1
    convolutions (out, in, 1, 1). Names that are not ours stay as they are.
    """
    prefixes = {own: official for official, own in _PREFIXES.items()}
    inner = {own: official for official, own in _OFFICIAL_INNER.items()}
    official = {}
    for name, tensor in state_dict.items():
        is_linear = name.endswith(_PROJECTIONS) and tensor.ndim == 2
        prefix, rest = _split(name, prefixes)
        new = prefixes[prefix] + _replace_inner(rest, inner) if prefix else name
        official[new] = tensor[..., None, None] if is_linear else tensor
    return official


def to_openmmlab(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of our own layout to the names and shapes of OpenMMLab's checkpoints.

    The inverse of :func:`convert_state_dict`. OpenMMLab keeps the result under the key ``state_dict``.
    """
    inner = {official: openmmlab for openmmlab, official in _OPENMMLAB_INNER.items()}
    openmmlab = {}
    for name, tensor in to_official(state_dict).items():
        prefix, rest = _split(name)
        module = "head." if prefix in _HEADS else "backbone."
        openmmlab[module + prefix + _replace_inner(rest, inner)] = tensor
    return openmmlab


def _strip_prefixes(name: str) -> str:
    """Remove what wrapper modules put before a name."""
    while True:
        stripped = name
        for prefix in _WRAPPER_PREFIXES:
            stripped = stripped.removeprefix(prefix)
        if stripped.startswith(tuple(f"head.{head}." for head in _HEADS)):
            stripped = stripped.removeprefix("head.")
        if stripped == name:
            return name
        name = stripped


def _split(name: str, prefixes: Mapping[str, str] = _PREFIXES) -> tuple[str, str]:
    """Split a name behind its longest known prefix of whole words; ("", name) if it has none."""
    prefix, rest = name, ""
    while prefix and prefix not in prefixes:
        prefix, dot, last = prefix.rpartition(".")
        rest = f"{dot}{last}{rest}"
    return prefix, rest if prefix else name


def _from_official(name: str) -> str:
    """Translate an official or OpenMMLab name; a name that is neither stays as it is."""
    prefix, rest = _split(name)
    if not prefix:
        return name
    return _PREFIXES[prefix] + _replace_inner(_replace_inner(rest, _OPENMMLAB_INNER), _OFFICIAL_INNER)


def _replace_inner(rest: str, names: Mapping[str, str]) -> str:
    """Replace the words of `rest` (".norm1.weight") that are in `names`."""
    for old, new in names.items():
        if rest.startswith(f".{old}."):
            return f".{new}.{rest.removeprefix(f'.{old}.')}"
    return rest
