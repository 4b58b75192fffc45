"""Random requests made from the OpenAPI document of the service, and random forms with real
pictures: nothing but documented answers."""

from __future__ import annotations

import copy
import io
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("schemathesis")
pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

import schemathesis
from fastapi.testclient import TestClient
from schemathesis.specs.openapi.checks import positive_data_acceptance

from cascade_clip.config.service import ServiceOptions
from cascade_clip.inference.predictor import Predictor
from cascade_clip.serving.http.app import build_app
from cascade_clip.serving.http.service import Service

DOCUMENTED = {200, 400, 403, 408, 413, 422, 429, 503, 504}
PHASES = (Phase.explicit, Phase.generate)
LEAK = re.compile(r"Traceback|site-packages|\.py\b|/(usr|home|root|tmp)/")


@pytest.fixture(scope="module")
def service(predictor: Predictor) -> Any:
    options = ServiceOptions(max_upload=1, max_pixels=100_000, max_words=20)
    service = Service(lambda: copy.copy(predictor), options)
    service.start()
    assert service.failure is None
    yield service
    service.stop()


@pytest.fixture(scope="module")
def client(service: Service) -> TestClient:
    return TestClient(
        build_app(service), base_url="http://localhost", raise_server_exceptions=False
    )


@pytest.fixture(scope="module")
def operations(service: Service) -> dict[str, Any]:
    """By name, as the OpenAPI document of the service describes them."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", build_app(service, ["*"]))
    found = [result.ok() for result in schema.get_all_operations()]
    return {operation.label: operation for operation in found}


def check_case(case: Any) -> None:
    """All checks but one: that whatever fits the document is accepted, since it cannot say which
    bytes are a picture."""
    case.call_and_validate(excluded_checks=[positive_data_acceptance])


LABELS = ("POST /segment", "GET /health", "GET /metrics")


def test_every_operation_is_fuzzed(operations: dict[str, Any]) -> None:
    assert sorted(operations) == sorted(LABELS)


@pytest.mark.parametrize("label", LABELS)
@settings(
    max_examples=25,
    phases=PHASES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_requests_from_the_document(
    operations: dict[str, Any], label: str, data: st.DataObject
) -> None:
    check_case(data.draw(operations[label].as_strategy()))


@pytest.mark.slow
@pytest.mark.parametrize("label", LABELS)
@settings(max_examples=1500, phases=PHASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_many_requests_from_the_document(
    operations: dict[str, Any], label: str, data: st.DataObject
) -> None:
    check_case(data.draw(operations[label].as_strategy()))


def picture(mode: str, width: int, height: int, kind: str, cut: int) -> bytes:
    """A picture file, of which only the first `cut` bytes are left where that is fewer than it
    has."""
    values = np.random.default_rng(width).integers(0, 256, (height, width, 4), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).convert(mode).save(file, kind)
    return file.getvalue()[:cut]


PICTURES = st.one_of(
    st.binary(max_size=200),
    st.builds(
        picture, st.sampled_from(["RGB", "L", "1", "P"]), st.integers(1, 150), st.integers(1,
        150), st.sampled_from(["PNG", "GIF", "TIFF"]),
        st.one_of(st.just(10**9), st.integers(1, 4000)),
    ),
)  # fmt: skip
NUMBERS = st.one_of(
    st.floats(0, 1).map(str), st.text(max_size=5), st.sampled_from(["nan", "-inf", "1e999", ""])
)
WORDS = st.one_of(
    st.text(max_size=60),
    st.lists(st.text(max_size=8), max_size=25).map(",".join),
    st.sampled_from(["sky, sand", "a=b;c"]),
)
FORMS = st.fixed_dictionaries(
    {"classes": WORDS},
    optional={
        "background": WORDS,
        "threshold": NUMBERS,
        "calibration": NUMBERS,
        "format": st.sampled_from(["png", "overlay", "json", "coco", "x"]),
    },
)


def check_form(client: TestClient, service: Service, file: bytes, form: dict[str, str]) -> int:
    response = client.post("/segment", data=form, files={"image": ("a", file)})
    assert response.status_code in DOCUMENTED - {503, 504}, response.text
    if response.status_code == 200:
        wanted = (
            "image/png" if form.get("format", "png") in ("png", "overlay") else "application/json"
        )
        assert response.headers["content-type"] == wanted
    else:
        assert list(response.json()) == ["error"]
        assert "\n" not in response.json()["error"] and not LEAK.search(response.text)
    assert service.slots.used == 0
    return int(response.status_code)


def fuzz_forms(client: TestClient, service: Service, count: int, *, same: bool) -> set[int]:
    """Send random forms; returns the statuses that came back."""
    statuses = set()

    @settings(
        max_examples=count,
        phases=PHASES,
        deadline=None,
        derandomize=same,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @example(file=picture("RGB", 40, 30, "PNG", 10**9), form={"classes": "sky, sand"})  # 200
    @example(file=picture("RGB", 150, 1, "PNG", 10**9), form={"classes": "sky"})  # 413, too narrow
    @given(file=PICTURES, form=FORMS)
    def send(file: bytes, form: dict[str, str]) -> None:
        statuses.add(check_form(client, service, file, form))

    send()
    return statuses


def test_random_forms(client: TestClient, service: Service) -> None:
    assert fuzz_forms(client, service, 120, same=True) >= {200, 413, 422}


@pytest.mark.slow
def test_many_random_forms(client: TestClient, service: Service) -> None:
    assert fuzz_forms(client, service, 3000, same=False) >= {200, 413, 422}
