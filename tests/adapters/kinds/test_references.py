"""Every kind that another library has too, against it, with the same factors put in; wavelets against PyWavelets."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import peft
import pytest
import pywt
import torch
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.lokr import LokrModule
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.initialization.initialize import initialize
from atelier.adapters.kinds.catalog import create_adapters
from atelier.kernels.wavelet import WAVELETS, synthesize_averages, synthesize_details

ROWS, FEATURES = 32, 48
LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(FEATURES, ROWS), (3, 5, FEATURES)),
    "wide": (lambda: nn.Linear(FEATURES, 16), (3, 5, FEATURES)),
    "tall": (lambda: nn.Linear(16, FEATURES), (3, 5, 16)),
    "1x1": (lambda: nn.Conv2d(FEATURES, ROWS, 1), (2, FEATURES, 5, 7)),
    "3x3 strided": (lambda: nn.Conv2d(FEATURES, ROWS, 3, stride=2, padding=1), (2, FEATURES, 9, 7)),
}
LINEAR = ("linear", "wide", "tall")
Fill = Callable[[Any, Any], None]   # puts our adapter's tensors into the other library's layer


def ours(kind: str, settings: dict[str, Any], module: Any) -> tuple[AdapterSet, Any]:
    """A set of one adapter as if it had been trained, and the adapter."""
    adapters = create_adapters(kind, settings, [Spec("unet.layer", tuple(module.weight.shape))])
    initialize(adapters, {"unet": nn.ModuleDict({"layer": module})})
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    adapters.double()
    return adapters, adapters["unet.layer"]


def output(module: Any, adapters: AdapterSet, x: Tensor) -> Tensor:
    with torch.no_grad(), mount({"unet": nn.ModuleDict({"layer": module})}, Mix(((adapters, 1.0),))):
        return module(x)


def difference(found: Tensor, expected: Tensor, base: Tensor) -> float:
    """Largest error as a share of the largest change."""
    change = (expected - base).abs().max()
    assert change > 0.1, "the adapter must matter"
    error = ((found - expected).abs().max() / change).item()
    print(f"largest error: {error:.1e}")   # `pytest -rP` shows it
    return error


def dora(theirs: Any, own: Any) -> None:
    lora(theirs, own)
    weight = theirs.base_layer.weight.flatten(1)
    length = weight.norm(dim=1) + own.lengthen
    magnitude = theirs.lora_magnitude_vector["default"].weight
    magnitude.copy_(length.reshape(magnitude.shape))


def lora(theirs: Any, own: Any) -> None:
    for name, factor in (("lora_A", own.down), ("lora_B", own.up)):
        weight = getattr(theirs, name)["default"].weight
        weight.copy_(factor.reshape(weight.shape))


def lokr(theirs: Any, own: Any) -> None:
    for name, factor in (("lokr_w1", own.small), ("lokr_w2_a", own.up), ("lokr_w2_b", own.down)):
        getattr(theirs, name)["default"].copy_(factor[0])


def loha(theirs: Any, own: Any) -> None:
    for name, factor in (("1_a", own.up_1), ("1_b", own.down_1), ("2_a", own.up_2), ("2_b", own.down_2)):
        getattr(theirs, f"hada_w{name}")["default"].copy_(factor)


def shira(theirs: Any, own: Any) -> None:
    theirs.shira_weight["default"].copy_(own.values)
    columns = theirs.base_layer.weight.shape[1]
    theirs.shira_indices["default"] = torch.stack([own.index // columns, own.index % columns])


def waveft(theirs: Any, own: Any) -> None:
    """PEFT has the two detail quadrants the other way round."""
    theirs.waveft_spectrum["default"].copy_(own.values)
    rows, columns = theirs.base_layer.weight.shape
    row, column = own.index // columns, own.index % columns
    low, left = row < rows // 2, column < columns // 2
    swap = low != left
    row, column = (torch.where(swap, (row + rows // 2) % rows, row),
                   torch.where(swap, (column + columns // 2) % columns, column))
    theirs.waveft_indices["default"] = torch.stack([row, column])


def randlora(theirs: Any, own: Any) -> None:
    theirs.randlora_lambda["default"].copy_(own.mix)
    theirs.randlora_gamma["default"].copy_(own.shades)
    (bases,) = own.bases
    count = own.mix.shape[1]
    theirs.randlora_A["default"] = bases.narrow[:, None].double() * 3**0.5 / 127
    theirs.randlora_B["default"] = bases.wide.double().reshape(len(bases.wide), count, -1) * 3**0.5 / 127


def miss(theirs: Any, own: Any) -> None:
    theirs.miss_block["default"].copy_(own.up.T)


PEFT: dict[str, tuple[str, dict[str, Any], Any, Fill, tuple[str, ...]]] = {
    "lora": ("lora", {"rank": 4, "alpha": 10}, peft.LoraConfig(r=4, lora_alpha=10, target_modules=["0"]), lora,
             tuple(LAYERS)),
    "rslora": ("lora", {"rank": 4, "alpha": 10, "stabilized": True},
               peft.LoraConfig(r=4, lora_alpha=10, use_rslora=True, target_modules=["0"]), lora, tuple(LAYERS)),
    "dora": ("dora", {"rank": 4, "alpha": 10},
             peft.LoraConfig(r=4, lora_alpha=10, use_dora=True, target_modules=["0"]), dora, tuple(LAYERS)),
    "lokr": ("lokr", {"rank": 2, "alpha": 3, "factor": 4},
             peft.LoKrConfig(r=2, alpha=3, decompose_factor=4, target_modules=["0"]), lokr,
             ("linear", "wide", "tall", "1x1", "3x3 strided")),
    "loha": ("loha", {"rank": 3, "alpha": 6}, peft.LoHaConfig(r=3, alpha=6, target_modules=["0"]), loha,
             tuple(LAYERS)),
    "shira": ("shira", {"rank": 4}, peft.ShiraConfig(r=4, target_modules=["0"]), shira, LINEAR),
    "waveft": ("waveft", {"count": 200, "gain": 25.0},
               peft.WaveFTConfig(n_frequency=200, scaling=25.0, target_modules=["0"]), waveft, LINEAR),
    "randlora": ("randlora", {"rank": 8, "alpha": 16},
                 peft.RandLoraConfig(r=8, randlora_alpha=16, target_modules=["0"]), randlora, LINEAR),
    "miss": ("miss", {"rank": 8}, peft.MissConfig(r=8, target_modules=["0"]), miss, LINEAR),
}


@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name, row in PEFT.items() for layer in row[4]])
def test_output_equals_peft(name: str, layer: str):
    kind, settings, config, fill, _ = PEFT[name]
    make, shape = LAYERS[layer]
    module, x = make().double(), torch.randn(shape, dtype=torch.float64)
    adapters, own = ours(kind, settings, module)
    wrapped: Any = peft.get_peft_model(nn.Sequential(copy.deepcopy(module)), copy.deepcopy(config)).double()
    with torch.no_grad(), torch.sparse.check_sparse_tensor_invariants():   # without, torch warns of PEFT's SHiRA
        fill(wrapped.get_submodule("base_model.model.0"), own)
        expected = wrapped(x)
    assert difference(output(module, adapters, x), expected, module(x)) < 1e-12


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("decompose", [False, True], ids=["locon", "dora"])
def test_locon_and_its_weight_decomposition_equal_lycoris(layer: str, decompose: bool):
    make, shape = LAYERS[layer]
    module, x = make().double(), torch.randn(shape, dtype=torch.float64)
    adapters, own = ours("dora" if decompose else "lora", {"rank": 4, "alpha": 10}, module)
    theirs: Any = LoConModule("layer", copy.deepcopy(module), lora_dim=4, alpha=10, weight_decompose=decompose).double()
    with torch.no_grad():
        theirs.lora_down.weight.copy_(own.down.reshape(theirs.lora_down.weight.shape))
        theirs.lora_up.weight.copy_(own.up.reshape(theirs.lora_up.weight.shape))
        if decompose:
            length = module.weight.flatten(1).norm(dim=1) + own.lengthen
            theirs.dora_scale.copy_(length.reshape(theirs.dora_scale.shape))
        expected = theirs(x)
    assert difference(output(module, adapters, x), expected, module(x)) < 1e-12


@pytest.mark.parametrize("layer", LAYERS)
def test_lokr_equals_lycoris(layer: str):
    make, shape = LAYERS[layer]
    module, x = make().double(), torch.randn(shape, dtype=torch.float64)
    adapters, own = ours("lokr", {"rank": 2, "alpha": 3, "factor": 4}, module)
    theirs: Any = LokrModule("layer", copy.deepcopy(module), lora_dim=2, alpha=3, factor=4).double()
    with torch.no_grad():
        for mine, name in ((own.small, "lokr_w1"), (own.up, "lokr_w2_a"), (own.down, "lokr_w2_b")):
            getattr(theirs, name).copy_(mine[0])
        expected = theirs(x)
    assert difference(output(module, adapters, x), expected, module(x)) < 1e-12


@pytest.mark.parametrize("layer", LAYERS)
def test_oft_equals_lycoris(layer: str):
    """LyCORIS multiplies with the transpose of its R, so its Q is ours with the other sign. It has float32 only."""
    module = LAYERS[layer][0]()
    _, own = ours("oft", {"block": 4}, module)
    theirs: Any = DiagOFTModule("layer", copy.deepcopy(module), lora_dim=4)
    with torch.no_grad():
        theirs.oft_blocks.copy_(-own.skew().triu())
        expected = theirs.make_weight(diff=True)
        assert expected.abs().max() > 0.05
        assert_close(own.delta(module.weight).float(), expected, rtol=0, atol=2e-6)


def test_oft_turns_outputs_as_peft_turns_inputs():
    """PEFT's exact mode on the transposed weight: W Rᵀ = (R Wᵀ)ᵀ, with the opposite sign of Q."""
    module = nn.Linear(ROWS, FEATURES, bias=False).double()
    _, own = ours("oft", {"block": 8}, nn.Linear(FEATURES, ROWS, bias=False).double())
    config = peft.OFTConfig(oft_block_size=8, r=0, use_cayley_neumann=False, target_modules=["0"])
    wrapped: Any = peft.get_peft_model(nn.Sequential(copy.deepcopy(module)), config).double()
    with torch.no_grad():
        wrapped.get_submodule("base_model.model.0").oft_R["default"].weight.copy_(-own.values)
        merged = wrapped.merge_and_unload().get_submodule("0").weight
        weight = module.weight.T.contiguous()
        expected = merged.T - weight
        assert_close(own.delta(weight), expected, rtol=0, atol=1e-12)
        assert expected.abs().max() > 0.05


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_wavelets_equal_pywavelets_and_are_orthonormal(wavelet: str):
    for n in (2, 6, 16, 40):
        one = torch.eye(n // 2, dtype=torch.float64)
        nothing = np.zeros_like(one)
        expected = [pywt.idwt(one.numpy(), nothing, wavelet, "periodization", axis=0),
                    pywt.idwt(nothing, one.numpy(), wavelet, "periodization", axis=0)]
        found = [synthesize_averages(one, wavelet), synthesize_details(one, wavelet)]
        for mine, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-14)
        both = torch.cat(found, 1)
        assert_close(both.T @ both, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("wavelet", WAVELETS)
def test_wara_equals_pywavelets(wavelet: str, levels: int):
    module = nn.Conv2d(FEATURES, ROWS, 3).double()
    _, own = ours("wara", {"rank": 2, "levels": levels, "wavelet": wavelet, "smooth_rank": 3, "alpha": 5}, module)
    with torch.no_grad():
        found = own.delta(module.weight).numpy()

    def band(level: int, number: int | None, tap: int) -> Any:
        up, down = getattr(own, f"up_{level}"), getattr(own, f"down_{level}")
        up, down = (up, down) if number is None else (up[number], down[number])
        return (up @ down.T).detach().numpy()[:, tap::9]

    for tap in range(9):
        coefficients = [band(0, None, tap)]
        for level in range(levels, 0, -1):
            coefficients.append((band(level, 1, tap), band(level, 0, tap), band(level, 2, tap)))   # cH, cV, cD
        expected = 5 / 2 * pywt.waverec2(coefficients, wavelet, "periodization")
        np.testing.assert_allclose(found[:, :, tap // 3, tap % 3], expected, atol=1e-13)


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_waveft_equals_pywavelets(wavelet: str):
    module = nn.Linear(FEATURES, ROWS).double()
    _, own = ours("waveft", {"count": 300, "gain": 7.0, "wavelet": wavelet}, module)
    packed = np.zeros(ROWS * FEATURES)
    packed[own.index.numpy()] = 7.0 * own.values.detach().numpy()
    (smooth_part, columns), (rows, corner) = (np.split(half, 2, 1) for half in np.split(packed.reshape(ROWS, -1), 2))
    expected = pywt.idwt2((smooth_part, (rows, columns, corner)), wavelet, "periodization")
    np.testing.assert_allclose(own.delta(module.weight).detach().numpy(), expected, atol=1e-12)
