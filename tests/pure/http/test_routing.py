"""The match of a request to a route."""

import pytest

from engine.http.routes import ROUTES, SIMULATOR_ROUTES
from engine.http.routing import Router

ROUTER = Router((*ROUTES, *SIMULATOR_ROUTES))


@pytest.mark.parametrize("route", [*ROUTES, *SIMULATOR_ROUTES], ids=lambda route: route.name)
def test_every_route_is_found_at_its_own_path(route) -> None:
    path = route.template.replace(f"{{{route.variable}}}", "x1")
    bound, segment = ROUTER.find(route.method, path)
    assert bound is not None
    assert bound.route is route
    assert segment == ("x1" if route.variable else "")


@pytest.mark.parametrize(
    "path",
    ["", "/", "/v1", "/v1/", "/v1/payments/", "/v1/payments/x/", "/v1/payments/x/capture/",
     "/v1/payments//capture", "/v2/payments", "/V1/payments", "/v1/payments/x/captur",
     "/v1/payments/x/y/z", "//v1/payments", "*", "/livez/", "/metrics/x"],
)  # fmt: skip
def test_other_paths_are_not_there(path: str) -> None:
    assert ROUTER.find("GET", path) == (None, "")
    assert ROUTER.allowed(path) == ()


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/payments", ("GET", "HEAD")),
        ("/v1/payments/authorize", ("POST",)),
        ("/v1/payments/x", ("GET", "HEAD")),
        ("/v1/payments/x/capture", ("POST",)),
        ("/livez", ("GET", "HEAD")),
    ],
)
def test_the_methods_of_a_path_are_known(path: str, allowed: tuple[str, ...]) -> None:
    assert ROUTER.allowed(path) == allowed
    assert ROUTER.find("DELETE", path)[0] is None


def test_a_head_is_a_get() -> None:
    assert ROUTER.find("HEAD", "/v1/payments") == ROUTER.find("GET", "/v1/payments")


def test_only_senders_that_are_not_merchants_choose_the_type_of_a_body() -> None:
    assert ROUTER.takes_any_type("/v1/webhooks/simulator")
    assert not ROUTER.takes_any_type("/v1/payments/authorize")
    assert not ROUTER.takes_any_type("/nowhere")


def test_names_of_routes_are_unique() -> None:
    names = [route.name for route in (*ROUTES, *SIMULATOR_ROUTES)]
    assert len(names) == len(set(names))
