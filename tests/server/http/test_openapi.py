"""The HTTP interface against its own description: whatever is sent, the answer fits; none is 500.

Requests are made up by schemathesis from the OpenAPI document, good ones and bad ones.
"""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import settings as tries
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from support.live_server import join, live

from letstalk_server.http import openapi
from letstalk_server.settings import Settings

SETTINGS = Settings(max_sessions=200, grace_s=0.2, connect_timeout_s=0.2, max_portraits=3)
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]


@schemathesis.serializer("application/sdp", "application/trickle-ice-sdpfrag")
def as_text(context, value):
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


schema = schemathesis.openapi.from_dict(openapi.document())


@pytest.fixture(scope="module")
def address():
    with live(SETTINGS) as (_, found):
        yield found


@schema.parametrize()
@tries(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_described(case, address):
    case.call_and_validate(base_url=f"http://{address}", checks=CHECKS)


async def test_afterwards_the_server_serves(address):
    client = await join(address)
    await client.hear("session.ready")
    await client.close()
    async with httpx.AsyncClient(base_url=f"http://{address}") as http:
        shown = (await http.get("/metrics")).text
    assert "letstalk_problems_total" in shown and 'code="internal"' not in shown


def test_every_route_is_described():
    from letstalk_server.http import queueing, rest, signaling

    described = set(openapi.document()["paths"])
    routes = [*rest.routes(), *queueing.routes(), *signaling.routes()]
    served = {route.path for route in routes}
    assert served - described == {"/openapi.json"}
    assert described <= served
