"""Tokens of an OpenID Connect provider. They are made with joserfc, another library than the one that checks them."""

from __future__ import annotations

import base64
import hmac
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from catalog.settings import Settings
from catalog.tenants.repository import Tenants
from tests.api.harness import assert_problem, serve


class Provider:
    """An issuer on loopback that counts how often it is asked for its keys."""

    def __init__(self):
        self.keys = [RSAKey.generate_key(2048, {"kid": "rsa"}), ECKey.generate_key("P-256", {"kid": "ec"})]
        self.asked = 0
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path == "/.well-known/openid-configuration":
                    answer = {"issuer": provider.issuer, "jwks_uri": f"{provider.issuer}/keys"}
                else:
                    provider.asked += 1
                    answer = {"keys": [key.as_dict(private=False) | {"use": "sig"} for key in provider.keys]}
                content = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def token(self, key=None, alg=None, header=(), without=(), **claims):
        key = key or self.keys[0]
        alg = alg or ("RS256" if isinstance(key, RSAKey) else "ES256")
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": ["levity", "other"],
            "sub": "repo:acme/models:main",
            "iat": now,
            "exp": now + 600,
            "tenant": "acme",
            "scope": "openid levity:read jobs",
            **claims,
        }
        for name in without:
            del claims[name]
        return jwt.encode({"alg": alg, "kid": key.kid, **dict(header)}, claims, key, algorithms=[alg])


@pytest.fixture(scope="module")
def provider():
    provider = Provider()
    yield provider
    provider.server.shutdown()
    provider.server.server_close()


@pytest.fixture(scope="module")
def service(provider, tmp_path_factory):
    settings = Settings(data_dir=tmp_path_factory.mktemp("oidc"), auth="keys", oidc_issuer=provider.issuer)
    with serve(settings) as service:
        with service.database.write() as session:
            Tenants(session).add("acme")
        yield service


def ask(service, token, path="/v1/jobs", method="GET", **request):
    return service.http.request(method, path, headers={"authorization": f"Bearer {token}"}, **request)


@pytest.mark.parametrize("number", [0, 1])
def test_a_token_opens_what_its_claims_say(service, provider, number):
    token = provider.token(provider.keys[number])
    assert ask(service, token).status_code == 200
    assert ask(service, token, "/v1/usage").json()["tenant"] == "acme"
    assert_problem(ask(service, token, "/v1/uploads", "POST", json={}), 403, "insufficient_scope")
    listed = provider.token(scope=["write", "metrics"])
    upload = ask(service, listed, "/v1/uploads", "POST", json={})
    assert upload.status_code == 201
    admin = provider.token(scope="admin")
    (entry,) = ask(service, admin, "/v1/audit", params={"subject": upload.json()["id"]}).json()["items"]
    assert entry["actor"] == "oidc:repo:acme/models:main"


def encoded(content):
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def wrong_tokens(provider):
    good = provider.token()
    head, body, signature = good.split(".")
    other = RSAKey.generate_key(2048, {"kid": "rsa"})
    now = int(time.time())
    yield "expired", provider.token(exp=now - 60)
    yield "not yet valid", provider.token(nbf=now + 600)
    yield "another audience", provider.token(aud="elsewhere")
    yield "another issuer", provider.token(iss="https://elsewhere.example")
    yield "no expiry", provider.token(without=["exp"])
    yield "no subject", provider.token(without=["sub"])
    yield "a subject that is no text", provider.token(sub="a\nb")
    yield "another's key under the same name", provider.token(other)
    yield "an unknown key", provider.token(RSAKey.generate_key(2048, {"kid": "unknown"}))
    yield "an unknown tenant", provider.token(tenant="nobody")
    yield "a tenant that is no text", provider.token(tenant={"acme": 1})
    yield "no tenant", provider.token(without=["tenant"])
    yield "a changed body", f"{head}.{body[:-4]}AAAA.{signature}"
    yield "no signature", f"{head}.{body}."
    yield "none as algorithm", encoded(b'{"alg":"none"}') + f".{body}."
    confused = encoded(b'{"alg":"HS256","kid":"rsa"}') + "." + body
    digest = hmac.digest(provider.keys[0].as_pem(private=False), confused.encode(), "sha256")
    yield "the public key as a shared secret", f"{confused}.{encoded(digest)}"
    yield "too long", good + "A" * 20_000
    yield "no token", "abc"


def test_what_is_no_good_token_opens_nothing(service, provider):
    for why, token in wrong_tokens(provider):
        answer = ask(service, token)
        assert answer.status_code == 401, why
        assert_problem(answer, 401, "unauthenticated")
        assert "invalid_token" in answer.headers["www-authenticate"]


def test_unknown_keys_do_not_make_us_ask_the_provider_again_and_again(service, provider):
    before = provider.asked
    for number in range(10):
        ask(service, provider.token(RSAKey.generate_key(2048, {"kid": f"unknown-{number}"})))
    assert provider.asked <= before + 1


def test_keys_work_beside_tokens(service):
    from catalog.keys.repository import Keys
    from catalog.keys.scopes import Scope
    from catalog.tenancy import Actor

    with service.database.acting(Actor("acme", "operator")).write() as session:
        _, text = Keys(session).add(name="", scopes={Scope.READ})
    assert ask(service, text).status_code == 200


def test_a_provider_that_is_away_is_said_so(tmp_path, provider):
    settings = Settings(data_dir=tmp_path, auth="keys", oidc_issuer="http://127.0.0.1:9")
    with serve(settings) as service:
        assert_problem(ask(service, provider.token()), 503, "identity_provider_away")


def test_an_issuer_without_tls_is_refused(tmp_path):
    from api.oidc import Tokens

    with pytest.raises(ValueError, match="https"):
        Tokens(Settings(data_dir=tmp_path, oidc_issuer="http://login.example"))
