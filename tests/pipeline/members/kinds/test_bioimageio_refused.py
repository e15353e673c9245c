"""BioImage.IO packages that cannot be members, or not without trust: one sentence each, and nothing runs."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("bioimageio.core")


from chorus.pipeline.members.kinds.bioimageio.description import describe
from chorus.pipeline.members.kinds.bioimageio.package import choose_format, open_package
from tests.support.packages import CPU, asked, axes, bare, entry, reference, refusal, write_package


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refusal(tmp_path / "empty", "no BioImage.IO package", "rdf.yaml", make=bare)
    (tmp_path / "no.zip").write_bytes(b"PK\x03\x04 and no more")
    refusal(tmp_path / "no.zip", "neither a folder nor a zip", make=bare)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    refusal(tmp_path / "other.zip", "no BioImage.IO package", make=bare)
    refusal(tmp_path / "nowhere.zip", "not found", "relative to ensemble.yaml", make=bare)
    for text, said in (
        ("[1, 2", "no BioImage.IO package"),
        ("just words", "no BioImage.IO package"),
        ("name: x", "has no format_version"),
        ("format_version: 0.9.1\ntype: model", "format_version 0.9.1 is unknown"),
        ("format_version: 0.3.0\ntype: dataset", "describes a dataset"),
        ("format_version: 0.5.4\ntype: model", "cannot read it"),
    ):
        (tmp_path / "empty" / "rdf.yaml").write_text(text)
        refusal(tmp_path / "empty", said, make=bare)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([{"id": "sharpen"}], "sharpen"),
        ([{"id": "zero_mean_unit_variance", "kwargs": {"axes": ["x"]}}], "for each row or pixel"),
        ([{"id": "softmax", "kwargs": {"axis": "y"}}], "looks beyond a pixel"),
    ],
)
def test_preprocessing_that_tiles_cannot_have_is_refused(
    steps: list[dict[str, Any]], said: str, tmp_path: Path
) -> None:
    tensor = {"id": "raw", "axes": axes({"min": 16, "step": 16}), "preprocessing": steps}
    folder = write_package(tmp_path / "p", inputs=[tensor])
    refusal(folder, said, make=bare)


@pytest.mark.parametrize("step", ["zero_mean_unit_variance", "scale_range"])
def test_postprocessing_that_needs_the_whole_output_is_refused(step: str, tmp_path: Path) -> None:
    outputs = [
        {
            "id": "mask",
            "axes": reference("raw", 2),
            "postprocessing": [{"id": step, "kwargs": {"axes": ["channel", "y", "x"]}}],
        }
    ]
    refusal(write_package(tmp_path / "p", outputs=outputs), step, "known only after the last tile", make=bare)


def test_a_tile_that_does_not_fit_is_refused_with_the_nearest(tmp_path: Path) -> None:
    folder = write_package(tmp_path / "p", tile=48, inputs=[{"id": "raw", "axes": axes({"min": 48, "step": 32})}])
    refusal(folder, "no tiles of 100", "set `tile: 112`", "--tile 112", tile=100)
    fixed = write_package(tmp_path / "f", inputs=[{"id": "raw", "axes": axes(64)}])
    refusal(fixed, "no tiles of 512", "set `tile: 64`", tile=512)
    odd = write_package(tmp_path / "o", inputs=[{"id": "raw", "axes": axes(16)}], tile=16)
    refusal(odd, "no square tiles", tile=64)


def test_models_of_volumes_and_of_unpadded_convolutions_are_refused(tmp_path: Path) -> None:
    volume = [{"id": "raw", "axes": axes({"min": 16, "step": 16}, 1, "bczyx")}]
    outputs = [{"id": "mask", "axes": reference("raw", 1, "bcyx")}]
    described = write_package(tmp_path / "v", formats=("tensorflow_js",), inputs=volume, outputs=outputs)
    refusal(described, "raw has a z axis of size 8 + n * 8", "3D", make=bare)
    axes_out = reference("raw", 2)
    for axis in axes_out[2:]:
        axis["size"] = axis["size"] | {"offset": -8}
    valid = write_package(tmp_path / "u", outputs=[{"id": "mask", "axes": axes_out}])
    refusal(valid, "56 of a tile's 64 pixels", "padded convolutions", make=bare)


def test_weights_that_chorus_cannot_run_are_refused(tmp_path: Path) -> None:
    folder = write_package(tmp_path / "p", formats=("tensorflow_js",))
    refusal(folder, "has only tensorflow_js weights", "torchscript", make=bare)
    refusal(write_package(tmp_path / "q"), "has no onnx weights; it has torchscript", make=bare, format="onnx")


@pytest.mark.parametrize(
    ("format", "command"),
    [
        ("keras_hdf5", "python -m tf2onnx.convert --keras WEIGHTS.h5 --output weights.onnx"),
        ("tensorflow_saved_model_bundle", "python -m tf2onnx.convert --saved-model FOLDER --output weights.onnx"),
        ("tensorflow_js", "ask its author"),
    ],
)
def test_weights_of_keras_and_tensorflow_are_refused_with_the_command_that_converts_them(
    format: str, command: str, tmp_path: Path
) -> None:
    refusal(write_package(tmp_path / "p", formats=(format,)), f"has only {format} weights", command, make=bare)


def rehash(folder: Path, name: str, data: bytes) -> None:
    file, rdf = folder / name, folder / "rdf.yaml"
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_bytes(data)
    rdf.write_text(rdf.read_text().replace(before, hashlib.sha256(data).hexdigest()))


def with_onnx(folder: Path, data: bytes) -> Path:
    """The package with ONNX weights, too."""
    (folder / "graph.onnx").write_bytes(data)
    content = yaml.safe_load((folder / "rdf.yaml").read_text())
    digest = hashlib.sha256(data).hexdigest()
    content["weights"]["onnx"] = {"source": "graph.onnx", "sha256": digest, "opset_version": 18}
    (folder / "rdf.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_weights_of_an_unknown_opset_or_no_weights_at_all_are_refused(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 999)])
    folder = with_onnx(write_package(tmp_path / "p"), model.SerializeToString())
    refusal(folder, "cannot run graph.onnx", "update onnxruntime", format="onnx")
    folder = with_onnx(write_package(tmp_path / "q"), b"no graph")
    refusal(folder, "cannot run graph.onnx", format="onnx")
    rehash(folder, "weights-torchscript", b"no script")
    refusal(folder, "is no TorchScript")


# ---------------------------------------------------------------- trust

CODE = """
import pathlib
import torch
pathlib.Path({trap!r}).touch()

