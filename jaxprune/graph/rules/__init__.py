"""How each primitive passes on what varies, what is needed, and what stays together.

`RULES` has one rule per primitive. A primitive without a rule is opaque: everything that it
reads is kept, whole, and compaction reports it. To follow another primitive, pass more rules:
`graph.live(program, masks, rules={**graph.RULES, "erf_inv": graph.elementwise(zero=True)})`.
"""

from collections.abc import Mapping

from jaxprune.graph import products
from jaxprune.graph.program import PRODUCTS, Eqn
from jaxprune.graph.rules.along import ALONG, OPAQUE
from jaxprune.graph.rules.base import Rule, Site, Small, State, bind
from jaxprune.graph.rules.elementwise import ELEMENTWISE, elementwise
from jaxprune.graph.rules.indexed import INDEXED
from jaxprune.graph.rules.moves import MOVES
from jaxprune.graph.rules.sums import SUMS, small_padding

__all__ = [
    "OPAQUE",
    "RULES",
    "Rule",
    "Site",
    "Small",
    "State",
    "bind",
    "elementwise",
    "rule_of",
    "small_padding",
]

RULES: Mapping[str, Rule] = {**ELEMENTWISE, **MOVES, **SUMS, **ALONG, **INDEXED}


def rule_of(eqn: Eqn, rules: Mapping[str, Rule]) -> Rule:
    """Return the rule of an equation; what can't be followed is opaque."""
    name, rule = eqn.primitive.name, rules.get(eqn.primitive.name, OPAQUE)
    if name in PRODUCTS and not products.is_product(name, eqn.params):
        return OPAQUE
    return rule
