"""Names, sizes and checks of parameter trees."""

from jaxprune.tree.checks import (
    apply_mask,
    check_arrays,
    check_batches,
    check_bool,
    check_finite,
    check_informative,
    check_key,
    check_mirrors,
    check_option,
    check_trainable,
    gradient,
)
from jaxprune.tree.leaves import (
    copy,
    is_floating,
    is_key,
    map_floating,
    non_floating_to_false,
    shapes,
    split_floating,
)
from jaxprune.tree.names import (
    align,
    by_name,
    map_named,
    names,
    subset,
    to_dicts,
)
from jaxprune.tree.prunable import (
    WORDS_NOT_PRUNED,
    check_prunable,
    prunable,
    size,
)

__all__ = [
    "WORDS_NOT_PRUNED",
    "align",
    "apply_mask",
    "by_name",
    "check_arrays",
    "check_batches",
    "check_bool",
    "check_finite",
    "check_informative",
    "check_key",
    "check_mirrors",
    "check_option",
    "check_prunable",
    "check_trainable",
    "copy",
    "gradient",
    "is_floating",
    "is_key",
    "map_floating",
    "map_named",
    "names",
    "non_floating_to_false",
    "prunable",
    "shapes",
    "size",
    "split_floating",
    "subset",
    "to_dicts",
]
