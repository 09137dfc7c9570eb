"""Faster GPT-2 on CPUs: oneDNN for float32 products, one kernel for the GELU, prepacked weights.

None of it changes what is computed, only how fast. What depends on GPT-2's layers is here.
"""

import torch


def tune_for_cpu(model):
    """Applies what makes both training and sampling faster. load_policy calls it."""
    use_onednn_for_float32()
    if model.config.model_type == "gpt2":
        fuse_gelu(model)


def use_onednn_for_float32():
    """Makes PyTorch multiply float32 matrices with oneDNN instead of MKL, which is slow on AMD
    CPUs. Nothing changes without AVX-512.

    PyTorch calls this "medium" precision and would allow bfloat16 inside. oneDNN does that only on
    CPUs with AMX, so those keep the default, and float32 stays float32
    (test_float32_stays_float32).
    """
    has = torch.cpu.get_capabilities()
    if has.get("avx512_f") and not has.get("amx_bf16"):
        torch.set_float32_matmul_precision("medium")


def fuse_gelu(model):
    """Computes GPT-2's GELU in one PyTorch kernel; transformers needs eight operations."""
    if model.config.activation_function == "gelu_new":
        for block in model.transformer.h:
            block.mlp.act = torch.nn.GELU(approximate="tanh")


def linear_layers(model):
    """Yields each linear layer: (parent module, name in it, (outputs, inputs) weight, bias)."""
    layers = []
    for block in model.transformer.h:
        layers += [(block.attn, "c_attn"), (block.attn, "c_proj")]
        layers += [(block.mlp, "c_fc"), (block.mlp, "c_proj")]
    for parent, name in layers:
        layer = getattr(parent, name)
        yield parent, name, layer.weight.detach().T, layer.bias.detach()
    yield model, "lm_head", model.lm_head.weight.detach(), None


def prepack(model, bf16=False):
    """Repacks the weight matrices in place for faster CPU inference, and returns the model.

    The model can no longer be trained or saved. With bf16, all but the output layer is stored in
    bfloat16. Nothing happens where PyTorch has no oneDNN, with bf16 where this CPU has no packed
    bfloat16, or to other models than GPT-2.
    """
    if model.config.model_type != "gpt2":
        return model
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return model
    if bf16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return model
    for parent, name, weight, bias in linear_layers(model):
        is_output_layer = bias is None
        dtype = torch.bfloat16 if bf16 and not is_output_layer else torch.float32
        setattr(parent, name, PrepackedLinear(weight, bias, dtype))
    if model.config.activation_function == "gelu_new":
        for block in model.transformer.h:
            block.mlp.c_fc.activation = "gelu"
            block.mlp.act = torch.nn.Identity()
    return model


class PrepackedLinear(torch.nn.Module):
    """x -> activation(x @ weight.T + bias), with weight in oneDNN's own layout."""

    def __init__(self, weight, bias, dtype, rows=64):
        super().__init__()
        weight = weight.to(dtype).contiguous()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        self.bias = None if bias is None else bias.to(dtype)
        self.dtype = dtype
        self.activation = "none"

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(
            x.to(self.dtype), self.weight, self.bias, self.activation, [], "tanh"
        )
