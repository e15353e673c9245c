"""A TorchScript file of a stranger computes with tensors and does nothing else, or is not run."""

from __future__ import annotations

import io
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.safety import trial
from chorus.pipeline.members.safety.operators import ALLOWED, allowed
from chorus.pipeline.members.safety.script import check_source, is_script, load_script
from chorus.pipeline.members.safety.trial import Limits, check_trial

CPU = torch.device("cpu")
SHAPE = (1, 1, 64, 64)


def saved(module: torch.nn.Module) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and yet what users have
        torch.jit.save(module, buffer)
    return buffer.getvalue()


def scripted(module: torch.nn.Module) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return saved(torch.jit.script(module))


class Plain(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, -x], 1)


def written(body: str, rest: str = "", *, getstate: str = "") -> bytes:
    """An archive whose source is written by hand; `body` are the lines of its `forward`, `NAME` is its class."""
    source = io.BytesIO(scripted(Plain()))
    made = io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith(".py"):
                text = data.decode()
                name_of = "__torch__" + name.split("code/__torch__")[1][:-3].replace("/", ".") + "."
                head = text[: text.index("  def forward")]
                where = text[text.index("  def forward") : text.index("Tensor:") + len("Tensor:")]
                text = f"{head}{where}\n{body}    return torch.cat([x, torch.neg(x)], 1)\n{getstate}{rest}"
                data = text.replace("NAME.", name_of).encode()
            new.writestr(name, data)
    return made.getvalue()


