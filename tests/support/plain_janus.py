"""The arithmetic of Janus in plain float64 tensor code, on weights with their original names."""

import torch
import torch.nn.functional as F


class PlainJanus:
    """One formula after another, as :func:`tests.support.reference.generate` needs it."""

    def __init__(self, config, weights):
        self.weights = {name: weight.double() for name, weight in weights.items()}
        language = config["language_config"]
        self.num_layers = language["num_hidden_layers"]
        self.num_heads = language["num_attention_heads"]
        self.grid = config["vision_config"]["params"]["image_size"] // 16
        self.num_image_tokens = self.grid**2

    def linear(self, name, x):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def conv(self, name, x):
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x, weight, self.weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def rms_norm(self, name, x):
        scale = (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
        return x * scale * self.weights[f"{name}.weight"]

    def norm(self, x):
        return self.rms_norm("language_model.model.norm", x)

    def embed(self, input_ids):
        return self.weights["language_model.model.embed_tokens.weight"][input_ids]

    def embed_image(self, tokens):
        x = self.linear("gen_aligner.layers.0", self.weights["gen_embed.weight"][tokens])
        return self.linear("gen_aligner.layers.2", F.gelu(x))

    def gen_head(self, x):
        x = F.gelu(self.linear("gen_head.output_mlp_projector", x))
        return self.linear("gen_head.vision_head", x)

    def lm_head(self, x):
        return self.linear("language_model.lm_head", x)

    def layer_norm(self, name, x):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, eps=1e-6)

    def see(self, pixels):
        """SigLIP with 16 heads, then the aligner."""
        tower = "vision_model.vision_tower"
        weight = self.weights[f"{tower}.patch_embed.proj.weight"]
        bias = self.weights[f"{tower}.patch_embed.proj.bias"]
        x = F.conv2d(pixels[None].double(), weight, bias, stride=weight.shape[-1])
        x = x.flatten(2).transpose(1, 2) + self.weights[f"{tower}.pos_embed"]
        blocks = 1 + max(int(name.split(".")[3]) for name in self.weights if ".blocks." in name)
        for i in range(blocks):
            block = f"{tower}.blocks.{i}"
            qkv = self.linear(f"{block}.attn.qkv", self.layer_norm(f"{block}.norm1", x))
            q, k, v = qkv.unflatten(-1, (3, 16, -1)).permute(2, 0, 3, 1, 4)
            weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
            x = x + self.linear(f"{block}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))
            y = F.gelu(self.linear(f"{block}.mlp.fc1", self.layer_norm(f"{block}.norm2", x)))
            x = x + self.linear(f"{block}.mlp.fc2", y)
        x = self.linear("aligner.layers.0", self.layer_norm(f"{tower}.norm", x))
        return self.linear("aligner.layers.2", F.gelu(x))[0]

    def hidden_states(self, x):
        states = [x]
        for i in range(self.num_layers):
            layer = f"language_model.model.layers.{i}"
            x = x + self.attention(layer, self.rms_norm(f"{layer}.input_layernorm", x))
            y = self.rms_norm(f"{layer}.post_attention_layernorm", x)
            gate = F.silu(self.linear(f"{layer}.mlp.gate_proj", y))
            x = x + self.linear(
                f"{layer}.mlp.down_proj", gate * self.linear(f"{layer}.mlp.up_proj", y)
            )
            states.append(x)
        return [*states[:-1], self.norm(x)]

    def attention(self, layer, x):
        length = x.shape[1]
        q, k, v = (
            self.linear(f"{layer}.self_attn.{part}_proj", x)
            .unflatten(-1, (self.num_heads, -1))
            .transpose(1, 2)
            for part in "qkv"
        )
        half = q.shape[-1] // 2
        # Frequencies in float32, as in Llama, whatever the dtype.
        frequencies = 1.0 / 10000.0 ** (torch.arange(half).float() / half)
        angles = (torch.arange(length).float()[:, None] * frequencies).double()
        q, k = (
            torch.cat(
                [
                    y[..., :half] * angles.cos() - y[..., half:] * angles.sin(),
                    y[..., half:] * angles.cos() + y[..., :half] * angles.sin(),
                ],
                dim=-1,
            )
            for y in (q, k)
        )
        scores = q @ k.transpose(-1, -2) / (2 * half) ** 0.5
        future = torch.ones(length, length).triu(1).bool()
        attended = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        return self.linear(f"{layer}.self_attn.o_proj", attended.transpose(1, 2).flatten(2))

    def decode_image(self, tokens):
        """VQ-16's decoder: tokens ``(images, n)`` to pixels ``(images, 3, height, width)``."""
        codebook = self.weights["gen_vision_model.quantize.embedding.weight"]
        codes = F.normalize(codebook, dim=-1)[tokens]
        x = codes.unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        x = self.conv("gen_vision_model.post_quant_conv", x)
        decoder = "gen_vision_model.decoder"
        x = self.conv(f"{decoder}.conv_in", x)
        x = self.res_block(f"{decoder}.mid.0", x)
        x = self.attention_block(f"{decoder}.mid.1", x)
        x = self.res_block(f"{decoder}.mid.2", x)
        for level in range(5):
            for i in range(3):
                x = self.res_block(f"{decoder}.conv_blocks.{level}.res.{i}", x)
                if level == 0:
                    x = self.attention_block(f"{decoder}.conv_blocks.{level}.attn.{i}", x)
            if level != 4:
                x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                x = self.conv(f"{decoder}.conv_blocks.{level}.upsample.conv", x)
        return self.conv(f"{decoder}.conv_out", F.silu(self.group_norm(f"{decoder}.norm_out", x)))

    def group_norm(self, name, x):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.group_norm(x, 32, weight, bias, eps=1e-6)

    def res_block(self, name, x):
        h = self.conv(f"{name}.conv1", F.silu(self.group_norm(f"{name}.norm1", x)))
        h = self.conv(f"{name}.conv2", F.silu(self.group_norm(f"{name}.norm2", h)))
        shortcut = f"{name}.nin_shortcut"
        return (self.conv(shortcut, x) if f"{shortcut}.weight" in self.weights else x) + h

    def attention_block(self, name, x):
        h = self.group_norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h).flatten(2) for part in ("q", "k", "v"))
        scores = q.transpose(1, 2) @ k / q.shape[1] ** 0.5
        attended = v @ scores.softmax(-1).transpose(1, 2)
        return x + self.conv(f"{name}.proj_out", attended.view_as(x))
