"""docs/recipes.md: each function of it beside the plain formula in float64, in value, gradient and what it returns besides.

Each recipe is then run with mistakes in it, which the comparison finds.
"""

import functools
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import log_sigmoid, log_softmax, logsumexp, one_hot, softmax

import tolerance
from quickly import QUICKLY

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+)\n(?:(?!## ).*\n)*?```python\n((?:.*\n)*?)```", PAGE, re.MULTILINE))

N, T, V, D = 6, 5, 7, 4
RNG = np.random.default_rng(0)


def numbers(*shape: int, scale: float = 2.0) -> np.ndarray:
    return scale * RNG.standard_normal(shape).astype(np.float32)


def classes(*shape: int) -> np.ndarray:
    return RNG.integers(0, V, shape)


def at(log_probabilities, labels):
    """Those of the labels, of the last axis."""
    return jnp.take_along_axis(log_probabilities, labels[..., None], -1)[..., 0]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# ---- the formulas ----------------------------------------------------------------------------------------------------


def clip_formula(images, texts, scale):
    logits = scale * images @ texts.T
    return -(jnp.diag(log_softmax(logits, 1)) + jnp.diag(log_softmax(logits, 0))).mean() / 2


def siglip_formula(images, texts, scale, bias):
    sign = 2 * jnp.eye(len(images)) - 1
    return -log_sigmoid(sign * (scale * images @ texts.T + bias)).sum() / len(images)


def ppo_formula(logits, actions, old_log_prob, advantages, where):
    logits, actions, old, advantages = (x[where] for x in (logits, actions, old_log_prob, advantages))
    ratio = jnp.exp(at(log_softmax(logits), actions) - old)
    objective = jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.8, 1.2) * advantages)
    entropies = -(softmax(logits) * log_softmax(logits)).sum(-1)
    return -(objective + 0.01 * entropies).mean()


def grpo_formula(logits, tokens, old_log_prob, reference_log_prob, advantages, where):
    total = 0.0
    for i in range(len(logits)):
        log_prob = at(log_softmax(logits[i][where[i]]), tokens[i][where[i]])
        ratio = jnp.exp(log_prob - old_log_prob[i][where[i]])
        objective = jnp.minimum(ratio * advantages[i], jnp.clip(ratio, 0.8, 1.2) * advantages[i])
        quotient = jnp.exp(reference_log_prob[i][where[i]] - log_prob)
        total -= (objective - 0.04 * (quotient - jnp.log(quotient) - 1)).mean()
    return total / len(logits)


def ppo_of_hidden(hidden, kernel, tokens, old_log_prob, advantages, where):
    return ppo_formula(hidden @ kernel, tokens, old_log_prob, advantages, where)


def grpo_of_hidden(hidden, kernel, tokens, *data):
    return grpo_formula(hidden @ kernel, tokens, *data)


def dpo_of_hidden(hidden, kernel, tokens, reference_log_prob, where):
    log_prob = at(log_softmax((hidden @ kernel)[:, :-1]), tokens[:, 1:])
    moved = jnp.stack([log_prob[i][where[i, :-1]].sum() for i in range(len(tokens))]) - reference_log_prob
    return -log_sigmoid(0.1 * (moved[0::2] - moved[1::2])).mean()


def truncated_formula(hidden, kernel, tokens, advantages, old_log_prob, where):
    rows = np.nonzero(WHERE)[0]
    log_prob = at(log_softmax(hidden @ kernel), tokens)[WHERE]
    ratio = jax.lax.stop_gradient(jnp.exp(log_prob - old_log_prob[WHERE]))
    return -(jnp.minimum(ratio, 2) * advantages[rows] * log_prob).mean(), (ratio > 2).mean()


def advantages_formula(rewards):
    return jnp.stack([(x - x.mean()) / (jnp.sqrt(((x - x.mean()) ** 2).mean()) + 1e-6) for x in rewards])


def answer_formula(logits, tokens, where):
    found = [
        sum(log_softmax(logits[i, t - 1])[tokens[i, t]] for t in range(1, T) if where[i, t]) for i in range(len(tokens))
    ]
    return jnp.stack([jnp.asarray(x, logits.dtype) for x in found])


def dpo_formula(chosen, rejected, reference_chosen, reference_rejected, beta, smoothing):
    margin = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)
    return -((1 - smoothing) * log_sigmoid(margin) + smoothing * log_sigmoid(-margin)).mean()


def sequences_formula(logits, labels, where):
    of_tokens = -at(log_softmax(logits), labels)
    return jnp.stack([of_tokens[i][where[i]].mean() for i in range(len(labels)) if where[i].any()]).mean()


def segments_formula(logits, labels, segments, most):
    of_tokens = -at(log_softmax(logits), labels)
    means = [of_tokens[segments == i].mean() if (segments == i).any() else jnp.zeros(()) for i in range(1, most + 1)]
    return sum(means) / len(set(segments.ravel()) - {0}), jnp.stack(means)


