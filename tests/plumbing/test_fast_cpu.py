"""What makes CPUs faster changes nothing that is computed, beyond rounding."""

import copy

import torch
from conftest import started
from transformers.pytorch_utils import Conv1D

from plumbing.fast_cpu import PrepackedLinear, prepack, use_onednn_for_float32


def test_float32_stays_float32():
    """What load_policy sets for speed leaves float32 products exact to 3e-6. bfloat16 errs by 1e-3.

    y = x W', and the products of the backward pass: y W for d / dx, and y' x for d / dW.
    """
    use_onednn_for_float32()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 256, dtype=torch.float64, generator=generator)
    W = torch.randn(1024, 256, dtype=torch.float64, generator=generator)
    y = x @ W.T
    for a, b in ((x, W.T), (y, W), (y.T, x)):
        exact = a @ b
        error = (a.float() @ b.float() - exact).abs().max() / exact.abs().max()
        assert error.item() < 3e-6


def test_a_prepacked_layer_is_linear():
    """PrepackedLinear is activation(x W' + b), with the GELU of GPT-2, with or without b."""
    W, b, x = torch.randn(6, 4), torch.randn(6), torch.randn(2, 3, 4)
    layer = PrepackedLinear(W, b, torch.float32)
    plain = x @ W.T + b
    assert torch.allclose(layer(x), plain, atol=1e-5)
    layer.activation = "gelu"
    gelu = torch.nn.functional.gelu(plain, approximate="tanh")
    assert torch.allclose(layer(x), gelu, atol=1e-5)
    assert torch.allclose(PrepackedLinear(W, None, torch.float32)(x), x @ W.T, atol=1e-5)


def logits_of(model):
    """The next logits after two prompts, the second one padded by one column."""
    tokens = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4]])
    with torch.no_grad():
        return started(model, [0, 1]).next_logits(tokens)


def layers_of(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


def test_prepacking_is_the_network(quark):
    """In float32 the logits are the same, and every linear layer is replaced.

    In bfloat16 they are as near as autocast's. All layers but the last are stored in bfloat16.
    """
    plain = logits_of(quark.model)
    packed = prepack(copy.deepcopy(quark.model))
    assert torch.allclose(logits_of(packed), plain, atol=1e-5)
    assert not layers_of(packed, (Conv1D, torch.nn.Linear))
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return
    packed = prepack(copy.deepcopy(quark.model), bf16=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast, rough = logits_of(quark.model), logits_of(packed)
    assert rough.dtype == torch.float32
    assert 0 < (rough - plain).std() < 2 * (autocast - plain).std()
    kinds = [layer.dtype for layer in layers_of(packed, PrepackedLinear)]
    assert kinds == [torch.bfloat16] * 4 * quark.model.config.n_layer + [torch.float32]


def test_prepacking_needs_onednn(quark, monkeypatch):
    """Where oneDNN has no bfloat16, or PyTorch no oneDNN, the model stays as it is."""

    def is_packed(**options):
        return not layers_of(prepack(copy.deepcopy(quark.model), **options), Conv1D)

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert is_packed()
    assert not is_packed(bf16=True)
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert not is_packed()
