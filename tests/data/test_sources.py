"""Where pictures are: addresses only when asked for, and never more than fits."""

from __future__ import annotations

import base64
import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from tiny import random_image

from mm_lens.data import datasets, sources
from mm_lens.errors import DataError

IMAGE = random_image(6, 9)


def png() -> bytes:
    file = io.BytesIO()
    IMAGE.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def server():
    """One picture, on this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(png())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def load(image, **options):
    return datasets.load([{"image": image, "text": "?"}], **options)


def test_an_address_is_fetched_only_when_asked_for(server, monkeypatch):
    with pytest.raises(DataError, match=r"is an address.*fetch=True \(--fetch\)"):
        load(f"{server}/a.png")
    samples = load(f"{server}/a.png", fetch=True)
    np.testing.assert_array_equal(np.asarray(samples[0].image), np.asarray(IMAGE))
    assert samples.outline()[0][2] == f"{server}/a.png"
    with pytest.raises(DataError, match=r"b\.png cannot be fetched .*404"):
        load(f"{server}/b.png", fetch=True)[0]
    monkeypatch.setattr(sources, "MAX_FETCHED", 10)
    with pytest.raises(DataError, match="sends more than 10 bytes"):
        samples[0]


def test_data_addresses(server):
    inline = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    np.testing.assert_array_equal(np.asarray(load(inline, fetch=True)[0].image), np.asarray(IMAGE))
    with pytest.raises(DataError, match="cannot be decoded"):
        load("data:image/png;base64,a", fetch=True)[0]


def test_a_picture_in_memory_that_is_none_is_named():
    with pytest.raises(DataError, match="Image of 0 cannot be used"):
        load(np.zeros((5, 5, 9), np.uint8))[0]


def test_stored_cells_are_read_when_they_are_asked_for():
    asked = []

    def look():
        asked.append(1)
        return (sources.Content(png()),)

    one, same, other = (sources.Stored(key, look) for key in ("a", "a", "b"))
    assert one == same != other
    assert len({one, same, other}) == 2
    assert not asked
    assert one.read("of 0")[0].size == IMAGE.size
    assert one.outline() == ("a", 0, 0)
