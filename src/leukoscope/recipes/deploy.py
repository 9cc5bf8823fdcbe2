"""From a trained classifier to what is used: calibrated, stored, exported as a bundle."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise

import leukoscope
from leukoscope.bundle import card
from leukoscope.bundle import contract as contracts
from leukoscope.bundle.contract import Contract, Input, Model, Network, Origin, PredictionSets
from leukoscope.bundle.inference import Reader, answers
from leukoscope.data.index import CellIndex
from leukoscope.errors import InputError, UnknownNameError
from leukoscope.evaluate.calibration import fit_conformal, fit_temperature, softmax
from leukoscope.evaluate.novelty import fit as fit_novelty
from leukoscope.files import atomic, output_folder, read_json, sha256_of, sweep, write_text
from leukoscope.models import classical, joined
from leukoscope.models.classifier import Classifier, build, gives_heat_maps
from leukoscope.models.graph import classifier_graph, to_onnx
from leukoscope.models.weights import InputFormat, Weights
from leukoscope.recipes.experiment import Experiment
from leukoscope.recipes.learning import Learned, Outputs, joined_networks
from leukoscope.recipes.out_of_fold import OutOfFold
from leukoscope.recipes.quantised import int8_of
from leukoscope.recipes.schema import Protocol, Recipe

COVERAGE = 0.9
PRECISIONS = ("fp32", "int8")
WEIGHTS = "model.safetensors"
STAGE = "classical.skops"


def calibrate(
    job: Experiment, learned: Learned, said: Outputs, folds: OutOfFold | None
) -> Contract:
    """The contract: temperature, prediction sets and novelty, fitted on validation; prediction
    sets on training images out of fold as well, where there are such.

    Under the published protocol validation is what is scored, so nothing is fitted to it.
    """
    plan, table, classes = job.plan, job.table, job.classes
    logits, features = (part.numpy() for part in said["validation"])
    temperature, sets, novelty = 1.0, None, None
    if job.protocol == "clean":
        seen, labels = logits, job.labels(job.scored("validation"))
        # Of validation alone: heads that saw fewer images are less sure than this one.
        temperature = fit_temperature(seen, labels)
        if folds is not None:
            seen = np.concatenate([logits, folds.logits.numpy()])
            labels = np.concatenate([labels, job.labels(folds.rows)])
        sets = PredictionSets(
            coverage=COVERAGE,
            thresholds=fit_conformal(softmax(seen, temperature), labels, coverage=COVERAGE),
            calibrated_on=len(labels),
            out_of_fold=len(labels) - len(logits),
        )
        own = job.labels(job.scored("train"))
        novelty = fit_novelty(said["train"][1].numpy(), own, features, logits)
    start = job.starts[0]
    contract = Contract(
        leukoscope=leukoscope.__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        name=f"{plan.name}-{plan.arm}",
        version="1",
        input=Input(size=learned.size, mean=start.input.mean, std=start.input.std),
        preprocessing=plan.preprocessing,
        classes=list(classes),
        temperature=temperature,
        prediction_sets=sets,
        novelty=novelty,
        model=_model(job, learned),
        origin=_origin(plan, job.protocol, job.index, job.starts),
        validation={},
    )
    answered = answers(logits, features, contract)
    training = table.loc[table["role"] == "train", "label"]
    expected = _validation(answered.probs, answered.novelty) | {"majority": training.mode()[0]}
    return contract.model_copy(update={"validation": expected})


def _model(job: Experiment, learned: Learned) -> Model:
    """The networks as the contract states them, without hashes yet."""
    plan = job.plan
    alone = len(plan.networks) == 1
    networks = [
        Network(
            architecture=network.backbone,
            arguments=start.arguments,
            layer=network.layer if plan.classic else "",
            classifies=not plan.classic or plan.features.finetune,
            mean=start.input.mean,
            std=start.input.std,
            file=WEIGHTS if alone else f"{place}-{network.backbone}.safetensors",
        )
        for place, (network, start) in enumerate(zip(plan.networks, job.starts, strict=True), 1)
    ]
    maps = not plan.classic and gives_heat_maps(learned.classifiers[0])
    return Model(
        networks=networks, head=plan.model.head, zscore=plan.features.zscore, heat_maps=maps
    )


def _validation(probs: np.ndarray, novelty: np.ndarray) -> dict[str, Any]:
    """What confidence and novelty were on validation: later drift is measured against it."""
    confidence = probs.max(axis=1)
    known = novelty[np.isfinite(novelty)]
    return {
        "n": len(probs),
        "mean_confidence": float(confidence.mean()),
        "sd_confidence": float(confidence.std()),
        "mean_novelty": float(known.mean()) if len(known) else None,
        "sd_novelty": float(known.std()) if len(known) else None,
    }


def _origin(
    plan: Recipe, protocol: Protocol, index: CellIndex, starts: Sequence[Weights]
) -> Origin:
    patients = index.frame["patient"].dropna().nunique()
    return Origin(
        recipe=plan.name,
        arm=plan.arm,
        protocol=protocol,
        seed=plan.seed,
        recipe_sha256=plan.sha256,
        data=index.name,
        data_licence=index.licence,
        data_citation=index.citation,
        data_sha256=index.sha256,
        images=len(index.frame),
        patients=int(patients) or None,
        synthetic=index.synthetic,
        weights=[start.describe() for start in starts],
    )


def save_model(learned: Learned, contract: Contract, folder: Path) -> None:
    """Write the networks' weights, the classical model where there is one, and the contract."""
    output_folder(folder)
    networks = []
    for classifier, network in zip(learned.classifiers, contract.model.networks, strict=True):
        tensors = {k: v.detach().cpu().contiguous() for k, v in classifier.state_dict().items()}
        with atomic(folder / network.file) as temporary:
            temporary.write_bytes(serialise(tensors))
        digest = sha256_of(folder / network.file)
        networks.append(network.model_copy(update={"sha256": digest}))
    stated: dict[str, Any] = {"networks": networks}
    if learned.stage is not None:
        classical.save(learned.stage, folder / STAGE)
        stated["classical"] = sha256_of(folder / STAGE)
    model = contract.model.model_copy(update=stated)
    contracts.write(contract.model_copy(update={"model": model}), folder)


