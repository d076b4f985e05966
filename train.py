"""Train a model: python train.py --cfg-path train_configs/x.yaml"""

from affect.cli import door

if __name__ == "__main__":
    door("train")
