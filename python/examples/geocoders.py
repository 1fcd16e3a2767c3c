"""Three geocoders with one method: a table of places, Google's API, and Nominatim."""

import json
import os
import time
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict, namedtuple

Geocoded = namedtuple("Geocoded", "address lat lng")

# The tables of the Rust example, which this program is the twin of.
TABLES = os.path.join(
    os.path.dirname(os.path.abspath(__file__)),
    *("../../crates/bunshin/examples/geocoding".split("/"))
)


class GeocodeError(Exception):
    """Why a place was not found."""


class BadDump(Exception):
    """A file that is no GeoNames dump."""


# --- a table of places


def fold(name):
    """The form in which names are compared: lower case, without diacritics and punctuation."""
    letters = {"ł": "l", "ø": "o", "đ": "d", "ı": "i", "æ": "ae", "œ": "oe", "þ": "th", "ð": "d"}
    folded = []
    for letter in unicodedata.normalize("NFKD", name.casefold()):
        if unicodedata.combining(letter) or letter in ".'`´’‘ʻʼʾʿ":
            continue
        folded.append(letters.get(letter, letter) if letter.isalnum() else " ")
    words = {"st": "saint", "mt": "mount", "ft": "fort"}
    return " ".join(words.get(word, word) for word in "".join(folded).split())


def distance(a, b):
    """The optimal string alignment distance: edits, where a swap of neighbours is one."""
    before, row = [], list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        earlier, before, row = before, row, [i]
        for j, other in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                cost = min(cost, earlier[j - 2] + 1)
            row.append(cost)
    return row[-1]


def cost(query, key):
    """Two for each edit, and one more if the first letters differ: people seldom get that wrong."""
    return 2 * distance(query, key) + (query[:1] != key[:1])


def misspelling_limit(length):
    """The highest cost at which a name of that length still counts as a misspelling."""
    for longest, limit in ((3, 0), (4, 3), (7, 4), (11, 5)):
        if length <= longest:
            return limit
    return 7


def letters_of(key):
    """The set of letters as bits. One edit clears at most one and sets at most one."""
    bits = 0
    for letter in key:
        bits |= 1 << ord(letter) % 63
    return bits


