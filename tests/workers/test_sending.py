"""One attempt at a delivery, to a receiver on loopback or to none at all."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import socket
import ssl
import threading
import time

import pytest

from catalog.webhooks.addresses import Policy
from catalog.webhooks.deliveries import Claim
from catalog.webhooks.signatures import new_secret
from tests.receiver import Answer, Receiver, unused_port
from workers.sending import Sender

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
SECRET = new_secret()
PAYLOAD = json.dumps({"type": "job.queued", "data": {"job": {"name": "\u00fc"}}}, ensure_ascii=False)


def claim(url, *, secrets=(SECRET,)):
    return Claim("dlv_1", 1, "whk_1", url, secrets, PAYLOAD, time.time())


@pytest.fixture
def sender():
    return Sender(Policy(allow_http=True, allowed_networks=LOOPBACK), timeout_seconds=5)


@pytest.fixture
def strict():
    """As an operator gets it who sets nothing, but for http."""
    return Sender(Policy(allow_http=True), timeout_seconds=5)


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def resolve(monkeypatch):
    """Has names lead to given addresses, one answer after another; the names that were asked for."""
    asked = []

    def script(*answers):
        left = list(answers)

        def getaddrinfo(host, port, *_args, **_kwargs):
            if host.replace(".", "").isdigit() or ":" in host:
                return real(host, port, type=socket.SOCK_STREAM)
            asked.append(host)
            return [
                (family_of(address), socket.SOCK_STREAM, 6, "", (address, port, *((0, 0) if ":" in address else ())))
                for address in (left.pop(0) if len(left) > 1 else left[0])
            ]

        real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return asked

    return script


@pytest.fixture
def connections(monkeypatch):
    """Addresses that were connected to; none really is but loopback."""
    made = []
    real = socket.create_connection

    def create_connection(address, *args, **kwargs):
        made.append(address)
        if not ipaddress.ip_address(address[0]).is_loopback:
            raise ConnectionRefusedError(111, "refused")
        return real(address, *args, **kwargs)

    monkeypatch.setattr(socket, "create_connection", create_connection)
    return made


def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def test_what_a_receiver_gets(sender, receiver):
    outcome = sender.send(claim(receiver.url))
    assert (outcome.status, outcome.error_code) == (204, None)
    assert 0 < outcome.duration_seconds < 20
    (received,) = receiver.received
    assert received.path == "/hooks?team=vision"
    assert received.body.decode() == PAYLOAD
    assert received.verify(SECRET)["data"]["job"]["name"] == "ü"
    assert received.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert received.headers["content-type"] == "application/json"
    assert received.headers["user-agent"].startswith("Levity/")
    assert received.headers["webhook-id"] == "dlv_1"
    assert abs(int(received.headers["webhook-timestamp"]) - time.time()) < 60


def test_two_secrets_give_two_signatures(sender, receiver):
    old = new_secret()
    sender.send(claim(receiver.url, secrets=(SECRET, old)))
    assert receiver.received[0].verify(SECRET) == receiver.received[0].verify(old)


@pytest.mark.parametrize(
    ("status", "code"), [(400, "bad_status"), (410, "bad_status"), (500, "bad_status"), (304, "redirected")]
)
def test_other_answers_are_failures(sender, receiver, status, code):
    receiver.answer_with(Answer(status, b"" if status == 304 else b"because\0" + b"x" * 100_000))
    outcome = sender.send(claim(receiver.url))
    assert (outcome.status, outcome.error_code) == (status, code)
    assert str(status) in outcome.error_message
    assert outcome.response == ("" if status == 304 else "because\ufffd" + "x" * 2040)


def test_redirects_are_not_followed(sender, receiver, connections):
    location = "http://169.254.169.254/latest/meta-data"
    receiver.answer_with(Answer(307, headers={"location": location}))
    assert sender.send(claim(receiver.url)).error_code == "redirected"
    assert connections == [("127.0.0.1", receiver.port)]


def test_nobody_listens(sender):
    outcome = sender.send(claim(f"http://127.0.0.1:{unused_port()}/"))
    assert (outcome.error_code, outcome.status) == ("connection_failed", None)


@pytest.mark.parametrize("answer", [Answer(hang=True), Answer(drip=True)])
def test_slow_receivers_are_given_up(receiver, answer):
    """Also one that says something all the time: the timeout is of the whole attempt."""
    receiver.answer_with(answer)
    sender = Sender(Policy(allow_http=True, allowed_networks=LOOPBACK), timeout_seconds=0.3)
    outcome = sender.send(claim(receiver.url))
    assert outcome.error_code == "timeout"
    assert len(receiver.received) == 1


def test_what_is_no_http_at_all(sender):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk_smtp():
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"220 mail.example ESMTP\r\n")
                connection.recv(65536)

        thread = threading.Thread(target=talk_smtp)
        thread.start()
        outcome = sender.send(claim(f"http://127.0.0.1:{server.getsockname()[1]}/"))
        thread.join()
    assert outcome.error_code == "bad_response"


def test_a_name_that_leads_nowhere(sender, monkeypatch):
    def fail(*_args, **_kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    outcome = sender.send(claim("http://nobody.example/"))
    assert outcome.error_code == "name_not_resolved"
    assert "nobody.example" in outcome.error_message


def test_a_resolver_that_does_not_answer(monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: over.wait(10) and [])
    sender = Sender(Policy(allow_http=True), timeout_seconds=0.1)
    assert sender.send(claim("http://slow.example/")).error_code == "timeout"
    over.set()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{port}/", "http://[::1]:{port}/", "http://0x7f.1:{port}/", "http://localhost:{port}/"]
)
def test_local_urls_are_refused_at_once(strict, receiver, connections, url):
    assert strict.send(claim(url.format(port=receiver.port))).error_code == "url_refused"
    assert (connections, receiver.connections) == ([], 0)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "169.254.169.254", "10.0.0.1", "::ffff:127.0.0.1"])
def test_names_of_addresses_that_are_not_public(strict, receiver, resolve, connections, address):
    resolve([address])
    outcome = strict.send(claim(f"http://inside.example:{receiver.port}/"))
    assert outcome.error_code == "address_refused"
    assert "inside.example" in outcome.error_message
    assert (connections, receiver.connections) == ([], 0)


def test_one_address_that_is_not_public_spoils_a_name(strict, receiver, resolve, connections):
    resolve(["93.184.215.14", "127.0.0.1"])
    assert strict.send(claim(f"http://mixed.example:{receiver.port}/")).error_code == "address_refused"
    assert (connections, receiver.connections) == ([], 0)


def test_a_name_that_changes_its_mind(strict, receiver, resolve, connections):
    """Public when it is checked, loopback when asked again: it is asked once, and that answer is connected to."""
    asked = resolve(["93.184.215.14"], ["127.0.0.1"])
    url = f"http://rebinding.example:{receiver.port}/"
    assert strict.send(claim(url)).error_code == "connection_failed"
    assert asked == ["rebinding.example"]
    assert connections == [("93.184.215.14", receiver.port)]
    assert strict.send(claim(url)).error_code == "address_refused"
    assert asked == ["rebinding.example"] * 2
    assert (len(connections), receiver.connections) == (1, 0)


def test_the_next_address_is_tried(sender, receiver, resolve, connections):
    resolve(["93.184.215.14", "127.0.0.1"])
    assert sender.send(claim(f"http://two.example:{receiver.port}/")).status == 204
    assert connections == [("93.184.215.14", receiver.port), ("127.0.0.1", receiver.port)]
    assert receiver.received[0].headers["host"] == f"two.example:{receiver.port}"


def test_proxies_of_the_environment_are_not_used(sender, receiver, monkeypatch):
    with Receiver() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert sender.send(claim(receiver.url)).status == 204
        assert proxy.connections == 0


def test_http_needs_permission(receiver):
    sender = Sender(Policy(allowed_networks=LOOPBACK), timeout_seconds=5)
    outcome = sender.send(claim(receiver.url))
    assert (outcome.error_code, receiver.connections) == ("url_refused", 0)


def test_an_abort_ends_what_is_under_way(sender, receiver):
    receiver.answer_with(Answer(hang=True))
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(sender.send(claim(receiver.url))))
    thread.start()
    while not receiver.received:
        threading.Event().wait(0.01)
    sender.abort()
    thread.join(5)
    assert outcomes[0].error_code == "bad_response"
    assert sender.send(claim(receiver.url)).error_code == "connection_failed"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Files of a certificate for hooks.example, signed by itself, and its key."""
    x509 = pytest.importorskip("cryptography.x509", reason="cryptography is not installed")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hooks.example")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hooks.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder


def test_tls_is_verified_for_the_name_not_the_address(certificate, receiver, resolve, monkeypatch):
    resolve(["127.0.0.1"])
    names = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    receiver.use_tls(context)
    policy = Policy(allowed_networks=LOOPBACK)
    unknown = Sender(policy, timeout_seconds=5).send(claim(f"https://hooks.example:{receiver.port}/"))
    assert (unknown.error_code, receiver.received) == ("tls_failed", [])
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    trusting = Sender(policy, timeout_seconds=5)
    assert trusting.send(claim(f"https://hooks.example:{receiver.port}/")).status == 204
    other = trusting.send(claim(f"https://other.example:{receiver.port}/"))
    assert (other.error_code, len(receiver.received)) == ("tls_failed", 1)
    assert names == ["hooks.example", "hooks.example", "other.example"]
