"""Geocodes places with a pool of four processes, as the article's last program does.

Without arguments it looks up the article's ten places, four of them misspelt.
`geocoding.py --help` says what else it can do.
"""

import argparse
import json
import os
import sys

import bunshin as mp

import geocoders

PLACES = (
    "Reykjavik",
    "Vien",
    "Zadar",
    "Venice",
    "Wrocow",
    "Bolognia",
    "Berlin",
    "Dehil",
    "New York",
    "Osaka",
)

POOL_SIZE = 4


def connect(geocoder):
    """Runs once in every worker, before its first task."""
    global api
    api = geocoder


def fetch_place(place):
    """Runs in a worker for every place. One that is not found does not harm the others."""
    try:
        return api.geocode(place)
    except geocoders.GeocodeError as error:
        return error


def one_line(text):
    """Text from outside stays on its line and does not command the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def present_result(place, result, as_json):
    failed = isinstance(result, Exception)
    if as_json:
        line = {"query": place}
        line.update({"error": str(result)} if failed else result._asdict())
        print(json.dumps(line, ensure_ascii=False))
    elif failed:
        print("{}: {}".format(one_line(place), one_line(str(result))))
    else:
        print("{:s}, {:6.2f}, {:6.2f}".format(one_line(result.address), result.lat, result.lng))


def read_places(name):
    """The places in a file, one a line; `-` is standard input."""
    file = sys.stdin if name == "-" else open(name, encoding="utf-8-sig")
    with file:
        return [line.strip() for line in file if line.strip()]


def arguments():
    parser = argparse.ArgumentParser(
        description="Finds the address, latitude and longitude of places."
    )
    parser.add_argument("places", nargs="*", metavar="PLACE")
    parser.add_argument(
        "-f", "--file", action="append", default=[], help="one place a line; - for stdin"
    )
    parser.add_argument("-j", "--jobs", type=int, default=POOL_SIZE, help="processes (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--start-method", choices=mp.get_all_start_methods())
    parser.add_argument("--timeout", type=float, default=10, help="seconds for one request (10)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--gazetteer", metavar="FILE", help="a GeoNames dump instead of the table")
    source.add_argument(
        "--google", action="store_true", help="Google's API, with the key in GOOGLE_MAPS_API_KEY"
    )
    source.add_argument("--google-url", metavar="URL", help="the same at another address")
    source.add_argument("--nominatim", metavar="URL", help="a Nominatim server")
    return parser.parse_args()


def choose_geocoder(args):
    if args.nominatim:
        public = "nominatim.openstreetmap.org" in args.nominatim
        pace = geocoders.Pace(mp.Value("d", 0.0), 1) if public else None
        return geocoders.Nominatim(args.nominatim, args.timeout, pace)
    if args.google or args.google_url:
        key = os.environ.get("GOOGLE_MAPS_API_KEY")
        if not key:
            sys.exit("geocoding: --google needs an API key in GOOGLE_MAPS_API_KEY")
        pace = geocoders.Pace(mp.Value("d", 0.0), 50)
        return geocoders.Google(key, args.timeout, pace, args.google_url)
    return geocoders.Gazetteer.read(args.gazetteer)


def main():
    args = arguments()
    if args.start_method:
        mp.set_start_method(args.start_method)
    try:
        places = args.places + [place for name in args.file for place in read_places(name)]
        geocoder = choose_geocoder(args)
    except (OSError, UnicodeDecodeError, geocoders.BadDump) as error:
        sys.exit("geocoding: {}".format(error))
    places = places or PLACES

    with mp.Pool(args.jobs, connect, (geocoder,)) as pool:
        results = pool.map(fetch_place, places)

    for place, result in zip(places, results):
        present_result(place, result, args.json)
    sys.exit(any(isinstance(result, Exception) for result in results))


if __name__ == "__main__":
    main()
