"""The client against a small server: answers, repetitions, secrets, and other processes."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import socket
import ssl
import subprocess
import sys
import threading
import time

import awkward as ak
import numpy as np
import pytest
import trustme

from common.errors import ClusterError, JecError
from common.project import ROOT
from jec_client import Client, InputError, NotServing, ServerError, Unreachable, validity
from serving.client import Client as ClientOfTheProject
from tests.clients.model_server import METADATA, MOST, NAME, ModelServer

PACKAGE = ROOT / "clients" / "python"


@pytest.fixture
def server():
    running = ModelServer()
    yield running
    running.close()


def jets(count: int) -> ak.Array:
    rng = np.random.default_rng(count)
    number = rng.integers(0, 5, count)
    particles = ak.unflatten(rng.uniform(1, 9, number.sum()), number)
    columns = {"jetPt": rng.uniform(20, 200, count), "PF_pT": particles, "nPF": number}
    return ak.zip(columns, depth_limit=1)


def expected_pt(of: ak.Array) -> np.ndarray:
    return ak.to_numpy(2 * of.jetPt + ak.sum(of.PF_pT, axis=-1))


@pytest.mark.parametrize("count", [1, MOST, MOST + 1, 500])
def test_jets_are_split_at_the_server_s_maximum_and_keep_their_order(server, count):
    columns = jets(count)
    answers = Client(server.url, NAME).calibrate(columns)
    np.testing.assert_allclose(answers.calibrated_pt, expected_pt(columns), rtol=1e-6)
    assert answers.fields == ["calibrated_pt", "valid"]
    assert answers.type.content.contents[1].primitive == "bool"
    assert server.batches == [MOST] * (count // MOST) + [count % MOST] * (count % MOST > 0)


def test_no_jets_give_no_answers_and_no_request(server):
    answers = Client(server.url, NAME).calibrate(jets(3)[:0])
    assert str(answers.type) == "0 * {calibrated_pt: float32, valid: bool}"
    assert server.batches == []


def test_jets_of_events_give_answers_of_events(server):
    events = ak.unflatten(jets(100), [3, 0, 97])
    answers = Client(server.url, NAME).calibrate(events)
    assert ak.num(answers).to_list() == [3, 0, 97]
    np.testing.assert_allclose(
        ak.flatten(answers.calibrated_pt), expected_pt(ak.flatten(events)), rtol=1e-6
    )


def test_invalid_jets_are_counted_by_reason(server):
    pt, particles = np.full(200, 50.0), [[1.0, 2.0]] * 200
    pt[[0, 50, 100, 150]] = 3
    particles[50] = [1.0, np.nan]
    particles[100] = []
    columns = {"jetPt": pt, "PF_pT": particles}
    answers = Client(server.url, NAME).calibrate(columns)
    assert answers.attrs["invalid"] == {
        validity.PT_RANGE: 2,
        validity.NOT_FINITE: 1,
        validity.NO_PARTICLES: 1,
    }


def test_a_model_without_batches_gets_one_jet_per_request(server):
    page = copy.deepcopy(server.pages[f"/v2/models/{NAME}"])
    for tensor in page["inputs"]:
        tensor["shape"][0] = 1
    server.pages[f"/v2/models/{NAME}"] = page
    server.pages[f"/v2/models/{NAME}/config"] = {"max_batch_size": 0}
    columns = jets(3)
    answers = Client(server.url, NAME).calibrate(columns)
    np.testing.assert_allclose(answers.calibrated_pt, expected_pt(columns), rtol=1e-6)
    assert server.batches == [1, 1, 1]


def test_a_server_without_a_model_configuration(server):
    del server.pages[f"/v2/models/{NAME}/config"]
    columns = jets(MOST)
    columns["jetPt"] = np.where(np.arange(MOST) == 7, 3, columns["jetPt"])
    answers = Client(server.url, NAME).calibrate(columns)
    assert answers.attrs["invalid"] == {validity.OTHER: 1}


@pytest.mark.parametrize(
    "description",
    [
        {"name": "other", "extensions": ["model_repository"]},
        {"name": "kserve", "version": "0.11.1", "extensions": []},
    ],
    ids=["other", "kserve"],
)
def test_a_server_without_bytes_gets_json(server, description):
    server.pages["/v2"] = description
    columns = jets(10)
    answers = Client(server.url, NAME).calibrate(columns)
    np.testing.assert_allclose(answers.calibrated_pt, expected_pt(columns), rtol=1e-6)
    assert server.headers[-1]["content-type"] == "application/json"


def test_nothing_is_sent_for_columns_that_are_wrong(server):
    with pytest.raises(InputError, match=rf"{NAME}.*'jetPt' \(nearest: 'jet_pt'\)"):
        Client(server.url, NAME).calibrate({"jet_pt": [1.0], "PF_pT": [[1.0]]})
    assert server.batches == []


# --------------------------------------------------------------------------------- bad servers

BUSY = (503, b"upstream connect error")


def test_a_request_is_repeated_while_the_server_is_busy(server):
    client = Client(server.url, NAME)
    client.calibrate(jets(1))
    server.failures = [BUSY, (0, b""), (429, b"")]
    columns = jets(2 * MOST)
    np.testing.assert_allclose(
        client.calibrate(columns).calibrated_pt, expected_pt(columns), rtol=1e-6
    )


def test_a_server_that_stays_busy_is_an_error_after_some_retries(server):
    server.failures = [BUSY] * 20
    with pytest.raises(NotServing, match=r"503.*upstream connect error"):
        Client(server.url, NAME).calibrate(jets(1))
    assert len(server.failures) == 16


def test_a_request_that_makes_the_model_fail_is_not_repeated(server):
    client = Client(server.url, NAME)
    client.calibrate(jets(1))
    failure = (500, b'{"error": "out of memory"}')
    server.failures = [failure] * 2
    with pytest.raises(ServerError, match=r"500.*out of memory"):
        client.calibrate(jets(1))
    assert server.failures == [failure]


def test_a_refused_request_is_an_input_error_and_the_metadata_are_read_again(server):
    client = Client(server.url, NAME)
    client.calibrate(jets(1))
    server.failures = [(400, b'{"error": "unexpected shape"}')]
    with pytest.raises(InputError, match=r"refused.*unexpected shape"):
        client.calibrate(jets(1))
    request_count = len(server.headers)
    client.calibrate(jets(1))
    assert len(server.headers) - request_count > 1


def test_an_unknown_model_is_named_with_the_nearest(server):
    with pytest.raises(InputError, match=f"'m-rwa'.*'{NAME}'"):
        Client(server.url, "m-rwa").calibrate(jets(1))


@pytest.mark.parametrize("change_case", [str.lower, str.upper, str.title])
def test_a_gateway_may_change_the_case_of_headers(server, change_case):
    server.change_case = change_case
    answers = Client(server.url, NAME).calibrate(jets(3))
    server.change_case = str
    expected = Client(server.url, NAME).calibrate(jets(3))
    assert answers.tolist() == expected.tolist()


def test_a_server_of_another_protocol_is_refused(server):
    server.pages = {}
    with pytest.raises(InputError, match="does not speak the Open Inference Protocol v2"):
        Client(server.url, NAME).calibrate(jets(1))


def test_a_refused_connection_is_an_error_at_once():
    start = time.monotonic()
    with pytest.raises(Unreachable, match=r"no server answers at http://127\.0\.0\.1:9"):
        Client("http://127.0.0.1:9", NAME).calibrate(jets(1))
    assert time.monotonic() - start < 5


def test_a_malformed_answer_is_refused(server):
    client = Client(server.url, NAME)
    client.calibrate(jets(1))
    pt = '{"name": "calibrated_pt", "datatype": "FP32", "shape": [1, 1], "data": [1]}'
    scalar = '{"name": "calibrated_pt", "datatype": "FP32", "shape": [], "data": 1}'
    valid = '{"name": "valid", "datatype": "FP32", "shape": [1, 1], "data": [0.5]}'
    bodies = [
        "{}",
        "[]",
        "<html>",
        "[" * 100_000,
        '{"outputs": [{"name": "valid"}]}',
        '{"outputs": {"valid": [true]}}',
        '{"outputs": [{"name": "valid", "parameters": [1]}]}',
        f'{{"outputs": [{pt}, {valid}]}}',
        f'{{"outputs": [{scalar}, {valid}]}}',
    ]
    for content in map(str.encode, bodies):
        server.failures = [(200, content)]
        with pytest.raises(ServerError):
            client.calibrate(jets(1))


def test_a_malformed_model_description_is_refused(server):
    server.pages[f"/v2/models/{NAME}"] = {"inputs": [{"name": "x", "datatype": "BYTES"}]}
    with pytest.raises(ServerError, match="'x' is BYTES"):
        Client(server.url, NAME).calibrate(jets(1))


@pytest.mark.parametrize("change", [{"inputs": []}, {"outputs": []}, {"outputs": [{"name": 5}]}])
def test_a_model_description_without_a_needed_part_is_refused(server, change):
    described = server.pages[f"/v2/models/{NAME}"]
    if change.get("outputs"):
        change = {"outputs": [{**described["outputs"][0], "name": 5}]}
    server.pages[f"/v2/models/{NAME}"] = {**described, **change}
    with pytest.raises(ServerError, match="has not the form"):
        Client(server.url, NAME).calibrate(jets(1))


def test_answers_have_the_shape_that_the_server_names(server):
    client = Client(server.url, NAME)
    client.calibrate(jets(1))
    pt = '{"name": "calibrated_pt", "datatype": "FP32", "shape": [2], "data": [1, 2]}'
    valid = '{"name": "valid", "datatype": "BOOL", "shape": [2, 1, 1], "data": [true, false]}'
    server.failures = [(200, f'{{"outputs": [{pt}, {valid}]}}'.encode())]
    answers = client.calibrate(jets(2))
    assert answers.tolist() == [
        {"calibrated_pt": 1.0, "valid": True},
        {"calibrated_pt": 2.0, "valid": False},
    ]


def test_a_slow_answer_ends_at_the_deadline():

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                try:
                    while True:
                        connection.sendall(b" ")
                        time.sleep(0.02)
                except OSError:
                    pass

        threading.Thread(target=drip, daemon=True).start()
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}", NAME, timeout=0.3)
        start = time.monotonic()
        with pytest.raises(Unreachable, match="did not answer within"):
            client.metadata()
        assert time.monotonic() - start < 3


def test_the_deadline_holds_for_all_requests_together(server):
    client = Client(server.url, NAME)
    client.calibrate(jets(1))
    with pytest.raises(Unreachable, match="did not answer within"):
        client.calibrate(jets(1), deadline=0)


def test_an_answer_that_breaks_off_is_an_error():
    import socketserver

    class Broken(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(65536)
            self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Broken) as broken_server:
        threading.Thread(
            target=broken_server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        with pytest.raises(Unreachable):
            Client(f"http://127.0.0.1:{broken_server.server_address[1]}", NAME).metadata()
        broken_server.shutdown()


def test_the_project_s_client_raises_the_project_s_errors(server):
    client = ClientOfTheProject(server.url, NAME)
    server.failures = [(503, b""), (500, b'{"error": "x"}'), (200, b"no json")]
    for _ in range(3):
        with pytest.raises(ClusterError):
            client.metadata()
    with pytest.raises(ClusterError):
        ClientOfTheProject("http://127.0.0.1:9", NAME).metadata()
    assert issubclass(InputError, JecError)
    np.testing.assert_allclose(
        client.calibrate(jets(9)).calibrated_pt, expected_pt(jets(9)), rtol=1e-6
    )


# ------------------------------------------------------------------------------------- secrets

SECRET = "s3cr3t-0f-th3-gat3way"


def test_a_token_of_a_file_is_sent_and_read_anew(server, tmp_path):
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    client = Client(server.url, NAME, token=file)
    client.metadata()
    file.write_text("another")
    client.metadata()
    authorizations = [headers["authorization"] for headers in server.headers]
    assert authorizations == [f"Bearer {SECRET}", "Bearer another"]
    file.unlink()
    with pytest.raises(InputError, match="token"):
        client.metadata()


def test_a_token_of_the_environment_is_sent(server, monkeypatch):
    monkeypatch.setenv("GATEWAY_TOKEN", SECRET)
    Client(server.url, NAME, token="$GATEWAY_TOKEN").metadata()
    assert server.headers[-1]["authorization"] == f"Bearer {SECRET}"
    with pytest.raises(InputError, match="GATEWAY_TOKEM"):
        Client(server.url, NAME, token="$GATEWAY_TOKEM")


NETSCAPE = f"""# Netscape HTTP Cookie File
127.0.0.1\tFALSE\t/\tFALSE\t0\tsession\t{SECRET}
127.0.0.1\tFALSE\t/\tFALSE\t9999999999\tother\t1
elsewhere.example\tFALSE\t/\tFALSE\t0\tforeign\t2
127.0.0.1\tFALSE\t/\tFALSE\t1000000000\told\t3
"""


@pytest.mark.parametrize("text", [NETSCAPE, f"session={SECRET}; other=1"], ids=["netscape", "line"])
def test_cookies_of_a_file_are_sent(server, tmp_path, text):
    file = tmp_path / "cookies.txt"
    file.write_text(text)
    Client(server.url, NAME, cookies=str(file)).metadata()
    assert sorted(server.headers[-1]["cookie"].split("; ")) == ["other=1", f"session={SECRET}"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "no cookie",
        "a\tb",
        NETSCAPE.replace("127.0.0.1", "elsewhere.example"),
        NETSCAPE.replace("\t0\t", "\t1000000000\t").replace("9999999999", "1000000000"),
    ],
    ids=["empty", "blank", "none", "another format", "another host", "expired"],
)
def test_an_invalid_cookie_file_is_refused(server, tmp_path, text):
    file = tmp_path / "cookies.txt"
    file.write_text(text)
    with pytest.raises(InputError, match="cookies") as error:
        Client(server.url, NAME, cookies=file).metadata()
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("option", ["token", "cookies"])
def test_a_secret_is_never_an_argument(server, option):
    with pytest.raises(InputError, match=f"{option}= takes the path of a file") as error:
        Client(server.url, NAME, **{option: SECRET})
    assert SECRET not in str(error.value)
    for header in ("Authorization", "cookie", "X-Auth-Token"):
        with pytest.raises(InputError, match=header) as error:
            Client(server.url, NAME, headers={header: SECRET})
        assert SECRET not in str(error.value)
    with pytest.raises(InputError, match=r"\?") as error:
        Client(f"http://127.0.0.1:1?token={SECRET}", NAME)
    assert SECRET not in str(error.value)
    with pytest.raises(InputError, match="login") as error:
        Client(f"http://me:{SECRET}@127.0.0.1:1", NAME)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("token", [f"{SECRET}\nX: y", f"{SECRET}\x00", f"{SECRET}ü"], ids=ascii)
def test_an_invalid_token_is_refused_and_not_quoted(server, tmp_path, token, caplog):
    (tmp_path / "token").write_text(token)
    with pytest.raises(InputError, match="token") as error:
        Client(server.url, NAME, token=tmp_path / "token").metadata()
    assert SECRET not in str(error.value)


def test_no_secret_is_printed_logged_or_pickled(server, tmp_path, caplog):
    (tmp_path / "token").write_text(SECRET)
    (tmp_path / "cookies").write_text(f"session={SECRET}")
    client = Client(server.url, NAME, token=tmp_path / "token", cookies=tmp_path / "cookies")
    client.calibrate(jets(2))
    server.failures = [(401, b"no"), (302, b""), (500, b'{"error": "x"}')]
    texts = [repr(client), str(vars(client)), repr(pickle.dumps(client))]
    for _ in range(3):
        with pytest.raises(JecError) as error:
            client.metadata()
        texts.append(str(error.value))
    texts.append(caplog.text)
    assert SECRET not in " ".join(texts)
    assert str(tmp_path / "token") in texts[3]


# ----------------------------------------------------------------------------- other processes


def _calibrate(client: Client, columns: ak.Array) -> list[float]:
    return client.calibrate(columns).calibrated_pt.to_list()


@pytest.mark.parametrize(
    "copy_of", [copy.deepcopy, lambda client: pickle.loads(pickle.dumps(client))]
)
def test_a_copy_of_a_client_gives_the_same_answers(server, tmp_path, copy_of):
    (tmp_path / "token").write_text(SECRET)
    client = ClientOfTheProject(server.url, NAME, timeout=7, token=tmp_path / "token")
    columns = jets(5)
    answers = _calibrate(client, columns)
    other = copy_of(client)
    assert type(other) is ClientOfTheProject
    assert other.timeout == 7
    assert _calibrate(other, columns) == answers
    assert server.headers[-1]["authorization"] == f"Bearer {SECRET}"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_does_not_use_the_connection_of_its_parent(server):
    client = Client(server.url, NAME)
    client.calibrate(jets(1))  # its connection is kept
    with multiprocessing.get_context("fork").Pool(2) as pool:
        samples = [jets(count) for count in range(1, 21)]
        parts = pool.starmap_async(
            _calibrate, [(client, sample) for sample in samples], chunksize=1
        )
        mine = [_calibrate(client, sample) for sample in samples]
        assert parts.get(timeout=60) == mine


def test_several_threads_share_a_client(server):
    client = Client(server.url, NAME)
    results: dict[int, list[float]] = {}

    def calibrate(count: int) -> None:
        results[count] = _calibrate(client, jets(count))

    threads = [threading.Thread(target=calibrate, args=(count,)) for count in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for count in range(1, 9):
        np.testing.assert_allclose(results[count], expected_pt(jets(count)), rtol=1e-6)


# --------------------------------------------------------------------------------- the package


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://[::1",
        "",
        "http://a b:80",
        "http://a..b:80",
        f"http://{'x' * 64}.example",
    ],
)
def test_an_invalid_address_is_refused(url):
    with pytest.raises(InputError, match="not the address of a server"):
        Client(url, NAME)


NO_SECONDS = [float("nan"), "soon", [1]]


@pytest.mark.parametrize("timeout", [*NO_SECONDS, None, 0, -1, float("inf"), 1e300])
def test_an_invalid_timeout_is_refused(timeout):
    with pytest.raises(InputError, match="timeout"):
        Client("http://host", NAME, timeout=timeout)


@pytest.mark.parametrize("deadline", NO_SECONDS)
def test_an_invalid_deadline_is_refused(server, deadline):
    with pytest.raises(InputError, match="deadline"):
        Client(server.url, NAME).calibrate(jets(1), deadline=deadline)
    assert not server.headers


def test_a_deadline_in_the_past_is_an_error(server):
    with pytest.raises(Unreachable, match="within the deadline"):
        Client(server.url, NAME).calibrate(jets(1), deadline=1e-9)


@pytest.mark.parametrize("headers", [{"X": "a\nb"}, {"X": "\u20ac"}, {"X y": "1"}, {"X\n": "1"}])
def test_invalid_headers_are_refused(headers):
    with pytest.raises(InputError, match="no header can be"):
        Client("http://host", NAME, headers=headers)


@pytest.mark.parametrize("name", ["", "\ud800"])
def test_an_invalid_model_name_is_refused(name):
    with pytest.raises(InputError, match="no name that can be sent"):
        Client("http://host", name)


def test_a_variable_without_a_name():
    with pytest.raises(InputError, match="names no variable"):
        Client("http://host", NAME, token="$")


def test_unreadable_certificates_are_refused(tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    for verify in (tmp_path / "missing.pem", tmp_path / "ca.pem"):
        with pytest.raises(InputError, match=verify.name):
            Client("https://host", NAME, verify=verify)


def test_the_client_needs_only_numpy_and_awkward():
    others = ["requests", "uproot", "pandas", "polars", "pyarrow", "grpc", "google", "kserve"]
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"jec_client"}
    code = (
        "import sys; sys.modules.update(dict.fromkeys(sys.argv[1:]));"  # their import fails
        "import jec_client; from jec_client.columns import column_of;"
        "print(column_of('x', [[1.0], []]).counts)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, *others, *rooms],
        cwd=PACKAGE,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert process.stdout == "[1 0]\n", process.stderr


@pytest.fixture
def tls(server, tmp_path):
    """The server behind TLS, and the file of its certificate authority."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    return server.url.replace("http:", "https:"), tmp_path / "ca.pem"


