from .files import write_openvino as write_openvino
