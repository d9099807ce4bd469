"""bnlab's training loop, with its recording, against a hand-written minimal loop and the loop of torch's MNIST example.

All three train the same model from the same weights on the same 28 x 28 images (random pixels in MNIST's own files, so
that torchvision reads them as it reads MNIST). The minimal loop indexes the same device_batches tensors in the same
memory layout; the example's loop is DataLoader, ToTensor and Normalize an image, contiguous, with its unfused
optimizer.
"""

from __future__ import annotations

import itertools
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlab.data.batches import Batches
from bnlab.data.bundle import Split
from bnlab.models.model import build, models
from bnlab.norms.strategy import strategies
from bnlab.record.run_folder import RunFolder, queue
from bnlab.record.tables import Cell
from bnlab.training.callbacks import Callback
from bnlab.training.evaluation import Findings
from bnlab.training.loop import Training
from bnlab.training.optim import optimizers
from bnlab.training.outcome import Recorder
from bnlab.training.trainer import TrainerConfig

BATCH = 64
MEAN, STD = torch.tensor([0.1307]), torch.tensor([0.3081])
LR = 0.01


def images(count: int) -> Split:
    """Return random images of MNIST's shape."""
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=source)
    return Split(pixels, torch.randint(0, 10, (count,), generator=source))


def network(kind: str) -> nn.Module:
    """Return a fresh model with batch norm, the same weights each time."""
    model = build(models[kind](), strategies["batch"](), (1, 28, 28), 10, seed=0)
    return model.to(memory_format=torch.channels_last)


def contenders(kind: str, steps: int, folder: Path) -> dict[str, Callable[[], float]]:
    """Return the loops; each trains a fresh model for `steps` steps and returns its images a second.

    bfloat16 is shown beside the others, not compared on equal terms: it computes less exactly. Loops that take several
    times as long a step do a fifth of the steps.
    """
    few = steps // 5
    split = images(steps * BATCH)
    write_mnist(split, folder)
    batches = Batches(split, batch_size=BATCH, channels_last=True, mean=MEAN, std=STD)
    found = {
        "minimal loop": lambda: minimal(kind, split, steps),
        "bnlab train": lambda: recorded(kind, batches, steps, folder, TrainerConfig()),
        "DataLoader loop": lambda: dataloader(kind, folder, few),
        "bnlab train, bfloat16": lambda: recorded(kind, batches, few, folder, TrainerConfig(precision="bfloat16")),
    }
    if find_spec("lightning"):
        found["Lightning's Trainer"] = lambda: lightning(kind, folder, few)
    return found


def recorded(kind: str, batches: Batches, steps: int, folder: Path, config: TrainerConfig) -> float:
    """bnlab's loop, writing the rows of every step into a run folder."""
    model = network(kind)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        queue(Path(place), {}, "", "")
        run = RunFolder(Path(place), "")
        run.begin()
        training = Training(
            model=model,
            batches=batches,
            evaluator=_NoEvaluation(),  # type: ignore[arg-type]
            optimizer=optimizers["sgd"](lr=LR, weight_decay=0.0).make(model),
            rate_of=lambda step: LR,
            total_steps=steps,
            config=config,
            eval_every=1e9,
            device=torch.device("cpu"),
            recorder=_Rows(run),
            callback=Callback(),
        )
        start = time.perf_counter()
        training.run()
        seconds = time.perf_counter() - start
        run.finish("done")
    return steps * BATCH / seconds


def minimal(kind: str, split: Split, steps: int) -> float:
    """The least code that does the same steps: nothing is recorded."""
    model = network(kind)
    device_batches = ((split.images.float() / 255 - MEAN) / STD).permute(0, 2, 3, 1).contiguous()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, nesterov=True, fused=True)
    model.train()
    start = time.perf_counter()
    order = torch.randperm(len(split))
    for i in range(steps):
        rows = order[i * BATCH : (i + 1) * BATCH]
        optimizer.zero_grad()
        logits = model(device_batches.index_select(0, rows).permute(0, 3, 1, 2))
        F.cross_entropy(logits, split.labels.index_select(0, rows)).backward()
        optimizer.step()
    return steps * BATCH / (time.perf_counter() - start)


def dataloader(kind: str, folder: Path, steps: int) -> float:
    """The loop of torch's MNIST example: images one by one through PIL and transforms, contiguous tensors."""
    loader = mnist_loader(folder)
    model = network(kind).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, nesterov=True)
    model.train()
    start = time.perf_counter()
    for images_, labels in itertools.islice(loader, steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images_), labels).backward()
        optimizer.step()
    return steps * BATCH / (time.perf_counter() - start)


def lightning(kind: str, folder: Path, steps: int) -> float:
    """Lightning's Trainer on the loader of torch's MNIST example, without logger, checkpoints and bar."""
    from lightning.pytorch import LightningModule, Trainer

    class Module(LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = network(kind).to(memory_format=torch.contiguous_format)

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=LR, momentum=0.9, nesterov=True)

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_steps=steps, accelerator="cpu", **quiet)
    start = time.perf_counter()
    trainer.fit(Module(), mnist_loader(folder))
    return steps * BATCH / (time.perf_counter() - start)


def mnist_loader(folder: Path) -> Iterable[tuple[Tensor, Tensor]]:
    """Images one by one through PIL and transforms."""
    from torchvision import datasets, transforms

    convert = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN.tolist(), STD.tolist())])
    return torch.utils.data.DataLoader(datasets.MNIST(folder, transform=convert), batch_size=BATCH, shuffle=True)


def write_mnist(split: Split, folder: Path) -> None:
    """Write the images as MNIST's training files, and a test set of one image, which torchvision wants to see."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for prefix, part in (("train", split), ("t10k", split.take(torch.zeros(1, dtype=torch.int64)))):
        count = len(part)
        header = struct.pack(">iiii", 0x803, count, 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + part.images.numpy().tobytes())
        labels = part.labels.to(torch.uint8).numpy().tobytes()
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 0x801, count) + labels)


class _NoEvaluation:
    def evaluate(self, model: nn.Module) -> Findings:
        return Findings([], {"probe": []})


class _Rows(Recorder):
    def __init__(self, run: RunFolder) -> None:
        self._run = run

    def append(self, table: str, rows: Sequence[Sequence[Cell]]) -> None:
        self._run.append(table, rows)