def load_model(run: Path) -> tuple[Learned, Contract]:
    """What a run learned, verified against its contract; InputError where it is damaged."""
    folder = run / "model"
    if not folder.is_dir():
        raise InputError(
            f"{run} is no finished run: it holds no model folder",
            fix="Train it with: leukoscope train RECIPE cells.parquet -o RUN (or --resume).",
            field="run",
        )
    contract = contracts.read(folder)
    model = contract.model
    classifiers = [_load_network(folder, network, contract) for network in model.networks]
    stage = None
    if model.classical:
        _verify(folder / STAGE, model.classical)
        stage = classical.load(folder / STAGE)
    return Learned(classifiers, contract.input.size, stage), contract


def _load_network(folder: Path, network: Network, contract: Contract) -> Classifier:
    path = folder / network.file
    _verify(path, network.sha256)
    classifier = untrained(network, contract, seed=0)
    try:
        classifier.load_state_dict(deserialise(path.read_bytes()))
    except (RuntimeError, SafetensorError) as problem:
        raise InputError(
            f"{path} doesn't fit its contract: {str(problem).splitlines()[-1].strip()[:160]}",
            fix="Train the run again.",
            field="run",
        ) from None
    return classifier.eval()


def untrained(network: Network, contract: Contract, seed: int) -> Classifier:
    """A network of a contract with weights drawn at random by `seed`, in inference mode."""
    start = Weights("none", InputFormat(mean=network.mean, std=network.std), network.arguments)
    head = list(contract.model.head)
    return build(network.architecture, head, len(contract.classes), start, seed=seed).eval()


def _verify(path: Path, digest: str) -> None:
    if not path.is_file() or sha256_of(path) != digest:
        raise InputError(
            f"{path} is missing or isn't the file its contract was written for",
            fix="Train the run again.",
            field="run",
        )


def graph_of(learned: Learned, contract: Contract) -> bytes:
    """The ONNX graph of the whole way from normalised images to logits."""
    model, size = contract.model, contract.input.size
    if learned.stage is None:
        return classifier_graph(learned.classifiers[0], size, model.outputs)
    network = joined_networks(
        [(n.architecture, n.layer) for n in model.networks],
        learned.classifiers,
        [InputFormat(mean=n.mean, std=n.std) for n in model.networks],
        zscore=model.zscore,
    ).eval()
    graph = joined.to_onnx(learned.stage, sum(network.widths))
    return joined.join(to_onnx(network, size, ("features",)), graph)


def reader_of(run: Path) -> Reader:
    """A run as an inference reader, through the very graph that `export` writes."""
    learned, contract = load_model(run)
    return Reader(contract, graph_of(learned, contract))


def export(run: Path, out: Path, *, precision: str = "fp32") -> Path:
    """Write the bundle of a run: graph, contract, model card. Returns the bundle's folder.

    A run of the published protocol gives one too, whose card says that its figures are inflated
    and its probabilities not calibrated. Raises InputError where the run isn't finished, the
    folder can't be written, or `precision` is int8 and costs too much (recipes.quantised).
    """
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    learned, contract = load_model(run)
    described = read_json(run / "metrics.json")
    card.render(contract, described)  # what is wrong with it is said before anything is written
    folder = _bundle_folder(out)
    graph = graph_of(learned, contract)
    if precision == "int8":
        graph, contract = int8_of(run, contract, graph, _validation)
    with atomic(folder / contracts.GRAPH) as temporary:
        temporary.write_bytes(graph)
    digest = sha256_of(folder / contracts.GRAPH)
    contract = contract.model_copy(
        update={"model": contract.model.model_copy(update={"sha256": digest})}
    )
    contracts.write(contract, folder)
    write_text(folder / "README.md", card.render(contract, described))
    return folder


def _bundle_folder(out: Path) -> Path:
    """The folder to export to; InputError where a run's model or somebody's README stands there."""
    folder = output_folder(out)
    model = (folder / WEIGHTS).exists()
    foreign = (folder / "README.md").exists() and not (folder / contracts.CONTRACT).exists()
    if model or foreign:
        raise InputError(
            f"{folder} holds {WEIGHTS if model else 'a README.md'}, not a bundle",
            fix="Choose a new folder with -o.",
            field="output",
        )
    sweep(folder)
    return folder