def refusal(data: bytes) -> str:
    with pytest.raises(RefusedError) as caught:
        load_script("m.pt", data, CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Writer(torch.nn.Module):
    """Writes into a file of the user while it answers."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        held = torch.from_file(self.path, True, 8, dtype=torch.uint8)
        held.fill_(65)
        return torch.cat([x, -x], 1) + 0 * held.float().mean()


def test_a_network_that_writes_a_file_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious" * 8)
    data = scripted(Writer(str(victim)))
    with pytest.raises(RefusedError, match="aten::from_file"):
        check_source("m.pt", data)
    assert "--trust-code" in refusal(data)
    assert victim.read_bytes() == b"precious" * 8
    # With trust it is the user's own word.
    load_script("m.pt", data, CPU, trust_code=True)(torch.zeros(SHAPE))
    assert victim.read_bytes().startswith(b"AAAA")


CALL = '("/nowhere", True, 3)'
HIDDEN = {
    "by its namespace": f"    h = ops.aten.from_file{CALL}\n    x = torch.add(x, torch.sum(h))\n",
    "under another name": f"    f = torch.from_file\n    x = torch.add(x, torch.sum(f{CALL}))\n",
    "as an attribute of another name": f"    t = torch\n    x = torch.add(x, torch.sum(t.from_file{CALL}))\n",
    "by a string": f'    f = getattr(torch, "from_file")\n    x = torch.add(x, torch.sum(f{CALL}))\n',
    "in brackets": f"    x = torch.add(x, torch.sum((torch.from_file){CALL}))\n",
    "over two lines": f"    x = torch.add(x, torch.sum(torch.\\\n    from_file{CALL}))\n",
    "behind a comment": f"    # torch.relu\n    t = torch #\n    x = torch.add(x, torch.sum(t.from_file{CALL}))\n",
    "in a branch": f"    if torch.gt(torch.dim(x), 9):\n      x = torch.add(x, torch.sum(torch.from_file{CALL}))\n",
    "in a loop": f"    for i in range(3):\n      x = torch.add(x, torch.sum(torch.from_file{CALL}))\n",
    "in a list": "    x = torch.add(x, torch.sum([torch.from_file(p, True, 3) for p in ['/a']][0]))\n".replace(
        "'", '"'
    ),
}


@pytest.mark.parametrize("body", HIDDEN.values(), ids=HIDDEN.keys())
def test_an_operator_that_reads_files_is_found_however_it_is_written(body: str) -> None:
    assert "aten::from_file" in refusal(written(body))


def test_an_operator_in_a_function_that_is_called_is_found() -> None:
    function = f"\ndef other(x: Tensor) -> Tensor:\n  t = torch\n  return torch.add(x, torch.sum(t.from_file{CALL}))\n"
    assert "aten::from_file" in refusal(written("    x = NAME.other(x)\n", function))


def test_what_runs_while_a_file_is_loaded_is_refused() -> None:
    state = (
        "  def __getstate__(self) -> int:\n    return 3\n"
        "  def __setstate__(self, state: int) -> NoneType:\n    self.training = False\n    return None\n"
    )
    assert "__setstate__" in refusal(written("", state))


@pytest.mark.parametrize(
    "body, said",
    [
        ("    h = ops.prim.Print(x)\n", "prim::Print"),
        ("    print(x)\n", "prim::Print"),
        ("    ops.cuda._set_device(1)\n", "cuda::_set_device"),
        ("    torch.manual_seed(3)\n", "aten::manual_seed"),
        ("    torch.resize_(x, [1000000, 1000000])\n", "aten::resize_"),
        ("    x = torch.as_strided(x, [9], [1], 1000000)\n", "aten::as_strided"),
        ("    while True:\n      pass\n", "while"),
        ("    go = torch.gt(torch.sum(x), 0)\n    while bool(go):\n      x = torch.add(x, 1)\n", "while"),
        ("    torch.save(x, \"/nowhere\")\n", "aten::save"),
        ("    h = __torch__.torch.classes.profiling.SourceRef\n", "torch.classes"),
    ],
)  # fmt: skip
def test_what_a_network_does_not_need_is_refused(body: str, said: str) -> None:
    assert said in refusal(written(body))


def test_no_operator_outside_of_tensors_and_the_language_is_allowed() -> None:
    names = {schema.name for schema in torch._C._jit_get_all_schemas()}
    assert {name.partition("::")[0] for name in names if allowed(name)} == {"aten", "prim"}
    for word in (
        "from_file",
        "save",
        "seed",
        "rpc",
        "Python",
        "_unsafe",
        "strided",
        "set_data",
        "resize",
        "storage(",
        "wait",
    ):
        assert not [name for name in names if word in name and allowed(name)], word
    for name in ("aten::set_", "aten::set", "aten::_print", "prim::Print", "aten::hash", "aten::record_stream"):
        assert not allowed(name)
    assert {name for name in ALLOWED if f"aten::{name}" not in names} == set()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + bytes(60), b"xxxxPTMF" + bytes(80), b"\x80\x02}."])
def test_garbage_is_no_script(data: bytes) -> None:
    assert not is_script(data)
    assert "is no TorchScript file" in refusal(data)


def test_a_mobile_module_in_front_of_an_archive_is_refused() -> None:
    """A flatbuffer is told by its first bytes, an archive by its last: a file may be both."""
    assert "is no TorchScript file" in refusal(b"\x00\x00\x00\x00PTMF" + scripted(Plain()))


@pytest.mark.parametrize(
    "architecture, encoder",
    [("Unet", "resnet18"), ("Unet", "efficientnet-b0"), ("Unet", "mobilenet_v2"), ("Unet", "mit_b0"),
     ("Unet", "tu-convnext_atto"), ("UnetPlusPlus", "resnet18"), ("FPN", "vgg11_bn"), ("MAnet", "resnet18")],
)  # fmt: skip
def test_networks_of_segmentation_models_need_no_trust(architecture: str, encoder: str) -> None:
    torch.manual_seed(0)
    network = smp.create_model(architecture, encoder, encoder_weights=None, in_channels=1, classes=2).eval()
    tile = torch.rand(1, 1, 64, 64)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        made: list[Callable[[], torch.nn.Module]] = [lambda: torch.jit.trace(network, tile, check_trace=False)]
        if architecture != "UnetPlusPlus":  # which torch cannot script
            made.append(lambda: torch.jit.script(network))
        for make in made:
            answer = load_script("m.pt", saved(make()), CPU)(tile)
            torch.testing.assert_close(answer, network(tile))


class Long(torch.nn.Module):
    """A loop that has a bound, which is never reached."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(1000000000000):
            x = x + 1.0
        return torch.cat([x, -x], 1)


class Large(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        held = torch.ones([64, 1 << 28])  # 64 GiB
        return torch.cat([x, -x], 1) + held.mean()


def test_a_loop_that_does_not_end_is_refused_after_its_time() -> None:
    data = scripted(Long())
    start = time.monotonic()
    with pytest.raises(RefusedError, match="more than 2 s for one tile"):
        check_trial("m.pt", data, [SHAPE], limits=Limits(seconds=2))
    assert time.monotonic() - start < 30


def test_a_network_that_wants_too_much_memory_is_refused() -> None:
    with pytest.raises(RefusedError, match="more than 2 GiB for one tile"):
        check_trial("m.pt", scripted(Large()), [SHAPE], limits=Limits(memory=2 << 30))


def test_a_text_that_doubles_while_it_is_compiled_is_refused_in_the_trial() -> None:
    text = '    s = "aaaaaaaa"\n' + 40 * "    s = torch.add(s, s)\n"
    data = written(text + "    x = torch.add(x, torch.len(s))\n")
    with pytest.raises(RefusedError, match="for one tile"):
        check_trial("m.pt", data, [SHAPE], limits=Limits(seconds=20, memory=2 << 30))


def test_a_network_that_ends_is_let_through_and_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = scripted(Plain())
    check_trial("m.pt", data, [SHAPE])
    monkeypatch.setattr(trial, "_TRIALS", None)
    check_trial("m.pt", data, [SHAPE])


def test_a_trial_leaves_what_is_wrong_with_an_answer_to_the_caller() -> None:
    check_trial("m.pt", scripted(Plain()), [(3,)])
