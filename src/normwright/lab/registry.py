"""Every experiment of the laboratory, by name, in the order in which the report tells them."""

from normwright.lab import (
    affine,
    batch_size,
    features,
    generalization,
    gradients,
    inference,
    race,
    relatives,
    scale,
    shift,
)
from normwright.lab.experiment import AnyExperiment

EXPERIMENTS: dict[str, AnyExperiment] = {
    experiment.name: experiment
    for experiment in (
        race.EXPERIMENT,
        inference.EXPERIMENT,
        shift.EXPERIMENT,
        gradients.EXPERIMENT,
        scale.EXPERIMENT,
        affine.EXPERIMENT,
        features.EXPERIMENT,
        batch_size.EXPERIMENT,
        generalization.EXPERIMENT,
        relatives.EXPERIMENT,
    )
}