def whole_batch(apply, params, inputs, labels):
    def loss(params):
        return -at(log_softmax(apply(params, inputs)), labels)[labels >= 0].mean()

    return jax.value_and_grad(loss)(params)


def language_model_formula(hidden, kernel, tokens):
    logits = (hidden @ kernel)[:, :-1]
    cross_entropy = -at(log_softmax(logits), tokens[:, 1:]).mean()
    z_loss = 1e-4 * (logsumexp(logits, -1) ** 2).mean()
    return cross_entropy + z_loss, {"cross_entropy": cross_entropy, "z_loss": z_loss}


def router_formula(router_logits):
    load = one_hot(router_logits.argmax(-1), V).mean(0)
    probabilities = softmax(router_logits)
    z_loss, balance = (logsumexp(router_logits, -1) ** 2).mean(), V * (load * probabilities.mean(0)).sum()
    entropies = -(probabilities * jnp.log(probabilities)).sum(-1)
    return 1e-3 * z_loss + 1e-2 * balance, {"load": load, "entropy": entropies.mean()}


def focal_formula(logits, labels, gamma=2.0, class_weights=None):
    t = at(softmax(logits), labels)
    weights = 1 if class_weights is None else class_weights[labels]
    return (weights * (1 - t) ** gamma * -jnp.log(t)).mean()


def top_k_formula(logits, labels, teacher_top, teacher_classes):
    q = softmax(teacher_top)
    divergences = (q * (jnp.log(q) - jnp.log(jnp.take_along_axis(softmax(logits), teacher_classes, -1)))).sum(-1)
    return (0.5 * divergences - 0.5 * at(log_softmax(logits), labels)).mean()


def among_top_k_formula(logits, teacher_top, teacher_classes):
    p, q = softmax(jnp.take_along_axis(logits, teacher_classes, -1) / 2), softmax(teacher_top / 2)
    return 4 * (q * jnp.log(q / p)).sum(-1).mean()


# ---- what they are compared on ---------------------------------------------------------------------------------------


class Recipe(NamedTuple):
    """A function of the page, its operands, how many of them from the first are differentiated, and mistakes in it."""

    section: str
    function: str
    formula: Callable
    operands: tuple
    differentiated: int
    mistakes: tuple[tuple[str, str], ...]


def masked(x: np.ndarray, where: np.ndarray) -> np.ndarray:
    """NaN where the mask is false."""
    return np.where(where.reshape(where.shape + (1,) * (x.ndim - where.ndim)), x, np.nan).astype(np.float32)


def log_probs(*shape: int) -> np.ndarray:
    return -np.abs(numbers(*shape))


PAIRS = unit(numbers(N, D)), unit(numbers(N, D)), np.float32(10.0)
WHERE = np.arange(T) < np.array([5, 3, 1, 4, 5, 2])[:, None]
LOGITS, TOKENS, LABELS = numbers(N, T, V), classes(N, T), classes(N)
NEAR = np.asarray(at(log_softmax(LOGITS), TOKENS)) + 0.3 * numbers(N, T, scale=1.0)  # on both sides of the clip
HIDDEN, KERNEL = numbers(N, T, D), numbers(D, V)
NEAR_HIDDEN = np.asarray(at(log_softmax(HIDDEN @ KERNEL), TOKENS)) + 0.5 * numbers(N, T, scale=1.0)
SEGMENTS = np.array([[1, 1, 1, 2, 2], [3, 4, 4, 0, 0], [5, 5, 5, 5, 0]])  # and no segment 6
PADDED = np.where(np.arange(T) < np.array([[5, 2], [1, 0], [3, 4]])[..., None], classes(3, 2, T), -100)
TEACHER = numbers(N, V)
TOP, CHOSEN = -np.sort(-TEACHER)[:, :3], np.argsort(-TEACHER)[:, :3]


def applied(params, inputs):
    return jnp.tanh(inputs @ params["hidden"]) @ params["output"]


