"""Names that people know from other programs, and mistyped ones: what they mean here."""

from __future__ import annotations

import difflib
from collections.abc import Collection

_OPTIONS = {
    "accumulate": "accum accum_iter grad_accum grad_accumulation grad_accum_steps gradient_accumulation "
    "gradient_accumulation_steps accumulate_grad_batches",
    "arch": "architecture backbone network model_name",
    "augment.auto_augment": "aa autoaugment randaugment randaug trivialaugment policy",
    "augment.hflip": "flip fliplr horizontal_flip",
    "augment.re_prob": "reprob erasing random_erasing",
    "aug_repeats": "repeated_aug ra",
    "auto_resume": "requeue",
    "batch_size": "b batch batchsize bs bsz train_batch_size per_device_train_batch_size",
    "batch": "batch_size batch_sizes bs",
    "checkpoint": "ckpt checkpoint_path initial_checkpoint init_weights load load_from weights weights_path "
    "pretrained_weights start_from",
    "class_weights": "class_weight weight weights_of_classes pos_weight loss_weights",
    "clip_grad": "clip clip_grad_norm grad_clip gradient_clip gradient_clip_val max_grad_norm",
    "compile": "torch_compile torchcompile",
    "data": "d data_path data_root dataset dataset_path dir folder image_folder images input path root "
    "source train_data train_dir",
    "device": "accelerator cuda cpu gpu mps",
    "devices": "gpus num_gpus ngpus nproc nproc_per_node",
    "distillation_tau": "temperature kd_temperature tau distillation_temperature",
    "distillation_alpha": "kd_alpha alpha distillation_weight kd_weight",
    "drop_path_rate": "drop_path stochastic_depth dropout drop",
    "ema_decay": "ema model_ema use_ema",
    "epochs": "e epoch max_epochs n_epochs nb_epochs nepochs num_epochs num_train_epochs",
    "exclude": "ignore skip blacklist",
    "fold": "kfold_index",
    "folds": "k_fold k_folds kfold kfolds num_folds cv cross_validation",
    "format": "f to export_format target",
    "freeze_blocks": "freeze freeze_layers",
    "freeze_share": "freeze_epochs freeze_backbone unfreeze_epoch warmup_head_epochs linear_probe",
    "grad_checkpointing": "checkpointing gradient_checkpointing activation_checkpointing",
    "input_size": "crop_size image_size img img_size imgsz im_size res resolution size",
    "inputs": "data file files folder image images img input path source",
    "json": "output_json as_json",
    "label_smoothing": "smoothing ls",
    "layer_decay": "llrd lr_layer_decay",
    "loggers": "log log_to logger tb tensorboard wandb mlflow report_to",
    "lr": "base_lr init_lr initial_lr learn_rate learning_rate lr0 max_lr peak_lr",
    "max_minutes": "max_time minutes time time_limit hours",
    "max_steps": "iterations iters max_iter max_iters max_iterations num_steps steps total_steps",
    "model": "m arch architecture backbone checkpoint ckpt model_name model_path name net network run "
    "weights weights_path",
    "model_kwargs": "model_args kwargs",
    "nodes": "num_nodes nnodes",
    "optimizer": "opt optim optimiser",
    "output": "o dst exp exp_name experiment log_dir logdir name out out_dir outdir output_dir output_path "
    "project run_dir run_name save save_dir save_path",
    "patience": "early_stop early_stopping early_stopping_patience es_patience",
    "precision": "amp bf16 dtype fp16 half mixed_precision quantize int8",
    "pretrained": "finetune fine_tune imagenet transfer use_pretrained from_pretrained",
    "progress": "progress_bar quiet verbose silent v q",
    "recipe": "c cfg config config_file conf yaml hyp preset",
    "resume": "r continue resume_from",
    "run": "folder model output run_dir path",
    "save_top_k": "keep_best top_k save_best",
    "seconds": "time duration",
    "seed": "manual_seed random_seed random_state",
    "split": "subset partition",
    "steps": "epochs iterations iters max_steps num_iter num_steps",
    "sync_bn": "syncbn sync_batchnorm",
    "threads": "num_threads workers",
    "top_k": "k n num_classes num_results top topk",
    "val_fraction": "holdout test_size test_split val_frac val_pct val_percent val_ratio val_size val_split "
    "validation_fraction validation_split valid_pct",
    "warmup_epochs": "warm_up warmup warmup_steps",
    "weight_decay": "decay l2 wd weightdecay",
    "workers": "j jobs n_jobs n_workers num_worker num_workers nworkers dataloader_num_workers",
}
"""Options and arguments here -> their names elsewhere."""
_COMMANDS = {
    "benchmark": "bench latency speed",
    "check": "inspect lint validate_data verify",
    "evaluate": "eval test val valid validate",
    "export": "convert deploy",
    "lr-find": "find_lr lr lr_finder lrfind lr_range",
    "models": "list ls zoo list_models",
    "predict": "classify detect infer inference label",
    "train": "finetune fine_tune fit learn resume",
}


def option_meant(name: str, known: Collection[str]) -> str | None:
    """Return which of the known options an unknown one means; None if nothing is near.

    Args:
        name: As typed, without leading dashes.
        known: Their names, without leading dashes.
    """
    return _meant(name, known, _OPTIONS)


def did_you_mean(name: object, known: Collection[str]) -> str:
    """Return ``; did you mean NAME?`` for an unknown option of a configuration, or nothing."""
    meant = option_meant(str(name), known)
    return f"; did you mean {meant}?" if meant else ""


def command_meant(name: str, known: Collection[str]) -> str | None:
    """Return which of the known subcommands an unknown one means; None if nothing is near."""
    return _meant(name, known, _COMMANDS)


def _meant(name: str, known: Collection[str], elsewhere: dict[str, str]) -> str | None:
    plain = name.lower().replace("-", "_")
    for one in known:
        if plain == one.replace("-", "_") or one.endswith(f".{plain}"):
            return one
    for one, names in elsewhere.items():
        if one in known and plain in names.split():
            return one
    near = difflib.get_close_matches(plain, list(known), n=1, cutoff=0.6)
    return near[0] if near else None
