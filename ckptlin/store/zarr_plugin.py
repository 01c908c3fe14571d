"""What makes zarr know ckptlin's data types without importing ckptlin.

zarr 3.1 collects the entry points of the group ``zarr.data_type`` and never loads them (zarr 3.1.6,
``DataTypeRegistry._lazy_load`` has no caller).  It does load those of ``zarr.buffer`` before it reads its first
document; so one of them points here: importing this module registers the data types, and what zarr gets is
its own buffer class, which it has already.
"""

from zarr.core.buffer.cpu import Buffer
from zarr.core.dtype import data_type_registry

from ckptlin.store.zarr_dtypes import BFloat16, Float8E4M3FN, Float8E5M2

__all__ = ["Buffer"]

for _data_type in (BFloat16, Float8E4M3FN, Float8E5M2):
    data_type_registry.register(_data_type._zarr_v3_name, _data_type)
