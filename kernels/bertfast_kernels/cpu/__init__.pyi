from .adamw import CpuAdamW as CpuAdamW
from .build import cpu_kernels_fault as cpu_kernels_fault
from .calls import CPP_DTYPES as CPP_DTYPES
from .calls import takes_cpp as takes_cpp
