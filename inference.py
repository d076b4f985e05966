"""Answer for clips: python inference.py --cfg-path eval_configs/x.yaml"""

from affect.cli import door

if __name__ == "__main__":
    door("answer")
