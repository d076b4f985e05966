"""An expression network as ONNX."""

from affect.cli import door

if __name__ == "__main__":
    door("export_onnx")