RECIPES = [
    Recipe("CLIP", "clip_loss", clip_formula, PAIRS, 3, ((", axis=0", ""), ("/ 2", ""), ("texts.T, jnp.arange(len(images))", "texts.T, jnp.arange(len(images))[::-1]"))),
    Recipe("CLIP", "clip_loss_of_large_batch", clip_formula, PAIRS, 3, (("(scale * texts, images", "(texts, images"), ("(scale * texts, images", "(scale * images, texts"))),
    Recipe("SigLIP", "siglip_loss", siglip_formula, (*PAIRS, np.float32(-10.0)), 4, (("bias=bias", "bias=0.0"), ("scale=scale", "scale=2 * scale"), ("bias=bias)", "bias=bias, normalizer=images.size)"))),
    Recipe(
        "PPO", "ppo_loss", ppo_formula, (masked(LOGITS, WHERE), TOKENS, masked(NEAR, WHERE), numbers(N, T), WHERE), 1,
        (("jnp.minimum", "jnp.maximum"), ("+ bonus", "- bonus"), ("-stats.nll", "stats.nll"), ("/ where.sum()", "/ where.size"), ("clipped * advantages", "clipped")),
    ),
    Recipe(
        "GRPO", "grpo_loss", grpo_formula,
        (masked(LOGITS, WHERE), TOKENS, masked(NEAR, WHERE), masked(log_probs(N, T), WHERE), numbers(N), WHERE), 1,
        (("- objective", "+ objective"), ("- to_reference - 1", "- 1"), ("(of_tokens.sum(1) / jnp.maximum(where.sum(1), 1)).mean()", "of_tokens.sum() / where.sum()")),
    ),
    Recipe("GRPO", "group_advantages", advantages_formula, (numbers(3, 4),), 1, ((".mean(1", ".mean(0"), ("+ 1e-6", "+ 1e-1"))),
    Recipe("DPO", "answer_log_prob", answer_formula, (LOGITS, TOKENS, WHERE & (np.arange(T) > 1)), 1, (("tokens[:, 1:]", "tokens[:, :-1]"), ("where[:, 1:]", "where[:, :-1]"))),
    Recipe(
        "DPO", "dpo_loss", dpo_formula, (*(log_probs(N) * T for _ in range(4)), 0.3, 0.1), 2,
        (("1 - smoothing", "smoothing"), ("beta * (", "("), ("- (rejected", "+ (rejected")),
    ),
    Recipe(
        "Without logits", "ppo_without_logits", ppo_of_hidden, (HIDDEN, KERNEL, TOKENS, masked(NEAR_HIDDEN, WHERE), numbers(N, T), WHERE), 2,
        (("entropy_bonus=0.01", ""), ('"tokens"', '"sequences"'), ("where=where, ", "")),
    ),
    Recipe(
        "Without logits", "grpo_without_logits", grpo_of_hidden,
        (HIDDEN, KERNEL, TOKENS, masked(NEAR_HIDDEN, WHERE), masked(log_probs(N, T), WHERE), numbers(N), WHERE), 2,
        (("advantages, old_log_prob, reference_log_prob", "advantages, reference_log_prob, old_log_prob"), ('"sequences"', '"tokens"')),
    ),
    Recipe(
        "Without logits", "dpo_without_logits", dpo_of_hidden, (HIDDEN, KERNEL, TOKENS, log_probs(N) * T, WHERE), 2,
        (("shift=1, ", ""), ('"groups"', '"sequences"')),
    ),
    Recipe(
        "Without logits", "own_objective", truncated_formula, (HIDDEN, KERNEL, TOKENS, numbers(N), masked(NEAR_HIDDEN, WHERE), WHERE), 2,
        (("jax.lax.stop_gradient", ""), ("jnp.where(tokens.mask, old_log_prob, 0)", "old_log_prob"), ("(ratio > 2) & tokens.mask", "(ratio > 1) & tokens.mask")),
    ),
    Recipe(
        "Means of sequences and of segments", "mean_of_sequences", sequences_formula, (masked(LOGITS, WHERE), TOKENS, WHERE), 1,
        (("weights=weights, ", ""), ("normalizer=(lengths > 0).sum()", "normalizer=where.sum()")),
    ),
    Recipe("Means of sequences and of segments", "mean_of_sequences", sequences_formula, (LOGITS, TOKENS, WHERE & (np.arange(N) != 2)[:, None]), 1, (("(lengths > 0).sum()", "len(where)"),)),
    Recipe(
        "Means of sequences and of segments", "mean_of_segments", segments_formula, (masked(numbers(3, T, V), SEGMENTS > 0), classes(3, T), SEGMENTS, 6), 1,
        ((", where=segments > 0", ""), (")[segments]", ")[segments] ** 2"), ("stats.nll.ravel()", "jnp.exp(stats.nll.ravel())"), ("(lengths > 0).sum()", "most")),
    ),
    Recipe(
        "Gradients accumulated over steps", "accumulated", whole_batch,
        (applied, {"hidden": numbers(D, D), "output": numbers(D, V)}, numbers(3, 2, T, D), PADDED), 0,
        ((", normalizer=tokens", ""), (", normalizer=tokens", ", normalizer=labels.size"), ("jnp.add", "jnp.subtract")),
    ),
    Recipe(
        "z-loss, trained on and logged", "language_model_loss", language_model_formula, (numbers(N, T, D), numbers(D, V), TOKENS), 2,
        ((", shift=1", ""), ("stats.z_loss.sum()", "1e-4 * stats.z_loss.sum()"), ("[:, 1:].size", ".size"), ("z_loss=z_loss, ", "")),
    ),
    Recipe("The router of a mixture of experts", "router_loss", router_formula, (numbers(N, V),), 1, (("stats.lse**2", "stats.z_loss"), ("* experts *", "*"), ("stats.entropy", "stats.nll"), ("stats.predicted", "any_label"))),
    Recipe("Focal loss of classes", "focal_loss", focal_formula, (numbers(N, V), LABELS), 1, (("** gamma", "** 1"), ("log_prob = jaxloss.log_prob(logits, labels)", "log_prob = jnp.log(jaxloss.categorical_cross_entropy_with_stats(logits, labels)[1].target_probability)"))),
    Recipe("Focal loss of classes", "focal_loss", focal_formula, (numbers(N, V), LABELS, 1.5, np.abs(numbers(V))), 1, (("class_weights[labels] * losses", "class_weights.mean() * losses"),)),
    Recipe(
        "Distillation from the teacher's top k", "top_k_distillation", top_k_formula, (numbers(N, V), LABELS, TOP, CHOSEN), 1,
        (("labels[:, None], t", "0 * labels[:, None], t"), ("1 - share)", "1.0)"), ("share * jnp.exp(log_q)]", "jnp.exp(log_q)]"), ("(classes, probabilities)", "(classes, 2 * probabilities)")),
    ),
    Recipe(
        "Distillation from the teacher's top k", "among_top_k", among_top_k_formula, (numbers(N, V), TOP, CHOSEN), 1,
        (("temperature**2 * ", ""), (", temperature=temperature", ""), (', target_type="logits"', "")),
    ),
]  # fmt: skip


