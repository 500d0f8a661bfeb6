"""Write `documents.jsonl`: in words what a sensor did, its readings and the station, in either order."""

import json
import math
import random
from pathlib import Path

WORDS = {"rises": lambda x: x, "falls": lambda x: 1 - x, "waves": lambda x: 0.5 + 0.5 * math.sin(12 * x)}


def document(number: int) -> list[dict]:
    chance = random.Random(number)
    word, n = chance.choice(list(WORDS)), chance.randint(16, 40)
    readings = [min(max(WORDS[word](i / n) + chance.gauss(0, 0.02), 0), 1) for i in range(n)]
    text, trace = {"text": f"it {word}"}, {"trace": [round(reading, 3) for reading in readings]}
    both = [{**text, "loss": False}, trace] if number % 2 else [trace, text]
    return [{"label": number % 3, "name": "station", "loss": False}, *both]


if __name__ == "__main__":
    lines = [json.dumps(document(number)) for number in range(600)]
    Path("documents.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
