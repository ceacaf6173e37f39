"""What `make test` leaves to `make test-all`, what `make check` runs, and CI on the newest jax: the same in every run.

Of a test of three parameters or more, `make test` runs so many cells that every two values of two parameters are together in
one of them; of some tests, every third or fourth cell of each row and column of their table. Two products are whole for a loss
whose code the others share.
"""

import collections
import itertools
import zlib

import pytest

import losses

ELEMENTS, ROWS = losses.Case(losses.BINARY, "probabilities"), losses.Case(losses.CATEGORICAL, "indices")
PRODUCTS = {"test_transforms::test_jitted": (ROWS,), "test_values::test_types_and_reductions": (ELEMENTS, ROWS)}
"""Tests whose every cell of these losses is in `make test`."""

DIAGONALS = {
    "test_axis_name::test_agrees_with_the_formula": (8, 4),
    "test_batch_invariance::test_random_cuts": (4, 1),
    "test_binary_options::test_ends_of_the_type": (2, 1),
    "test_binary_options::test_types": (2, 1),
    "test_cross_entropy_options::test_alone_and_in_pairs": (6, 1),
    "test_cross_entropy_options::test_widths": (4, 1),
    "test_cross_entropy_stats::test_values": (3, 1),
    "test_debug_checks::test_right_calls_are_quiet_and_the_same_module_without": (2, 1),
    "test_distillation::test_widths": (4, 1),
    "test_distillation_derivatives::test_derivatives_of_all_operands": (3, 1),
    "test_eager::test_nothing_is_copied_from_the_host": (2, 1),
    "test_edges::test_a_label_out_of_range_spoils_its_row_only": (3, 1),
    "test_edges::test_a_masked_class": (2, 1),
    "test_edges::test_infinite_logits_of_binary_cross_entropy": (2, 1),
    "test_edges::test_logits_at_the_ends_of_their_type": (2, 1),
    "test_edges::test_nan_is_never_lost": (2, 1),
    "test_edges::test_subnormal_numbers": (2, 1),
    "test_edges::test_sums_of_16_bit_numbers_do_not_saturate": (2, 1),
    "test_formulas::test_parameters_without_kernels": (2, 1),
    "test_formulas::test_transforms_without_kernels": (2, 1),
    "test_formulas::test_values_without_kernels": (4, 1),
    "test_infinite_logits::test_its_row_is_nan": (None, 3),
    "test_library::test_work_for_many_threads": (2, 1),
    "test_linear_matrix::test_agrees_with_the_formula": (2, 1),
    "test_linear_trading::test_placements": (2, 1),
    "test_long_rows::test_agrees": (4, 1),
    "test_loss_scaling::test_gradients_are_as_near_as_float16_holds_them": (5, 1),
    "test_mesh_axis_types::test_auto_axes_of_an_explicit_mesh": (3, 1),
    "test_mesh_axis_types::test_eager_values_and_gradients": (2, 1),
    "test_mesh_axis_types::test_partly_manual": (None, 2),
    "test_mesh_axis_types::test_placements": (4, 2),
    "test_optax::test_any_call": (2, 1),
    "test_options::test_where_and_weights_of_every_shape": (5, 1),
    "test_public_calls_on_meshes::test_results_are_those_of_one_device": (12, 2),
    "test_recipes::test_mistakes_are_found": (2, 1),
    "test_regression::test_shapes": (2, 1),
    "test_regression::test_types": (2, 1),
    "test_relative_accuracy::test_a_softcap_beside_an_infinite_logit": (2, 1),
    "test_rows_with_options::test_fewer_classes_than_columns": (2, 1),
    "test_rows_with_options::test_widths": (2, 1),
    "test_shard_map::test_gradient_inside": (4, 2),
    "test_shard_map::test_gradient_outside": (2, 1),
    "test_shard_map::test_programs_inside": (6, 2),
    "test_sharding::test_gradient_of_both_operands": (3, 1),
    "test_sharding::test_masks_and_weights_split_like_the_rows": (4, 2),
    "test_sharding::test_placements": (None, 5),
    "test_sharding::test_placements_of_a_stack": (6, 3),
    "test_sharding::test_sizes_that_do_not_divide_the_mesh": (6, 3),
    "test_small_losses::test_losses_and_gradients": (None, 2),
    "test_small_losses::test_with_options": (None, 2),
    "test_strict::test_nothing_is_promoted_by_accident": (4, 1),
    "test_sums_of_rows::test_agrees": (4, 1),
    "test_traced_options::test_out_of_range_is_nan": (4, 1),
    "test_transforms::test_eager": (8, 1),
    "test_transforms::test_jitted": (8, 1),
    "test_transforms::test_types": (6, 3),
    "test_transforms::test_weights_and_normalizer": (4, 1),
    "test_values::test_many_rows_of_few_classes": (3, 1),
    "test_values::test_shapes": (4, 1),
    "test_values::test_widths_around_those_of_vectors": (3, 1),
}
"""Of these tests `make test` runs one cell of so many, along the diagonals of their tables, or pairs like of the others if
None; and `make test-all` makes that one of the second number, and every pair of values of a test of three parameters or more.
What then is left of large products has the marker `rest`, which no command runs unless asked: `make test-all
ARGS="-m rest"`."""