class Gazetteer:
    """A table in the columns of a GeoNames dump, searched by name; misspellings are forgiven."""

    def __init__(self, places, countries):
        self.places = places
        self.countries = countries
        self.keys = defaultdict(list)
        for number, place in enumerate(places):
            for key in {fold(name) for name in place["names"]}:
                if key:
                    self.keys[key].append(number)
        self.letters = {key: letters_of(key) for key in self.keys}
        self.codes = {}
        for code, names in countries.items():
            for name in (code, *names):
                self.codes.setdefault(fold(name), code)

    @classmethod
    def read(cls, dump=None):
        """Reads a dump, or the table that is always there."""
        countries = {}
        with open(os.path.join(TABLES, "countries.tsv"), encoding="utf-8") as file:
            for line in file:
                if not line.startswith("#"):
                    code, *names = line.rstrip("\n").split("\t")
                    countries[code] = names
        dump = dump or os.path.join(TABLES, "cities.tsv")
        places = []
        with open(dump, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                columns = line.rstrip("\r\n").split("\t")
                if not line.strip() or line.startswith("#"):
                    continue
                if len(columns) < 19:
                    raise BadDump(f"{dump}:{number}: {len(columns)} columns, a GeoNames row has 19")
                if columns[6] != "P":
                    continue
                try:
                    lat, lng, population = *map(float, columns[4:6]), int(columns[14] or 0)
                except ValueError as error:
                    raise BadDump(f"{dump}:{number}: {error}") from None
                if not (abs(lat) <= 90 and abs(lng) <= 180):
                    raise BadDump(f"{dump}:{number}: {lat}, {lng} is off the globe")
                names = [*columns[1:3], *columns[3].split(",")]
                place = {"names": names, "lat": lat, "lng": lng, "population": population}
                places.append({**place, "country": columns[8], "admin1": columns[10]})
        if not places:
            raise BadDump(f"{dump}: no populated places in it")
        return cls(places, countries)

    def geocode(self, query):
        exact = self.keys.get(fold(query))
        if exact:
            return self.found(self.most_populous(exact))
        name, *areas = (part.strip() for part in query.replace("，", ",").split(","))
        codes = set()
        for area in filter(None, areas):
            code = self.codes.get(fold(area))
            if code is None:
                raise GeocodeError(f"no such country or region: {area}")
            codes.add(code)
        key = fold(name)
        limit = misspelling_limit(len(key))
        near = [
            (cost(key, other), number)
            for other in self.near_keys(key, limit // 2)
            for number in self.keys[other]
            if codes <= {self.places[number]["country"]}
        ]
        near = [(found, number) for found, number in near if found <= limit]
        if not near:
            raise GeocodeError("no such place")
        best = min(near)[0]
        return self.found(self.most_populous(number for found, number in near if found == best))

    def near_keys(self, key, edits):
        """The names that may be that near; the cheap tests leave out most."""
        letters = letters_of(key)
        for other, others in self.letters.items():
            if (
                abs(len(other) - len(key)) <= edits
                and (letters & ~others).bit_count() <= edits
                and (others & ~letters).bit_count() <= edits
            ):
                yield other

    def most_populous(self, numbers):
        return max(numbers, key=lambda number: (self.places[number]["population"], -number))

    def found(self, number):
        place = self.places[number]
        name, code = place["names"][0], place["country"]
        country = self.countries.get(code, [code])[0]
        parts = [name, place["admin1"], country] if code == "US" else [name, country]
        if country == name:
            parts = [name]
        return Geocoded(", ".join(filter(None, parts)), place["lat"], place["lng"])


# --- web services


class Pace:
    """At most so many requests a second, over all workers together."""

    def __init__(self, until, per_second):
        self.until = until
        self.interval = 1 / per_second

    def wait(self):
        now = time.monotonic()
        with self.until.get_lock():
            start = max(self.until.value, now)
            self.until.value = start + self.interval
        time.sleep(max(0, start - now))


class WebService:
    """What the two services share: one request with a time limit, asked again if they are busy."""

    name = "service"
    longest_answer = 1 << 20

    def __init__(self, url, timeout, pace, retries=3):
        self.url = url
        self.timeout = timeout
        self.pace = pace
        self.retries = retries

    def get(self, **parameters):
        request = urllib.request.Request(
            f"{self.url}?{urllib.parse.urlencode(parameters)}",
            headers={"User-Agent": "bunshin-geocoding-example"},
        )
        for pause in [0.5 * 2**number for number in range(self.retries)] + [None]:
            if self.pace:
                self.pace.wait()
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    body = answer.read(self.longest_answer + 1)
                if len(body) > self.longest_answer:
                    raise self.error(f"unexpected answer: more than {self.longest_answer} bytes")
                return json.loads(body)
            except urllib.error.HTTPError as error:
                if error.code not in (429, 503) or pause is None:
                    raise self.error(f"HTTP status {error.code}") from None
            except TimeoutError:
                raise self.error(f"no answer within {self.timeout:g} s") from None
            except urllib.error.URLError as error:
                if isinstance(error.reason, TimeoutError):
                    raise self.error(f"no answer within {self.timeout:g} s") from None
                raise self.error(error.reason) from None
            except OSError as error:
                raise self.error(error) from None
            except ValueError as error:
                raise self.error(f"unexpected answer: {error}") from None
            time.sleep(pause)

    def error(self, reason):
        return GeocodeError(f"{self.name}: {reason}")

    def read(self, answer, reader):
        """What `reader` makes of an answer; one that is not as documented is the service's fault."""
        try:
            found = reader(answer)
            if abs(found.lat) <= 90 and abs(found.lng) <= 180:
                return found
            reason = f"{found.lat}, {found.lng} is off the globe"
        except (LookupError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
        raise self.error(f"unexpected answer: {reason}")


class Google(WebService):
    """Google's Geocoding API.

    https://developers.google.com/maps/documentation/geocoding/requests-geocoding
    """

    name = "Google"

    def __init__(self, key, timeout, pace, url=None):
        super().__init__(url or "https://maps.googleapis.com/maps/api/geocode/json", timeout, pace)
        self.key = key

    def geocode(self, place):
        answer = self.get(address=place, language="en", key=self.key)
        status = answer.get("status") if isinstance(answer, dict) else None
        if status == "ZERO_RESULTS":
            raise GeocodeError("no such place")
        if status != "OK":
            detail = answer.get("error_message") if isinstance(answer, dict) else None
            raise self.error(": ".join(str(part) for part in (status, detail) if part))

        def first(answer):
            match = answer["results"][0]
            location = match["geometry"]["location"]
            return Geocoded(match["formatted_address"], location["lat"], location["lng"])

        return self.read(answer, first)


class Nominatim(WebService):
    """The search of OpenStreetMap, public or one's own.

    https://nominatim.org/release-docs/latest/api/Search/
    """

    name = "Nominatim"

    def __init__(self, url, timeout, pace):
        super().__init__(url.rstrip("/").removesuffix("/search") + "/search", timeout, pace)

    def geocode(self, place):
        answer = self.get(q=place, format="jsonv2", limit=1, **{"accept-language": "en"})
        if answer == []:
            raise GeocodeError("no such place")

        def first(answer):
            match = answer[0]
            return Geocoded(match["display_name"], float(match["lat"]), float(match["lon"]))

        return self.read(answer, first)
