"""The four programs: what they print, beside the interpreter's own `multiprocessing`."""

import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
import urllib.parse

import pytest

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"
EXPECTED = EXAMPLES.parent.parent / "ci" / "expected"
METHODS = ["fork", "spawn", "forkserver"]
GUARD = 120


def run(program, *arguments, **environment):
    return subprocess.run(
        [sys.executable, program, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=GUARD,
    )


def printed(program, *arguments):
    """What a program prints, with addresses and process ids replaced by the order they come in."""
    ended = run(program, *arguments)
    assert ended.returncode == 0, ended.stderr
    known = {}
    return re.sub(
        r"0x[0-9a-f]+|(?<=PID is )\d+|(?<=[\[ ])\d{2,}(?=[,\]])",
        lambda number: known.setdefault(number[0], f"<{len(known)}>"),
        ended.stdout,
    )


@pytest.fixture
def original(tmp_path):
    """The programs with their import line changed back."""
    for file in EXAMPLES.glob("*.py"):
        text = file.read_text(encoding="utf-8").replace(
            "import bunshin as mp", "import multiprocessing as mp"
        )
        text = text.replace("os.path.dirname(os.path.abspath(__file__))", repr(str(EXAMPLES)))
        (tmp_path / file.name).write_text(text, encoding="utf-8")
    return tmp_path


def programs():
    """The programs that the two READMEs show."""
    for folder in EXAMPLES.parent, EXAMPLES.parent.parent:
        text = (folder / "README.md").read_text(encoding="utf-8")
        # What a program prints stands in its comments, or in a block after it.
        blocks = r"^```python\n(.*?)^```(?:\n\n```text\n(.*?)^```)?"
        for number, (program, block) in enumerate(re.findall(blocks, text, re.M | re.S)):
            if "__main__" in program:
                expected = block.splitlines() or re.findall(r"^ +print\(.*\)  # (.*)$", program, re.M)
                yield pytest.param(program, expected, id=f"{folder.name}-{number}")


@pytest.mark.parametrize(("program", "expected"), list(programs()))
def test_readme(program, expected, tmp_path):
    file = tmp_path / "program.py"
    file.write_text(program, encoding="utf-8")
    ended = run(file)
    assert expected and ended.stdout.splitlines() == expected, ended.stderr


def test_fork(original):
    ours = printed(EXAMPLES / "fork.py")
    assert ours == printed(original / "fork.py")
    assert ours.count("I am the parent process") == ours.count("I am the child process") == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("program", ["pipe.py", "value_array.py"])
def test_pipe_and_values(program, method, original):
    ours = printed(EXAMPLES / program, method)
    assert ours == printed(original / program, method)
    if program == "value_array.py":
        assert ours == (EXPECTED / "value_array.txt").read_text()
    else:
        assert ours.count("child: received: ") == 4


@pytest.mark.parametrize("method", METHODS)
def test_geocoding(method, original):
    expected = (EXPECTED / "geocoding.txt").read_text(encoding="utf-8")
    for folder in EXAMPLES, original:
        ended = run(folder / "geocoding.py", "--start-method", method, PYTHONIOENCODING="utf-8")
        assert (ended.stdout, ended.returncode) == (expected, 0), ended.stderr


def geocode(*arguments, **environment):
    ended = run(EXAMPLES / "geocoding.py", *arguments, PYTHONIOENCODING="utf-8", **environment)
    return ended.stdout.splitlines(), ended.returncode, ended.stderr


def test_geocoding_of_files(tmp_path):
    names = ["Łódź", "Nowhere at all", "Portland, USA", "Muenchen", "Paris, Narnia"]
    file = tmp_path / "places"
    file.write_text("\n".join([*names, "", "Zuerich"]), encoding="utf-8")
    lines, code, _ = geocode("-f", str(file), "-j", "2")
    assert code == 1
    assert lines == [
        "Łódź, Poland,  51.76,  19.46",
        "Nowhere at all: no such place",
        "Portland, OR, USA,  45.52, -122.68",
        "Munich, Germany,  48.14,  11.58",
        "Paris, Narnia: no such country or region: Narnia",
        "Zurich, Switzerland,  47.38,   8.54",
    ]
    assert geocode("--json", "Osaka")[0] == [
        '{"query": "Osaka", "address": "Osaka, Japan", "lat": 34.6937, "lng": 135.5023}'
    ]


def test_geocoding_of_bad_tables(tmp_path):
    dump = tmp_path / "dump.txt"
    for text, message in (
        ("1\tLodz\n", "dump.txt:1: 2 columns"),
        ("", "no populated places"),
        ("\t".join(["1", "Lodz", "Lodz", "", "north", "1", "P", *[""] * 12]), "dump.txt:1: "),
        ("\t".join(["1", "Lodz", "Lodz", "", "91", "1", "P", *[""] * 12]), "off the globe"),
    ):
        dump.write_text(text)
        lines, code, errors = geocode("--gazetteer", str(dump))
        assert (lines, code) == ([], 1) and message in errors, errors


class Service(http.server.BaseHTTPRequestHandler):
    """Answers as the two services document; what the place is called says how."""

    busy = {"Zadar"}

    def do_GET(self):
        path, _, query = self.path.partition("?")
        asked = dict(urllib.parse.parse_qsl(query))
        google = path.endswith("/json")
        place = asked["address" if google else "q"]
        if place in self.busy:
            self.busy.remove(place)
            return self.answer(503, b"")
        if place == "Broken":
            return self.answer(500, b"")
        if place == "Garbage":
            return self.answer(200, b"<html>")
        if place == "Slow":
            time.sleep(3)
        body = self.google(place, asked) if google else self.nominatim(place)
        self.answer(200, json.dumps(body).encode())

    def google(self, place, asked):
        if asked["key"] != "secret":
            return {"status": "REQUEST_DENIED", "error_message": "The key is invalid.", "results": []}
        if place == "Nowhere":
            return {"status": "ZERO_RESULTS", "results": []}
        lat = 1000 if place == "Off" else 44.12
        geometry = {"location": {"lat": lat, "lng": 15.23}}
        return {"status": "OK", "results": [{"formatted_address": place + ", X", "geometry": geometry}]}

    def nominatim(self, place):
        if place == "Nowhere":
            return []
        lat = "1000" if place == "Off" else "44.12"
        return [{"display_name": place + ", X", "lat": lat, "lon": "15.23"}]

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except BrokenPipeError:
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    Service.busy = {"Zadar"}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("service", ["Google", "Nominatim"])
def test_geocoding_by_services(service, server):
    where = ["--google-url", server + "/json"] if service == "Google" else ["--nominatim", server]
    places = ["Zadar", "Nowhere", "Broken", "Garbage", "Off", "Slow", "Rab"]
    lines, code, errors = geocode(*where, "--timeout", "1", *places, GOOGLE_MAPS_API_KEY="secret")
    assert code == 1, errors
    assert lines[0] == "Zadar, X,  44.12,  15.23"
    assert lines[1] == "Nowhere: no such place"
    assert lines[2] == f"Broken: {service}: HTTP status 500"
    assert lines[3].startswith(f"Garbage: {service}: unexpected answer: ")
    assert lines[4] == f"Off: {service}: unexpected answer: 1000{'' if service == 'Google' else '.0'}, 15.23 is off the globe"
    assert lines[5] == f"Slow: {service}: no answer within 1 s"
    assert lines[6] == "Rab, X,  44.12,  15.23"


def test_geocoding_without_a_key_or_a_server(server):
    lines, code, errors = geocode("--google-url", server + "/json", GOOGLE_MAPS_API_KEY="")
    assert (lines, code) == ([], 1) and "GOOGLE_MAPS_API_KEY" in errors
    lines, code, _ = geocode("--google-url", server + "/json", "Rab", GOOGLE_MAPS_API_KEY="wrong")
    assert lines == ["Rab: Google: REQUEST_DENIED: The key is invalid."]
    lines, code, _ = geocode("--nominatim", "http://127.0.0.1:1", "Rab")
    assert code == 1 and lines[0].startswith("Rab: Nominatim: ")
