"""Names, sizes and checks of parameter trees."""

from jaxprune.tree.checks import (
    apply_mask as apply_mask,
    check_arrays as check_arrays,
    check_batches as check_batches,
    check_bool as check_bool,
    check_finite as check_finite,
    check_mirrors as check_mirrors,
    check_trainable as check_trainable,
)
from jaxprune.tree.leaves import (
    is_floating as is_floating,
    is_key as is_key,
    map_floating as map_floating,
    split_floating as split_floating,
    unscored_to_false as unscored_to_false,
)
from jaxprune.tree.names import (
    align as align,
    by_name as by_name,
    map_named as map_named,
    names as names,
    subset as subset,
    to_dicts as to_dicts,
)
from jaxprune.tree.prunable import (
    NOT_PRUNED as NOT_PRUNED,
    check_prunable as check_prunable,
    prunable as prunable,
    size as size,
)