KINDS = 13
"""A parameter of at most so many values is one of kinds, as types, losses and options are: each is in some cell of a diagonal."""

EXAMPLES = {"test_examples"}
"""Files that run programs of their own, each of many seconds."""

SMOKE = {
    "test_axis_name": "exchanges_only_numbers_of_one_a_row",
    "test_binary_options": "types",
    "test_compiled": "value_and_gradient_are_one_custom_call",
    "test_cross_entropy_options": "alone_and_in_pairs types",
    "test_cross_entropy_stats": "values",
    "test_debug_checks": "what_is_wrong_is_named",
    "test_distillation": "gradients_of_every_operand types",
    "test_eager": "nothing_is_copied_from_the_host",
    "test_edges": "a_label_out_of_range_spoils_its_row_only a_masked_class empty nan_is_never_lost",
    "test_edges_of_options": "a_bad_label_has_no_second_derivative class_weights_beside_masked_classes",
    "test_errors": "the_whole_message target_of_another_shape",
    "test_formulas": "unreduced_losses values_without_kernels",
    "test_handlers": "every_target_is_here the_right_buffers_are_taken wrong_attributes_are_refused",
    "test_infinite_logits": "its_row_is_nan",
    "test_kept_on_a_mesh": "a_call_is_made_again_from_its_description",
    "test_library": "backends the_self_check",
    "test_linear": "value_and_gradients a_label_out_of_range_is_nan_and_has_no_gradient",
    "test_linear_sharding": "placements",
    "test_linear_transforms": "agrees_with_the_formula",
    "test_long_rows": "agrees",
    "test_loss_scaling": "gradients_are_as_near_as_float16_holds_them",
    "test_optax": "any_call signature",
    "test_options": "normalizer what_is_taken_out_may_hold_anything where_and_weights_of_every_shape",
    "test_programs": "ahead_of_time",
    "test_regression": "types options",
    "test_relative_accuracy": "the_smallest_losses",
    "test_shard_map": "gradient_inside",
    "test_sharding": "placements",
    "test_small_losses": "losses_and_gradients with_options",
    "test_sums_of_rows": "agrees",
    "test_traced_options": "out_of_range_is_nan",
    "test_transforms": "eager jitted types weights_and_normalizer",
    "test_values": "founding_definitions types_and_reductions",
}
"""Of each of these tests `make check` runs three cells of those of `make test`: the first, the last and one between."""

EVERY_KIND = {
    "test_axis_name::test_agrees_with_the_formula",
    "test_sharding::test_placements",
    "test_transforms::test_jitted",
}
"""On the newest jax every transform and every placement of these is tried: they are what another version may change."""

OF_KERNELS = {
    "test_rows_with_options::test_every_instruction_set",
    "test_sanitizers::test_kernels_stay_inside_their_arrays",
}
"""Long tests about C++ alone, in which another jax changes nothing."""


def of_test(item) -> str:
    return f"{item.path.stem}::{item.originalname}"


