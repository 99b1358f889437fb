"""A queue and a moving average in plain Python."""

from collections import deque

import numpy as np


def push(queue, embeddings, items):
    """A queue after a batch: its arrays in the order of `memory.Queue`."""
    held = queue.embeddings, queue.items.labels, queue.items.ids
    places = [np.array(leaf) for leaf in held]
    filled, position = np.array(queue.items.valid), int(queue.position)
    valid = np.ones(len(embeddings), bool) if items.valid is None else items.valid
    for row in range(len(embeddings)):
        if not valid[row]:
            continue
        batch = embeddings, items.labels, items.ids
        for place, values in zip(places, batch, strict=True):
            place[position] = np.asarray(values)[row]
        filled[position] = True
        position = (position + 1) % len(filled)
    return (*places, filled, position)


def last_items(batches, size):
    """The last valid `(embedding, label, id)` of several batches, the oldest first."""
    held = deque(maxlen=size)
    for embeddings, items in batches:
        for row, valid in enumerate(np.asarray(items.valid).tolist()):
            if valid:
                embedding = tuple(np.asarray(embeddings)[row].tolist())
                held.append((embedding, int(items.labels[row]), int(items.ids[row])))
    return list(held)


def joined(queue, embeddings, items):
    """The columns: embeddings, labels, ids and validity of the batch, then of the queue."""
    valid = np.ones(len(embeddings), bool) if items.valid is None else items.valid
    batch = embeddings, items.labels, items.ids, valid
    held = queue.embeddings, queue.items.labels, queue.items.ids, queue.items.valid
    return tuple(
        np.array([*np.asarray(first), *np.asarray(second)])
        for first, second in zip(batch, held, strict=True)
    )


def momentum_update(target, source, momentum):
    mean = momentum * np.asarray(target["w"], float) + (1 - momentum) * np.asarray(
        source["w"], float
    )
    return {"count": source["count"], "w": mean}