def test_a_certificate_is_checked_unless_verify_is_false(tls):
    url, authority = tls
    columns = jets(3)
    for verify in (authority, str(authority), False):
        client = pickle.loads(pickle.dumps(Client(url, NAME, verify=verify)))
        np.testing.assert_allclose(
            client.calibrate(columns).calibrated_pt, expected_pt(columns), rtol=1e-6
        )
    with pytest.raises(Unreachable, match=r"certificate of https\S+ .*verify="):
        Client(url, NAME).calibrate(columns)


def test_a_scheme_of_another_port_is_refused_with_the_one_to_try(server):
    with pytest.raises(Unreachable, match="write http://"):
        Client(server.url.replace("http:", "https:"), NAME).calibrate(jets(1))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def speak_http2() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\n")

        thread = threading.Thread(target=speak_http2)
        thread.start()
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}", NAME)
        with pytest.raises(Unreachable, match="write grpc://"):
            client.metadata()
        thread.join()


def test_columns_for_a_model_of_features_are_refused_with_the_model_of_columns(server):
    name = NAME.removesuffix("-raw")
    server.pages[f"/v2/models/{name}"] = {
        **METADATA,
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 3, 4]}],
    }
    server.pages[f"/v2/models/{name}/config"] = {"max_batch_size": MOST}
    with pytest.raises(InputError, match=f"the model {NAME} takes the columns of files"):
        Client(server.url, name).calibrate(jets(1))


@pytest.mark.parametrize("option", ["verify", "token", "cookies", "headers"])
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(5, id="int"),
        pytest.param(0.5, id="float"),
        pytest.param(b"x", id="bytes"),
        pytest.param(["x"], id="list"),
        pytest.param(object(), id="object"),
        pytest.param("", id="empty"),
        pytest.param("~no-such-user/x", id="no user"),
        pytest.param("a\0b", id="NUL"),
    ],
)
def test_an_invalid_option_is_refused_with_the_clients_own_message(option, value):
    if option == "headers" and not value:
        return  # no headers
    with pytest.raises(InputError, match=f"{option}="):
        Client("https://host", NAME, **{option: value})


def test_verify_none_is_refused():
    with pytest.raises(InputError, match=r"verify=.*None"):
        Client("https://host", NAME, verify=None)


@pytest.mark.parametrize("model", [None, 5, b"pfn", ""])
def test_a_model_name_that_is_no_text_is_refused(model):
    with pytest.raises(InputError):
        Client("https://host", model)
