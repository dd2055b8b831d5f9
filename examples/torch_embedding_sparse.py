"""Classify texts by a bag of word vectors, whose gradient is sparse.

    python examples/torch_embedding_sparse.py
    mpirun -np 3 python examples/torch_embedding_sparse.py --backup-workers 1 --data FOLDER

FOLDER holds movie_reviews.zip (Pang, Lee, 2004: 2000 reviews, as NLTK packs them), or what is in
it: `pos/*.txt` and `neg/*.txt`. Without it, texts are made up.
"""

import argparse
import random
import re
import zipfile
from collections import Counter
from pathlib import Path

import torch
from torch import nn

import hvd_backup.torch as hvd  # was: import horovod.torch as hvd

Texts = list[tuple[list[str], int]]


def read_reviews(folder: Path) -> Texts:
    """Words and label of every review: 1 for a friendly one."""
    archive = folder / "movie_reviews.zip"
    if archive.exists():
        with zipfile.ZipFile(archive) as packed:
            found = {name: packed.read(name) for name in packed.namelist()}
    else:
        found = {str(path): path.read_bytes() for path in folder.glob("*/*.txt")}
    texts = [
        (re.findall("[a-z]+", data.decode("latin-1").lower()), int("pos/" in name))
        for name, data in sorted(found.items())
        if re.search(r"(pos|neg)/[^/]+\.txt$", name)
    ]
    if not texts:
        raise SystemExit(f"no movie_reviews.zip and no pos/*.txt, neg/*.txt in {folder}")
    return texts


def made_up(count: int = 1200, vocabulary: int = 4000) -> Texts:
    """Texts of 20 to 60 words, three of which lean to one side."""
    rng = random.Random(0)
    texts: Texts = []
    for label in (i % 2 for i in range(count)):
        words = [f"w{rng.randrange(vocabulary)}" for _ in range(rng.randint(20, 60))]
        words += [f"{'good' if label else 'bad'}{rng.randrange(50)}" for _ in range(3)]
        texts.append((words, label))
    return texts


class Corpus:
    """Texts as row numbers of the table; every fifth is for testing."""

    def __init__(self, texts: Texts, most_words: int) -> None:
        random.Random(1).shuffle(texts)
        counts = Counter(word for words, _ in texts for word in words)
        row = {word: i + 1 for i, (word, _) in enumerate(counts.most_common(most_words))}
        self.rows = len(row) + 1  # row 0: words that are rare
        coded = [(torch.tensor([row.get(w, 0) for w in words]), label) for words, label in texts]
        self.test, self.train = coded[::5], [text for i, text in enumerate(coded) if i % 5]


def batch_of(texts: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, ...]:
    """All words in a row, where each text begins, and the labels."""
    lengths = torch.tensor([0] + [len(rows) for rows, _ in texts[:-1]])
    labels = torch.tensor([float(label) for _, label in texts])
    return torch.cat([rows for rows, _ in texts]), lengths.cumsum(0), labels


class Classifier(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(rows, width, mode="mean", sparse=True)
        self.head = nn.Linear(width, 1)

    def forward(self, words: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(words, starts)).squeeze(1)


def accuracy(model: nn.Module, texts: list[tuple[torch.Tensor, int]]) -> float:
    words, starts, labels = batch_of(texts[hvd.rank() :: hvd.size()])
    with torch.no_grad():
        right = ((model(words, starts) > 0) == (labels > 0.5)).sum()
    counts = hvd.allreduce(torch.tensor([float(right), float(len(labels))]), op=hvd.Sum)
    return float(counts[0] / counts[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="classify texts with a sparse embedding")
    parser.add_argument("--data", type=Path, help="folder with movie_reviews.zip")
    parser.add_argument("--backup-workers", type=int, help="default: as the launcher says, or 0")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32, help="texts per rank and step")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--words", type=int, default=20000, help="most rows of the table")
    parser.add_argument("--sparse-mean", choices=["contributors", "rows"], default="rows")
    args = parser.parse_args()

    hvd.init()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the ranks share the cores
    corpus = Corpus(read_reviews(args.data) if args.data else made_up(), args.words)
    model = Classifier(corpus.rows, width=32)
    # Adagrad takes dense and sparse gradients alike: one optimizer, and one round, for both.
    optimizer = torch.optim.Adagrad(model.parameters(), lr=args.lr)
    optimizer = hvd.DistributedOptimizer(
        optimizer,
        named_parameters=model.named_parameters(),
        backup_workers=args.backup_workers,
        # Horovod: without these two. What one rank in ten has met moves as far as it would alone.
        sparse_mean=args.sparse_mean,
    )
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)

    steps = len(corpus.train) // hvd.size() // args.batch_size
    for epoch in range(args.epochs):
        order = torch.randperm(len(corpus.train)).tolist()[hvd.rank() :: hvd.size()]
        for step in range(steps):
            some = order[step * args.batch_size : (step + 1) * args.batch_size]
            words, starts, labels = batch_of([corpus.train[i] for i in some])
            with optimizer.attempt():
                optimizer.zero_grad()
                loss = nn.functional.binary_cross_entropy_with_logits(model(words, starts), labels)
                loss.backward()
            optimizer.step()
        reached = accuracy(model, corpus.test)
        if hvd.rank() == 0:
            print(f"epoch {epoch + 1}: test accuracy {reached:.1%}", flush=True)
    grad = model.table.weight.grad
    if hvd.rank() == 0:
        print(f"the last gradient had {grad._nnz()} of {corpus.rows} rows")  # noqa: SLF001
    hvd.shutdown()


if __name__ == "__main__":
    main()