def make():
    return torch.nn.Conv2d(1, 2, 5, padding=2)
"""


def package_with_code(folder: Path, trap: Path) -> Path:
    folder.mkdir()
    (folder / "code.py").write_text(CODE.format(trap=str(trap)))
    architecture = {"source": "code.py", "callable": "make", "kwargs": {}}
    architecture["sha256"] = hashlib.sha256((folder / "code.py").read_bytes()).hexdigest()
    module = torch.nn.Conv2d(1, 2, 5, padding=2)
    return write_package(folder, module=module, formats=("pytorch_state_dict",), architecture=architecture)


def test_code_of_a_package_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    folder = package_with_code(tmp_path / "p", trap)
    refusal(folder, "code of its own (code.py)", "--trust-code")
    describe(str(folder))
    assert not trap.exists()
    entry(folder).load(asked(folder, trust_code=True), CPU)
    assert trap.exists()


@pytest.mark.parametrize(
    ("library", "callable"),
    [
        ("os", "system"),
        ("torchvision.datasets.utils", "download_url"),
        ("segmentation_models_pytorch.base.hub_mixin", "from_pretrained"),
        ("timm.models", "load_checkpoint"),
    ],
)
def test_a_callable_that_makes_no_network_is_not_called(
    library: str, callable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "sprung"
    architecture = {"import_from": library, "callable": callable, "kwargs": {"command": f"touch {trap}"}}
    folder = write_package(tmp_path / "p", formats=("pytorch_state_dict",), architecture=architecture)
    refusal(folder, f"{library}.{callable} is no network of", "--trust-code")
    assert not trap.exists()


def test_the_format_is_chosen_from_the_package_alone(tmp_path: Path) -> None:
    package = open_package(str(with_onnx(write_package(tmp_path / "p"), b"not read")))
    assert choose_format(package, None) == "torchscript"
    assert choose_format(package, "onnx") == "onnx"
    own = package_with_code(tmp_path / "q", tmp_path / "sprung")
    assert choose_format(open_package(str(own)), None) == "pytorch_state_dict"


def test_an_archive_writes_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    folder = package_with_code(tmp_path / "p", tmp_path / "sprung")
    with zipfile.ZipFile(place / "evil.zip", "w") as archive:
        for file in folder.iterdir():
            archive.writestr(file.name, file.read_bytes())
        archive.writestr("../../evil.txt", "outside")
        archive.writestr(str(tmp_path / "absolute.txt"), "outside")
    before = set(tmp_path.rglob("*"))
    entry(place / "evil.zip").load(asked(place / "evil.zip", trust_code=True), CPU)
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "sprung"}


def test_files_outside_of_the_package_are_not_read(tmp_path: Path) -> None:
    folder = write_package(tmp_path / "p")
    (folder / "weights-torchscript").rename(tmp_path / "weights-torchscript")
    rdf = folder / "rdf.yaml"
    rdf.write_text(rdf.read_text().replace("source: weights-torchscript", "source: ../weights-torchscript"))
    refusal(folder, "../weights-torchscript", make=bare)


def test_a_state_dict_that_is_a_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (trap,)

    architecture = {"import_from": "torchvision.models", "callable": "resnet18", "kwargs": {"num_classes": 2}}
    folder = write_package(tmp_path / "p", formats=("pytorch_state_dict",), architecture=architecture)
    refusal(folder, "does not fit resnet18", "mend the package")
    buffer = io.BytesIO()
    torch.save({"a": Trap()}, buffer)
    rehash(folder, "weights-pytorch_state_dict", buffer.getvalue())
    refusal(folder, "no plain state dict")
    assert not trap.exists()
