from .op import variants as variants
from .op import varlen_attention as varlen_attention
from .op import varlen_cls_attention as varlen_cls_attention
