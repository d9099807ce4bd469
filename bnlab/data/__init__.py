"""Data sets as whole tensors on the device, and batches by index.

`dataset.py` says what a data set declares; read it first. `sets/` holds one module a data set or family, found by the
registry `dataset.datasets`; `sources.py` and `download.py` know and fetch their files. `bundle.py` reads and splits,
`batches.py` and `augment.py` make the batches of an epoch, `shifts.py` shifts a test set.

    spec = parse(datasets["mnist"], {"root": "data"}, "data")
    bundle = load(spec)
    batches = Batches(bundle.train, batch_size=spec.batch_size, seed=0, mean=bundle.mean, std=bundle.std)
    for images, labels in batches.epoch(0): ...
"""
