//! The geocoding example, from outside: its binary is run as a user would run it,
//! against the embedded table, files, and local servers that answer as the
//! documentation of the web services says.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Output, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use serde_json::{Value as Json, json};

use queries::{Query, ten_thousand_queries};
use server::{Reply, Server, google_match, nominatim_match};
use tool::{TempFile, binary, expect, expect_refusal, geocoding, stderr, stdout, tool};

#[allow(dead_code, reason = "the example uses the rest")]
#[path = "../examples/geocoding/countries.rs"]
mod countries;
#[path = "../examples/geocoding/fold.rs"]
mod fold;
#[path = "geocoding/queries.rs"]
mod queries;
#[path = "geocoding/server.rs"]
mod server;
mod support;
#[path = "geocoding/tool.rs"]
mod tool;

const METHODS: [&str; 3] = ["fork", "spawn", "forkserver"];

const TEN_PLACES: &str = "\
Reykjavík, Iceland,  64.15, -21.94
Vienna, Austria,  48.21,  16.37
Zadar, Croatia,  44.12,  15.23
Venice, Italy,  45.44,  12.32
Wrocław, Poland,  51.11,  17.04
Bologna, Italy,  44.49,  11.34
Berlin, Germany,  52.52,  13.40
Delhi, India,  28.70,  77.10
New York, NY, USA,  40.71, -74.01
Osaka, Japan,  34.69, 135.50
";

/// Runs the tool with Google at `server`.
fn google(server: &Server, args: &[&str]) -> Output {
    tool()
        .env("GOOGLE_MAPS_API_KEY", "not-a-secret")
        .args([
            "--google",
            "--google-url",
            &format!("{}/geocode/json", server.url()),
        ])
        .args(args)
        .output()
        .expect("the tool starts")
}

/// Guards a test; building the tool, if it comes to that, does not count.
fn guard(seconds: u64) -> support::Guard {
    binary();
    support::guard(seconds)
}

// ---------------------------------------------------------------------------
// The embedded table

#[test]
fn the_ten_places_of_the_article() {
    let _guard = guard(120);
    let output = geocoding(&[]);
    assert_eq!(stdout(&output), TEN_PLACES, "{}", stderr(&output));
    assert_eq!(output.status.code(), Some(0));
    for method in METHODS {
        let output = geocoding(&["--start-method", method]);
        assert_eq!(stdout(&output), TEN_PLACES, "{method}: {}", stderr(&output));
        assert_eq!(
            (stderr(&output), output.status.code()),
            ("", Some(0)),
            "{method}"
        );
    }
}

#[test]
fn places_come_from_arguments_files_and_standard_input() {
    let _guard = guard(60);
    let file = TempFile::new(
        "places.txt",
        "\u{feff}Wien\r\n\r\n  Tokio \r\n\nWien".as_bytes(),
    );
    let vienna = "Vienna, Austria,  48.21,  16.37";
    let tokyo = "Tokyo, Japan,  35.68, 139.65";
    expect(&["-f", file.path()], 0, &[vienna, tokyo, vienna]);
    let paris = "Paris, France,  48.86,   2.35";
    expect(
        &["-j1", "Paris", "-f", file.path(), "Paris"],
        0,
        &[paris, paris, vienna, tokyo, vienna],
    );

    let mut child = tool()
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the tool starts");
    let mut stdin = child.stdin.take().expect("it is a pipe");
    stdin
        .write_all(b"Tokyo, Japan\nParis\n")
        .expect("the tool reads");
    drop(stdin);
    let output = child.wait_with_output().expect("the tool ends");
    assert_eq!(stdout(&output), format!("{tokyo}\n{paris}\n"));

    let nothing = TempFile::new("nothing.txt", b"\n\n");
    expect(&["-f", nothing.path()], 0, &[]);
}

#[test]
fn a_place_that_cannot_be_found_is_reported_in_its_line() {
    let _guard = guard(60);
    let output = geocoding(&["Oslo", "Nowhereville", "Paris, Narnia", "qqqqqq", "Lima"]);
    let lines: Vec<&str> = stdout(&output).lines().collect();
    assert_eq!(lines.len(), 5);
    assert_eq!(lines[0], "Oslo, Norway,  59.91,  10.75");
    assert!(
        lines[1].starts_with("Nowhereville: no such place (closest: "),
        "{}",
        lines[1]
    );
    assert_eq!(lines[2], "Paris, Narnia: no such country or region: Narnia");
    assert_eq!(lines[3], "qqqqqq: no such place");
    assert_eq!(lines[4], "Lima, Peru, -12.05, -77.04");
    assert_eq!((stderr(&output), output.status.code()), ("", Some(1)));
}

