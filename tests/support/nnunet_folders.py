"""Trained folders in nnU-Net's layout, with small networks of random weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

CHANGE = Callable[[dict[str, Any]], object]
LABELS: dict[str, int | list[int]] = {"background": 0, "cell": 1, "nucleus": 2}


def architecture(axes: int = 2) -> dict[str, Any]:
    """As a plan has it: a U-Net of three stages, whose coarsest is a quarter of the tile."""
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [4, 8, 8],
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": [[3] * axes] * 3,
            "strides": [[1] * axes, [2] * axes, [2] * axes],
            "n_conv_per_stage": [1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def plans_of(
    axes: int = 2, schemes: Sequence[str] = ("ZScoreNormalization",), *, masked: bool = False
) -> dict[str, Any]:
    """``plans.json`` with the one configuration ``2d`` or ``3d_fullres``."""
    return {
        "dataset_name": "Dataset001_Cells",
        "image_reader_writer": "Tiff3DIO",
        "transpose_forward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(channel): {"mean": 90.0, "std": 40.0, "percentile_00_5": 20.0, "percentile_99_5": 180.0}
            for channel in range(len(schemes))
        },
        "configurations": {
            configuration_name(axes): {
                "preprocessor_name": "DefaultPreprocessor",
                "patch_size": [16, 32, 32][-axes:] if axes == 3 else [32, 32],
                "spacing": [2.0, 0.5, 0.5][-axes:],
                "normalization_schemes": list(schemes),
                "use_mask_for_norm": [masked] * len(schemes),
                "architecture": architecture(axes),
            }
        },
    }


def configuration_name(axes: int) -> str:
    return "2d" if axes == 2 else "3d_fullres"


def built(outputs: int, *, axes: int = 2, channels: int = 1, seed: int = 0) -> torch.nn.Module:
    """Build the network of `architecture` by its library's own names."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    arguments = architecture(axes)["arch_kwargs"] | {
        "conv_op": getattr(torch.nn, f"Conv{axes}d"),
        "norm_op": getattr(torch.nn, f"InstanceNorm{axes}d"),
        "nonlin": torch.nn.LeakyReLU,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network: torch.nn.Module = PlainConvUNet(
            input_channels=channels, num_classes=outputs, deep_supervision=True, **arguments
        )
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def write_folder(
    folder: Path,
    *,
    axes: int = 2,
    folds: Sequence[int | str] = (0,),
    channels: Sequence[str] = ("dna",),
    labels: dict[str, int | list[int]] | None = None,
    outputs: int = 3,
    mirroring: Sequence[int] | None = (0, 1),
    plans: dict[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """Write a trained folder; each fold has other weights, fold by fold from `seed` on."""
    folder.mkdir(parents=True, exist_ok=True)
    plans = plans_of(axes, ["ZScoreNormalization"] * len(channels)) if plans is None else plans
    labels = LABELS if labels is None else labels
    dataset = {
        "channel_names": {str(i): name for i, name in enumerate(channels)},
        "labels": labels,
        "file_ending": ".tif",
    }
    if any(isinstance(label, list) for label in labels.values()):
        dataset["regions_class_order"] = [1, 2]
    (folder / "plans.json").write_text(json.dumps(plans, indent=1))
    (folder / "dataset.json").write_text(json.dumps(dataset, indent=1))
    for number, fold in enumerate(folds):
        network = built(outputs, axes=axes, channels=len(channels), seed=seed + number)
        content = {
            "network_weights": network.state_dict(),
            "optimizer_state": None,
            "grad_scaler_state": None,
            "logging": {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(0.1)]},
            "_best_ema": np.float64(0.5),
            "current_epoch": 1,
            "init_args": {
                "plans": plans, "configuration": configuration_name(axes), "fold": fold, "dataset_json": dataset,
                "device": torch.device("cpu"),
            },
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": None if mirroring is None else tuple(mirroring),
        }  # fmt: skip
        own = folder / f"fold_{fold}"
        (own / "validation").mkdir(parents=True, exist_ok=True)
        (own / "validation" / "cell.tif").write_bytes(b"a large prediction")
        torch.save(content, own / "checkpoint_final.pth")
    return folder
