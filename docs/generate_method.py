"""A recipe's method in words, step by step, as a run does it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from generate_text import anchor, summary, value

from leukoscope.imaging.augmentation_ops import DEFAULT_P, augmentations
from leukoscope.imaging.pipeline import transforms
from leukoscope.recipes.schema import Network, Recipe
from leukoscope.train.settings import Phase

BALANCE = {
    "class_weights": "the loss of an image is weighted by w_c = N / (n_c C) of its class c, where "
    "n_c of N training images in C classes are of it",
    "oversample": "every training image is replicated in full as often as fits below the size of "
    "the largest class, and the remainder is drawn at random from the same class",
    "top_up": "every class is filled up to the size of the largest with augmented copies of its "
    "own training images",
}
LAYERS = {
    "gap": "global average pooling",
    "pool5": "the pooling after the fifth convolution",
    "fc7": "the second fully connected layer, before its ReLU",
}


def steps(plan: Recipe) -> Iterator[str]:
    """What a run of this arm does, in the order it does it."""
    yield f"Split. {_split(plan)}"
    if plan.exclude:
        yield (
            f"Exclusion of images flagged {_listed(plan.exclude)}: under the published protocol "
            "all of them, under the clean one from training and validation alone."
        )
    for step in plan.preprocessing:
        about = summary(transforms[step["step"]], step["step"])
        yield f"Preprocessing {_link(step['step'])}{_with(step, 'step')}: {about}."
    yield from _views(plan)
    for entry in plan.augmentation:
        name = entry["operation"]
        p = entry.get("p", DEFAULT_P.get(name, 1.0))
        rest = _with({k: v for k, v in entry.items() if k != "p"}, "operation")
        about = summary(augmentations[name], name)
        yield f"Augmentation {_link(name)} with probability {p:g}{rest}: {about}."
    if plan.balance != "none":
        yield f"Balance: {BALANCE[plan.balance]}."
    yield from _networks(plan)
    if not plan.classic or plan.features.finetune:
        yield from _training(plan)
    if plan.classic:
        yield from _classical(plan)
    yield (
        "Judgement. Clean protocol: temperature, prediction sets and novelty are fitted on the "
        "validation part, and the test part is scored once. Published protocol: the part the "
        "paper scores, nothing fitted."
    )


def _split(plan: Recipe) -> str:
    split = plan.split
    together = "whole patients and duplicates stay together, classes are kept in proportion"
    if split.folds > 1:
        return (
            f"Clean protocol: {split.folds} folds of the images, each tested once; {together}; a "
            "part of the training folds is the validation part. Published protocol: "
            f"{split.folds} stratified folds at random, of which the one held out chooses the "
            "epoch and is scored."
        )
    unit = {"view": "views", "image": "images"}[split.published_unit]
    return (
        f"Clean protocol: {split.clean} of the images into training, validation and test; "
        f"{together}. Published protocol: {split.published} of the {unit}, shuffled at random."
    )


def _views(plan: Recipe) -> Iterator[str]:
    plain = "Validation and test images have one view, themselves"
    if plan.views.online:
        yield (
            "Views. Each pass sees a training image in a new view, made by the augmentation "
            f"below. {plain}."
        )
    elif plan.views.count > 1:
        pooled = plan.split.published_unit == "view"
        yield (
            f"Views. {plan.views.count} of every training image are made in advance: the first is "
            f"the image itself, the others pass through the augmentation below. {plain}."
            + (" Under the published protocol every image has all of them." if pooled else "")
        )


def _networks(plan: Recipe) -> Iterator[str]:
    if plan.classic:
        named = "; ".join(_network(network) for network in plan.features.networks)
        yield f"Networks: {named}."
    else:
        yield f"Network: {_network(plan.networks[0])}."
    head = [f"{layer['layer']}{_with(layer, 'layer')}" for layer in plan.model.head]
    if not plan.classic or plan.features.finetune:
        whose = "Head of each network while it is trained" if plan.classic else "Head"
        yield f"{whose}: {', '.join([*head, 'dense'])} to one logit a class, softmax."


def _network(network: Network) -> str:
    start = {"auto": "ImageNet weights", "none": "random weights"}[network.weights]
    return f"`{network.backbone}` with {start}, up to {LAYERS[network.layer]}"


def _training(plan: Recipe) -> Iterator[str]:
    training = plan.training
    rates = f"learning rate {training.learning_rate:g}"
    if training.backbone_learning_rate:
        rates += f" of the head and {training.backbone_learning_rate:g} of the backbone"
    extras = [f"weight decay {training.weight_decay:g}"] if training.weight_decay else []
    extras += ["cosine annealing by epoch"] if training.schedule == "cosine" else []
    one = "all training views once"
    one = f"{training.steps_per_epoch} steps" if training.steps_per_epoch else one
    yield (
        f"Training: {training.optimizer}, {', '.join([rates, *extras])}, batch "
        f"{training.batch_size}; an epoch is {one}"
        + (f", validated every {training.validate_every} steps" if training.validate_every else "")
        + "."
    )
    for number, phase in enumerate(training.stretches, start=1):
        name = f"Phase {number}" if len(training.stretches) > 1 else "What learns"
        yield f"{name}: {_phase(phase)}, at most {phase.epochs} epochs."
    yield f"Loss: {_loss(plan)}."
    if training.mixup:
        yield (
            "Mixup: each batch is mixed with itself in another order, images and labels alike, by "
            f"a weight from Beta({training.mixup:g}, {training.mixup:g})."
        )
    unit = "validations" if training.validate_every else "epochs"
    yield (
        f"Early stopping where the validation loss has not fallen for {training.patience:,} "
        f"{unit}; the state of the lowest validation loss is kept."
    )
    averaging = training.averaging
    if averaging.start:
        yield (
            f"Stochastic weight averaging from epoch {averaging.start} of the last phase on: the "
            f"learning rates go to {averaging.factor:g} of their initial values within "
            f"{averaging.anneal_epochs} epochs and stay, weights are averaged after each epoch, "
            "and statistics of normalisation are computed anew for the average, which is the "
            "model."
        )


def _phase(phase: Phase) -> str:
    if phase.unfreeze_every:
        return (
            "the head and the backbone stage by stage, from its end towards the input, one stage "
            f"more every {phase.unfreeze_every} epoch{'s' if phase.unfreeze_every > 1 else ''}"
        )
    return {
        "head": "the head, on a frozen backbone",
        "last": f"the head and the last {phase.layers} layers of the backbone",
        "all": "everything",
    }[phase.trained]


def _loss(plan: Recipe) -> str:
    gamma = plan.training.focal_gamma
    loss = f"focal loss of the true class, gamma {gamma:g}" if gamma else "cross-entropy"
    if plan.balance == "class_weights":
        loss += ", weighted by class"
    if plan.model.backbone in ("retinanet", "centernet"):
        loss += (
            f", and {plan.training.box_weight:g} times the loss of the box branch, whose target "
            "is the box of the segmented cell"
        )
    return loss


def _classical(plan: Recipe) -> Iterator[str]:
    classical = plan.classical
    scaled = "; each row of each gets mean 0 and standard deviation 1" * plan.features.zscore
    reduced = "none"
    if classical.pca != "none":
        whose = {"network": "of each network's features", "concatenated": "of all together"}
        kept = f"that keep {classical.pca_variance:.0%} of the variance in training"
        reduced = f"{whose[classical.pca]}, those {kept}"
    yield f"Features: the networks' outputs side by side{scaled}. Principal components: {reduced}."
    yield f"Classifier: {_classifier(plan)}."


def _classifier(plan: Recipe) -> str:
    c = plan.classical
    depth = f"at most {c.forest_depth} deep" if c.forest_depth else "of no limited depth"
    forest = f"random forest of {c.forest_trees} trees, {c.forest_criterion} criterion, {depth}"
    machine = f"support vector machine, {c.svm_kernel} kernel, C {c.svm_c:g}, gamma {c.svm_gamma}"
    codes = {"one_vs_rest": "one for each class against the rest", "one_vs_one": "one a pair"}
    return {
        "mlp": f"multilayer perceptron with {c.mlp_hidden} hidden units, {c.mlp_optimizer}, "
        f"learning rate {c.mlp_learning_rate:g}, {c.mlp_epochs} epochs",
        "random_forest": forest,
        "svm": machine,
        "knn": f"{c.knn_neighbours} nearest neighbours, {c.knn_metric} distance",
        "sgd": f"linear model by stochastic gradient descent, {c.sgd_loss}, {c.sgd_penalty} "
        f"penalty, learning rate {c.sgd_learning_rate:g}, {c.sgd_epochs} epochs",
        "stacking": f"a {machine}, in an error-correcting output code ({codes[c.coding]}), and a "
        f"{forest}, stacked by a logistic regression on their predictions out of {c.folds} folds",
    }[c.classifier]


def _listed(names: list[Any]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _link(name: str) -> str:
    return f"[{name}](../transforms.md#{anchor(name)})"


def _with(entry: Mapping[str, Any], name: str) -> str:
    rest = {key: item for key, item in entry.items() if key != name}
    return f" ({value(rest)})" if rest else ""