#[test]
fn a_country_tells_cities_of_one_name_apart() {
    let _guard = guard(60);
    let queries = [
        "San Jose",
        "San Jose, Costa Rica",
        "Cambridge, MA",
        "Cambridge, UK",
        "Portland, Oregon",
        "New York, NY, USA",
        "Wein, Österreich",
        "Washington, D.C.",
        "Singapore, Singapur",
    ];
    expect(
        &queries,
        0,
        &[
            "San Jose, CA, USA,  37.34, -121.89",
            "San José, Costa Rica,   9.93, -84.09",
            "Cambridge, MA, USA,  42.37, -71.11",
            "Cambridge, UK,  52.21,   0.12",
            "Portland, OR, USA,  45.52, -122.68",
            "New York, NY, USA,  40.71, -74.01",
            "Vienna, Austria,  48.21,  16.37",
            "Washington, DC, USA,  38.91, -77.04",
            "Singapore,   1.35, 103.82",
        ],
    );
}

#[test]
fn json_gives_an_object_for_each_place() {
    let _guard = guard(60);
    let output = geocoding(&["--json", "Wrocow", "qqqqqq", "a \"quoted\"\nplace"]);
    let lines: Vec<Json> = stdout(&output)
        .lines()
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .collect();
    assert_eq!(
        lines,
        [
            json!({"query": "Wrocow", "address": "Wrocław, Poland", "lat": 51.1079, "lng": 17.0385}),
            json!({"query": "qqqqqq", "error": "no such place"}),
            json!({"query": "a \"quoted\"\nplace", "error": lines[2]["error"]}),
        ]
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_dump_of_ones_own_replaces_the_table_and_its_faults_are_located() {
    let _guard = guard(60);
    let row = |name: &str, latitude: &str| {
        format!("1\t{name}\t\tAlternative\t{latitude}\t2.5\tP\tPPL\tFR\t\t\t\t\t\t12\t\t\t\t\n")
    };
    let good = TempFile::new("good.txt", row("Trifouilly-les-Oies", "47.25").as_bytes());
    expect(
        &[
            "--gazetteer",
            good.path(),
            "Trifouily les oies",
            "alternative",
            "Berlin",
        ],
        1,
        &[
            "Trifouilly-les-Oies, France,  47.25,   2.50",
            "Trifouilly-les-Oies, France,  47.25,   2.50",
            "Berlin: no such place",
        ],
    );

    for (bytes, problem) in [
        (
            [row("A", "1"), row("B", "north")].concat().into_bytes(),
            ":2: latitude `north` is not valid",
        ),
        (
            b"one\ttwo\n".to_vec(),
            ":1: 2 columns, where a GeoNames row has 19 with tabs between them",
        ),
        (
            [row("A", "1").as_bytes(), b"2\tMalm\xf6\t"].concat(),
            ":2: not UTF-8 at byte 7 of the line",
        ),
        (Vec::new(), ": no populated places in it"),
    ] {
        let bad = TempFile::new("bad.txt", &bytes);
        let message = format!("geocoding: {}{problem}\n", bad.path());
        expect_refusal(&["--gazetteer", bad.path(), "A"], &message);
    }
    let missing = "geocoding: /nonexistent/dump.txt: No such file or directory (os error 2)\n";
    expect_refusal(&["--gazetteer", "/nonexistent/dump.txt"], missing);
}

#[test]
fn a_command_line_that_makes_no_sense_ends_with_status_2() {
    let _guard = guard(60);
    let hint = "\nTry `geocoding --help`.\n";
    expect_refusal(
        &["--frobnicate"],
        &format!("geocoding: unknown option `--frobnicate`{hint}"),
    );
    expect_refusal(
        &["-f"],
        &format!("geocoding: option `-f` needs a value{hint}"),
    );
    let missing = "geocoding: /nonexistent/places: No such file or directory (os error 2)\n";
    expect_refusal(&["-f", "/nonexistent/places"], missing);
    let latin1 = TempFile::new("latin1.txt", b"Oslo\nMalm\xf6\n");
    let message = format!("geocoding: {}:2: not UTF-8\n", latin1.path());
    expect_refusal(&["-f", latin1.path()], &message);
    let no_key = "geocoding: --google needs an API key in GOOGLE_MAPS_API_KEY\n";
    expect_refusal(&["--google"], no_key);

    let help = geocoding(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(stdout(&help).contains("--gazetteer FILE") && stdout(&help).contains("CC BY 4.0"));
}

#[test]
fn a_reader_that_leaves_early_is_no_fault() {
    let _guard = guard(60);
    let many = TempFile::new("many.txt", "Oslo\n".repeat(10_000).as_bytes());
    let mut child = tool()
        .args(["-f", many.path()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the tool starts");
    let mut out = BufReader::new(child.stdout.take().expect("it is a pipe"));
    let mut first = String::new();
    out.read_line(&mut first).expect("the tool writes");
    drop(out);
    let output = child.wait_with_output().expect("the tool ends");
    assert_eq!(first, "Oslo, Norway,  59.91,  10.75\n");
    assert_eq!((stderr(&output), output.status.code()), ("", Some(0)));
}

// ---------------------------------------------------------------------------
// Web services

#[test]
fn google_is_asked_as_documented() {
    let _guard = guard(60);
    let server = Server::start(|request, _| match request.parameter("address") {
        "Wrocow" => Reply::Json(google_match("Wrocław, Poland", 51.1079, 17.0385)),
        "São Paulo & Rio" => Reply::Json(google_match("São\nPaulo\u{1b}[2J", -23.55, -46.63)),
        "Nowhere" => Reply::Json(json!({"results": [], "status": "ZERO_RESULTS"})),
        "Denied" => Reply::Json(json!({
            "error_message": "The provided API key is invalid.",
            "results": [],
            "status": "REQUEST_DENIED",
        })),
        "Garbage" => Reply::Bytes(b"<html>not JSON</html>".to_vec()),
        "Huge" => Reply::Bytes(vec![b' '; 2 << 20]),
        "Hollow" => Reply::Json(json!({"results": [], "status": "OK"})),
        "Moon" => Reply::Json(google_match("Moon", 123.0, 0.0)),
        _ => Reply::Status("500 Internal Server Error", ""),
    });
    let places = [
        "Wrocow",
        "São Paulo & Rio",
        "Nowhere",
        "Denied",
        "Garbage",
        "Huge",
        "Hollow",
        "Moon",
        "Broken",
    ];
    let output = google(&server, &places);
    let lines: Vec<&str> = stdout(&output).lines().collect();
    assert_eq!(
        lines,
        [
            "Wrocław, Poland,  51.11,  17.04",
            "São Paulo [2J, -23.55, -46.63",
            "Nowhere: no such place",
            "Denied: Google: REQUEST_DENIED: The provided API key is invalid.",
            "Garbage: Google: unexpected answer: expected value at line 1 column 1",
            "Huge: Google: unexpected answer: more than 1048576 bytes",
            "Hollow: Google: unexpected answer: status OK without results",
            "Moon: Google: unexpected answer: 123, 0 is off the globe",
            "Broken: Google: HTTP status 500",
        ]
    );
    assert_eq!((stderr(&output), output.status.code()), ("", Some(1)));

    let requests = server.requests();
    assert_eq!(
        requests.len(),
        places.len(),
        "what failed for good is not asked again"
    );
    for request in &requests {
        assert_eq!(request.path, "/geocode/json");
        assert_eq!(request.parameter("key"), "not-a-secret");
        assert_eq!(request.parameter("language"), "en");
    }
    let asked: HashSet<&str> = requests
        .iter()
        .map(|request| request.parameter("address"))
        .collect();
    assert_eq!(asked, HashSet::from(places));
}

#[test]
fn a_busy_service_is_asked_again_but_not_for_ever() {
    let _guard = guard(60);
    let server = Server::start(|_, n_before| match n_before {
        0 => Reply::Json(json!({"results": [], "status": "OVER_QUERY_LIMIT"})),
        1 => Reply::Status("503 Service Unavailable", "Retry-After: 0\r\n"),
        _ => Reply::Json(google_match("Oslo, Norway", 59.91, 10.75)),
    });
    let output = google(&server, &["Oslo"]);
    assert_eq!(stdout(&output), "Oslo, Norway,  59.91,  10.75\n");
    assert_eq!(server.requests().len(), 3);
    drop(server);

    for (reply, message) in [
        (None, "Oslo: Google: HTTP status 429\n"),
        (
            Some("Slow down."),
            "Oslo: Google: OVER_QUERY_LIMIT: Slow down.\n",
        ),
    ] {
        let server = Server::start(move |_, _| match reply {
            None => Reply::Status("429 Too Many Requests", "Retry-After: 0\r\n"),
            Some(words) => Reply::Json(json!({
                "error_message": words, "results": [], "status": "OVER_QUERY_LIMIT",
            })),
        });
        let output = google(&server, &["--retries", "1", "Oslo"]);
        assert_eq!(stdout(&output), message);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(server.requests().len(), 2);
    }
}

#[test]
fn nominatim_is_asked_as_documented() {
    let _guard = guard(60);
    let server = Server::start(|request, _| match request.parameter("q") {
        "Vien, Österreich" => Reply::Json(nominatim_match(
            "Vienna, Austria",
            "48.2083537",
            "16.3725042",
        )),
        "Nowhere" => Reply::Json(json!([])),
        "Odd" => Reply::Json(nominatim_match("Odd", "north", "16.37")),
        "Garbage" => Reply::Bytes(b"\xff\xfe".to_vec()),
        _ => Reply::Status("404 Not Found", ""),
    });
    let places = ["Vien, Österreich", "Nowhere", "Odd", "Garbage", "Lost"];
    for (method, url) in METHODS.iter().zip(["", "/", "/search"]) {
        let url = server.url() + url;
        let mut args = vec!["--nominatim", &url, "--start-method", method];
        args.extend(places);
        let output = geocoding(&args);
        let lines: Vec<&str> = stdout(&output).lines().collect();
        assert_eq!(lines.len(), places.len(), "{method}: {}", stderr(&output));
        assert_eq!(lines[0], "Vienna, Austria,  48.21,  16.37");
        assert_eq!(lines[1], "Nowhere: no such place");
        assert_eq!(
            lines[2],
            "Odd: Nominatim: unexpected answer: `north`, `16.37` is no position"
        );
        assert!(
            lines[3].starts_with("Garbage: Nominatim: unexpected answer: "),
            "{}",
            lines[3]
        );
        assert_eq!(lines[4], "Lost: Nominatim: HTTP status 404");
        assert_eq!((stderr(&output), output.status.code()), ("", Some(1)));
    }
    let requests = server.requests();
    assert_eq!(requests.len(), places.len() * METHODS.len());
    for request in requests {
        assert_eq!(request.path, "/search");
        assert_eq!(request.parameter("format"), "jsonv2");
        assert!(
            request.user_agent.starts_with("bunshin-geocoding"),
            "{}",
            request.user_agent
        );
    }
}

#[test]
fn a_silent_or_absent_service_is_given_up() {
    let _guard = guard(60);
    let server = Server::start(|request, _| match request.parameter("q") {
        "Silent" => Reply::Silence,
        _ => Reply::Json(nominatim_match("Oslo, Norway", "59.91", "10.75")),
    });
    let url = server.url();
    expect(
        &["--nominatim", &url, "--timeout", "0.5", "Silent", "Oslo"],
        1,
        &[
            "Silent: Nominatim: no answer within 0.5 s",
            "Oslo, Norway,  59.91,  10.75",
        ],
    );
    drop(server);
    let output = geocoding(&["--nominatim", &url, "Oslo"]);
    assert!(
        stdout(&output).starts_with("Oslo: Nominatim: "),
        "{}",
        stdout(&output)
    );
    assert_eq!((stderr(&output), output.status.code()), ("", Some(1)));
}

#[test]
fn the_rate_holds_over_all_workers_together() {
    let _guard = guard(60);
    let server = Server::start(|request, _| {
        Reply::Json(nominatim_match(request.parameter("q"), "1.5", "2.5"))
    });
    let places: Vec<String> = (0..15).map(|number| format!("Place {number}")).collect();
    let url = server.url();
    let mut command = tool();
    command.args(["--nominatim", &url, "--rate", "10", "-j4"]);
    command.args(&places);
    // Only now, as the tool may have to be built first.
    let start = Instant::now();
    let output = command.output().expect("the tool starts");
    let expected: String = places
        .iter()
        .map(|place| format!("{place},   1.50,   2.50\n"))
        .collect();
    assert_eq!(stdout(&output), expected, "{}", stderr(&output));

    // Nothing bounds how late a request may come, but none may come early: the one
    // number k starts k tenths of a second after the first, which starts after `start`.
    let mut arrivals: Vec<Duration> = server
        .requests()
        .iter()
        .map(|request| request.at - start)
        .collect();
    arrivals.sort_unstable();
    assert_eq!(arrivals.len(), places.len());
    for (at, arrival) in (0_u32..).zip(arrivals) {
        assert!(
            arrival >= Duration::from_millis(100) * at,
            "request {at} came after {arrival:?}"
        );
    }
}

// ---------------------------------------------------------------------------
// Many queries, and workers that are killed

/// Kills one worker of the tool, whichever the clock's last digits point at.
fn kill_a_worker(tool: u32) -> bool {
    let is_worker = |pid: &u32| {
        support::is_running(*pid)
            && support::ProcessState::of(*pid).is_some_and(|state| state.comm != "bunshin-fs")
    };
    let workers: Vec<u32> = support::descendants(tool)
        .into_iter()
        .filter(is_worker)
        .collect();
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("it is after 1970");
    match workers.get(now.subsec_micros() as usize % workers.len().max(1)) {
        Some(&worker) => support::kill(worker, Signal::KILL),
        None => false,
    }
}

/// Looks all queries up while two workers are killed, and checks every line. Gives
/// the number of workers that were killed before the list was done.
fn look_up_and_kill(method: &str, file: &TempFile, queries: &[Query]) -> u32 {
    let mut child = tool()
        .args(["-f", file.path(), "--progress", "--start-method", method])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the tool starts");
    let mut out = child.stdout.take().expect("it is a pipe");
    let printed = thread::spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).map(|_| text)
    });
    let mut n_killed = 0;
    let mut messages = String::new();
    for line in BufReader::new(child.stderr.take().expect("it is a pipe")).lines() {
        let line = line.expect("the messages are UTF-8");
        let n_done = line.strip_suffix("/10000 places");
        match n_done.and_then(|n_done| n_done.parse::<u32>().ok()) {
            // Once after a tenth of the list and once in its middle.
            Some(n_done) if n_done < 10_000 => {
                if n_killed == 0 || n_killed == 1 && n_done >= 5_000 {
                    n_killed += u32::from(kill_a_worker(child.id()));
                }
            }
            Some(_) => {}
            None => messages += &(line + "\n"),
        }
    }
    let status = child.wait().expect("it can be waited for");
    let printed = printed.join().expect("the reader does not panic");
    let printed = printed.expect("the output is UTF-8");
    assert_eq!(messages, "", "{method}");

    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), queries.len(), "{method}");
    let mut n_lost = 0;
    for (number, (line, query)) in lines.iter().zip(queries).enumerate() {
        if *line != query.line {
            let reason = line.strip_prefix(&format!("{}: ", query.place));
            let is_lost = reason.is_some_and(|reason| reason.contains("SIGKILL"));
            assert!(is_lost, "{method}: line {number}, {}: {line}", query.place);
            n_lost += 1;
        }
    }
    assert!(
        n_lost <= n_killed,
        "{method}: {n_lost} places were lost to {n_killed} deaths"
    );
    assert_eq!(status.code(), Some(i32::from(n_lost > 0)), "{method}");
    n_killed
}

#[test]
fn serial_ten_thousand_queries_survive_two_killed_workers() {
    let _guard = guard(170);
    let queries = ten_thousand_queries();
    let places: String = queries
        .iter()
        .map(|query| format!("{}\n", query.place))
        .collect();
    let file = TempFile::new("10000.txt", places.as_bytes());
    for method in METHODS {
        // A quick tool under a loaded machine may be done before it is shot at.
        let both_hit = (0..10).any(|_| look_up_and_kill(method, &file, &queries) == 2);
        assert!(both_hit, "{method}: the list was always done too soon");
    }
}
