"""Train a network to extend amplitudes: one function, on CPU or GPU, in the precision that the machine is fast in."""

from __future__ import annotations

import math
import time
import timeit

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch.nn import functional as nnf
from tqdm.auto import tqdm

from .gridding import BOXES, AmplitudeBoxes
from .inference import predict
from .metrics import score

WARM_UP = 0.05   # share of the training during which the learning rate rises
CLIP = 1.0       # norm of the gradient at which it is cut
COLUMNS = ["step", "crystals", "seconds", "loss", "r_ext", "cc_ext"]  # of the history


def pick_precision(device="auto") -> str:
    """``bf16-mixed`` where the machine multiplies bfloat16 faster than float32, else ``32-true``.

    On a CPU a convolution is timed in both: without matrix units for it, bfloat16 is emulated and can be a hundred
    times slower.
    """
    if device in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    seconds, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for a busy core would be timed instead
    try:
        for dtype in (torch.float32, torch.bfloat16):
            x, w = torch.ones(1, 32, 8, 8, 8, dtype=dtype), torch.ones(32, 32, 3, 3, 3, dtype=dtype)
            seconds[dtype] = min(timeit.repeat(lambda: nnf.conv3d(x, w), number=1, repeat=5))  # noise only adds time
    finally:
        torch.set_num_threads(threads)
    return "bf16-mixed" if seconds[torch.bfloat16] < seconds[torch.float32] else "32-true"


def extension_loss(F_out, boxes: AmplitudeBoxes):
    """Mean squared error over the reflections that had to be predicted; the others are known and cost nothing."""
    return (F_out - boxes.F)[boxes.extension].square().mean()


def learning_rate(progress, peak):
    """Linear warm-up, then half a cosine down to a hundredth of the peak; progress from 0 to 1."""
    if progress < WARM_UP:
        return peak * (progress + 1e-3) / (WARM_UP + 1e-3)
    fraction = min((progress - WARM_UP) / (1 - WARM_UP), 1.0)
    return peak * (0.01 + 0.99 * (1 + math.cos(math.pi * fraction)) / 2)


def fit(model, crystals, validation, *, box=BOXES["monoclinic"], d_input=1.5, d_target=0.8, epochs=1, minutes=0.0,
        batch_size=4, lr=1e-3, weight_decay=0.01, n_validations=5, seed=0, device="auto", precision="auto"):
    """Train ``model`` in place on crystals that fit the box; amplitudes are computed while it trains.

    Parameters
    ----------
    model : one of ``models.MODELS``
    crystals, validation : lists of Crystal; the second is only looked at: after the first step,
        then ``n_validations`` times.
    d_input, d_target : Å, resolution of the measured amplitudes, and of the wanted ones.
    epochs, minutes : whichever is reached first ends the training; the learning rate falls to its end either way.
        0 minutes is no limit, and only then does the same seed give the same weights.
    batch_size, lr, weight_decay : of AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101).
    device : "auto", "cpu" or "cuda"; precision : "auto", "32-true" or "bf16-mixed".

    Returns
    -------
    history : DataFrame with a row a step: crystals seen, seconds, loss; r_ext and cc_ext where validated, else NaN.

    Raises
    ------
    ValueError
        If there are fewer crystals than a batch, or the loss or its gradient is not finite (with the step).
    """
    if len(crystals) < batch_size:
        raise ValueError(f"{len(crystals)} crystals that fit the box are fewer than one batch of {batch_size}: "
                         "generate more crystals, or lower batch_size")
    fabric = Fabric(accelerator=device, devices=1,
                    precision=pick_precision(device) if precision == "auto" else precision)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model.to(memory_format=torch.channels_last_3d)  # faster in both precisions; no-op for tensors of other rank
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    trained, optimizer = fabric.setup(model, optimizer)
    settings = dict(box=box, d_input=d_input, d_target=d_target)
    known = AmplitudeBoxes.from_crystals(validation, **settings) if validation else None

    steps_per_epoch = len(crystals) // batch_size
    total = epochs * steps_per_epoch
    history, start, step, progress = [], time.perf_counter(), 0, 0.0
    next_validation = 0.0
    with tqdm(total=total, desc=type(model).__name__, unit="step", mininterval=1) as bar:
        for _ in range(epochs):
            order = rng.permutation(len(crystals))
            for rows in order[:steps_per_epoch * batch_size].reshape(-1, batch_size):
                boxes = AmplitudeBoxes.from_crystals([crystals[i] for i in rows], **settings, device=fabric.device)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(progress, lr)
                trained.train()
                loss = extension_loss(trained(boxes.F_in, boxes.measured, boxes.target, boxes.absent), boxes)
                optimizer.zero_grad()
                fabric.backward(loss)
                step += 1
                norm = fabric.clip_gradients(trained, optimizer, max_norm=CLIP, error_if_nonfinite=False).item()
                if not (math.isfinite(loss.item()) and math.isfinite(norm)):
                    raise ValueError(f"the loss is {loss.item()}, its gradient {norm}, at step {step}: lower lr (now {lr})")
                optimizer.step()

                seconds = time.perf_counter() - start
                progress = max(step / total, seconds / (60 * minutes) if minutes else 0.0)
                row = {"step": step, "crystals": step * batch_size, "seconds": seconds, "loss": loss.item()}
                if known is not None and (progress >= next_validation or progress >= 1):
                    next_validation += 1 / n_validations
                    scores = score(predict(trained, known), known)[["r_ext", "cc_ext"]].mean()
                    row |= scores.to_dict()
                    bar.set_postfix(loss=f"{row['loss']:.2e}", r_ext=f"{row['r_ext']:.3f}")
                history.append(row)
                bar.update()
                if progress >= 1:
                    break
            if progress >= 1:
                break
    model.to("cpu").eval()
    return pd.DataFrame(history, columns=COLUMNS)
