"""Load the data configs of a command: those of training, validation and test set."""

from __future__ import annotations

from common.errors import InputError
from weaver.config.data_config import DataConfig
from weaver.fit.options import TrainOptions


def training_configs(options: TrainOptions) -> tuple[DataConfig, DataConfig]:
    """Load the data configs of training and validation, with their extra selections.

    Raises InputError if their inputs or labels differ, because one network could not take both, or
    their losses would not be comparable.
    """
    train = DataConfig.load(options.data_config)
    val = train
    if options.data_config_val:
        val = DataConfig.load(options.data_config_val)
        for what, of_train, of_val in (
            ("inputs", list(train.input_shapes.items()), list(val.input_shapes.items())),
            ("labels", _labels(train), _labels(val)),
        ):
            if of_train != of_val:
                raise InputError(
                    f"{val.source} has the {what} {of_val}, but {train.source} has {of_train};"
                    " training and validation must have the same"
                )
    if options.extra_selection_train:
        train = train.with_extra_selection(
            options.extra_selection_train, "--extra-selection-train", for_training=True
        )
    if options.extra_selection_val:
        val = val.with_extra_selection(
            options.extra_selection_val, "--extra-selection-val", for_training=True
        )
    return train, val


def validation_with_derived_numbers(train: DataConfig, val: DataConfig) -> DataConfig:
    """Return the validation's data config with the numbers that it lacks.

    They are the standardisation and the histograms of the reweighting, which were derived from the
    training set. A separate data config of the validation (--data-config-val) keeps those that it
    has itself.
    """
    if val.source == train.source:
        return val.with_derived_parameters(train.derived_parameters)
    val = val.with_missing_parameters(train.derived_parameters)
    if val.missing_reweight_hists and train.reweight_hists is not None:
        val = val.with_derived_parameters(
            {**val.derived_parameters, "reweight_hists": train.derived_parameters["reweight_hists"]}
        )
    return val


def of_test_set(options: TrainOptions) -> DataConfig:
    """Load the data config of the test set, without --extra-selection-test."""
    return DataConfig.load(options.data_config_test or options.data_config)


def with_test_selection(options: TrainOptions, config: DataConfig) -> DataConfig:
    """Return the test set's data config with --extra-selection-test, if that is set."""
    if not options.extra_selection_test:
        return config
    return config.with_extra_selection(
        options.extra_selection_test, "--extra-selection-test", for_training=False
    )


def _labels(config: DataConfig) -> tuple[str, tuple[str, ...], int]:
    """Return type, names and number of classes of the labels."""
    return config.label_type, config.label_names, len(config.label_value)
