"""The settings of each kind of stage.

They are all that a stage depends on besides the arrays of the stage before it. Its id hashes
them, so a new field or another default is another id.
"""

import dataclasses

from jaxprune.study.code import Code
from jaxprune.train import Training


@dataclasses.dataclass(frozen=True)
class Network:
    """A network without its arrays.

    Attributes:
        model: a name in models.MODELS; or a function of the user, `init(key) -> Model`, to
            which the last three do not apply.
        input_shape: of one example, such as height, width and channels of an image.
        input_dtype: of the inputs of the network.
        num_classes: number of labels.
        batch_norm: whether it has BatchNorm.
        width: factor on the number of channels.
    """

    model: str | Code
    input_shape: tuple[int, ...]
    input_dtype: str
    num_classes: int
    batch_norm: bool
    width: float


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The examples of a data set.

    Attributes:
        name: of the data set.
        version: identifies its exact examples, and its loss and metric.
        examples: number of training examples, None for all.
    """

    name: str
    version: str
    examples: int | None


@dataclasses.dataclass(frozen=True)
class Initialize:
    """Draw the initial weights; or others, with another key, for a mask that is kept."""

    network: Network
    seed: int


@dataclasses.dataclass(frozen=True)
class Train:
    """Train the weights that the mask keeps.

    Attributes:
        network: the network.
        seed: of the order of the data and of augmentation.
        dataset: its training set.
        training: the schedule.
        start: epoch to start from.
        rewind_epochs: epoch of the rewind point, None to keep none.
        keeps_pruned: whether pruned weights keep the values that they compete with.
    """

    network: Network
    seed: int
    dataset: Dataset
    training: Training
    start: float = 0
    rewind_epochs: float | None = None
    keeps_pruned: bool = False

    @property
    def epochs(self) -> float:
        """Return the number of epochs that it trains for."""
        return self.training.epochs - self.start


@dataclasses.dataclass(frozen=True)
class Connect(Train):
    """Train a second time with other noise; measure the error between the two networks.

    Attributes:
        points: number of points between them.
    """

    points: int = 30


@dataclasses.dataclass(frozen=True)
class Score:
    """Score the weights.

    Attributes:
        network: the network.
        seed: of random scores, and of the examples to score with.
        method: a name in scores.SCORERS, or a function of the user.
        needs: what it takes, as in scores.Scorer.
    """

    network: Network
    seed: int
    method: str | Code
    needs: str


@dataclasses.dataclass(frozen=True)
class ScoreFlow(Score):
    """Score by the synaptic flow.

    Attributes:
        batch_norm: as in models.flow.
        rescale: as in scores.synflow.
    """

    batch_norm: str
    rescale: bool


@dataclasses.dataclass(frozen=True)
class ScoreData(Score):
    """Score by the loss on training examples, in one batch.

    Attributes:
        dataset: its training set.
        examples: number of examples in the batch.
        temperature: divides the logits.
        train_mode: whether the network runs in training mode.
    """

    dataset: Dataset
    examples: int
    temperature: float
    train_mode: bool


@dataclasses.dataclass(frozen=True)
class ScoreNoise(Score):
    """Score by the outputs for Gaussian noise.

    Attributes:
        examples: number of examples of noise.
    """

    examples: int


@dataclasses.dataclass(frozen=True)
class Select:
    """Keep the weights of the highest scores.

    Attributes:
        network: the network.
        density: kept / prunable.
        ties: as in masks.select.
        scope: as in methods.Method.
        kinds: as in methods.Method.
        inverted: whether weights of the lowest scores are kept instead.
    """

    network: Network
    density: float
    ties: str
    scope: str
    kinds: tuple[str, ...]
    inverted: bool


@dataclasses.dataclass(frozen=True)
class Prune:
    """Score and select in rounds; options as in prune.prune.

    Attributes:
        scoring: how weights are scored; each round has other examples.
        select: what is kept in the end.
        rounds: number of rounds.
        regrow: whether pruned weights compete again.
    """

    scoring: Score
    select: Select
    rounds: int
    regrow: bool


@dataclasses.dataclass(frozen=True)
class Reconstruct:
    """Prune by reconstruct.sparsegpt, with training examples.

    Attributes:
        network: the network.
        seed: of the examples.
        dataset: its training set.
        density: kept / prunable of each layer.
        examples: number of examples.
    """

    network: Network
    seed: int
    dataset: Dataset
    density: float
    examples: int


@dataclasses.dataclass(frozen=True)
class Shuffle:
    """Shuffle the mask within each leaf."""

    network: Network
    seed: int


@dataclasses.dataclass(frozen=True)
class Level:
    """Prune the trained weights and rewind; options as in imp.step."""

    network: Network
    seed: int
    level: int
    density: float
    ties: str
    rewind: str
    regrow: bool
    scope: str


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Count what the mask leaves, which training does not change."""

    network: Network


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate on the test set, and bin the kept weights."""

    network: Network
    dataset: Dataset


@dataclasses.dataclass(frozen=True)
class Measure:
    """Time the masked and the compacted network.

    Attributes:
        network: the network.
        dataset: its test set is fed to the network.
        memory: whether to measure the memory of both networks too.
    """

    network: Network
    dataset: Dataset
    memory: bool


@dataclasses.dataclass(frozen=True)
class Memory:
    """Measure the memory of the network in a fresh process."""

    network: Network
