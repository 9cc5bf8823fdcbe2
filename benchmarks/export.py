"""How long torch's two ONNX exporters take, side by side.

    python benchmarks/export.py

models/graph.py uses the TorchScript one; its successor is named in the table as `dynamo`. Both
graphs are of the same network at 64 px with random weights. Prints a Markdown table.
"""

from __future__ import annotations

import io
import time
import warnings

import torch

from leukoscope.models.classifier import Deployed, build
from leukoscope.models.weights import resolve

NETWORKS = ("mobilenetv2_100", "resnet50", "convnext_tiny")


def main() -> None:
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| network | TorchScript, s | dynamo, s | ratio |\n|---|---|---|---|")
    for name in NETWORKS:
        network = Deployed(build(name, [], 5, resolve("none", name), seed=0)).eval()
        old, new = (seconds(network, dynamo=dynamo) for dynamo in (False, True))
        print(f"| {name} | {old:.1f} | {new:.1f} | {new / old:.0f} |")


def seconds(network: torch.nn.Module, *, dynamo: bool) -> float:
    """Seconds that one export takes."""
    names = ["logits", "features", "feature_map", "class_gradient"]
    shapes = (
        {"dynamic_shapes": ({0: torch.export.Dim("n")},)}
        if dynamo
        else {"dynamic_axes": {name: {0: "n"} for name in ("images", *names)}}
    )
    began = time.perf_counter()
    with torch.no_grad():
        torch.onnx.export(
            network, (torch.rand(2, 3, 64, 64),), io.BytesIO(), input_names=["images"],
            output_names=names, opset_version=18, dynamo=dynamo, verbose=False, **shapes,
        )  # fmt: skip
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
