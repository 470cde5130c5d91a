"""The settings of each kind of stage.

They are all that a stage depends on besides the arrays of the stage before it. Its id hashes
them, so a new field or another default is another id.
"""

import dataclasses

from jaxprune.train import Training


@dataclasses.dataclass(frozen=True)
class Network:
    """A network without its arrays.

    Attributes:
        model: a name in models.MODELS.
        input_shape: height, width and channels of an image.
        num_classes: number of labels.
        batch_norm: whether it has BatchNorm.
        width: factor on the number of channels.
    """

    model: str
    input_shape: tuple[int, int, int]
    num_classes: int
    batch_norm: bool
    width: float


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of a data set.

    Attributes:
        dataset: a name in data.DATASETS.
        version: identifies the exact images.
        examples: number of training images, None for all.
    """

    dataset: str
    version: str
    examples: int | None


@dataclasses.dataclass(frozen=True)
class Initialize:
    """Draw the initial weights."""

    network: Network
    seed: int


@dataclasses.dataclass(frozen=True)
class Train:
    """Train the weights that the mask keeps.

    Attributes:
        network: the network.
        seed: of the order of the data and of augmentation.
        images: training images.
        training: the schedule.
        start: epoch to start from.
        rewind_epochs: epoch of the rewind point, None to keep none.
        keeps_pruned: whether pruned weights keep the values that they compete with.
    """

    network: Network
    seed: int
    images: Images
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
        method: a name in scores.SCORERS.
    """

    network: Network
    seed: int
    method: str


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
    """Score by the loss on training images, in one batch.

    Attributes:
        images: the training images.
        examples: number of images in the batch.
        temperature: divides the logits.
        train_mode: whether the network runs in training mode.
    """

    images: Images
    examples: int
    temperature: float
    train_mode: bool


@dataclasses.dataclass(frozen=True)
class Select:
    """Keep the weights of the highest scores; `ties` is as in masks.select."""

    density: float
    ties: str


@dataclasses.dataclass(frozen=True)
class Prune:
    """Score and select in rounds; options as in prune.prune."""

    scoring: Score
    density: float
    ties: str
    rounds: int
    regrow: bool


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


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Count what the mask leaves, which training does not change."""

    network: Network


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate on the test images, and bin the kept weights."""

    network: Network
    images: Images


@dataclasses.dataclass(frozen=True)
class Measure:
    """Time the masked and the compacted network.

    Attributes:
        network: the network.
        images: images to time a pass with its data feed.
        memory: whether to measure the memory of both networks too.
    """

    network: Network
    images: Images
    memory: bool


@dataclasses.dataclass(frozen=True)
class Memory:
    """Measure the memory of the network in a fresh process."""

    network: Network
