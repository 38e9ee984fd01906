"""Which URLs webhooks may have, which addresses they may go to, and how their events are signed."""

from __future__ import annotations

import base64
import ipaddress
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook

from catalog.webhooks.addresses import Policy, UrlRefused, check, lane_of, parse, refusal
from catalog.webhooks.signatures import new_secret, secret_problem, signature_header

OPEN = Policy(allow_http=True, allowed_networks=(ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")))

PUBLIC = ["8.8.8.8", "93.184.215.14", "2606:4700::1111", "2a00:1450:4001::1"]
NOT_PUBLIC = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",  # shared by carriers
    "127.0.0.1",
    "127.8.9.10",
    "169.254.169.254",  # metadata of clouds
    "172.16.0.1",
    "192.0.2.1",  # documentation
    "192.88.99.1",  # 6to4 relays
    "192.168.1.1",
    "198.18.0.1",  # benchmarking
    "224.0.0.1",  # multicast
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",  # 127.0.0.1, the compatible form
    "::ffff:10.0.0.1",  # mapped
    "::ffff:8.8.8.8",
    "::ffff:0:7f00:1",  # translated (SIIT)
    "64:ff9b::7f00:1",  # NAT64
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "100::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",  # Teredo
    "2001:db8::1",
    "2002:7f00:1::",  # 6to4
    "2002:808:808::",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address):
    assert refusal(ipaddress.ip_address(address), ()) is None


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_other_addresses(address):
    assert "is not a public address" in refusal(ipaddress.ip_address(address), ())


def test_allowed_networks():
    allowed = (ipaddress.ip_network("10.20.0.0/16"), ipaddress.ip_network("fd00::/8"))
    assert refusal(ipaddress.ip_address("10.20.30.40"), allowed) is None
    assert refusal(ipaddress.ip_address("fd00::1"), allowed) is None
    for other in ("10.21.0.1", "127.0.0.1", "::ffff:10.20.30.40", "fe80::1"):
        assert refusal(ipaddress.ip_address(other), allowed) is not None


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f.0.0.1/",
        "https://0177.0.0.1/",
        "https://127。0。0。1/",
        "https://[::1]/",
        "https://[::ffff:169.254.169.254]/latest/meta-data",
        "https://localhost/",
        "https://LOCALHOST./",
        "https://api.localhost/",
        "https://printer.local/",
        "https://metadata.google.internal/",
        "http://example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "https://user:password@example.com/",
        "https://user@example.com/",
        "https://example.com/#fragment",
        "https://example.com:22/",
        "https://example.com:0/",
        "https://",
        "example.com/hook",
        "",
        "https://" + "a." * 150 + "com/",
        "https://example.com/" + "a" * 2000,
    ],
)
def test_urls_that_are_refused(url):
    with pytest.raises(UrlRefused):
        check(url, Policy())


def test_urls_that_are_taken():
    target = check("https://BÜCHER.example/a b?c=d\\e", Policy())
    assert (target.scheme, target.host, target.port) == ("https", "xn--bcher-kva.example", 443)
    assert (target.path, target.host_header) == ("/a%20b?c=d\\e", "xn--bcher-kva.example")
    target = check("http://[::1]:8080", OPEN)
    assert (target.host, target.path, target.host_header) == ("::1", "/", "[::1]:8080")
    assert lane_of(target.url) == "http://[::1]:8080"
    assert check("http://localhost:9000/x", OPEN).port == 9000
    assert parse(target.url) == target


def test_an_address_inside_a_path_or_query_is_no_host():
    assert check("https://example.com/@127.0.0.1/?u=http://10.0.0.1", Policy()).host == "example.com"
    assert check("https://example.com\\@127.0.0.1/", Policy()).host == "example.com"


def test_signatures_are_the_conventions_own():
    """The example of the Standard Webhooks specification, and its own library over a random secret."""
    example = signature_header(
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        message_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp=1614265330,
        body=b'{"test": 2432232314}',
    )
    assert example == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    secrets = [new_secret(), new_secret()]
    now = int(datetime.now(UTC).timestamp())
    body = '{"type":"job.queued","name":"ü"}'
    header = signature_header(secrets, message_id="dlv_1", timestamp=now, body=body.encode())
    assert len(header.split(" ")) == 2
    for secret in secrets:
        headers = {"webhook-id": "dlv_1", "webhook-timestamp": str(now), "webhook-signature": header}
        assert Webhook(secret).verify(body, headers)["name"] == "ü"


def test_secrets_of_callers():
    assert secret_problem(new_secret()) is None
    assert secret_problem("whsec_" + base64.b64encode(bytes(24)).decode()) is None
    for bad in ("", "whsec_", "whsec_abc", "whsec_" + "!" * 44, new_secret()[6:], new_secret() + "\n"):
        assert secret_problem(bad) is not None, bad
    for size in (23, 65):
        assert secret_problem("whsec_" + base64.b64encode(bytes(size)).decode()) is not None
