"""Small PDF files written by hand, and documents for tests."""

from pathlib import Path

GUIDE = """# Garden Guide

A short book about gardens.

## Compost

Compost is a mixture of decayed plants that feeds the soil of a garden.
`turn_heap(days)` moves the heap and returns the number of days that it rested.

The compost heap has three layers:

- brown leaves from autumn
- green clippings from the lawn
- a little soil to start the process

## How to build a bed

Choose a sunny place and remove the grass. Then add ten centimetres of soil:

```sh
garden bed --size 2 --soil 10
```

## Settings

| Key | Default | Meaning |
|---|---|---|
| `bed.size` | `2` | Length of one side of the bed in metres. |
| `bed.soil` | `10` | Depth of the soil in centimetres. |

## Troubleshooting

**The leaves turn yellow.** Use less water, and check that the pot has a hole.
"""


def pdf(pages: list[list[tuple[float, float, str]]], *, title: str = "") -> bytes:
    """A PDF of Helvetica lines. pages: (size, height from the foot, text) of each line."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b""]
    font = 3 + 2 * len(pages)
    kids = []
    for n, lines in enumerate(pages):
        drawn = [f"BT /F1 {size} Tf 72 {top} Td ({text}) Tj ET" for size, top, text in lines]
        stream = "\n".join(drawn).encode("latin-1")
        kids.append(f"{3 + 2 * n} 0 R")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {4 + 2 * n} 0 R "
            f"/Resources << /Font << /F1 {font} 0 R >> >> >>".encode()
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(pages)} >>".encode()
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    info = ""
    if title:
        objects.append(f"<< /Title ({title}) >>".encode())
        info = f" /Info {len(objects)} 0 R"
    out, offsets = b"%PDF-1.4\n", []
    for n, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (n, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    trailer = f"trailer\n<< /Size {size} /Root 1 0 R{info} >>\nstartxref\n{len(out)}\n%%EOF\n"
    return out + b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table) + trailer.encode()


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    """Write files below a folder; returns it."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder
