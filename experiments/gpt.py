"""A byte-level GPT trained on Python's standard library, pruned after training.

Five blocks of width 128, 1.07 million weights, predict the next byte of Python source code.
The data is the standard library of the Python that runs the study, so nothing is downloaded,
and results depend on the version of Python. Training and validation use different modules.
As in the papers on pruning language models, only the linear layers of the blocks are pruned.

Source: a GPT-2 (Radford et al., Language models are unsupervised multitask learners, 2019) of
our own size, so there is no published number. It took 70 minutes on 2 CPU cores with other
programs running; `--plan` estimates half. The dense network reaches 1.65 bits per byte with
Python 3.11.7; ours: results/gpt/README.md.
    python scripts/study.py run experiments/gpt.py       # resumes
    python scripts/study.py run experiments/gpt.py --only method=dense
"""

import dataclasses
import hashlib
import math
import platform
import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxprune import scores, tree
from jaxprune.study.config import Recipe
from jaxprune.study.methods import Method
from jaxprune.study.user import Data, Study
from jaxprune.train import Objective, Training

CONTEXT = 128  # bytes that the network sees
BYTES = 256
WIDTH, HEADS, BLOCKS = 128, 4, 5
TRAIN_WINDOWS, TEST_WINDOWS = 24_576, 512

# Tests, generated tables and installed packages, which not all builds of Python have.
SKIPPED = {
    "site-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "encodings",
}
# These describe one build of Python; they are `config-<platform>/` and `_sysconfigdata*.py`.
OF_ONE_BUILD = ("config-", "_sysconfigdata")


def modules() -> dict[str, bytes]:
    """Read the modules of the standard library, sorted by their paths."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    return {
        path.as_posix(): (root / path).read_bytes()
        for path in paths
        if not SKIPPED.intersection(path.parts)
        and not any(part.startswith(OF_ONE_BUILD) for part in path.parts)
    }


def is_for_validation(name: str) -> bool:
    """Return whether a module is one of the tenth that is not trained on."""
    return hashlib.sha256(name.encode()).digest()[0] < 26


def windows(texts: list[bytes], number: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw windows of texts: bytes, and the byte after each of them."""
    cut = np.concatenate(
        [
            np.lib.stride_tricks.sliding_window_view(array, CONTEXT + 1)[::CONTEXT]
            for array in (np.frombuffer(text, np.uint8) for text in texts)
            if array.size > CONTEXT
        ]
    )
    drawn = cut[np.random.default_rng(0).permutation(len(cut))[:number]]
    return drawn[:, :-1].copy(), drawn[:, 1:].copy()


class Attention(nnx.Module):
    """Causal self-attention of several heads."""

    def __init__(self, rngs: nnx.Rngs):
        self.query, self.key, self.value, self.out = (
            nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(4)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Attend to the bytes up to each position."""
        heads = (*x.shape[:-1], HEADS, WIDTH // HEADS)
        query, key, value = (
            layer(x).reshape(heads) for layer in (self.query, self.key, self.value)
        )
        is_visible = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))[None, None]
        read = nnx.dot_product_attention(query, key, value, mask=is_visible)
        return self.out(read.reshape(x.shape))


class Block(nnx.Module):
    """A transformer block with LayerNorm in front."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm1, self.norm2 = (nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2))
        self.attention = Attention(rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Run attention, then the two-layer network."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class GPT(nnx.Module):
    """Logits of the next byte, for each byte of the input."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(BYTES, WIDTH, rngs=rngs)
        self.position = nnx.Param(0.02 * rngs.params.normal((CONTEXT, WIDTH)))
        self.blocks = nnx.List(Block(rngs) for _ in range(BLOCKS))
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        # Named so that tree.prunable leaves it out, as it does the embeddings.
        self.output_embed = nnx.Embed(BYTES, WIDTH, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Run the network on bytes of shape (examples, CONTEXT)."""
        x = self.embed(tokens.astype(jnp.int32)) + self.position[...][None]
        for block in self.blocks:
            x = block(x)
        return self.output_embed.attend(self.norm(x))


def nats(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of the bytes of each example, in nats."""
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, targets.astype(jnp.int32)
    )
    return losses.mean(-1)


def bits(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of the bytes of each example, in bits."""
    return nats(logits, targets) / math.log(2)


def adamw(learning_rate: jax.Array) -> optax.GradientTransformation:
    """Make AdamW that decays kernels only, with clipped gradients."""
    rule = optax.adamw(learning_rate, b2=0.95, weight_decay=0.1, mask=tree.prunable)
    return optax.chain(optax.clip_by_global_norm(1.0), rule)


TUNED = (
    Method("mag", "Mag", "magnitude", pretrained=True, scope="layer"),
    Method("wanda", "Wanda", "wanda", pretrained=True, scope="output"),
    Method("sparsegpt", "SparseGPT", "", pretrained=True, reconstructs=True),
    Method(
        *("channels", "Channels", scores.taylor),
        pretrained=True,
        scope="channels",
        kinds=("heads", "neurons"),
    ),
)
# The same masks without training after pruning.
ONCE = tuple(
    dataclasses.replace(
        method,
        name=f"{method.name}_once",
        title=f"{method.title}, once",
        retrains=False,
    )
    for method in TUNED
)
TEXTS = modules()

STUDY = Study(
    name="gpt",
    version="1",
    model=lambda key: GPT(nnx.Rngs(key)),
    data=Data(
        f"stdlib of Python {platform.python_version()}",
        train=windows(
            [text for name, text in TEXTS.items() if not is_for_validation(name)],
            TRAIN_WINDOWS,
        ),
        test=windows(
            [text for name, text in TEXTS.items() if is_for_validation(name)],
            TEST_WINDOWS,
        ),
        objective=Objective(
            nats, bits, "bits per byte", "bits", higher_is_better=False
        ),
    ),
    methods=("dense", *ONCE, *TUNED),
    densities=(0.75, 0.5, 0.4, 0.3),
    recipe=Recipe(
        "adamw",
        # The retraining of a pruned network; the dense one is trained 8 times as long.
        Training(
            epochs=0.25,
            batch_size=8,
            learning_rate=3e-3,
            optimizer=adamw,
            schedule="cosine",
            warmup_epochs=0.05,
        ),
        rewind="weights_kept",
        dense_epochs=2.0,
        score_examples=64,
        time=False,
        memory="none",
    ),
)
