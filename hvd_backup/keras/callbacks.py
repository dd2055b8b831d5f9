"""Callbacks for ``fit``; the same as ``hvd_backup.tensorflow.keras.callbacks``."""

from hvd_backup.tensorflow.keras.callbacks import (
    AttemptCallback,
    BestModelCheckpoint,
    BroadcastGlobalVariablesCallback,
    LearningRateScheduleCallback,
    LearningRateWarmupCallback,
    MetricAverageCallback,
)

__all__ = [
    "AttemptCallback",
    "BestModelCheckpoint",
    "BroadcastGlobalVariablesCallback",
    "LearningRateScheduleCallback",
    "LearningRateWarmupCallback",
    "MetricAverageCallback",
]
