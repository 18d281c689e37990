"""The script that people write before they look for a program; end_to_end.py measures catvec against it.

    DATABASE_URL=… python -m benchmarks.plain_script CATALOG.CSV MODEL_FOLDER

One GET after the other, the model's own processor on 32 images, an fp32 forward pass (on the GPU if there is one),
one INSERT per row. A commit for each batch and no index favour it: many commit each row. It prints its seconds as
JSON.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
import urllib.request
from pathlib import Path

BATCH = 32


def main() -> None:
    started = time.perf_counter()
    import psycopg
    import torch
    from pgvector.psycopg import register_vector
    from PIL import Image
    from transformers import CLIPModel, CLIPProcessor

    catalog, folder = sys.argv[1:]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = CLIPModel.from_pretrained(folder).to(device).eval()
    processor = CLIPProcessor.from_pretrained(folder)
    with Path(catalog).open(newline="") as file:
        rows = list(csv.DictReader(file))
    loaded = time.perf_counter()
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        register_vector(connection)
        connection.execute("CREATE TABLE items (product_id text PRIMARY KEY, image text, embedding vector(512))")
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            images = []
            for row in batch:
                with urllib.request.urlopen(row["image"]) as response:
                    images.append(Image.open(io.BytesIO(response.read())).convert("RGB"))
            inputs = processor(images=images, return_tensors="pt").to(device)
            with torch.no_grad():
                features = model.get_image_features(**inputs).pooler_output
            vectors = torch.nn.functional.normalize(features, dim=1).cpu().numpy()
            for row, vector in zip(batch, vectors, strict=True):
                connection.execute(
                    "INSERT INTO items (product_id, image, embedding) VALUES (%s, %s, %s)",
                    (row["product_id"], row["image"], vector),
                )
            connection.commit()
    seconds = time.perf_counter() - loaded
    print(json.dumps({"images": len(rows), "load_seconds": loaded - started, "work_seconds": seconds}))


if __name__ == "__main__":
    main()
