"""Which retrained trials are exported, and their trained networks."""

from collections.abc import Mapping, Sequence

from torch import nn

from nas_blockout.architecture import Architecture
from nas_blockout.backbones import runs_code_of_others
from nas_blockout.data import Loader, Splits
from nas_blockout.experiment import EVALUATION_BATCH, rebuild, structure_of_network
from nas_blockout.export import VerificationError, load_weights
from nas_blockout.export.latency import BATCHES, Timing, measure_together
from nas_blockout.methods.blockdrop import BlockDropSettings
from nas_blockout.structure.branching import Structure
from nas_blockout.training import evaluate
from services.analysis.latency import Latency
from services.analysis.searches.pareto import Timed
from services.budget.accounting import current
from services.files.remote import fetch, place_of
from services.files.study_dir import Folder
from services.study_config.resolved_study import Study
from services.trial_record import SEARCH, Trial, TrialKey

# Of the validation images, and in any case two: another device or precision changes the class of one or another.
_MOST_CHANGE, _MOST_CHANGED_IMAGES = 0.01, 2
MOST_SEARCH_SECONDS = 10.0  # for the networks of all search trials together


def exported_trials(study: Study, trials: Sequence[Trial]) -> dict[str, Trial]:
    """Return, by arm, the retrained trial with the best validation accuracy, of equals that with the lowest seed."""
    best: dict[str, Trial] = {}
    for trial in sorted(current(trials), key=lambda trial: trial.seed):
        if not trial.is_model or trial.score is None:
            continue
        if trial.arm not in best or (best[trial.arm].score or 0.0) < trial.score:
            best[trial.arm] = trial
    return {arm: best[arm] for arm in study.arms if arm in best}


def models_of(
    trials: Mapping[str, Trial], folder: Folder, splits: Splits, *, shared: str | None
) -> dict[str, nn.Module]:
    """Return the trained networks of retrained trials by arm, in eval mode.

    Args:
        trials: The trials by arm.
        folder: Of the study; weights that another machine has written are fetched to it.
        splits: The data.
        shared: URL of the study's folder on shared storage, or None.

    Raises:
        ArtifactError: Shared storage cannot be reached.
    """
    for trial in trials.values() if shared is not None else ():
        path = folder.weights(trial.id)
        fetch(place_of(path, folder.root, shared), path)
    models = {}
    for arm, trial in trials.items():
        document = trial.outcome.get("architecture")
        model = rebuild(trial.config, Architecture.from_json(document) if document else None, splits)
        load_weights(model, folder.weights(trial.id))
        models[arm] = model.eval()
    return models


def require_what_was_measured(winners: Mapping[str, tuple[Trial, nn.Module]], splits: Splits) -> None:
    """Require of networks that code of others makes to classify validation images as well as when they were trained.

    What their code imports may have changed, whose content nobody has recorded.

    Raises:
        VerificationError: A network does not.
    """
    for arm, (trial, model) in winners.items():
        if not runs_code_of_others(trial.config.backbone) or trial.score is None:
            continue
        held_out = splits.of_fold(trial.fold).validation
        found = evaluate(model, Loader(held_out, EVALUATION_BATCH)).accuracy
        if abs(found - trial.score) > max(_MOST_CHANGE, _MOST_CHANGED_IMAGES / len(held_out)) + 1e-9:
            raise VerificationError(
                f"{arm} is not the network that was trained: {found:.2%} of the validation images are classified as "
                f"labeled, {trial.score:.2%} were; has code that makes it changed? Restore it"
            )


def latencies(models: Mapping[str, nn.Module], splits: Splits) -> dict[str, Latency]:
    """Return by arm the latency of its model; all models are measured together, so that they can be compared."""
    timings = measure_together(models, splits.shape, batches=BATCHES)
    return {arm: _latency(by_batch) for arm, by_batch in timings.items()}


def search_latencies(study: Study, trials: Sequence[Trial], splits: Splits) -> dict[TrialKey, Timed]:
    """Return the latency of one image in the networks of search trials, measured together, where arms search for it.

    The weights do not matter, so networks are built anew, and equal ones are measured once. Left out is BlockDrop,
    whose latency depends on the policy that was learned.
    """
    sought = [
        trial
        for trial in current(trials)
        if trial.phase == SEARCH and trial.state == "complete"
        and "latency_ms" in study.arms[trial.arm].rules.objectives
        and not isinstance(trial.config.method, BlockDropSettings)
    ]  # fmt: skip
    networks: dict[str, nn.Module] = {}
    name_of: dict[TrialKey, str] = {}
    for trial in sought:
        document = trial.outcome.get("architecture")
        network = rebuild(trial.config, Architecture.from_json(document) if document else None, splits).eval()
        shapes = [(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()]
        name_of[trial.key] = f"{network}{shapes}"
        networks.setdefault(name_of[trial.key], network)
    timings = measure_together(networks, splits.shape, batches=(1,), seconds=MOST_SEARCH_SECONDS)
    return {key: (timings[name][1].median, timings[name][1].quartiles) for key, name in name_of.items()}


def _latency(by_batch: Mapping[int, Timing]) -> Latency:
    one, many = (by_batch[size] for size in BATCHES)
    return Latency(
        batch_1=one.median,
        batch_256=many.median,
        batch_1_quartiles=one.quartiles,
        batch_256_quartiles=many.quartiles,
        rounds=one.rounds,
    )


def structures(models: Mapping[str, nn.Module]) -> dict[str, Structure]:
    """Return by arm how far a network branches, with what that costs; networks that have no groups are left out."""
    found = {arm: structure_of_network(model) for arm, model in models.items()}
    return {arm: structure for arm, structure in found.items() if structure is not None}