def outcome(function: Callable, recipe: Recipe):
    """What it returns, and the gradients of the first of that, times numbers that tell its elements apart."""
    places = range(recipe.differentiated)

    def first_weighted(*differentiated):
        found = function(*differentiated, *recipe.operands[recipe.differentiated :])
        first = found[0] if isinstance(found, tuple) else found
        return (first * jnp.cos(jnp.arange(first.size)).reshape(first.shape)).sum(), found

    if not places:
        return function(*recipe.operands), ()
    run = jax.jit(jax.grad(first_weighted, argnums=tuple(places), has_aux=True), compiler_options=QUICKLY)
    gradients, found = run(*(jnp.asarray(x) for x in recipe.operands[: recipe.differentiated]))
    return found, gradients


@functools.cache
def of_formula(place: int):
    """The same of the formula of a recipe, in float64."""
    recipe = RECIPES[place]
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.float64(x) if getattr(x, "dtype", None) == np.float32 else x, recipe.operands)
        return jax.tree.map(np.asarray, outcome(recipe.formula, recipe._replace(operands=wide)))


def compare(place: int, code: str) -> None:
    """Raises an error unless the function of this code is the formula."""
    names, recipe = {}, RECIPES[place]
    exec(code, names)  # of this repository's page
    found, expected = outcome(names[recipe.function], recipe), of_formula(place)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    terms = max(np.size(x) for x in jax.tree.leaves(recipe.operands) if not callable(x))
    largest = max(float(np.nan_to_num(np.abs(x)).max()) for x in jax.tree.leaves(expected))
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        theirs = np.nan_to_num(theirs)  # a formula's gradient of what is masked
        tolerance.assert_close(ours, theirs, jax.tree_util.keystr(path), terms=terms, magnitude=largest)


@pytest.mark.parametrize("place", range(len(RECIPES)), ids=lambda place: RECIPES[place].function)
def test_recipe(place):
    compare(place, SECTIONS[RECIPES[place].section])


@pytest.mark.parametrize(
    ("place", "right", "wrong"),
    [
        pytest.param(place, *mistake, id=f"{recipe.function}-{number}")
        for place, recipe in enumerate(RECIPES)
        for number, mistake in enumerate(recipe.mistakes)
    ],
)
def test_mistakes_are_found(place, right, wrong):
    function, section = RECIPES[place].function, SECTIONS[RECIPES[place].section]
    start = section.index(f"def {function}(")
    end = section.find("\ndef ", start + 1)
    body = section[start : end if end > 0 else None]
    code = section[:start] + body.replace(right, wrong) + section[start + len(body) :]
    assert code != section, f"{right!r} is not in {function}"
    with pytest.raises(AssertionError):
        compare(place, f"from jax.nn import logsumexp\n{code}")


def test_every_function_of_the_page_is_compared():
    defined = {
        (section, name) for section, code in SECTIONS.items() for name in re.findall(r"^def (\w+)", code, re.MULTILINE)
    }
    assert defined == {(recipe.section, recipe.function) for recipe in RECIPES}
    assert len(SECTIONS) == PAGE.count("\n## ") == PAGE.count("```python")
