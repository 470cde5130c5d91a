"""The methods that a study can compare, and what their levels restart from."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

from jaxprune import scores, train, tree
from jaxprune.study import files

# As in scores.Scorer.
NEEDS = ("nothing", "key", "batches", "inputs", "key_inputs", "activations")
SCOPES = ("global", "layer", "output", "erk", "channels")
CONTROLS = ("none", "shuffled", "reinitialized", "inverted")
# Those of methods that prune in levels.
LEVEL_SCOPES = ("global", "layer")


@dataclasses.dataclass(frozen=True)
class Method:
    """A column of the study's tables.

    Attributes:
        name: in ids, files and conditions.
        title: its name in tables and figures.
        score: a name in scores.SCORERS, or a scoring function of the user; empty for the
            dense network itself.
        needs: what the scoring function takes, as in scores.Scorer: "nothing": `score(params,
            mask=mask)`; "batches": `score(loss_fn, params, batches, mask=mask)`; "inputs":
            `score(apply_fn, params, inputs, mask=mask)`; "key": `score(key, params,
            mask=mask)`; "key_inputs": `score(key, apply_fn, params, inputs, mask=mask)`, the
            inputs Gaussian noise; "activations": `score(apply_fn, params, batches,
            mask=mask)`, with batches of inputs. Ignored where `score` is a name.
        rounds: number of rounds of scoring and selecting, for methods that prune once; None
            for 1, or for SynFlow those of the recipe. Each round has other examples.
        regrow: whether pruned weights compete again in the next round; None as the recipe
            says.
        scope: which weights are compared: "global": all; "layer": those of each leaf by
            itself, at the same density; "erk": those of each leaf, at that of `masks.erk`;
            "output": those of each output of a layer, as in `graph.outputs`; "channels":
            whole channels, heads and neurons, by the sums of their scores, until the density
            is left of the weights, as in `masks.select_channels`.
        kinds: with scope "channels", the kinds to remove, such as heads and neurons; empty
            for all.
        control: a sanity check of the mask: "shuffled": the mask is shuffled within each
            leaf; "reinitialized": the whole network is drawn again after pruning, BatchNorm
            statistics included; "inverted": weights of the lowest scores are kept.
        sparse: a method of train.SparseTraining, which chooses the mask during training.
        reconstructs: whether the mask and new weights are those of reconstruct.sparsegpt.
        retrains: whether the pruned network is trained again.
        levels: levels of iterative magnitude pruning; 0 for methods that prune once.
        keep_fraction: instead of a number of levels, the fraction of the remaining
            weights that each level keeps.
        level_step: alternative to `levels` and `keep_fraction`: the fraction of all prunable
            weights that each level prunes, 0.001 or more; the last level may prune less.
        rewind: a key of REWINDS; overrides that of the recipe.
        pretrained: whether the dense network is trained before scoring.
        points: of methods that prune in levels: if not 0, the network is trained a second
            time from the rewind point with other noise, and the error is measured at this
            many points between the two.
    """

    name: str
    title: str
    score: str | Callable[..., Any]
    needs: str = "batches"
    rounds: int | None = None
    regrow: bool | None = None
    scope: str = "global"
    kinds: tuple[str, ...] = ()
    control: str = "none"
    sparse: train.SparseName | str | None = None
    reconstructs: bool = False
    retrains: bool = True
    levels: int = 0
    keep_fraction: float | None = None
    level_step: float | None = None
    rewind: str | None = None
    pretrained: bool = False
    points: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        if not files.NAME.fullmatch(self.name):
            raise ValueError(
                f"a method is named {self.name!r}; names become folders. Pass letters, "
                "digits, and _ . + - after the first."
            )
        if isinstance(self.score, str) and self.score:
            tree.check_option("score", self.score, scores.SCORERS)
            object.__setattr__(self, "needs", scores.SCORERS[self.score].needs)
        tree.check_option("needs", self.needs, NEEDS)
        tree.check_option("scope", self.scope, SCOPES)
        tree.check_option("control", self.control, CONTROLS)
        if self.sparse is not None:
            tree.check_option("sparse", self.sparse, get_args(train.SparseName))
        ways = [bool(self.score), self.sparse is not None, self.reconstructs]
        if sum(ways) > 1:
            raise ValueError(
                f"method {self.name} prunes in {sum(ways)} ways. Pass one of score=, sparse= "
                "and reconstructs=."
            )
        options = (self.rounds, self.regrow, self.scope, self.kinds, self.control)
        if not self.score and options != (None, None, "global", (), "none"):
            raise ValueError(
                f"method {self.name} has no score, so that rounds, regrow, scope, kinds and "
                "control have no effect. Leave them out."
            )
        if self.kinds and self.scope != "channels":
            raise ValueError(
                f'method {self.name} has kinds of channels. Pass scope="channels" too.'
            )
        if self.scope == "channels" and (self.rounds or 1) > 1:
            raise ValueError(
                f"method {self.name} removes channels in {self.rounds} rounds, and they are "
                "removed in one. Leave rounds out."
            )
        if self.rounds is not None and self.rounds < 1:
            raise ValueError(
                f"rounds is the number of rounds of scoring; got {self.rounds}. Pass 1 or "
                "more."
            )
        is_iterative = self._check_levels()
        if self.control != "none" and (is_iterative or self.scope == "channels"):
            raise ValueError(
                f'control="{self.control}" of method {self.name} does not work with levels '
                'or scope="channels". Leave one out.'
            )
        if self.points and not is_iterative:
            raise ValueError(
                f"method {self.name} has points={self.points}, which compares two networks "
                "of one level. Pass levels=, keep_fraction= or level_step= too."
            )
        if not self.retrains and (is_iterative or self.control == "reinitialized"):
            raise ValueError(
                f"method {self.name} has retrains=False, but after pruning its weights are "
                "not trained ones. Leave out retrains."
            )

    def _check_levels(self) -> bool:
        """Check the options of levels; return whether the method prunes in levels."""
        ways = (self.levels or None, self.keep_fraction, self.level_step)
        given = sum(way is not None for way in ways)
        if not given:
            return False
        if self.score != "magnitude" or not self.pretrained:
            raise ValueError(
                f"method {self.name} prunes in levels, which is done by the magnitude of the "
                'trained weights. Pass score="magnitude" and pretrained=True, or rounds= in '
                "place of levels."
            )
        if given > 1:
            raise ValueError(
                f"method {self.name} sets its levels in {given} ways. Pass one of levels=, "
                "keep_fraction= and level_step=."
            )
        if not isinstance(self.levels, int) or self.levels < 0:
            raise ValueError(
                f"levels is a whole number; got {self.levels!r}. Pass one, such as 3."
            )
        for name, least in (("keep_fraction", 0.0), ("level_step", 1e-3)):
            value = getattr(self, name)
            is_valid = (
                isinstance(value, int | float) and 0 < value < 1 and value >= least
            )
            if value is not None and not is_valid:
                raise ValueError(
                    f"{name} is a fraction in ({least:g}, 1); got {value!r}. Pass one, such "
                    "as 0.1."
                )
        if (self.rounds, self.regrow) != (None, None):
            raise ValueError(
                f"method {self.name} prunes in levels, where rounds and regrow have no "
                "effect. Leave them out; the recipe has regrow."
            )
        if self.scope not in LEVEL_SCOPES:
            raise ValueError(
                f'method {self.name} has scope="{self.scope}". Levels support '
                f"{' or '.join(LEVEL_SCOPES)}. Pass one of these."
            )
        return True

    @property
    def prunes(self) -> bool:
        """Return whether it prunes at all."""
        return bool(self.score) or self.sparse is not None or self.reconstructs


def _imp(name: str, title: str, **options: Any) -> Method:
    return Method(name, title, "magnitude", pretrained=True, **options)


def _sparse(name: Any, title: str) -> Method:
    return Method(name, title, "", sparse=name)


_METHODS = (
    Method("dense", "Dense", "", pretrained=True),
    Method("random", "Rand", "random"),
    Method("magnitude", "Mag", "magnitude", pretrained=True),
    Method("lamp", "LAMP", "lamp", pretrained=True),
    Method("fisher", "Fisher", "fisher", pretrained=True),
    Method("wanda", "Wanda", "wanda", pretrained=True, scope="output"),
    Method("ria", "RIA", "ria", pretrained=True, scope="layer"),
    Method("sparsegpt", "SparseGPT", "", pretrained=True, reconstructs=True),
    Method("snip", "SNIP", "snip"),
    Method("iter_snip", "Iter-SNIP", "snip", rounds=60, regrow=False),
    Method("force", "FORCE", "snip", rounds=60, regrow=True),
    Method("prospr", "ProsPr", "prospr"),
    Method("grasp", "GraSP", "grasp"),
    Method("synflow", "SynFlow", "synflow"),
    Method("ntk_sap", "NTK-SAP", "ntk_sap", rounds=scores.SCORERS["ntk_sap"].rounds),
    _sparse("static", "Static"),
    _sparse("set", "SET"),
    _sparse("rigl", "RigL"),
    _sparse("gradual", "GMP"),
    _sparse("acdc", "AC/DC"),
    _imp("imp2", "IMP-2", levels=2),
    _imp("imp3", "IMP-3", levels=3),
    _imp("imp4", "IMP-4", levels=4),
    _imp("imp_late", "IMP-late", keep_fraction=0.8, rewind="early"),
    _imp("imp_rate", "IMP-rate", keep_fraction=0.8, rewind="learning_rate"),
    _imp("imp_finetune", "IMP-tune", keep_fraction=0.8, rewind="finetune"),
    _imp("imp_connect", "IMP-twice", keep_fraction=0.8, rewind="early", points=30),
)
METHODS: Mapping[str, Method] = {method.name: method for method in _METHODS}


def get(name: str) -> Method:
    """Return a method by its name.

    Args:
        name: a key of METHODS.

    Raises:
        ValueError: if it is unknown.

    Example:
        >>> get("snip").title
        'SNIP'
    """
    tree.check_option("method", name, METHODS)
    return METHODS[name]


# The columns of the published tables.
COMPARED = ("random", "magnitude", "snip", "grasp", "synflow", "imp2", "imp3", "imp4")


class Rewind(NamedTuple):
    """What a level of IMP restarts from.

    Attributes:
        weights: the `rewind` option of imp.step.
        continues: whether training continues at the rewind point instead of iteration 0.
        constant: whether it continues at the last learning rate of the schedule.
    """

    weights: str
    continues: bool = False
    constant: bool = False


# The last three are compared by Renda et al., https://arxiv.org/abs/2003.02389, ICLR 2020.
REWINDS: Mapping[str, Rewind] = {
    "init": Rewind("init"),
    "weights_kept": Rewind("weights_kept"),
    "early": Rewind("early", continues=True),
    "learning_rate": Rewind("weights_kept", continues=True),
    "finetune": Rewind("weights_kept", continues=True, constant=True),
}