def parameters(item, texts: dict[int, str]) -> dict[str, str]:
    """The parameters of the cell, as text; `texts` has those of before, for what an array looks like takes a while."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    for value in params.values():
        if id(value) not in texts:
            texts[id(value)] = repr(value)
    return {name: texts[id(value)] for name, value in params.items()}


def pairs(cells: list[dict[str, str]]) -> set[int]:
    """The places of so few of the cells that every two values which are together in a cell are together in one of these."""
    of_cell = [set(itertools.combinations(sorted(cell.items()), 2)) for cell in cells]
    missing, kept = set().union(*of_cell), set()
    while missing:
        best = max(range(len(cells)), key=lambda place: len(of_cell[place] & missing))
        kept.add(best)
        missing -= of_cell[best]
    return kept


def diagonal(cells: list[dict[str, str]], one_of: int) -> set[int]:
    """The places of the cells whose parameters' numbers, in order of appearance, add up to a multiple of `one_of`."""
    orders = collections.defaultdict(dict)
    for cell in cells:
        for name, value in cell.items():
            orders[name].setdefault(value, len(orders[name]))
    return {
        place
        for place, cell in enumerate(cells)
        if sum(orders[name][value] for name, value in cell.items()) % one_of == 0
    }


def with_every_kind(cells: list[dict[str, str]], chosen: set[int]) -> set[int]:
    """Those that are chosen, and the first cell of each value in none of them, of parameters that have few values."""
    values = collections.defaultdict(dict)
    for place, cell in enumerate(cells):
        for parameter, value in cell.items():
            values[parameter].setdefault(value, place)
    seen = {item for place in chosen for item in cells[place].items()}
    return chosen | {
        place
        for parameter, first in values.items()
        if len(first) <= KINDS
        for value, place in first.items()
        if (parameter, value) not in seen
    }


def in_make_test(name: str, items, cells: list[dict[str, str]]) -> set[int]:
    """The places of the cells of a test that `make test` runs."""
    if items[0].path.stem in EXAMPLES:
        return set()
    chosen = set(range(len(items)))
    one_of, _ = DIAGONALS.get(name, (None, 1))
    if one_of:
        chosen = with_every_kind(cells, diagonal(cells, one_of))
    elif max(map(len, cells)) >= 3:
        chosen = pairs(cells)
    if name in PRODUCTS:
        params = [item.callspec.params for item in items]
        chosen |= {
            place
            for place, of in enumerate(params)
            if of["case"] in PRODUCTS[name] and of.get("reductions") != ("sum",)
        }
    return chosen


def in_make_test_all(name: str, cells: list[dict[str, str]]) -> set[int]:
    """The places of the cells that `make test` and `make test-all` run together."""
    _, one_of = DIAGONALS.get(name, (None, 1))
    if one_of == 1:
        return set(range(len(cells)))
    chosen = with_every_kind(cells, diagonal(cells, one_of))
    return chosen | pairs(cells) if max(map(len, cells)) >= 3 else chosen


def mark(items) -> None:
    """Adds the markers: `slow` and `rest` to what `make test` leaves out, `smoke` and `each` to some of what it runs."""
    tests = collections.defaultdict(list)
    for item in items:
        tests[of_test(item)].append(item)
    for name, of_name in tests.items():
        texts = {}
        cells = [parameters(item, texts) for item in of_name]
        chosen, both = in_make_test(name, of_name, cells), in_make_test_all(name, cells)
        for place, item in enumerate(of_name):
            if place not in chosen:
                item.add_marker(pytest.mark.slow if place in both else pytest.mark.rest)
        if not chosen:
            continue
        places = [place for place in sorted(chosen) if not of_name[place].get_closest_marker("slow")] or sorted(chosen)
        file, test = name.split("::test_")
        few = {0, len(places) // 2, len(places) - 1} if test in SMOKE.get(file, "").split() else set()
        for place in few:
            of_name[places[place]].add_marker(pytest.mark.smoke)
        if name not in OF_KERNELS:
            # Another place in each test, so that of the losses, types and options that tests share each is in some of them.
            each = few | {zlib.crc32(name.encode()) % len(places)}
            if name in EVERY_KIND:
                each = with_every_kind([cells[place] for place in places], each)
            for place in each:
                of_name[places[place]].add_marker(pytest.mark.each)
