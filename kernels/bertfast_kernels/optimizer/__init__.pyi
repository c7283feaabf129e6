from .adamw import GpuAdamW as GpuAdamW
from .loss_scale import LossScale as LossScale
