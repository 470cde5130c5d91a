"""Networks as users write them: none is from `jaxprune.models`.

Each function returns the parameters and `apply_fn(params, inputs)`, and inputs.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import linen, nnx


class VisionTransformer(nnx.Module):
    """Patches, a class token, position embeddings, one block of attention and MLP."""

    def __init__(self, rngs):
        self.patch_embed = nnx.Conv(1, 8, (4, 4), strides=(4, 4), rngs=rngs)
        self.cls_token = nnx.Param(jnp.zeros((1, 1, 8)))
        self.pos_embedding = nnx.Param(jax.random.normal(rngs.params(), (1, 5, 8)))
        self.norm1 = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.norm2 = nnx.RMSNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.mlp = nnx.List(
            [nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)]
        )
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = self.patch_embed(x).reshape(x.shape[0], 4, 8)
        token = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, 8))
        x = jnp.concatenate([token, x], axis=1)
        x = x + jnp.broadcast_to(self.pos_embedding[...], x.shape)
        x = x + self.attention(self.norm1(x))
        hidden = self.dropout(nnx.relu(self.mlp[0](self.norm2(x))))
        return self.head((x + self.mlp[1](hidden))[:, 0])


class ConvNet(nnx.Module):
    """A convolution, BatchNorm without scale and with a large epsilon, Dropout."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_scale=False, epsilon=0.1, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(nnx.relu(self.norm(self.conv(x))))
        return self.head(x.mean((1, 2)))


class ConvNetWithArgument(nnx.Module):
    """The same layers, with the mode as an argument and no bias in the norm."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_bias=False, use_scale=False, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x, train):
        x = nnx.relu(self.norm(self.conv(x), use_running_average=not train))
        return self.head(x.mean((1, 2)))


class ScannedMLP(linen.Module):
    """Three equal layers whose parameters are stacked along a first axis, by scan."""

    @linen.compact
    def __call__(self, x):
        class Layer(linen.Module):
            @linen.compact
            def __call__(self, x, _):
                y = linen.LayerNorm(name="norm")(x)
                return x + linen.relu(linen.Dense(8, name="dense")(y)), None

        layers = linen.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        x, _ = layers(name="layers")(linen.Dense(8, name="first")(x), None)
        return linen.Dense(2, name="last")(x)


class LanguageModel(nnx.Module):
    """An embedding that is read twice: as a lookup and as the output layer."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.hidden = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, tokens):
        return self.embed.attend(nnx.relu(self.hidden(self.embed(tokens))))


class EquinoxNet(eqx.Module):
    """Convolutions with biases of shape (channels, 1, 1), BatchNorm-free, callables inside."""

    conv: eqx.nn.Conv2d
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear
    activation: object

    def __init__(self, key):
        keys = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 4, 3, padding=1, key=keys[0])
        self.norm = eqx.nn.LayerNorm((4, 8, 8))
        self.head = eqx.nn.Linear(4, 3, key=keys[1])
        self.activation = jax.nn.relu

    def __call__(self, x):
        return self.head(self.activation(self.norm(self.conv(x))).mean((1, 2)))
