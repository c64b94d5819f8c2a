"""Servers of several models start together. Here they are small web servers in the place of SGLang's."""

import asyncio
import sys
from contextlib import ExitStack
from dataclasses import replace

import pytest

from rlcore.cluster.placement import Placement, place
from rlcore.config.schema import Model, Recipe, Rollout
from rlcore.config.sglang_arguments import known_arguments
from rlcore.controller.serving import start_servers
from rlcore.controller.site import Site
from rlcore.layout.plan import layout_of
from rlcore.rollout.sglang.server import free_port
from rlcore.telemetry.log_files import LogFolder

# Says that it is healthy, whatever it is asked.
WEB = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


@pytest.fixture
def start(tmp_path):
    with ExitStack() as ends:

        def begin(*models):
            sglang = {"config": {"sglang": list(models)}, "router": False}
            recipe = Recipe(
                model=Model(checkpoint="some/model"),
                rollout=Rollout(engine="sglang", num_gpus=len(models), sglang=sglang),
            )
            site = Site(in_place_of_sglang(recipe))
            return site, asyncio.run(start_servers(recipe, site, LogFolder(tmp_path), ends))

        yield begin


def in_place_of_sglang(recipe):
    hosts = ["127.0.0.1"]
    planned = place(
        recipe, layout_of(recipe, [True]), known_arguments(), hosts=hosts, port=lambda _: free_port()
    )
    processes = [
        replace(one, command=(sys.executable, "-c", WEB, str(one.ports["http"])))
        for one in planned.of("server")
    ]
    return Placement(tuple(processes), planned.bundles, planned.strategy)


def test_weights_go_to_the_servers_of_the_policy_and_to_no_others(start, capsys):
    group = {"server_groups": [{"num_gpus": 1}]}
    judge, old = {"name": "judge", "model_path": "other", **group}, {"name": "old", "update_weights": False}
    site, policy = start(judge, {"name": "policy", **group}, {**old, **group})
    urls = {one.model: one.url for one in site.placement.processes}
    assert policy.urls == list(policy.servers) == [urls["policy"]]
    said = [f"model {model} is served at {urls[model]}" for model in ("judge", "old")]
    assert capsys.readouterr().out.splitlines() == said
