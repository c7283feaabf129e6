from .op import variants, varlen_attention, varlen_cls_attention

__all__ = ["variants", "varlen_attention", "varlen_cls_attention"]
